"""Swap activations in any model: find them, replace them, report, and take it back."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.called import functions_that_stay, settle, trace_and_lead
from arelu_meta.backbones.calls import CallSequence, forget_calls, restart_calls
from arelu_meta.backbones.drift import Collector, batches_of, drift_between, outputs_of, reestimate_batch_norm, run
from arelu_meta.backbones.examples import Example
from arelu_meta.backbones.fast_path import match_fast_paths
from arelu_meta.backbones.functional import (
    functional_owners,
    is_rewritten,
    remember_taps,
    restore,
    rewrite,
    unreadable_owners,
)
from arelu_meta.backbones.inits import INITS, fit_start, move_hooks
from arelu_meta.backbones.leading import Led, is_led, take_back
from arelu_meta.backbones.report import Kept, Swapped, SwapReport
from arelu_meta.backbones.roles import (
    REPLACED_ROLES,
    ROLES,
    WHY_KEPT,
    Slot,
    find_activations,
    find_slots,
    is_activation,
    norms_with_activation,
)
from arelu_meta.backbones.timm_support import add_timm_support, drop_timm_support
from arelu_meta.backbones.tracing import Trace
from arelu_meta.backbones.walking import named_modules, tree_changed, tree_stays
from arelu_meta.errors import InputError, nearest_names

__all__ = ["SwapReport", "find_activations", "is_activation", "swap_activations", "unswap"]

_ORIGINALS = "_arelu_meta_originals"
Pattern = str | type[nn.Module]


@dataclass
class _Place:
    """One place to fill: what stands there now, and the calls that each get an activation of their own.

    Args:
        slot: the place.
        paths: all names that lead to it.
        evaluation: the calls of one forward, as (place in the code, index of its activation).
        training: the same in training.
        caller: the path of the module whose forward makes the calls.
        filled: what was made for it, one activation a call.
    """

    slot: Slot
    paths: list[str]
    evaluation: list[tuple[str, int]]
    training: list[tuple[str, int]]
    caller: str
    filled: list[nn.Module]

    @property
    def calls(self) -> int:
        return max([1, *(index + 1 for _, index in [*self.evaluation, *self.training])])


def swap_activations(
    model: nn.Module,
    activation: str = "arelu",
    init: str | None = None,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    example: Example | None = None,
    data: Tensor | Iterable[object] | None = None,
    trace: bool = True,
    share: Literal["call", "module"] = "call",
    batch_norm: bool = False,
) -> SwapReport:
    """Replace a model's hidden activations in place; gates and what works on positions stay.

    Args:
        model: any module.
        activation: a name of `list_activations()`.
        init: how an AReLU starts: `preserve` (every output stays as it was; the default), `paper`, `leak`,
            `nearest`, or `fit`, which needs `data`. Other activations start as they are made.
        include: replace only these: roles (`hidden`, `se_hidden`, `glu`, `gate`, `position`, `attention_kernel`),
            path patterns (`blocks.*`) or types.
        exclude: never replace these: the same.
        example: an input for tracing, or several in a tuple or a dict; default: zeros of the model's pretrained_cfg
            input size, on a copy without data.
        data: a few unlabelled batches: for `fit`, for `batch_norm`, and for the report's drift, on the first of them.
        trace: look in one forward pass for activations that are called several times or as functions. Without it, or
            without an example and a pretrained_cfg, a module stays one module and `complete` is False.
        share: `call`: each call of a module within its owner's forward has scalars of its own; `module`: a module that
            is called several times, or stands under several names, is replaced by one.
        batch_norm: re-estimate the running statistics of batch normalisation on `data`.

    Returns:
        What was replaced and what was kept.

    Raises:
        InputError: if a name is unknown, a pattern matches nothing, the model cannot be changed, or there is nothing
            to replace; the model is unchanged then.
    """
    start = _check_arguments(activation, init, share, data, batch_norm)
    with tree_stays(model):
        return _swap_checked(model, activation, start, (include, exclude), example, data, trace, share, batch_norm)


def _swap_checked(
    model: nn.Module,
    activation: str,
    start: str,
    patterns: tuple[Sequence[Pattern] | None, Sequence[Pattern] | None],
    example: Example | None,
    data: Tensor | Iterable[object] | None,
    trace: bool,
    share: str,
    batch_norm: bool,
) -> SwapReport:
    _check_model(model)
    batches = batches_of(data, model)
    rewritten = [module for _, module in functional_owners(model)]
    for module in rewritten:
        rewrite(module)
        tree_changed(model)
    led: list[Led] = []
    try:
        first = batches[0] if example is None and batches else example
        traces, led = trace_and_lead(model, first) if trace else (None, led)
        report = _swap(model, activation, start, patterns, traces, batches, share, batch_norm)
    except Exception:
        for one in reversed(led):
            one.undo()
        for module in rewritten:
            restore(module)
        tree_changed(model)
        match_fast_paths(model)
        raise
    settle(report, led)
    if led:
        tree_changed(model)
    match_fast_paths(model)
    return report


def unswap(model: nn.Module) -> None:
    """Put back the activations that `swap_activations` replaced, the very same modules.

    Args:
        model: changed in place; one that was never swapped stays as it is. What has been taken out of the model or
            built anew since the swap (a pruned layer, a reset head) stays so.
    """
    for path, original in getattr(model, _ORIGINALS, {}).items():
        try:
            now = model.get_submodule(path)
        except AttributeError:
            continue
        _set_module(model, path, original.train(now.training))
    object.__setattr__(model, _ORIGINALS, {})
    forget_calls(model)
    drop_timm_support(model)
    for _, module in named_modules(model):
        if is_rewritten(module):
            restore(module)
        if is_led(module):
            take_back(module)
    match_fast_paths(model)


def _swap(
    model: nn.Module,
    activation: str,
    start: str,
    patterns: tuple[Sequence[Pattern] | None, Sequence[Pattern] | None],
    traces: tuple[Trace, Trace] | None,
    batches: list[Tensor],
    share: str,
    batch_norm: bool,
) -> SwapReport:
    wanted = type(create_activation(activation))
    slots = list(find_slots(model))
    functions = functions_that_stay(model, traces)
    if not slots and not functions and not any(norms_with_activation(model)):
        raise InputError(f"model: {type(model).__name__} has no activation module; nothing to swap")
    _check_patterns(model, [pattern for some in patterns for pattern in some or ()])
    report = SwapReport()
    places: dict[tuple[int, str], _Place] = {}
    for slot in slots:
        if _is_swapped(model, slot, wanted):
            continue
        reason = _reason_to_keep(slot, *patterns)
        if reason:
            report.kept.append(Kept(slot.path, slot.role, _describe(slot.module), reason))
        elif (id(slot.owner), slot.name) in places:
            places[id(slot.owner), slot.name].paths.append(slot.path)
        else:
            places[id(slot.owner), slot.name] = _place(slot, traces if share == "call" else None)
    for place in places.values():
        _check_slot(place.slot)
    make = _maker(model, activation, start, tied=traces is None or share == "module")
    if batches and places:
        report.logit_drift = 0.0
        drift = _fill_by_data(model, list(places.values()), start, activation, make, batches, batch_norm)
        report.logit_drift = drift.pop("", None)
    else:
        drift = {}
        for place in places.values():
            place.filled = [make(place.slot, call, None) for call in range(place.calls)]
        _put_in(model, list(places.values()))
    _write_entries(report, slots, places, drift)
    _remember(model, list(places.values()))
    report.kept += functions
    report.complete = _is_complete(model, report, traces)
    return report


def _place(slot: Slot, traces: tuple[Trace, Trace] | None) -> _Place:
    """Number the calls of one forward: a place in the code, and in a loop the turn there, is a call of its own."""
    numbers: dict[tuple[str, int], int] = {}
    orders: list[list[tuple[str, int]]] = []
    callers: set[str] = set()
    for traced in traces or ():
        forwards: dict[int, list[str]] = {}
        for call in traced.calls.get(slot.path, []):
            forwards.setdefault(call.entry, []).append(call.place)
            callers.add(call.caller)
        order: list[tuple[str, int]] = []
        for sites in forwards.values():
            turns: dict[str, int] = {}
            this = []
            for site in sites:
                turn = turns.get(site, 0)
                turns[site] = turn + 1
                this.append((site, numbers.setdefault((site, turn), len(numbers))))
            order = max(order, this, key=len)
        orders.append(order)
    evaluation, training = orders if orders else ([], [])
    caller = callers.pop() if len(callers) == 1 else ""
    return _Place(slot, [slot.path], evaluation or training, training or evaluation, caller, [])


def _maker(
    model: nn.Module, activation: str, start: str, tied: bool
) -> Callable[[Slot, int, Collector | None], nn.Module]:
    """Say how an activation is made for a call; where modules stay tied, one module gives one activation."""
    made: dict[tuple[int, int], nn.Module] = {}

    def make(slot: Slot, call: int, collector: Collector | None) -> nn.Module:
        key = (id(slot.module), call)
        if tied and key in made:
            return made[key]
        device, dtype = _where(model, slot)
        if activation != "arelu":
            after = create_activation(activation, device=device, dtype=dtype)
        elif start == "fit":
            after = fit_start(slot.module, device, dtype, collector.moments if collector else None)
        else:
            after = INITS[start](slot.module, device=device, dtype=dtype)
        if not isinstance(after, GatedAReLU):  # its base holds them
            for name, buffer in slot.module.named_buffers(recurse=False):
                if not hasattr(after, name):
                    after.register_buffer(name, buffer.clone(), name not in slot.module._non_persistent_buffers_set)
        made[key] = after.train(slot.module.training)
        return after

    return make


def _fill_by_data(
    model: nn.Module,
    places: list[_Place],
    start: str,
    activation: str,
    make: Callable[[Slot, int, Collector | None], nn.Module],
    batches: list[Tensor],
    batch_norm: bool,
) -> dict[str, float]:
    """Fill the places after a look at what goes through them, and say how far each output has moved."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()} if batch_norm else {}
    try:
        for place in places:
            place.filled = [Collector(place.slot.module) for _ in range(place.calls)]
        collectors = [place.filled for place in places]
        _put_in(model, places, hooks=False)
        match_fast_paths(model)
        names = [[_path_of(place, call) for call in range(place.calls)] for place in places]
        before = outputs_of(model, batches[0], _names(collectors, names))
        if start == "fit" and activation == "arelu":
            run(model, batches[1:])
        for place in places:
            looked = [one if isinstance(one, Collector) else None for one in place.filled]
            place.filled = [make(place.slot, call, collector) for call, collector in enumerate(looked)]
        _put_in(model, places)
        match_fast_paths(model)
        if batch_norm:
            reestimate_batch_norm(model, batches)
        return drift_between(before, outputs_of(model, batches[0], _names([p.filled for p in places], names)))
    except Exception as error:
        for place in places:
            place.slot.owner._modules[place.slot.name] = place.slot.module
        tree_changed(model)
        forget_calls(model)
        for name, buffer in model.named_buffers():
            if name in statistics:
                buffer.copy_(statistics[name])
        if isinstance(error, InputError):
            raise
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"data: the model cannot take it ({reason}); give batches of its images") from error


