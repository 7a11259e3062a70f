"""A user's own activation classes, which no list of types knows: told by what they compute."""

import copy
import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

from arelu_meta.backbones.report import Kept
from arelu_meta.backbones.roles import WHY_KEPT, is_activation
from arelu_meta.backbones.subclass import kind_of
from arelu_meta.backbones.walking import named_modules

# Whose classes are known by their types.
_KNOWN = ("torch", "timm", "torchvision", "arelu_meta")
_SIZES = ((2, 4, 6, 6), (2, 4, 8), (2, 8))
_FAR = 1e3


def hand_written(model: nn.Module) -> list[Kept]:
    """List the modules that are activations of a user's own making, each with the line of its class.

    Such a module has neither parts nor tensors, and a copy of it, tried on numbers, changes each by itself and not in
    proportion. What stays between two bounds within [-1, 1], and rises or falls all the way, is a gate.

    Args:
        model: any module.
    """
    found = ((path, module, _role_of(module)) for path, module in named_modules(model) if _may_be(module))
    return [Kept(path, role, type(module).__name__, _reason(module, role)) for path, module, role in found if role]


def is_part_of_one(module: nn.Module, inner: nn.Module) -> bool:
    """Say whether a module is an activation of a user's own making, of which another computes a part only.

    Args:
        module: whose code calls a function.
        inner: what computes the same as that function.
    """
    if not _may_be(module) or _role_of(module) is None:
        return False
    x = torch.linspace(-3, 3, torch.Size(_SIZES[0]).numel()).reshape(_SIZES[0])
    try:
        with torch.no_grad():
            return not torch.equal(copy.deepcopy(module).eval()(x.clone()), inner(x.clone()))
    except Exception:  # it takes another size
        return True


def _may_be(module: nn.Module) -> bool:
    if module._modules or module._parameters or module._buffers or is_activation(module):
        return False
    return kind_of(module).__module__.partition(".")[0] not in _KNOWN


def _reason(module: nn.Module, role: str) -> str:
    kind = kind_of(module)
    try:
        where = f" ({Path(inspect.getfile(kind)).name}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):  # typed in at a prompt
        where = ""
    why = WHY_KEPT.get(role, "derive it from the nn activation that it stands for, or put one in its place")
    return f"an activation class of the model's own{where}: {why}"


def _role_of(module: nn.Module) -> str | None:
    """Try a module on numbers: "hidden" or "gate", or None where it is no activation."""
    try:
        trial = copy.deepcopy(module).eval()
        # Without the owner's hooks, which may count or print.
        trial._forward_hooks.clear()
        trial._forward_pre_hooks.clear()
    except Exception:  # what it holds may not be copied
        return None
    for size in _SIZES:
        try:
            with torch.no_grad():
                return _role_on(trial, size)
        except Exception:  # a stranger's code may raise anything at an input that it was not made for
            continue
    return None


def _role_on(module: nn.Module, size: tuple[int, ...]) -> str | None:
    count = torch.Size(size).numel()
    x = torch.linspace(-3, 3, count).reshape(size)
    y = module(x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
        return None
    others = torch.arange(count).reshape(size) % 2 == 0
    if not torch.equal(module(torch.where(others, x + 1.7, x))[~others], y[~others]):
        return None
    at_zero = module(torch.zeros_like(x))
    # The second one is blind to a ReLU, the first one to what is odd.
    bends = torch.stack([y + module(-x) - 2 * at_zero, module(2 * x) - 2 * y + at_zero])
    if not bool((bends.abs() > 1e-4 * (1 + y.abs())).any()):
        return None
    far = module((torch.linspace(-1, 1, count) * _FAR).reshape(size)).flatten()
    steps = torch.cat([y.flatten().diff(), far.diff()])
    one_way = bool((steps >= 0).all() or (steps <= 0).all())
    return "gate" if one_way and bool(far.abs().max() <= 1) else "hidden"
