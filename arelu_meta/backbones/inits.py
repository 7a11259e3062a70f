"""How a swapped-in activation starts.

- `paper`: AReLU at alpha 0.9, beta 2, as published. What a pretrained network knew is changed by it.
- `preserve`: `act(x) + t * elsa(x)` with the gate t at 0: every logit stays as it was, for any `act`.
- `leak`: `act(x) + t * elsa(x)` with t at 0.2, alpha at 0.9 and beta at -6: nearly `act(x) + 0.18 * min(x, 0)`, so that
  gradients pass where a ReLU blocks them. It changes the function a little; where there are images to look at, the
  statistics of batch normalisation are estimated anew. All of t, alpha and beta learn.
- `open`: the same with beta at 2, so that both sides grow: nearly `act(x) + 0.18 * x`.
- `nearest`: the AReLU that comes closest to what it replaces, in least squares over standard normal inputs.
- `fit`: the same over the inputs that the layer really gets from a few unlabelled batches.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import NoneType

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import ALPHA_MAX, ALPHA_MIN, ALPHA_START, BETA_START, AReLU, GatedAReLU

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Where torch keeps a module's hooks."""

_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_CONSTANTS = (bool, int, float, str, NoneType)
_CONTENTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")

LEAK = 0.2
"""How far the gates of `leak` and `open` start open; see configs/study_init/README.md for what it was chosen by."""

OPENED = ("leak", "open")
"""Starts that change the function a little; images, where there are any, mend the statistics of batch normalisation."""

BETA_LIMIT = 6.0
"""How far a start may push beta: beyond it, sigmoid's derivative (0.0025) hardly lets it come back."""


@dataclass(frozen=True)
class Moments:
    """What least squares needs of a layer's inputs x and outputs y, one pair of sums for each side of 0.

    Args:
        positive: sums of x * x and of x * y where `x >= 0`.
        negative: the same where `x < 0`.
    """

    positive: tuple[float, float]
    negative: tuple[float, float]

    def scalars(self) -> tuple[float, float]:
        """Solve for alpha and beta; a side that no input fell on gets the paper's.

        The two sides are two regressions through 0 with one slope each, so each has its solution in closed form;
        the nearest admissible slope is the best one, for the loss is a parabola in it.
        """
        (positive_xx, positive_xy), (negative_xx, negative_xy) = self.positive, self.negative
        alpha, beta = ALPHA_START, BETA_START
        if negative_xx > 0 and math.isfinite(negative_xy):
            alpha = min(max(negative_xy / negative_xx, ALPHA_MIN), ALPHA_MAX)
        if positive_xx > 0 and math.isfinite(positive_xy):
            limit = 1 / (1 + math.exp(-BETA_LIMIT))
            attention = min(max(positive_xy / positive_xx - 1, 1 - limit), limit)
            beta = math.log(attention / (1 - attention))
        return alpha, beta


def paper_start(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make an AReLU with the paper's start, whatever it replaces.

    Args:
        original: the activation that goes; an in-place one gives an in-place AReLU.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return AReLU(inplace=bool(getattr(original, "inplace", False)), device=device, dtype=dtype)


def preserve_start(
    original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Make a gated residual over a copy of the original, its gate at 0.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), device=device, dtype=dtype)


def leak_start(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a gated residual over a copy of the original that leaks on the negative side: there its slope grows by 0.18.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), ALPHA_START, -BETA_LIMIT, LEAK, device=device, dtype=dtype)


def open_start(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a gated residual over a copy of the original whose gate is a little open: its slopes grow by 0.18.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), ALPHA_START, BETA_START, LEAK, device=device, dtype=dtype)


def nearest_start(
    original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Make the AReLU closest to what it replaces, in least squares over standard normal inputs.

    Args:
        original: the activation that goes; it is not changed. Of one a channel (PReLU), the mean counts.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    moments = _normal_moments(original)
    return _start_at(original, *(moments.scalars() if moments else (ALPHA_START, BETA_START)), device, dtype)


def fit_start(
    original: nn.Module,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    moments: Moments | None = None,
) -> nn.Module:
    """Make the AReLU that fits what a layer did to its own inputs, in least squares.

    Args:
        original: the activation that goes.
        device: where the scalars live.
        dtype: the scalars' dtype.
        moments: of the layer's inputs and outputs; without them, as `nearest_start`.
    """
    if moments is None:
        return nearest_start(original, device, dtype)
    return _start_at(original, *moments.scalars(), device, dtype)


def moments_of(x: Tensor, y: Tensor) -> Moments:
    """Sum up a layer's inputs and outputs for least squares.

    Args:
        x: inputs of any shape.
        y: outputs of the same shape.
    """
    wide, products = x.detach().double(), x.detach().double() * y.detach().double()
    above = x >= 0

    def sums(side: Tensor) -> tuple[float, float]:
        return float(wide[side].square().sum()), float(products[side].sum())

    return Moments(sums(above), sums(~above))


def fold(model: nn.Module) -> list[str]:
    """Write every trained gated residual in a model as a plain AReLU, where its values allow it.

    Args:
        model: changed in place; with hooks and all, `unswap` still gives back the original.

    Returns:
        The paths that were folded; the other gates stay.
    """
    folded: dict[nn.Module, nn.Module] = {}
    paths = []
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, GatedAReLU) or not path:
            continue
        try:
            plain = folded.get(module) or module.fold()
        except ValueError:
            continue
        folded[module] = plain
        move_hooks(module, plain)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, plain)
        paths.append(path)
    return paths


