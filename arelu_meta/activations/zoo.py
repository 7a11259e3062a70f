"""Activations that neither torch.nn nor `timm.layers` has, or that torch's own class lacks a derivative or vmap for.

First the others that the AReLU paper compares. Where a paper has one parameter a channel or a neuron, one is shared by
the whole layer here, as in AReLU: a backbone builds its activations without saying how many channels they get.
`variant="authors"` builds what the AReLU authors ran, where that is not what the activation's own paper says.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.activations.arelu import ALPHA_INIT, BETA_INIT, elsa, shown
from arelu_meta.errors import InputError

Variant = Literal["paper", "authors"]
Device = torch.device | str | None


def check_variant(variant: str) -> None:
    """Raise InputError unless `variant` is "paper" or "authors"."""
    if variant not in ("paper", "authors"):
        raise InputError(f"activation variant: {variant!r} is not known; it is 'paper' or 'authors'")


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def learned(values: Sequence[float], device: Device, dtype: torch.dtype | None) -> nn.Parameter:
    """Make a parameter of shape (len(values),): FSDP rejects 0-d parameters."""
    return nn.Parameter(torch.tensor(values, device=device, dtype=dtype))


def widen(x: Tensor) -> Tensor:
    """Bring half precision to float32, so that a formula of several steps is rounded once, at its end."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class APL(nn.Module):
    """Adaptive piecewise linear unit: `relu(x) + sum_s a_s * relu(b_s - x)`.

    Parameters `a` and `b` have shape (hinges,). Initially a is uniform in [-0.2, 0.2] and b normal with standard
    deviation 0.5, as in the example that comes with the APL authors' layer.

    Args:
        hinges: how many hinges; 5 unless given, and 1 for the authors' variant.
        variant: "authors" initializes every hinge at a = 0.2, b = 0.5.
        device: where the parameters live.
        dtype: the parameters' dtype; the output keeps the input's.

    Raises:
        ValueError: if hinges is not at least 1.

    Source: Agostinelli et al. 2015, equation 1, with its parameters shared by a layer.
    """

    def __init__(
        self,
        hinges: int | None = None,
        variant: Variant = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_variant(variant)
        if hinges is None:
            hinges = 5 if variant == "paper" else 1
        check_count("hinges", hinges)
        self.a = learned([0.2] * hinges, device, dtype)
        self.b = learned([0.5] * hinges, device, dtype)
        if variant == "paper":
            nn.init.uniform_(self.a, -0.2, 0.2)
            nn.init.normal_(self.b, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's value, of x's shape and dtype."""
        wide = widen(x)
        y = F.relu(wide)
        for slope, hinge in zip(self.a.unbind(), self.b.unbind(), strict=True):
            y = y + slope * F.relu(hinge - wide)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the number of hinges."""
        return f"hinges={self.a.numel()}"


class Maxout(nn.Module):
    """The largest of each group of neighbouring channels, given to every channel of the group.

    The paper's unit returns one value a group and so has fewer outputs than inputs. An activation here keeps its
    input's shape, so each member of a group carries the group's maximum; a number of channels that is no multiple of
    the pool leaves a smaller last group, and one channel, or a 0-d input, is left as it is. It has no parameters.

    Args:
        pool: channels a group; 2 unless given, and 1, the identity, for the authors' variant.
        dim: where the channels are: 1, as in `nn.PReLU`, or the only dimension of a 1-d input.
        variant: "authors" only changes the default pool.

    Raises:
        ValueError: if pool is not at least 1.

    Source: Goodfellow et al. 2013, section 3.
    """

    def __init__(self, pool: int | None = None, dim: int = 1, variant: Variant = "paper") -> None:
        super().__init__()
        check_variant(variant)
        if pool is None:
            pool = 2 if variant == "paper" else 1
        check_count("pool", pool)
        self.pool = pool
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return each channel's group maximum, of x's shape and dtype; a tie shares its gradient evenly."""
        if self.pool == 1 or x.ndim == 0:
            return x
        dim = 0 if x.ndim == 1 else self.dim
        channels = x.shape[dim]
        padded = F.pad(x.movedim(dim, -1), (0, -channels % self.pool), value=-math.inf)
        groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // self.pool, self.pool)
        largest = groups.amax(-1, keepdim=True).expand_as(groups).flatten(-2)
        return largest[..., :channels].movedim(-1, dim)

    def extra_repr(self) -> str:
        """Show the pool and the channel dimension."""
        return f"pool={self.pool}, dim={self.dim}"


class Mixture(nn.Module):
    """A learned mixture of simpler functions whose weights add up to one.

    "paper": `w_0 * x + w_1 * tanh(x) + (1 - w_0 - w_1) * relu(x)`, parameter `p` = (w_0, w_1), initially (1/3, 1/3).
    It is the paper's affine combination over all three of its base functions; the equal weights are those in the code
    that Molina et al. 2020 compare with (the paper's own could not be checked here).
    "authors": `p * x + (1 - p) * relu(x)`, parameter `p` of shape (1,), initially 0, so ReLU.

    Args:
        variant: which of the two.
        device: where the parameter lives.
        dtype: the parameter's dtype; the output keeps the input's.

    Source: Manessi and Rozza 2018, section III.
    """

    def __init__(self, variant: Variant = "paper", device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_variant(variant)
        self.p = learned([1 / 3, 1 / 3] if variant == "paper" else [0.0], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture, of x's shape and dtype."""
        wide = widen(x)
        weights = self.p.unbind()
        y = weights[0] * wide
        if len(weights) == 2:
            y = y + weights[1] * torch.tanh(wide)
        return (y + (1 - sum(weights)) * F.relu(wide)).to(x.dtype)

    def extra_repr(self) -> str:
        """Show what is mixed."""
        return "identity, relu" if self.p.numel() == 1 else "identity, tanh, relu"


class SLAF(nn.Module):
    """Self-learnable activation: a polynomial `sum_k coefficients[k] * x**k`.

    "paper": five terms (degree 4) initialized at the identity, (0, 1, 0, 0, 0). That is the centre of what the
    SLAF authors' code draws; its random part, and the batch normalisation of every power that keeps it from blowing
    up there, are left out: they are not element-wise.
    "authors": two terms, both coefficients 1, so `1 + x`.

    Args:
        terms: how many coefficients; 5 unless given, and 2 for the authors' variant.
        variant: which initialization: the identity, or all ones.
        device: where the coefficients live.
        dtype: the coefficients' dtype; the output keeps the input's.

    Raises:
        ValueError: if terms is not at least 1.

    Source: Goyal, Goyal and Lall 2019, the Taylor basis.
    """

    def __init__(
        self,
        terms: int | None = None,
        variant: Variant = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_variant(variant)
        if terms is None:
            terms = 5 if variant == "paper" else 2
        check_count("terms", terms)
        initial = [float(k == 1) for k in range(terms)] if variant == "paper" else [1.0] * terms
        self.coefficients = learned(initial, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the polynomial's value, of x's shape and dtype."""
        return horner(widen(x), self.coefficients.unbind()).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the number of terms."""
        return f"terms={self.coefficients.numel()}"


def horner(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """Evaluate `sum_k coefficients[k] * x**k`, each coefficient a 0-d tensor; x's shape."""
    y = coefficients[-1].expand(x.shape)
    for coefficient in reversed(coefficients[:-1]):
        y = y * x + coefficient
    return y


class _Coefficients(NamedTuple):
    numerator: tuple[float, ...]
    """a_0 to a_5."""
    denominator: tuple[float, ...]
    """b_1 to b_4; the constant term is 1."""


_INITIAL: dict[str, _Coefficients] = {
    # The paper's table 6, leaky ReLU with slope 0.01 (read from an independent re-implementation that cites it).
    "paper": _Coefficients(
        (0.02979246, 0.61837738, 2.32335207, 3.05202660, 1.48548002, 0.25103717),
        (1.14201226, 4.39322834, 0.87154450, 0.34720652),
    ),
    # `pade_optimized_leakyrelu` in the PAU authors' first release, which the AReLU authors ran.
    "authors": _Coefficients(
        (3.35583603e-02, 5.05000375e-01, 1.65343934e00, 2.01001052e00, 9.31901999e-01, 1.52424124e-01),
        (3.30847488e-06, 3.98021568e00, 5.12471206e-07, 3.01830109e-01),
    ),
}


class PAU(nn.Module):
    """A rational function of degree 5 over 4 whose denominator is at least 1, so that it has no poles.

    "paper": `sum_j a_j x^j / (1 + |sum_k b_k x^k|)`, the paper's safe form.
    "authors": `sum_j a_j x^j / (1 + sum_k |b_k x^k|)`, the form in the PAU authors' CUDA code, which the AReLU authors
    ran with that code's coefficients.

    Both begin near leaky ReLU with slope 0.01: on [-3, 3] the largest distance to it is 0.066 ("paper") and 0.034
    ("authors"). Parameters: `numerator` of shape (6,), a_0 first, and `denominator` of shape (4,), b_1 first, shared by
    the layer. Half precision is computed in float32, where x**5 overflows between |x| = 6e7 and 1e8.

    Args:
        variant: which of the two forms and initializations.
        device: where the coefficients live.
        dtype: their dtype; the output keeps the input's.

    Source: Molina et al. 2020, section 3 (safe PAU) and table 6.
    """

    def __init__(self, variant: Variant = "paper", device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_variant(variant)
        self.variant = variant
        self.numerator = learned(_INITIAL[variant].numerator, device, dtype)
        self.denominator = learned(_INITIAL[variant].denominator, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        above = horner(wide, self.numerator.unbind())
        if self.variant == "paper":
            below = 1 + (wide * horner(wide, self.denominator.unbind())).abs()
        else:
            size = wide.abs()
            below = 1 + size * horner(size, self.denominator.abs().unbind())
        return (above / below).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the variant."""
        return f"variant={self.variant!r}"


class Swish(nn.Module):
    """`x * sigmoid(beta * x)` with a learned `beta` of shape (1,).

    Args:
        beta: its initial value; at 1 the function is SiLU.
        variant: "authors" keeps beta fixed: no parameter.
        device: where beta lives.
        dtype: beta's dtype; the output keeps the input's.

    Source: Ramachandran, Zoph and Le 2017, section 4, the trainable form.
    """

    beta: nn.Parameter | float

    def __init__(
        self,
        beta: float = 1.0,
        variant: Variant = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_variant(variant)
        self.beta = learned([float(beta)], device, dtype) if variant == "paper" else float(beta)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        beta = self.beta.reshape(()) if isinstance(self.beta, Tensor) else self.beta
        return (wide * torch.sigmoid(beta * wide)).to(x.dtype)


class ELSA(nn.Module):
    """The AReLU paper's attention added to any activation: `base(x) + elsa(x)`. Over ReLU it is AReLU.

    Args:
        base: the activation; its own parameters, if any, go on learning.
        alpha: initial slope of the negative side, clamped to [0.01, 0.99] where it is used.
        beta: initial logit of the positive side, whose slope is `sigmoid(beta)`.
        variant: "authors" multiplies by the raw alpha and beta, neither clamped nor squashed.
        device: where alpha and beta live, each of shape (1,).
        dtype: their dtype; the output keeps the input's.

    Raises:
        ValueError: if the base works in place: it would overwrite the input that the attention still needs.

    Source: Chen, Li and Xu 2020, equations 1 to 3.
    """

    def __init__(
        self,
        base: nn.Module,
        alpha: float = ALPHA_INIT,
        beta: float = BETA_INIT,
        variant: Variant = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_variant(variant)
        if getattr(base, "inplace", False):
            raise ValueError(f"base {base} works in place and would overwrite the input; give one with inplace=False")
        self.base = base
        self.variant = variant
        self.alpha = learned([float(alpha)], device, dtype)
        self.beta = learned([float(beta)], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return `base(x) + elsa(x)`, of x's shape and dtype."""
        activated: Tensor = self.base(x)
        if self.variant == "paper":
            return activated + elsa(x, self.alpha, self.beta)
        wide = widen(x)
        attention = torch.where(wide > 0, self.beta.reshape(()), self.alpha.reshape(())) * wide
        return activated + attention.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the scalars as they are now, and the variant."""
        return f"{shown(self.alpha, self.beta)}, variant={self.variant!r}"


class AuthorsGELU(nn.Module):
    """The tanh form of GELU as the AReLU authors typed it, with 0.7979946 for sqrt(2 / pi) = 0.7978846.

    Source: `activations/gelu.py` in the AReLU authors' repository.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        return (0.5 * wide * (1 + torch.tanh(0.7979946 * (wide + 0.044715 * wide**3)))).to(x.dtype)


# What people use now


class SquaredReLU(nn.Module):
    """`relu(x) ** 2`, without parameters.

    Source: So et al. 2021 (Primer).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        return F.relu(x).square()


class StarReLU(nn.Module):
    """`scale * relu(x) ** 2 + bias`, both learned and of shape (1,).

    Args:
        scale: its initial value; with the default pair a standard normal input gives mean 0 and variance 1.
        bias: its initial value.
        device: where they live.
        dtype: their dtype; the output keeps the input's.

    Source: Yu et al. 2022 (MetaFormer baselines), which rounds the pair to 0.8944 and -0.4472.
    """

    def __init__(
        self,
        scale: float = 2 / math.sqrt(5),
        bias: float = -1 / math.sqrt(5),
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = learned([float(scale)], device, dtype)
        self.bias = learned([float(bias)], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        squared = F.relu(widen(x)).square()
        return (self.scale.reshape(()) * squared + self.bias.reshape(())).to(x.dtype)


class AconC(nn.Module):
    """`(p1 - p2) * x * sigmoid(beta * (p1 - p2) * x) + p2 * x`, all three learned and of shape (1,).

    The paper has one triple a channel, and its code draws p1 and p2 from N(0, 1). One draw for a whole layer would
    leave the layer's very sign to chance, so the shared triple is initially p1 = 1, p2 = 0, beta = 1: the paper's
    ACON-A, which is SiLU.

    Args:
        p1: initial slope of one linear branch.
        p2: initial slope of the other.
        beta: initial switch between their maximum (large) and their mean (0).
        device: where they live.
        dtype: their dtype; the output keeps the input's.

    Source: Ma et al. 2021 (Activate or Not), ACON-C.
    """

    def __init__(
        self,
        p1: float = 1.0,
        p2: float = 0.0,
        beta: float = 1.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.p1 = learned([float(p1)], device, dtype)
        self.p2 = learned([float(p2)], device, dtype)
        self.beta = learned([float(beta)], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        p1, p2, beta = self.p1.reshape(()), self.p2.reshape(()), self.beta.reshape(())
        difference = (p1 - p2) * wide
        return (difference * torch.sigmoid(beta * difference) + p2 * wide).to(x.dtype)


# Subclasses of torch.nn's where its own lack a second derivative or vmap (2.15); what looks for those finds these.


class Hardsigmoid(nn.Hardsigmoid):
    """`relu6(x + 3) / 6`, twice differentiable: torch has no derivative of its own kernel's backward.

    `inplace` is taken and has no effect.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the function's value, of the input's shape and dtype."""
        return (F.relu6(widen(input) + 3) / 6).to(input.dtype)


class RReLU(nn.RReLU):
    """Randomised leaky ReLU that also runs under `torch.func.vmap` and in half precision on a CPU.

    In training each negative input gets a slope drawn uniformly from [lower, upper], under vmap as its `randomness`
    says; in evaluation all get the mean slope. `inplace` is honoured in evaluation.

    Source: Xu et al. 2015, section 2.4.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the function's value, of the input's shape and dtype."""
        if not self.training:
            return F.leaky_relu(input, (self.lower + self.upper) / 2, self.inplace)
        slopes = self.lower + (self.upper - self.lower) * torch.rand_like(input)
        return torch.where(input >= 0, input, slopes * input)
