"""AReLU, the attention that it adds to ReLU, and the gated residual that keeps a pretrained function.

Source: Chen, Li and Xu, "AReLU: Attention-based Rectified Linear Unit", 2020, section 3.
"""

import math
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # public, but not in its __all__

from arelu_meta.activations import kernels
from arelu_meta.activations.kernels_torch import ALPHA_MAX, ALPHA_MIN
from arelu_meta.errors import InputError
from arelu_meta.errors import shown as said
from arelu_meta.validation import checked

__all__ = ["ALPHA_INIT", "ALPHA_MAX", "ALPHA_MIN", "BETA_INIT", "AReLU", "GatedAReLU", "arelu", "elsa", "gated_arelu"]

ALPHA_INIT, BETA_INIT = 0.9, 2.0


def _check(x: Tensor) -> None:
    if not hasattr(x, "is_floating_point"):
        raise InputError(f"x: {said(x)} is not allowed; give a tensor")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if x.is_nested and x.layout == torch.strided:
        raise TypeError("x: a nested tensor of layout torch.strided has no shape; give one of layout torch.jagged")


_NO_SCALARS: Any = (str, bytes, list, tuple, dict, set, type(None))


def _scalar(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """Make `value` a tensor, after a look at its size."""
    if isinstance(value, _NO_SCALARS):
        raise InputError(f"{name}: {said(value)} is not allowed; give a number or a tensor of one element")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name}: expected one element, got shape {tuple(value.shape)}; AReLU has one {name} a layer")
    return value if isinstance(value, Tensor) else _without_dimensions(value, like)


# What follows is compiled by torch.jit.script, too, which drops what stands under `not is_scripting()`.


