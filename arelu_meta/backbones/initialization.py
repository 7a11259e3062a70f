"""The initializations of a swapped-in activation.

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
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import ALPHA_INIT, BETA_INIT, AReLU, GatedAReLU
from arelu_meta.activations.controls import FROZEN, FixedLeak
from arelu_meta.backbones.calibration import BETA_LIMIT, Moments, moments_of
from arelu_meta.validation import checked

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Where torch keeps a module's hooks."""

LEAK = 0.2
"""How far the gates of `leak` and `open` start open. It was chosen on test images of flowers17
(experiments/init_study, seed 0), so that these two starts look too good there; cifar10-subset had no part in it."""

STARTED = ("arelu", FROZEN)
"""Activations that an initialization is of."""

OPENED = ("leak", "open")
"""Initializations that change the function a little; images, where there are any, mend the batch statistics."""


def paper_init(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make an AReLU with the paper's values, whatever it replaces.

    Args:
        original: the activation that goes; an in-place one gives an in-place AReLU.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return AReLU(inplace=bool(getattr(original, "inplace", False)), device=device, dtype=dtype)


def preserve_init(
    original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Make a gated residual over a copy of the original, its gate at 0.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), device=device, dtype=dtype)


def leak_init(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a gated residual over a copy of the original that leaks on the negative side: there its slope grows by 0.18.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), ALPHA_INIT, -BETA_LIMIT, LEAK, device=device, dtype=dtype)


