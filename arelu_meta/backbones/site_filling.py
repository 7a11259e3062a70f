"""Fill activation sites: count the calls of each, make an activation for every call, put it in, and take it out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.activation_sites import Site
from arelu_meta.backbones.calibration import Collector, drift_between, outputs_of, reestimate_batch_norm, run
from arelu_meta.backbones.call_tracing import Call
from arelu_meta.backbones.functional_patches import match_fast_paths
from arelu_meta.backbones.initialization import INITS, fit_init, move_hooks, out_of_place_copy, write_back
from arelu_meta.backbones.per_call import PerCallActivation, count_calls
from arelu_meta.errors import InputError

REPLACED = "_arelu_meta_replaced"
"""Under which name a module keeps what was taken out of it, by the name of the place."""

Maker = Callable[[Site, int, Collector | None], nn.Module]


@dataclass(frozen=True)
class Replaced:
    """What a swap took out of a place: kept by the module that holds the place.

    Args:
        original: the activation that stood there before any swap.
        activation: what was swapped in.
        init: how it started; None where it starts as it is made.
    """

    original: nn.Module
    activation: str
    init: str | None


@dataclass
class Filling:
    """What is to fill one site.

    Args:
        site: it.
        before: what the table says of what stood there.
        parameters_before: how many parameters that had.
        paths: all names that lead to it.
        evaluation: the index of the activation of each call of one forward.
        training: the same in training.
        caller: the path of the module whose forward makes the calls.
        write_back: whether the new activation has to overwrite its input.
        modules: what was made, one activation a call.
    """

    site: Site
    before: str
    parameters_before: int
    paths: list[str]
    evaluation: list[int] = field(default_factory=lambda: [0])
    training: list[int] = field(default_factory=lambda: [0])
    caller: str = ""
    write_back: bool = False
    modules: list[nn.Module] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many activations the site needs."""
        return 1 + max([0, *self.evaluation, *self.training])

    def path_of(self, call: int) -> str:
        """Name the activation of one call, as the report does."""
        return f"{self.site.path}.{call}" if self.calls > 1 else self.site.path


@dataclass(frozen=True)
class Wanted:
    """What to put into sites.

    Args:
        activation: a name of `list_activations()`.
        init: how an AReLU starts.
        tied: whether one module gives one activation, wherever it stands.
    """

    activation: str
    init: str | None
    tied: bool


def number_calls(filling: Filling, calls: list[list[Call]]) -> bool:
    """Number the calls of one forward of the caller: a place in the code, and in a loop the turn there, is one call.

    Args:
        filling: is told the calls, and who makes them.
        calls: in evaluation, and in training if that was traced.

    Returns:
        False if several forwards of the caller make them in different orders, so that no count can tell them apart.
    """
    path = filling.site.path
    callers = [_callers(path, call) for some in calls for call in some]
    if not callers:
        return True
    filling.caller = min((names[-1] for names in callers), key=len)
    numbers: dict[tuple[str, int], int] = {}
    orders: list[list[int]] = []
    for some in calls:
        forwards: dict[int, list[int]] = {}
        turns: dict[tuple[int, str], int] = {}
        for call in some:
            forward = [number for name, number in call.running if name == filling.caller][-1]
            turn = turns.get((forward, call.place), 0)
            turns[forward, call.place] = turn + 1
            forwards.setdefault(forward, []).append(numbers.setdefault((call.place, turn), len(numbers)))
        order = max(forwards.values(), key=len, default=[])
        if any(other != order for other in forwards.values()):
            return False
        orders.append(order)
    filling.evaluation = orders[0] or orders[-1]
    filling.training = orders[-1] or orders[0]
    return True


def _callers(path: str, call: Call) -> list[str]:
    return [name for name, _ in call.running if not name or path.startswith(f"{name}.")]


def fill(model: nn.Module, fillings: list[Filling], wanted: Wanted) -> None:
    """Fill sites without a look at images.

    Args:
        model: changed in place.
        fillings: the sites; their modules are made here.
        wanted: what to put in.
    """
    make = _maker(model, wanted)
    for filling in fillings:
        filling.modules = [make(filling.site, call, None) for call in range(filling.calls)]
    _put_in(model, fillings, wanted)