def _without_dimensions(value: Tensor | float, like: Tensor) -> Tensor:
    """Make `value` a 0-d tensor, which broadcasts against any shape, 0-d included."""
    if isinstance(value, Tensor):
        return value.reshape(())
    return torch.full((), value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


# The bounds are arguments since torch.jit reads no float from a module's globals.
def _formula(
    x: Tensor,
    alpha: Tensor | float,
    beta: Tensor | float,
    added: float,
    low: float = ALPHA_MIN,
    high: float = ALPHA_MAX,
) -> Tensor:
    """The paper's formula in torch's own operators, in float32 at least; `added` is 1 for AReLU and 0 for ELSA."""
    negative = _without_dimensions(alpha, x)
    # `Tensor.clamp` blocks the gradient at its bounds from torch 2.14 on: an alpha that lies on one would be stuck.
    negative = torch.where((negative < low) | (negative > high), negative.detach().clamp(low, high), negative)
    positive = added + torch.sigmoid(_without_dimensions(beta, x))
    # One product per element: a sum of two branches would give 0 * inf = nan on the branch not taken.
    return torch.where(x >= 0, positive, negative) * x


def arelu(x: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """Attention-based rectified linear unit.

    `y = (1 + sigmoid(beta)) * x` where `x >= 0`, and `clamp(alpha, 0.01, 0.99) * x` where `x < 0`.

    Args:
        x: any shape, any floating dtype, any device.
        alpha: one element; the slope on the negative side. Its gradient is 0 outside [0.01, 0.99] and passes on the
            bounds, and so in every order.
        beta: one element; the positive side's slope is `1 + sigmoid(beta)`.

    Returns:
        Shape and dtype of x. Half-precision inputs are multiplied in the scalars' own precision and rounded once.
        In eager mode one operator computes it, which keeps its output and nothing else (`kernels.applies` says where).
        Derivatives are the formula's to any order. A nan counts as negative: alpha's gradient is nan then, beta's not.
        A finite x whose product overflows or underflows has the formula's gradients on a CPU; on CUDA and in place,
        where x is read off the output, it counts there as infinite, or loses the digits that its product lost.

    Raises:
        TypeError: if x is not floating-point.
        ValueError: if alpha or beta has more than one element.

    Example:
        >>> import torch
        >>> from arelu_meta import arelu
        >>> arelu(torch.tensor([-2.0, 2.0]), 0.5, 0.0).tolist()
        [-1.0, 3.0]

    Source: Chen et al. 2020, equations 3 to 5.
    """
    return _arelu(x, alpha, beta, False)


# Of the functions so marked, torch.fx puts the call into its graph and does not look inside: there the inputs are
# tensors again, and the operator may be used.
@torch.fx.wrap
def _arelu(x: Tensor, alpha: Tensor | float, beta: Tensor | float, inplace: bool) -> Tensor:
    if not is_scripting():
        _check(x)
        alpha, beta = _scalar("alpha", alpha, x), _scalar("beta", beta, x)
        if kernels.applies(x, alpha, beta):
            return kernels.arelu(x, alpha, beta, inplace)
    if inplace:  # the formula's backward needs its input as it was
        return x.copy_(_formula(x.clone(), alpha, beta, 1.0))
    return _formula(x, alpha, beta, 1.0).to(x.dtype)


def elsa(x: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """Element-wise sign-based attention: what AReLU adds to ReLU.

    `y = sigmoid(beta) * x` where `x >= 0`, and `clamp(alpha, 0.01, 0.99) * x` where `x < 0`.

    Args:
        x: any shape, any floating dtype, any device.
        alpha: one element. Its gradient is 0 outside [0.01, 0.99].
        beta: one element.

    Returns:
        Shape and dtype of x.

    Raises:
        TypeError: if x is not floating-point.
        ValueError: if alpha or beta has more than one element.

    Source: Chen et al. 2020, equations 1 and 2.
    """
    return _elsa(x, alpha, beta)


@torch.fx.wrap
def _elsa(x: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    if not is_scripting():
        _check(x)
        alpha, beta = _scalar("alpha", alpha, x), _scalar("beta", beta, x)
    return _formula(x, alpha, beta, 0.0).to(x.dtype)


def gated_arelu(x: Tensor, activated: Tensor, alpha: Tensor | float, beta: Tensor | float, t: Tensor | float) -> Tensor:
    """Add gated attention to another activation's output: `activated + t * elsa(x)`.

    At `t = 0` this is `activated`, exactly; at `t = 1` over ReLU it is AReLU.

    Args:
        x: the activation's input; any shape, any floating dtype.
        activated: `act(x)`, of x's shape and dtype.
        alpha: one element. It has no gradient while `t = 0`.
        beta: one element. It has no gradient while `t = 0`.
        t: one element; the gate.

    Returns:
        Shape and dtype of x. In eager mode one operator adds the attention, which keeps x and nothing else.

    Raises:
        TypeError: if x is not floating-point.
        ValueError: if alpha, beta or t has more than one element.

    Source: the residual reading of Chen et al. 2020, equation 3; the gate is this project's.
    """
    return _gated(x, activated, alpha, beta, t)


@torch.fx.wrap
def _gated(x: Tensor, activated: Tensor, alpha: Tensor | float, beta: Tensor | float, t: Tensor | float) -> Tensor:
    if not is_scripting():
        _check(x)
        alpha, beta, t = _scalar("alpha", alpha, x), _scalar("beta", beta, x), _scalar("t", t, x)
        if kernels.applies(x, alpha, beta, t) and (activated.shape, activated.dtype) == (x.shape, x.dtype):
            return kernels.gated_arelu("given", x, activated, alpha, beta, t)
    return (activated + _without_dimensions(t, x) * _formula(x, alpha, beta, 0.0)).to(x.dtype)


def _parameter(value: float, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Parameter:
    # Shape (1,), not (): the authors' checkpoints have it, and FSDP rejects 0-d parameters.
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"dtype: {dtype} is not allowed; give a floating one, such as torch.float32")
    try:
        return nn.Parameter(torch.full((1,), float(value), device=device, dtype=dtype))
    except (RuntimeError, AssertionError) as error:  # torch builds without CUDA assert
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"device: {str(device)!r} cannot be used ({reason}); give cpu or one that is there") from error


def _reset(module: "AReLU | GatedAReLU") -> None:
    """Set the scalars to what the layer was made with; the paper's for a pickled one of before."""
    paper = {"alpha": ALPHA_INIT, "beta": BETA_INIT, "t": 0.0}
    for name, value in {**paper, **vars(module).get("_made_with", {})}.items():
        if name in module._parameters:
            nn.init.constant_(module.get_parameter(name), value)


def shown(alpha: Tensor, beta: Tensor, t: Tensor | None = None) -> str:
    """Name the scalars with their values to four digits; "..." where there is none to read: on meta, or sharded."""
    scalars = {"alpha": alpha, "beta": beta} | ({} if t is None else {"t": t})
    return ", ".join(
        f"{name}={float(f'{value.item():.4g}')}" if type(value) is nn.Parameter and not value.is_meta else f"{name}=..."
        for name, value in scalars.items()
    )


class AReLU(nn.Module):
    """AReLU as a layer with two learnable scalars, `alpha` and `beta`, each of shape (1,).

    Args:
        alpha: initial slope of the negative side, clamped to [0.01, 0.99] where it is used.
        beta: initial logit of the positive side, whose slope is `1 + sigmoid(beta)`.
        inplace: whether to overwrite the input, as `nn.ReLU` does and within the same limits.
        device: where the parameters live.
        dtype: the parameters' dtype; the output keeps the input's.

    Example:
        >>> import torch
        >>> from arelu_meta import AReLU
        >>> act = AReLU(alpha=0.5, beta=0.0)
        >>> act(torch.tensor([-2.0, 2.0])).tolist()
        [-1.0, 3.0]
        >>> act
        AReLU(alpha=0.5, beta=0.0)

    Source: Chen et al. 2020; the defaults are the paper's.
    """

    alpha: nn.Parameter
    beta: nn.Parameter
    inplace: bool = False  # of the class, too: a pickled layer of the paper's authors has none of its own

    @checked
    def __init__(
        self,
        alpha: float = ALPHA_INIT,
        beta: float = BETA_INIT,
        inplace: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.register_parameter("alpha", _parameter(alpha, device, dtype))
        self.register_parameter("beta", _parameter(beta, device, dtype))
        self.inplace = inplace
        self._made_with = {"alpha": float(alpha), "beta": float(beta)}

    def reset_parameters(self) -> None:
        """Set the scalars to what the layer was made with, as where weights are made after the model (device meta)."""
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return `arelu(x, alpha, beta)`, of x's shape and dtype."""
        return _arelu(x, self.alpha, self.beta, self.inplace)

    def extra_repr(self) -> str:
        """Show the scalars as they are now."""
        return shown(self.alpha, self.beta) + (", inplace=True" if self.inplace else "")


class GatedAReLU(nn.Module):
    """Another activation plus gated attention, `base(x) + t * elsa(x)`: what `init="preserve"` swaps in.

    Initialized at `t = 0` it is the base to the last bit, whatever the base, so a pretrained network keeps every logit.

    Args:
        base: the activation to start from. It is used as it is; its own parameters, if any, go on learning.
        alpha: initial slope of the attention's negative side.
        beta: initial logit of the attention's positive side.
        t: initial gate.
        device: where the scalars live.
        dtype: the scalars' dtype; the output keeps the input's.

    Raises:
        ValueError: if the base works in place: it would overwrite the input that the attention still needs.

    Example:
        >>> import torch
        >>> from arelu_meta import GatedAReLU
        >>> act = GatedAReLU(torch.nn.GELU())
        >>> x = torch.randn(4)
        >>> torch.equal(act(x), torch.nn.functional.gelu(x))
        True
    """

    alpha: nn.Parameter
    beta: nn.Parameter
    t: nn.Parameter

    @checked
    def __init__(
        self,
        base: nn.Module,
        alpha: float = ALPHA_INIT,
        beta: float = BETA_INIT,
        t: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # Most bases have no parts; to walk through them all the same is a good part of a swap.
        parts = base.modules() if base._modules else (base,)
        if any(getattr(module, "inplace", False) for module in parts):
            raise ValueError(f"base: {base} works in place and would overwrite the input; give one with inplace=False")
        self.base = base
        self.register_parameter("alpha", _parameter(alpha, device, dtype))
        self.register_parameter("beta", _parameter(beta, device, dtype))
        self.register_parameter("t", _parameter(t, device, dtype))
        self._made_with = {"alpha": float(alpha), "beta": float(beta), "t": float(t)}

    def reset_parameters(self) -> None:
        """Set the scalars to what the layer was made with; the base is left as it is."""
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return `base(x) + t * elsa(x)`, of x's shape and dtype."""
        if is_scripting():
            return _gated(x, self.base(x), self.alpha, self.beta, self.t)
        return self._eager(x)

    def extra_repr(self) -> str:
        """Show the scalars as they are now; a gate that reads `t=0.0` is shut."""
        return shown(self.alpha, self.beta, self.t)

    def fold(self) -> AReLU:
        """Write a trained gated residual over ReLU, or over a leaky one, as a plain AReLU.

        `relu(x) + t * elsa(x)` has the slopes `1 + t * sigmoid(beta)` and `t * alpha`: an AReLU's, where
        `0 < t * sigmoid(beta) < 1` and `0.01 <= t * alpha <= 0.99`.

        Returns:
            The same function to rounding; this module is left as it is.

        Raises:
            ValueError: if no AReLU has these slopes, or the base has more than two.
        """
        if type(self.base) is nn.ReLU:
            slope = 0.0
        elif type(self.base) is nn.LeakyReLU:
            slope = float(self.base.negative_slope)
        else:
            raise ValueError(
                f"base: {self.base} has other pieces than AReLU's two; only over ReLU can a gate be folded"
            )
        gate, logit = self.t.detach().double(), self.beta.detach().double()
        attention = (gate * torch.sigmoid(logit)).item()
        alpha = slope + (gate * self.alpha.detach().double().clamp(ALPHA_MIN, ALPHA_MAX)).item()
        # Rounded to the scalars' dtype, alpha may not leave its range either: AReLU would clamp it silently.
        if not (0 < attention < 1 and ALPHA_MIN - 1e-9 <= alpha <= ALPHA_MAX + 1e-9):
            raise ValueError(
                f"t: {gate.item():.3g} gives the slopes {1 + attention:.3g} and {alpha:.3g}, and an AReLU's lie "
                f"between 1 and 2 and from {ALPHA_MIN} to {ALPHA_MAX}"
            )
        beta = math.log(attention) - math.log1p(-attention)
        folded = AReLU(alpha=alpha, beta=beta, device=self.alpha.device, dtype=self.alpha.dtype)
        return folded.train(self.training)

    def _eager(self, x: Tensor) -> Tensor:
        kernel = kernels.kernel_of(self.base)
        # What torch.fx traces with is no tensor.
        fused = kernel != "given" and isinstance(x, Tensor) and x.is_floating_point() and not x.is_nested
        if fused and kernels.applies(x, self.alpha, self.beta, self.t):
            return kernels.gated_arelu(kernel, x, None, self.alpha, self.beta, self.t)
        return gated_arelu(x, self.base(x), self.alpha, self.beta, self.t)