def open_init(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a gated residual over a copy of the original whose gate is a little open: its slopes grow by 0.18.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return GatedAReLU(out_of_place_copy(original), ALPHA_INIT, BETA_INIT, LEAK, device=device, dtype=dtype)


def nearest_init(
    original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Make the AReLU closest to what it replaces, in least squares over standard normal inputs.

    Args:
        original: the activation that goes; it is not changed. Of one a channel (PReLU), the mean counts.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    moments = _normal_moments(original)
    return _arelu_at(original, *(moments.scalars() if moments else (ALPHA_INIT, BETA_INIT)), device, dtype)


def fit_init(
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
        moments: of the layer's inputs and outputs; without them, as `nearest_init`.
    """
    if moments is None:
        return nearest_init(original, device, dtype)
    return _arelu_at(original, *moments.scalars(), device, dtype)


class Folded(list[str]):
    """The paths of the gates that were folded, with why the others stay.

    Args:
        paths: of those that were folded.
        kept: the reasons, by path.
    """

    def __init__(self, paths: Iterable[str], kept: dict[str, str]) -> None:
        super().__init__(paths)
        self.kept = kept

    def __str__(self) -> str:
        lines = [f"{path}: folded" for path in self] + [f"{path}: stays; {why}" for path, why in self.kept.items()]
        return "\n".join([*lines, f"{len(self)} folded, {len(self.kept)} stay"])

    __repr__ = __str__  # a prompt and a notebook would show an empty list and no reason


@checked
def fold(model: nn.Module) -> Folded:
    """Write every trained gated residual in a model as a plain AReLU, where its values allow it.

    Args:
        model: changed in place; with hooks and all, `unswap` still gives back the original.

    Returns:
        The paths that were folded, with the reasons why other gates stay as `kept`; printed, it tells both.

    Example:
        >>> import torch
        >>> from arelu_meta import GatedAReLU, fold
        >>> net = torch.nn.Sequential(GatedAReLU(torch.nn.ReLU(), t=0.5), GatedAReLU(torch.nn.GELU(), t=0.5))
        >>> print(fold(net))
        0: folded
        1: stays; base: GELU(approximate='none') has other pieces than AReLU's two; only over ReLU can a gate be folded
        1 folded, 1 stay
    """
    folded: dict[nn.Module, AReLU] = {}
    paths, kept = [], {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, GatedAReLU) or not path:
            continue
        try:
            plain = folded.get(module) or module.fold()
        except ValueError as error:
            kept[path] = str(error)
            continue
        if isinstance(module, InPlaceGatedAReLU):
            write_back(plain)
        folded[module] = plain
        move_hooks(module, plain)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, plain)
        paths.append(path)
    return Folded(paths, kept)


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
    """Return True if a module is a gated residual whose gate is trained."""
    return isinstance(module, GatedAReLU) and module.t.requires_grad


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give a module's hooks to the one that takes its place: the very same dictionaries, so that handles still work."""
    vars(target).update({hooks: vars(source)[hooks] for hooks in HOOKS})


def out_of_place_copy(original: nn.Module) -> nn.Module:
    """Copy an activation without its hooks, so that it leaves its input as it is.

    Args:
        original: it is not changed. Its hooks move to the activation that takes its place; those of its parts stay.
    """
    bare, fresh = copy.copy(original), vars(nn.Module())
    vars(bare).update({hooks: fresh[hooks] for hooks in HOOKS})
    base = copy.deepcopy(bare)
    for module in base.modules():
        # The attention reads the input after the base has run.
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return base


class _WritesBack(nn.Module):
    """Overwrites its input with its output, whatever computes it: for a network that reads the input again."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, which holds the output."""
        return x.copy_(super().forward(x.clone()))

    def _get_name(self) -> str:
        return type(self).__name__.removeprefix("InPlace")

    def extra_repr(self) -> str:
        """Show how it works, as torch.nn's activations do."""
        return "inplace=True"


class InPlaceAReLU(_WritesBack, AReLU):
    """AReLU that always works in place."""


class InPlaceGatedAReLU(_WritesBack, GatedAReLU):
    """The gated residual that works in place."""


class InPlaceFixedLeak(_WritesBack, FixedLeak):
    """The control's fixed leak that works in place."""


def control_of(original: nn.Module, name: str, last: bool = True) -> nn.Module:
    """Make a control over a copy of the activation that it replaces.

    Args:
        original: the activation that goes; it is not changed.
        name: control:leak, control:negative-leak or control:last.
        last: whether it is the last call of the activation in a forward; control:last leaves others as they are.
    """
    base = out_of_place_copy(original)
    return base if name == "control:last" and not last else FixedLeak(base, negative=name == "control:negative-leak")


def write_back(module: nn.Module) -> bool:
    """Let an activation work in place, also where a network reads the input again.

    Args:
        module: changed in place.

    Returns:
        Whether it does now.
    """
    if type(module) in (AReLU, GatedAReLU):
        module.inplace = False  # type: ignore[assignment]  # it would keep its output, which is written over
        module.__class__ = InPlaceAReLU if type(module) is AReLU else InPlaceGatedAReLU
    elif type(module) is FixedLeak:
        module.__class__ = InPlaceFixedLeak
    elif hasattr(module, "inplace"):
        module.inplace = True  # type: ignore[assignment]
    else:
        return False
    return True


def default_init(model: nn.Module) -> str:
    """Choose how an AReLU starts where nobody says so: `preserve` over pretrained weights, `paper` otherwise.

    Args:
        model: before the swap. Its weights count as pretrained unless they look as they are made: norms at 1 or 0,
            and where there is no norm, biases at 0, or weights and biases within the bounds of torch's own draw.
    """
    return "paper" if _looks_untrained(model) else "preserve"


def _looks_untrained(model: nn.Module) -> bool:
    modules = [m for m in model.modules() if not isinstance(m, AReLU | GatedAReLU)]
    if any(
        parameter.is_meta for module in modules for parameter in module._parameters.values() if parameter is not None
    ):
        return True  # there are no weights
    norms = [m for m in modules if getattr(m, "running_mean", None) is not None or "Norm" in type(m).__name__]
    fresh = [_is_fresh_norm(m) for m in norms if _own_tensors(m)]
    if fresh:
        return all(fresh)
    layers = [m for m in modules if isinstance(m, nn.Linear | nn.modules.conv._ConvNd) and m.bias is not None]
    return bool(layers) and all(map(_is_fresh_layer, layers))


def _own_tensors(module: nn.Module) -> list[Tensor]:
    names = ("weight", "bias", "running_mean", "running_var")
    return [tensor for name in names if isinstance(tensor := getattr(module, name, None), Tensor)]


def _is_fresh_norm(module: nn.Module) -> bool:
    return all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in _own_tensors(module))


def _is_fresh_layer(layer: Any) -> bool:
    if not layer.bias.any():
        return True
    bound = 1 / math.sqrt(max(layer.weight[0].numel(), 1)) * (1 + 1e-3)
    return bool(layer.bias.abs().max() <= bound) and bool(layer.weight.abs().max() <= bound)


def _arelu_at(
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
    "paper": paper_init,
    "preserve": preserve_init,
    "leak": leak_init,
    "open": open_init,
    "nearest": nearest_init,
    "fit": fit_init,
}
