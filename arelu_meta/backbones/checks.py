"""What a swap refuses, before it changes anything, and what its patterns keep."""

import fnmatch
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.inits import INITS
from arelu_meta.backbones.roles import REPLACED_ROLES, ROLES, WHY_KEPT, Slot, find_activations, find_slots
from arelu_meta.backbones.walking import named_modules
from arelu_meta.errors import InputError, nearest_names

Pattern = str | type[nn.Module]


def check_arguments(
    activation: str, init: str | None, share: str, data: Tensor | Iterable[object] | None, batch_norm: bool
) -> str:
    """Check the arguments of `swap_activations` that need no model.

    Returns:
        How an AReLU starts.

    Raises:
        InputError: if a name is unknown, or one needs images and there are none.
    """
    if activation != "arelu" and init is not None:
        raise InputError(f"init: {init!r} is a start of 'arelu'; {activation!r} starts as it is made, give no init")
    start = init or "preserve"
    if start not in INITS:
        raise InputError(f"init: {start!r} is not known; {nearest_names(start, INITS)}")
    if share not in ("call", "module"):
        raise InputError(f"share: {share!r} is not allowed; give 'call' or 'module'")
    for what, needed in (("init: 'fit'", start == "fit"), ("batch_norm: True", batch_norm)):
        if needed and data is None:
            raise InputError(f"{what} looks at images; give data=, a few unlabelled batches")
    create_activation(activation)
    return start


def check_model(model: nn.Module) -> None:
    """Refuse a model whose modules cannot be exchanged.

    Raises:
        InputError: if it is scripted, compiled or lazy.
    """
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"model: {name} is scripted or frozen and cannot be changed; swap before torch.jit")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise InputError(f"model: {name} is under torch.compile already; swap before it, or swap model._orig_mod")
    for path, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):  # what is in it cannot even be seen
            raise InputError(f"model: {path!r} is scripted or frozen and cannot be changed; swap before torch.jit")
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(is_lazy(tensor) for tensor in tensors if tensor is not None):
            raise InputError(f"model: {name} has lazy layers that have not seen an input; run it once before the swap")


def check_slot(slot: Slot) -> None:
    """Refuse an activation whose own parameters are parametrised.

    Raises:
        InputError: names it.
    """
    parts = slot.module.modules() if slot.module._modules else (slot.module,)
    if any(parametrize.is_parametrized(module) for module in parts):
        raise InputError(
            f"model: {slot.path!r} is parametrised; remove its parametrisation before the swap, or exclude it"
        )


def check_patterns(model: nn.Module, patterns: Sequence[Pattern]) -> None:
    """Refuse a pattern that matches no activation of the model.

    Raises:
        InputError: names it.
    """
    if not patterns:
        return
    found = list(find_activations(model))
    found += [(slot.path, slot.module, slot.role) for slot in find_slots(model)]
    for pattern in patterns:
        if pattern in ROLES or any(_matches(path, module, role, [pattern]) for path, module, role in found):
            continue
        shown = pattern if isinstance(pattern, str) else pattern.__name__
        raise InputError(
            f"include/exclude: {shown!r} matches no activation; "
            f"give a role ({', '.join(ROLES)}), a path pattern or a type"
        )


def _matches(path: str, module: nn.Module, role: str, wanted: Iterable[Pattern]) -> bool:
    return any(
        isinstance(module, one) if isinstance(one, type) else one == role or fnmatch.fnmatchcase(path, one)
        for one in wanted
    )


def reason_to_keep(slot: Slot, include: Sequence[Pattern] | None, exclude: Sequence[Pattern] | None) -> str | None:
    """Say why an activation stays; None if it is to be replaced.

    Args:
        slot: that holds it.
        include: roles, path patterns or types: only these are replaced; None for the roles of `REPLACED_ROLES`.
        exclude: these never are.
    """
    if exclude and _matches(slot.path, slot.module, slot.role, exclude):
        return "excluded"
    if include is not None:
        return None if _matches(slot.path, slot.module, slot.role, include) else "not included"
    return None if slot.role in REPLACED_ROLES else WHY_KEPT[slot.role]
