"""Swap activations in any model: find them, replace them, report, and take it back."""

import fnmatch
import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from arelu_meta.activations import modern, pau, torch_gaps, zoo
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.inits import HOOKS, INITS
from arelu_meta.backbones.tracing import example_input, functional_activations
from arelu_meta.errors import InputError, nearest_names

ROLES = ("hidden", "se_hidden", "gate")
_REPLACED_ROLES = ("hidden", "se_hidden")
_GATE_NAMES = ("gate", "scale_activation")
_GATE_TYPES = ("Sigmoid", "Hardsigmoid", "HardSigmoid", "HardSigmoidMe", "LogSigmoid", "Tanh")
_NOT_ELEMENTWISE = ("MultiheadAttention", "GLU", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
# Activations that timm builds from others, outside its activation files: they are replaced whole.
_COMPOSITES = ("StarReLU", "SquaredReLU", "GammaAct")
_ORIGINALS = "_arelu_meta_originals"


@dataclass(frozen=True)
class Swapped:
    """One activation that was replaced."""

    path: str
    role: str
    before: str
    after: str


@dataclass(frozen=True)
class Kept:
    """One activation that stays, and why."""

    path: str
    role: str
    before: str
    reason: str


@dataclass
class SwapReport:
    """What a swap did.

    Args:
        swapped: the activations that were replaced, in the model's order.
        kept: the activations that stay, with a reason each.
        parameters_added: how many scalars the swap added.
        complete: True only if every hidden activation that a forward pass reaches was replaced.
    """

    swapped: list[Swapped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    parameters_added: int = 0
    complete: bool = False

    def __str__(self) -> str:
        rows = [("path", "role", "before", "after")]
        rows += [(entry.path, entry.role, entry.before, entry.after) for entry in self.swapped]
        rows += [(entry.path, entry.role, entry.before, f"kept: {entry.reason}") for entry in self.kept]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
        ]
        state = "complete" if self.complete else "not complete"
        counts = (
            f"{len(self.swapped)} swapped, {len(self.kept)} kept, {self.parameters_added} parameters added, {state}"
        )
        return "\n".join([*lines, counts])


def swap_activations(
    model: nn.Module,
    activation: str = "arelu",
    init: str | None = None,
    include: Sequence[str | type[nn.Module]] | None = None,
    exclude: Sequence[str | type[nn.Module]] | None = None,
    example: Tensor | None = None,
    trace: bool = True,
) -> SwapReport:
    """Replace a model's hidden activations in place; gates stay.

    Args:
        model: any module. Activations that are modules are replaced, each by one of its own; a module that stands
            under several names is replaced by one that stands under the same names.
        activation: a name of `list_activations()`.
        init: how an AReLU starts: `preserve` (every output stays as it was; the default) or `paper`.
            Other activations start as they are made.
        include: replace only these: roles (`hidden`, `se_hidden`, `gate`), path patterns (`blocks.*`) or types.
        exclude: never replace these: the same.
        example: an input for tracing; default: zeros of the model's pretrained_cfg input size.
        trace: look for activations that are called as functions, in one forward pass in eval mode. Without it, or
            without an example and a pretrained_cfg, `complete` is False.

    Returns:
        What was replaced and what was kept.

    Raises:
        InputError: if a name is unknown, a pattern matches nothing, or there is nothing to replace;
            the model is unchanged then.
    """
    if activation != "arelu" and init is not None:
        raise InputError(f"init: {init!r} is a start of 'arelu'; {activation!r} starts as it is made, give no init")
    start = init or "preserve"
    if start not in INITS:
        raise InputError(f"init: {start!r} is not known; {nearest_names(start, INITS)}")
    wanted = type(create_activation(activation))
    found = list(find_activations(model))
    _check_patterns(found, [*(include or ()), *(exclude or ())])
    report = SwapReport()
    replacements: dict[int, nn.Module] = {}
    todo: list[tuple[str, nn.Module]] = []
    for path, module, role in found:
        if _is_swapped(model, path, module, wanted):
            continue
        reason = _reason_to_keep(path, module, role, include, exclude)
        if reason:
            report.kept.append(Kept(path, role, _describe(module), reason))
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(model, path, module, activation, start)
            report.parameters_added += sum(
                parameter.numel() for parameter in replacements[id(module)].parameters()
            ) - sum(parameter.numel() for parameter in module.parameters())
        after = replacements[id(module)]
        todo.append((path, after))
        report.swapped.append(Swapped(path, role, _describe(module), _describe(after)))
    if not found:
        raise InputError(f"model: {type(model).__name__} has no activation module; nothing to swap")
    originals = dict(getattr(model, _ORIGINALS, {}))
    originals |= {path: originals.get(path, model.get_submodule(path)) for path, _ in todo}
    for path, after in todo:
        _set_module(model, path, after)
    object.__setattr__(model, _ORIGINALS, originals)
    report.complete = trace and _is_complete(model, report, example)
    return report


def unswap(model: nn.Module) -> None:
    """Put back the activations that `swap_activations` replaced, the very same modules.

    Args:
        model: changed in place; one that was never swapped stays as it is.
    """
    for path, original in getattr(model, _ORIGINALS, {}).items():
        _set_module(model, path, original.train(model.get_submodule(path).training))
    object.__setattr__(model, _ORIGINALS, {})


def find_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """List a model's activation modules, one path at a time.

    Args:
        model: any module.

    Yields:
        Path, module and role: `hidden`, `se_hidden` (inside a squeeze-excite block) or `gate`.
    """

    def walk(owner: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, str]]:
        for name, child in owner._modules.items():
            if child is None:
                continue
            if is_activation(child):
                yield prefix + name, child, _role(owner, name, child)
            else:
                yield from walk(child, f"{prefix}{name}.")

    yield from walk(model, "")


