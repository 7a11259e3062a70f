"""Swap activations in any model: find them, replace them, report, and take it back."""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.called import functions_that_stay, settle, trace_and_lead
from arelu_meta.backbones.calls import CallSequence, forget_calls
from arelu_meta.backbones.checks import (
    Pattern,
    check_arguments,
    check_model,
    check_patterns,
    check_slot,
    reason_to_keep,
)
from arelu_meta.backbones.drift import batches_of
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
from arelu_meta.backbones.leading import Led, is_led, take_back
from arelu_meta.backbones.places import Place, fill_by_data, maker, path_of, place_of, put_in
from arelu_meta.backbones.report import Kept, Swapped, SwapReport
from arelu_meta.backbones.roles import (
    REPLACED_ROLES,
    Slot,
    find_activations,
    find_slots,
    is_activation,
    norms_with_activation,
)
from arelu_meta.backbones.timm_support import add_timm_support, drop_timm_support
from arelu_meta.backbones.tracing import Trace
from arelu_meta.backbones.walking import named_modules, tree_changed, tree_stays
from arelu_meta.errors import InputError

__all__ = ["SwapReport", "find_activations", "is_activation", "swap_activations", "unswap"]

_ORIGINALS = "_arelu_meta_originals"


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
            `open`, `nearest`, or `fit`, which needs `data`. Other activations start as they are made.
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
    start = check_arguments(activation, init, share, data, batch_norm)
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
    check_model(model)
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
    check_patterns(model, [pattern for some in patterns for pattern in some or ()])
    report = SwapReport()
    places: dict[tuple[int, str], Place] = {}
    for slot in slots:
        if _is_swapped(model, slot, wanted):
            continue
        reason = reason_to_keep(slot, *patterns)
        if reason:
            report.kept.append(Kept(slot.path, slot.role, _describe(slot.module), reason))
        elif (id(slot.owner), slot.name) in places:
            places[id(slot.owner), slot.name].paths.append(slot.path)
        else:
            places[id(slot.owner), slot.name] = place_of(slot, traces if share == "call" else None)
    for place in places.values():
        check_slot(place.slot)
    make = maker(model, activation, start, tied=traces is None or share == "module")
    if batches and places:
        report.logit_drift = 0.0
        drift = fill_by_data(model, list(places.values()), start, activation, make, batches, batch_norm)
        report.logit_drift = drift.pop("", None)
    else:
        drift = {}
        for place in places.values():
            place.filled = [make(place.slot, call, None) for call in range(place.calls)]
        put_in(model, list(places.values()))
    _write_entries(report, slots, places, drift)
    _remember(model, list(places.values()))
    report.kept += functions
    report.complete = _is_complete(model, report, traces)
    return report


def _write_entries(
    report: SwapReport, slots: list[Slot], places: dict[tuple[int, str], Place], drift: dict[str, float]
) -> None:
    counted: set[int] = set()
    for slot in slots:
        place = places.get((id(slot.owner), slot.name))
        if place is None or slot.path not in place.paths:
            continue
        for call, after in enumerate(place.filled):
            path = f"{slot.path}.{call}" if place.calls > 1 else slot.path
            moved = drift.get(path_of(place, call))
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


def _remember(model: nn.Module, places: list[Place]) -> None:
    originals = dict(getattr(model, _ORIGINALS, {}))
    for place in places:
        for path in place.paths:
            originals.setdefault(path, place.slot.module)
    object.__setattr__(model, _ORIGINALS, originals)
    for _, module in named_modules(model):
        if is_rewritten(module):
            remember_taps(module)
    add_timm_support(model)


def _is_swapped(model: nn.Module, slot: Slot, wanted: type[nn.Module]) -> bool:
    inside = slot.module[0] if isinstance(slot.module, CallSequence) else slot.module
    return isinstance(inside, AReLU | GatedAReLU) or (
        slot.path in getattr(model, _ORIGINALS, {}) and type(inside) is wanted
    )


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