def _names(modules: list[list[nn.Module]], names: list[list[str]]) -> dict[nn.Module, str]:
    return {
        module: name
        for some, theirs in zip(modules, names, strict=True)
        for module, name in zip(some, theirs, strict=True)
    }


def _put_in(model: nn.Module, places: list[_Place], hooks: bool = True) -> None:
    for place in places:
        after = place.filled[0]
        if place.calls > 1:
            after = CallSequence(place.filled, place.evaluation, place.training).train(place.slot.module.training)
            inside = not place.caller or place.slot.path.startswith(f"{place.caller}.")
            caller = place.caller if inside else ""
            restart_calls(model.get_submodule(caller), place.slot.path[len(caller) + bool(caller) :])
        if hooks:
            move_hooks(place.slot.module, after)
        place.slot.owner._modules[place.slot.name] = after
    tree_changed(model)


def _path_of(place: _Place, call: int) -> str:
    return f"{place.slot.path}.{call}" if place.calls > 1 else place.slot.path


def _write_entries(
    report: SwapReport, slots: list[Slot], places: dict[tuple[int, str], _Place], drift: dict[str, float]
) -> None:
    counted: set[int] = set()
    for slot in slots:
        place = places.get((id(slot.owner), slot.name))
        if place is None or slot.path not in place.paths:
            continue
        for call, after in enumerate(place.filled):
            path = f"{slot.path}.{call}" if place.calls > 1 else slot.path
            moved = drift.get(_path_of(place, call))
            alpha, beta = None, None
            if isinstance(after, AReLU | GatedAReLU) and not after.alpha.is_meta:
                alpha, beta = after.alpha.item(), after.beta.item()
            entry = Swapped(path, slot.role, _describe(slot.module), _describe(after), alpha, beta, moved)
            report.swapped.append(entry)
            if id(after) not in counted:
                counted.add(id(after))
                report.parameters_added += sum(parameter.numel() for parameter in after.parameters())
        if id(slot.module) not in counted:
            counted.add(id(slot.module))
            report.parameters_added -= sum(parameter.numel() for parameter in slot.module.parameters())


