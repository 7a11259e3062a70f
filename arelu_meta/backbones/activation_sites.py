"""Find the activation sites of a model, tell the role of each, and choose those that a swap takes.

Where one module is called several times a forward, each call has an activation of its own (`PerCallActivation`), told
apart by a count. It begins anew with each forward of the module that makes the calls, and belongs to that forward in
its thread alone. A call outside of one, such as a part of it that a checkpoint repeats, has no count, and is refused.
"""

import fnmatch
import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.activations import zoo
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.controls import FixedLeak, Scaled
from arelu_meta.errors import InputError, RunError

Pattern = str | type[nn.Module]

ROLES = ("hidden", "se_hidden", "gate", "glu", "position", "attention_kernel")
REPLACED_ROLES = ("hidden", "se_hidden", "glu")
"""What a swap takes unless it is told otherwise."""

WHY_KEPT = {
    "gate": "a gate, whose range matters",
    "position": "works on positions, not on features",
    "attention_kernel": "an attention's kernel, which must not be negative",
}

_GATE_NAMES = ("gate", "scale_activation", "sigmoid", "hsigmoid", "gate_fn", "gate_act", "bias_act")
_GATE_TYPES = ("Sigmoid", "Hardsigmoid", "HardSigmoid", "HardSigmoidMe", "LogSigmoid", "Tanh")
_SOFTMAXES = ("Softmin", "Softmax", "Softmax2d", "LogSoftmax")
_NOT_ELEMENTWISE = ("MultiheadAttention", "GLU")
# Activations that timm builds from others, outside its activation files: they are replaced whole.
_HUGGING_FACE = "transformers.activations"
_COMPOSITES = ("StarReLU", "SquaredReLU", "GammaAct")
# Position biases from coordinates: swin v2's, and the networks with relative positions in an MLP.
_POSITION_NAME = re.compile(r"(^|[._])(cpb|rel_?pos|pos_mlp|pos_proj)")
_POSITION_OWNERS = ("RelPosMlp", "DynamicPosBias", "PosConv")
_KERNEL_NAMES = ("kernel_func", "kernel_fn", "feature_map")
# A gated MLP: its activation is the nonlinearity of the branch that scales the other one.
_GLU_OWNER = re.compile(r"glu(?!e)|^GatedC(NN|onv)Block$|^Gemma\d*GatedMlp$|^FocalModulation$", re.IGNORECASE)
_GLU_OWNERS = {("timm.models.starnet", "Block")}
_SE_OWNER = re.compile(r"^(SE|Se|ESE|CSE|SCSE|ECA|Ceca)(Module|Block|Layer|Unit|Module2d)?$|Squeeze|GlobalContext")
_SE_NAMES = {"SplitAttn": ("act1",), "SelectiveKernelAttn": ("act",)}
_COUNTED = "_arelu_meta_counted"
_NORMS_WITH_ACTIVATION = re.compile(r"^(EvoNorm2d|FilterResponseNorm)")


@dataclass(frozen=True)
class Site:
    """One place in a model that holds an activation.

    Args:
        path: the first name that leads to it.
        owner: the module that holds it.
        name: under which its owner holds it.
        module: the activation.
        role: one of `ROLES`.
    """

    path: str
    owner: nn.Module
    name: str
    module: nn.Module
    role: str


def find_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """List a model's activation modules, one path at a time.

    Args:
        model: any module.

    Yields:
        Path, module and role. What a swap put in for several calls is listed call by call.
    """
    for site in find_sites(model):
        yield from _activations_at(site)


def _activations_at(site: Site) -> Iterator[tuple[str, nn.Module, str]]:
    if isinstance(site.module, PerCallActivation):
        for name, child in site.module.named_children():
            yield f"{site.path}.{name}", child, site.role
    else:
        yield site.path, site.module, site.role


def find_sites(model: nn.Module) -> list[Site]:
    """List the places that hold a model's activations, one path at a time, in the model's order.

    Args:
        model: any module.
    """
    sites: list[Site] = []

    def walk(owner: nn.Module, prefix: str, owners: tuple[nn.Module, ...]) -> None:
        owners = (*owners, owner)
        for name, child in owner._modules.items():
            if child is None or child in owners:
                continue
            if is_activation(child):
                sites.append(Site(prefix + name, owner, name, child, _role(owners, prefix + name, name, child)))
            elif child._modules:
                walk(child, f"{prefix}{name}.", owners)

    walk(model, "", ())
    return sites


def is_activation(module: nn.Module | None) -> bool:
    """Return True if a module is an activation, as a whole.

    Args:
        module: any module; None is none.
    """
    kind: Any = type(module)
    return _is_activation_type(kind)