def open_gates(model: nn.Module, progress: float, share: float = 0.5) -> float:
    """Set every gate of a model by a schedule instead of learning it: from 0 to 1 over a share of the training.

    Args:
        model: its gates stop learning and take the schedule's value.
        progress: how much of the training is done, from 0 to 1.
        share: over which share of the training the gates open, above 0.

    Returns:
        The gates' value.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} is not allowed; give a number above 0 and at most 1")
    value = min(max(progress / share, 0.0), 1.0)
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            module.t.requires_grad_(False).fill_(value)
    return value


def gate_schedule(model: nn.Module, share: float | None) -> Callable[[float], float] | None:
    """Take a model's gates from its optimiser, for a schedule to open them.

    Args:
        model: those of its gates that learn stop it and are shut; frozen layers stay as they are.
        share: over which share of the training they open; None leaves them to learn.

    Returns:
        A function that takes how much of the training is done, from 0 to 1, and moves the gates; None without a share.
    """
    if share is None:
        return None
    learning = nn.ModuleList(module for module in model.modules() if is_gate_that_learns(module))
    open_gates(learning, 0.0, share)
    return partial(open_gates, learning, share=share)


def is_gate_that_learns(module: nn.Module) -> bool:
    """Say whether a module is a gated residual whose gate is trained."""
    return isinstance(module, GatedAReLU) and module.t.requires_grad


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give a module's hooks to the one that takes its place: the very same dictionaries, so that handles still work."""
    vars(target).update({hooks: vars(source)[hooks] for hooks in HOOKS})


def out_of_place_copy(original: nn.Module) -> nn.Module:
    """Copy an activation without its hooks, so that it leaves its input as it is.

    Args:
        original: it is not changed.
    """
    if _is_plain(original):
        # Copying deeply takes longer than all else that a swap does, and most activations are a few constants.
        base: nn.Module = object.__new__(type(original))
        vars(base).update(vars(original))
        vars(base).update(vars(nn.Module()) | {"training": original.training})
        if vars(base).get("inplace"):
            vars(base)["inplace"] = False
        return base
    base = copy.deepcopy(_without_hooks(original))
    for module in base.modules():
        # The attention reads the input after the base has run.
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return base


def _without_hooks(module: nn.Module) -> nn.Module:
    """Copy the module itself, not what is in it: its hooks move to the activation that takes its place."""
    bare, fresh = copy.copy(module), vars(nn.Module())
    vars(bare).update({hooks: fresh[hooks] for hooks in HOOKS})
    return bare


def _is_plain(module: nn.Module) -> bool:
    """Say whether a module has no tensors, no parts, and nothing else that a copy could share."""
    attributes = vars(module)
    if any(attributes[content] for content in _CONTENTS):
        return False
    return all(isinstance(attributes[name], _CONSTANTS) for name in attributes.keys() - _OF_ANY_MODULE)


def _start_at(
    original: nn.Module, alpha: float, beta: float, device: torch.device | None, dtype: torch.dtype | None
) -> AReLU:
    return AReLU(alpha, beta, inplace=bool(getattr(original, "inplace", False)), device=device, dtype=dtype)


def _normal_moments(original: nn.Module) -> Moments | None:
    """Integrate over the normal density: the trapezium rule, which is exact to rounding for what decays so fast."""
    parameters = list(original.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return None
    base = out_of_place_copy(original).double().cpu().eval()
    channels = max((parameter.numel() for parameter in parameters), default=1)
    # Between two grid points, never on one, lies 0, where most activations have their kink.
    x = ((torch.arange(-8000, 8000, dtype=torch.float64) + 0.5) / 1000)[:, None].expand(-1, channels)
    weight = torch.exp(-x.square() / 4)  # the density's square root, on x and on y
    with torch.no_grad():
        try:
            y = base(x.clone())
        except (RuntimeError, ValueError, IndexError):
            return None
    return moments_of(x * weight, y * weight) if y.shape == x.shape else None


INITS: dict[str, Callable[..., nn.Module]] = {
    "paper": paper_start,
    "preserve": preserve_start,
    "leak": leak_start,
    "open": open_start,
    "nearest": nearest_start,
    "fit": fit_start,
}