def is_activation(module: nn.Module | None) -> bool:
    """Say whether a module is an elementwise activation, as a whole.

    Args:
        module: any module; None is none.
    """
    return isinstance(module, _activation_types()) and not isinstance(module, _not_elementwise_types())


@functools.cache
def _activation_types() -> tuple[type[nn.Module], ...]:
    import timm.layers.activations
    import timm.layers.activations_me
    import timm.models.metaformer
    import timm.models.nfnet

    files = [torch.nn.modules.activation, timm.layers.activations, timm.layers.activations_me]
    files += [modern, pau, torch_gaps, zoo]
    types = {
        kind
        for file in files
        for _, kind in inspect.getmembers(file, inspect.isclass)
        if kind.__module__ == file.__name__
    }
    for file in (timm.models.metaformer, timm.models.nfnet):
        types |= {kind for name, kind in inspect.getmembers(file, inspect.isclass) if name in _COMPOSITES}
    types |= {AReLU, GatedAReLU}
    return tuple(kind for kind in types if issubclass(kind, nn.Module))


@functools.cache
def _not_elementwise_types() -> tuple[type[nn.Module], ...]:
    return tuple(getattr(torch.nn, name) for name in _NOT_ELEMENTWISE)


def _role(owner: nn.Module, name: str, module: nn.Module) -> str:
    if name in _GATE_NAMES or type(module).__name__ in _GATE_TYPES:
        return "gate"
    # A squeeze-excite block is known by its gate beside the activation, in timm and in torchvision.
    has_gate = any(is_activation(getattr(owner, gate, None)) for gate in _GATE_NAMES)
    return "se_hidden" if has_gate else "hidden"


def _matches(path: str, module: nn.Module, role: str, wanted: Iterable[str | type[nn.Module]]) -> bool:
    return any(
        isinstance(module, one) if isinstance(one, type) else one == role or fnmatch.fnmatchcase(path, one)
        for one in wanted
    )


def _check_patterns(found: list[tuple[str, nn.Module, str]], patterns: Sequence[str | type[nn.Module]]) -> None:
    for pattern in patterns:
        if pattern in ROLES or any(_matches(path, module, role, [pattern]) for path, module, role in found):
            continue
        shown = pattern if isinstance(pattern, str) else pattern.__name__
        raise InputError(
            f"include/exclude: {shown!r} matches no activation; "
            f"give a role ({', '.join(ROLES)}), a path pattern or a type"
        )


def _is_swapped(model: nn.Module, path: str, module: nn.Module, wanted: type[nn.Module]) -> bool:
    return isinstance(module, AReLU | GatedAReLU) or (path in getattr(model, _ORIGINALS, {}) and type(module) is wanted)


def _reason_to_keep(
    path: str,
    module: nn.Module,
    role: str,
    include: Sequence[str | type[nn.Module]] | None,
    exclude: Sequence[str | type[nn.Module]] | None,
) -> str | None:
    if exclude and _matches(path, module, role, exclude):
        return "excluded"
    if include is not None:
        return None if _matches(path, module, role, include) else "not included"
    return None if role in _REPLACED_ROLES else "a gate, whose range matters"


def _replacement(model: nn.Module, path: str, module: nn.Module, activation: str, start: str) -> nn.Module:
    device, dtype = _where(model, path)
    if activation == "arelu":
        after = INITS[start](module, device=device, dtype=dtype)
    else:
        after = create_activation(activation, device=device, dtype=dtype)
    after.train(module.training)
    for hooks in HOOKS:  # the very same dictionaries, so that a hook's handle still takes it away
        setattr(after, hooks, getattr(module, hooks))
    return after


def _where(model: nn.Module, path: str) -> tuple[torch.device | None, torch.dtype | None]:
    """Take device and dtype from the nearest parameter around the activation."""
    owner = path
    while True:
        owner = owner.rpartition(".")[0]
        for parameter in model.get_submodule(owner).parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        if not owner:
            return None, None


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


def _describe(module: nn.Module) -> str:
    return f"GatedAReLU({type(module.base).__name__})" if isinstance(module, GatedAReLU) else type(module).__name__


def _is_complete(model: nn.Module, report: SwapReport, example: Tensor | None) -> bool:
    if any(entry.role in _REPLACED_ROLES for entry in report.kept):
        return False
    example = example_input(model) if example is None else example
    if example is None:
        return False
    calls = functional_activations(model, example, is_activation)
    if calls is None:
        return False
    report.kept += [Kept(owner, "hidden", function, "called as a function") for owner, function in calls]
    return not calls