def _remember(model: nn.Module, places: list[_Place]) -> None:
    originals = dict(getattr(model, _ORIGINALS, {}))
    for place in places:
        for path in place.paths:
            originals.setdefault(path, place.slot.module)
    object.__setattr__(model, _ORIGINALS, originals)
    for _, module in named_modules(model):
        if is_rewritten(module):
            remember_taps(module)
    add_timm_support(model)


def _check_arguments(
    activation: str, init: str | None, share: str, data: Tensor | Iterable[object] | None, batch_norm: bool
) -> str:
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


def _check_model(model: nn.Module) -> None:
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


def _check_slot(slot: Slot) -> None:
    parts = slot.module.modules() if slot.module._modules else (slot.module,)
    if any(parametrize.is_parametrized(module) for module in parts):
        raise InputError(
            f"model: {slot.path!r} is parametrised; remove its parametrisation before the swap, or exclude it"
        )


def _check_patterns(model: nn.Module, patterns: Sequence[Pattern]) -> None:
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


def _is_swapped(model: nn.Module, slot: Slot, wanted: type[nn.Module]) -> bool:
    inside = slot.module[0] if isinstance(slot.module, CallSequence) else slot.module
    return isinstance(inside, AReLU | GatedAReLU) or (
        slot.path in getattr(model, _ORIGINALS, {}) and type(inside) is wanted
    )