def fill_by_data(
    model: nn.Module, fillings: list[Filling], wanted: Wanted, batches: list[Tensor], batch_norm: bool
) -> dict[str, float]:
    """Fill sites after a look at what goes through them.

    Args:
        model: changed in place.
        fillings: the sites; their modules are made here.
        wanted: what to put in.
        batches: of images.
        batch_norm: re-estimate the running statistics of batch normalisation on them.

    Returns:
        How far the output of each activation has moved on the first batch, by path, and that of the model under "".

    Raises:
        InputError: if the model cannot take the images.
    """
    make = _maker(model, wanted)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()} if batch_norm else {}
    try:
        for filling in fillings:
            base = filling.site.module
            filling.modules = [Collector(out_of_place_copy(base), filling.write_back) for _ in range(filling.calls)]
        _put_in(model, fillings)
        before = outputs_of(model, batches[0], _names(fillings))
        if wanted.init == "fit":
            run(model, batches[1:])
        for filling in fillings:
            looked = [one if isinstance(one, Collector) else None for one in filling.modules]
            filling.modules = [make(filling.site, call, collector) for call, collector in enumerate(looked)]
        _put_in(model, fillings, wanted)
        if batch_norm:
            reestimate_batch_norm(model, batches)
        return drift_between(before, outputs_of(model, batches[0], _names(fillings)))
    except Exception as error:
        for name, buffer in model.named_buffers():
            if name in statistics:
                buffer.copy_(statistics[name])
        if isinstance(error, InputError):
            raise
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"data: the model cannot take it ({reason}); give batches of its images") from error


def replaced_at(site: Site) -> Replaced | None:
    """Tell what a swap took out of a site; None if there was none.

    Args:
        site: of any model.
    """
    found: Replaced | None = vars(site.owner).get(REPLACED, {}).get(site.name)
    return found


def as_before_any_swap(site: Site) -> Site:
    """Give a site with the activation that stood there before any swap.

    Args:
        site: of any model.
    """
    replaced = replaced_at(site)
    return site if replaced is None else replace(site, module=replaced.original)


def put_back(owner: nn.Module, name: str) -> None:
    """Put back what a swap took out of a place, in the mode that stands there now; and forget of it.

    Args:
        owner: the module that holds the place.
        name: of the place. One that is empty now stays so.
    """
    replaced = vars(owner)[REPLACED].pop(name)
    now = owner._modules.get(name)
    if now is not None:
        owner._modules[name] = replaced.original.train(now.training)
    if not vars(owner)[REPLACED]:
        del vars(owner)[REPLACED]


def _maker(model: nn.Module, wanted: Wanted) -> Maker:
    made: dict[tuple[int, int], nn.Module] = {}

    def make(site: Site, call: int, collector: Collector | None) -> nn.Module:
        key = (id(site.module), call)
        if wanted.tied and key in made:  # one module gives one activation, wherever it stands
            return made[key]
        device, dtype = _where(model, site)
        if wanted.activation != "arelu":
            after = create_activation(wanted.activation, device=device, dtype=dtype)
        elif wanted.init == "fit":
            after = fit_init(site.module, device, dtype, collector.moments if collector else None)
        else:
            after = INITS[str(wanted.init)](site.module, device=device, dtype=dtype)
        if not isinstance(after, GatedAReLU):  # its base holds them
            for name, buffer in site.module.named_buffers(recurse=False):
                if not hasattr(after, name):
                    after.register_buffer(name, buffer.clone(), name not in site.module._non_persistent_buffers_set)
        made[key] = after.train(site.module.training)
        return after

    return make


def _put_in(model: nn.Module, fillings: list[Filling], wanted: Wanted | None = None) -> None:
    """Put what was made into the model; without `wanted` only for a look, hooks and memory stay with the originals."""
    for filling in fillings:
        site = filling.site
        after = filling.modules[0]
        if filling.calls > 1:
            owner = model.get_submodule(filling.caller)
            where = f"{site.path!r} of {type(owner).__name__}"
            after = PerCallActivation(filling.modules, filling.evaluation, filling.training, where)
            after.train(site.module.training)
            count_calls(owner, site.path[len(filling.caller) + bool(filling.caller) :])
        if wanted is not None:
            if filling.write_back:
                for module in filling.modules:
                    write_back(module)
            move_hooks(site.module, after)
            replaced = vars(site.owner).setdefault(REPLACED, {})
            replaced[site.name] = Replaced(site.module, wanted.activation, wanted.init)
        site.owner._modules[site.name] = after
    match_fast_paths(model)


def _names(fillings: list[Filling]) -> dict[nn.Module, str]:
    return {module: filling.path_of(call) for filling in fillings for call, module in enumerate(filling.modules)}


def _where(model: nn.Module, site: Site) -> tuple[torch.device | None, torch.dtype | None]:
    """Take device and dtype from the nearest parameter around the activation."""
    owner, path = site.owner, site.path.rpartition(".")[0]
    while True:
        parameter = next((one for one in owner.parameters() if one.is_floating_point()), None)
        if parameter is not None or not path:
            return (None, None) if parameter is None else (parameter.device, parameter.dtype)
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
