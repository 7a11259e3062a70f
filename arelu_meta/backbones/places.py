"""The places that a swap fills: how many activations each needs, making them, and putting them in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.calls import CallSequence, forget_calls, restart_calls
from arelu_meta.backbones.drift import Collector, drift_between, outputs_of, reestimate_batch_norm, run
from arelu_meta.backbones.fast_path import match_fast_paths
from arelu_meta.backbones.inits import INITS, fit_start, move_hooks
from arelu_meta.backbones.roles import Slot
from arelu_meta.backbones.tracing import Trace
from arelu_meta.backbones.walking import tree_changed
from arelu_meta.errors import InputError

Maker = Callable[[Slot, int, Collector | None], nn.Module]


@dataclass
class Place:
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
        """How many activations the place needs."""
        return max([1, *(index + 1 for _, index in [*self.evaluation, *self.training])])


def place_of(slot: Slot, traces: tuple[Trace, Trace] | None) -> Place:
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
    return Place(slot, [slot.path], evaluation or training, training or evaluation, caller, [])


def maker(model: nn.Module, activation: str, start: str, tied: bool) -> Maker:
    """Say how an activation is made for a call.

    Args:
        model: whose nearest parameter gives device and dtype.
        activation: a name of `list_activations()`.
        start: how an AReLU starts.
        tied: one module gives one activation, wherever it stands.
    """
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


def fill_by_data(
    model: nn.Module,
    places: list[Place],
    start: str,
    activation: str,
    make: Maker,
    batches: list[Tensor],
    batch_norm: bool,
) -> dict[str, float]:
    """Fill the places after a look at what goes through them, and say how far each output has moved."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()} if batch_norm else {}
    try:
        for place in places:
            place.filled = [Collector(place.slot.module) for _ in range(place.calls)]
        collectors = [place.filled for place in places]
        put_in(model, places, hooks=False)
        match_fast_paths(model)
        names = [[path_of(place, call) for call in range(place.calls)] for place in places]
        before = outputs_of(model, batches[0], _names(collectors, names))
        if start == "fit" and activation == "arelu":
            run(model, batches[1:])
        for place in places:
            looked = [one if isinstance(one, Collector) else None for one in place.filled]
            place.filled = [make(place.slot, call, collector) for call, collector in enumerate(looked)]
        put_in(model, places)
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


def put_in(model: nn.Module, places: list[Place], hooks: bool = True) -> None:
    """Put what was made for the places into the model.

    Args:
        model: changed in place.
        places: with one activation a call in `filled`.
        hooks: move those of the old activations to the new ones.
    """
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


def path_of(place: Place, call: int) -> str:
    """Name the activation of one call, as the report does."""
    return f"{place.slot.path}.{call}" if place.calls > 1 else place.slot.path


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