def _reason_to_keep(slot: Slot, include: Sequence[Pattern] | None, exclude: Sequence[Pattern] | None) -> str | None:
    if exclude and _matches(slot.path, slot.module, slot.role, exclude):
        return "excluded"
    if include is not None:
        return None if _matches(slot.path, slot.module, slot.role, include) else "not included"
    return None if slot.role in REPLACED_ROLES else WHY_KEPT[slot.role]


def _where(model: nn.Module, slot: Slot) -> tuple[torch.device | None, torch.dtype | None]:
    """Take device and dtype from the nearest parameter around the activation."""
    owner, path = slot.owner, slot.path.rpartition(".")[0]
    while True:
        parameter = _first_real_parameter(owner)
        if parameter is not None:
            return parameter.device, parameter.dtype
        if not path:
            return None, None
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)


def _first_real_parameter(module: nn.Module) -> nn.Parameter | None:
    # As module.parameters() does, without its generators, which are slow where there are many activations.
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for child in module._modules.values():
        found = None if child is None else _first_real_parameter(child)
        if found is not None:
            return found
    return None


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = module


def _describe(module: nn.Module) -> str:
    return f"GatedAReLU({type(module.base).__name__})" if isinstance(module, GatedAReLU) else type(module).__name__


def _is_complete(model: nn.Module, report: SwapReport, traces: tuple[Trace, Trace] | None) -> bool:
    for path, norm in norms_with_activation(model):
        reason = "its activation is part of the norm's own arithmetic"
        report.kept.append(Kept(path, "hidden", type(norm).__name__, reason))
    for path in unreadable_owners(model):
        report.kept.append(Kept(path, "hidden", "relu", "called as a function, in code that is not known here"))
    return traces is not None and not any(entry.role in REPLACED_ROLES for entry in report.kept)