@functools.lru_cache(maxsize=4096)
def _is_activation_type(kind: Any) -> bool:
    if issubclass(kind, _not_elementwise_types()):
        return False
    return issubclass(kind, _activation_types()) or kind.__module__ == _HUGGING_FACE


def is_gate_type(module: nn.Module) -> bool:
    """Return True if a module is a gate by what it computes: a sigmoid, a tanh, a softmax."""
    return type(module).__name__ in (*_GATE_TYPES, *_SOFTMAXES)


def norms_with_activation(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the norms that have an activation in their own arithmetic.

    Args:
        model: any module.

    Yields:
        Path and module of each EvoNorm with its `x * sigmoid(v * x)`, and of each filter response norm with its
        learned threshold: taking that out would leave another norm.
    """
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("timm.") and _NORMS_WITH_ACTIVATION.match(kind.__name__):
            applies = getattr(module, "apply_act", True)
            if applies and not isinstance(getattr(module, "act", None), nn.Module):
                yield path, module


@functools.cache
def _activation_types() -> tuple[type[nn.Module], ...]:
    import timm.layers.activations
    import timm.layers.activations_me
    import timm.models.metaformer
    import timm.models.nfnet

    files = [torch.nn.modules.activation, timm.layers.activations, timm.layers.activations_me]
    files += [zoo]
    types = {
        kind
        for file in files
        for _, kind in inspect.getmembers(file, inspect.isclass)
        if kind.__module__ == file.__name__
    }
    for file in (timm.models.metaformer, timm.models.nfnet):
        types |= {kind for name, kind in inspect.getmembers(file, inspect.isclass) if name in _COMPOSITES}
    types |= {AReLU, GatedAReLU, PerCallActivation, FixedLeak, Scaled}
    return tuple(kind for kind in types if issubclass(kind, nn.Module))


@functools.cache
def _not_elementwise_types() -> tuple[type[nn.Module], ...]:
    return tuple(getattr(torch.nn, name) for name in _NOT_ELEMENTWISE)


def works_in_place(module: nn.Module) -> bool:
    """Return True if an activation, or a part of it, overwrites its input.

    Args:
        module: an activation.
    """
    return any(getattr(part, "inplace", False) for part in module.modules())


def check_patterns(sites: Iterable[Site], patterns: Sequence[Pattern]) -> None:
    """Refuse a pattern that matches no activation of a model.

    Args:
        sites: the model's.
        patterns: roles, path patterns or types.

    Raises:
        InputError: names it.
    """
    known = [(site.path, site.module, site.role) for site in sites]
    known += [activation for site in sites for activation in _activations_at(site)]
    for pattern in patterns:
        if pattern in ROLES or any(_matches(path, module, role, [pattern]) for path, module, role in known):
            continue
        shown = pattern if isinstance(pattern, str) else pattern.__name__
        raise InputError(
            f"include/exclude: {shown!r} matches no activation; "
            f"give a role ({', '.join(ROLES)}), a path pattern or a type"
        )


def reason_to_keep(site: Site, include: Sequence[Pattern] | None, exclude: Sequence[Pattern] | None) -> str | None:
    """Tell why an activation stays; None if it is to be replaced.

    Args:
        site: that holds it.
        include: roles, path patterns or types: only these are replaced; None for the roles of `REPLACED_ROLES`.
        exclude: these never are.
    """
    if exclude and _matches(site.path, site.module, site.role, exclude):
        return "excluded"
    if include is not None:
        return None if _matches(site.path, site.module, site.role, include) else "not included"
    return None if site.role in REPLACED_ROLES else WHY_KEPT[site.role]


def _matches(path: str, module: nn.Module, role: str, wanted: Iterable[Pattern]) -> bool:
    return any(
        isinstance(module, one) if isinstance(one, type) else one == role or fnmatch.fnmatchcase(path, one)
        for one in wanted
    )


def _role(owners: tuple[nn.Module, ...], path: str, name: str, module: nn.Module) -> str:
    owner = owners[-1]
    kind = type(owner).__name__
    if name in _GATE_NAMES or is_gate_type(module):
        return "gate"
    if _POSITION_NAME.search(path) or any(type(one).__name__ in _POSITION_OWNERS for one in owners):
        return "position"
    if name in _KERNEL_NAMES:
        return "attention_kernel"
    if _GLU_OWNER.search(kind) or (type(owner).__module__, kind) in _GLU_OWNERS:
        return "glu"
    # A squeeze-excite block is known by its gate beside the activation, in timm and in torchvision, or by its name.
    has_gate = any(is_activation(owner._modules.get(gate)) for gate in _GATE_NAMES)
    named = any(_SE_OWNER.search(type(one).__name__) for one in owners[-2:]) or name in _SE_NAMES.get(kind, ())
    return "se_hidden" if has_gate or named else "hidden"


class PerCallActivation(nn.ModuleList):
    """The activations of one site that is called several times a forward: each call has its own.

    Args:
        modules: one activation a call.
        evaluation: the index of the activation of each call that evaluation makes, in order.
        training: the same for training.
        name: of the site and its owner, for errors.
    """

    def __init__(
        self, modules: Iterable[nn.Module], evaluation: Sequence[int], training: Sequence[int], name: str
    ) -> None:
        super().__init__(modules)
        self.evaluation_order = list(evaluation)
        self.training_order = list(training)
        self.name = name
        self.turn = 0

    @property
    def order(self) -> list[int]:
        """The indices of the activations in the order of the calls, in the mode that the module is in."""
        return self.training_order if self.training else self.evaluation_order

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation whose call this is.

        Raises:
            RunError: if that cannot be told.
        """
        turn = self._turn()
        if turn >= len(self.order):
            raise RunError(self.refusal(f"is called more often than the {len(self.order)} times that the swap saw"))
        y: Tensor = self[self.order[turn]](x)
        return y

    def refusal(self, what: str) -> str:
        """Word an error."""
        return (
            f"{self.name} {what}, so it cannot tell which of its calls this is; call and checkpoint the module that "
            'holds it as a whole, or swap with share="module", which gives all its calls one activation'
        )

    def _turn(self) -> int:
        # torch.compile follows attributes, not context variables. What it compiles as one piece is right in any thread.
        if torch.compiler.is_compiling():
            self.turn += 1
            return self.turn - 1
        forward = _running.get()
        while forward is not None and self not in forward.turns:
            forward = forward.outer
        # In a backward pass that began since, a checkpoint repeats a part of the forward.
        if forward is None or forward.backward_pass != torch._C._current_graph_task_id():
            raise RunError(self.refusal("is called outside of its owner's forward"))
        forward.turns[self] += 1
        return forward.turns[self] - 1


class _Forward:
    """One forward of an owner: how often each of its activations was called so far.

    Args:
        owner: whose forward it is.
        sequences: the activations that it counts.
        outer: the counted forward around it in this thread.
    """

    def __init__(self, owner: nn.Module, sequences: Iterable[PerCallActivation], outer: "_Forward | None") -> None:
        self.owner = owner
        self.turns = dict.fromkeys(sequences, 0)
        self.backward_pass = torch._C._current_graph_task_id()
        self.outer = outer


_running: ContextVar[_Forward | None] = ContextVar("arelu_meta_running", default=None)


def count_calls(owner: nn.Module, path: str) -> None:
    """Let every forward of a module begin the count of a `PerCallActivation` anew.

    Args:
        owner: the module whose forward makes the calls.
        path: of the `PerCallActivation`, from the owner.
    """
    paths, handles = vars(owner).get(_COUNTED, ((), ()))
    if not handles:
        handles = (
            owner.register_forward_pre_hook(_begin, prepend=True),
            owner.register_forward_hook(_end, always_call=True),
        )
    # The handles go along into copies and pickles: they keep their hooks' numbers from being given away again.
    vars(owner)[_COUNTED] = ((*(one for one in paths if one != path), path), handles)


def stop_counting(owner: nn.Module) -> None:
    """Take away what `count_calls` added.

    Args:
        owner: one for which it was called, or any other.
    """
    for handle in vars(owner).pop(_COUNTED, ((), ()))[1]:
        handle.remove()


def _sequences(owner: nn.Module) -> list[PerCallActivation]:
    found = []
    for path in owner.__dict__[_COUNTED][0]:
        module: Any = owner
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, PerCallActivation):
            found.append(module)
    return found


def _begin(owner: nn.Module, _: object) -> None:
    sequences = _sequences(owner)
    for sequence in sequences:
        sequence.turn = 0
    if not torch.compiler.is_compiling():
        _running.set(_Forward(owner, sequences, _running.get()))


def _end(owner: nn.Module, _: object, output: object) -> None:
    if torch.compiler.is_compiling():
        return
    forward = _running.get()
    while forward is not None and forward.owner is not owner:  # an inner one that was interrupted
        forward = forward.outer
    if forward is None:
        return
    _running.set(forward.outer)
    if output is None:  # the forward failed
        return
    for sequence, turns in forward.turns.items():
        if turns not in (0, len(sequence.order)):
            raise RunError(sequence.refusal(f"was called {turns} times, and the swap saw {len(sequence.order)}"))
