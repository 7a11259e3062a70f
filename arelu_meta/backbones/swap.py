"""Swap activations in any model: find them, replace them, report, and take it back."""

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from arelu_meta.activations.arelu import ALPHA_MAX, ALPHA_MIN, AReLU, GatedAReLU
from arelu_meta.activations.controls import CONTROLS, FROZEN, SWAPPED_IN, freeze_scalars, split_start
from arelu_meta.activations.registry import create_activation
from arelu_meta.activations.zoo import ELSA
from arelu_meta.backbones.activation_sites import (
    REPLACED_ROLES,
    WHY_KEPT,
    Pattern,
    PerCallActivation,
    Site,
    check_patterns,
    count_calls,
    find_activations,
    find_sites,
    is_activation,
    norms_with_activation,
    reason_to_keep,
    stop_counting,
    works_in_place,
)
from arelu_meta.backbones.calibration import (
    Collector,
    Outputs,
    batches_of,
    check_preserved,
    drift_between,
    outputs_of,
    outputs_to_preserve,
    reestimate_batch_norm,
    run,
)
from arelu_meta.backbones.call_tracing import (
    MODULE_OF_FUNCTION,
    Call,
    Example,
    Traces,
    example_input,
    trace_calls,
)
from arelu_meta.backbones.functional_patches import (
    ROLES_OF_FUNCTIONS,
    activations_of,
    match_fast_paths,
    patch_functional_calls,
    unpatch,
)
from arelu_meta.backbones.initialization import (
    HOOKS,
    INITS,
    STARTED,
    control_of,
    default_init,
    fit_init,
    move_hooks,
    out_of_place_copy,
    write_back,
)
from arelu_meta.backbones.report import Kept, Swapped, SwapReport
from arelu_meta.backbones.timm_compat import add_timm_support, drop_timm_support
from arelu_meta.config import MOST_BETA, Activation, Init
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.validation import checked

__all__ = ["SwapReport", "find_activations", "is_activation", "swap_activations", "unswap"]

Share = Literal["call", "module"]


@checked
def swap_activations(
    model: nn.Module,
    activation: Activation = "arelu",
    init: Init | None = None,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    example: Example | None = None,
    data: Tensor | Iterable[object] | None = None,
    trace: bool = True,
    share: Share = "call",
    batch_norm: bool = False,
    alpha: float | None = None,
    beta: float | None = None,
) -> SwapReport:
    """Replace a model's hidden activations in place; gates and what works on positions stay.

    A second swap replaces what the first one put in, from the model's own activations on; what was put in with the
    same activation and the same init (or none is asked for) stays, with what it has learned.

    A Hugging Face model's `from_pretrained` makes the network anew: call this, with an init, in the `__init__` of a
    class of your own below the model's; its `save_pretrained` and `from_pretrained` then keep the scalars.

    Args:
        model: any module.
        activation: a name of `list_activations()`, `elsa:BASE`, `arelu:START`, or a control that is put in the
            activations' place (`CONTROLS`).
        init: how an AReLU starts: `preserve` (every output stays as it was), `paper`, `leak`, `open`, `nearest`, or
            `fit`, which needs `data`; default: `preserve` for pretrained weights, `paper` otherwise. Other activations
            start as they are made.
        include: replace only these: roles (`hidden`, `se_hidden`, `glu`, `gate`, `position`, `attention_kernel`),
            path patterns (`blocks.*`) or types.
        exclude: never replace these: the same.
        example: an input for tracing, or several in a tuple or a dict; default: an image of the size that the model
            says it takes (timm's `pretrained_cfg`, Hugging Face's `config`).
        data: a few unlabelled batches: for `fit`, for `batch_norm`, and for the report's drift, on the first of them.
        trace: run a copy of the model once in each mode, to see which activations are called several times, and which
            as functions; and check `preserve` by one forward before and one after. Without it, or without an example,
            a module stays one module and `complete` is False.
        share: `call`: each call of a module within its owner's forward has scalars of its own; `module`: a module that
            is called several times, or stands under several names, is replaced by one.
        batch_norm: re-estimate the running statistics of batch normalisation on `data`.
        alpha: where alpha starts, in [0.01, 0.99]; default: what `init` says, the paper's 0.9.
        beta: where beta starts; default: what `init` says, the paper's 2.

    Returns:
        What was replaced and what was kept.

    Raises:
        InputError: if a name is unknown, a pattern matches nothing, the model cannot be changed, there is nothing to
            replace, or `preserve` would move an output; the model is unchanged then.

    Example:
        >>> import torch
        >>> from arelu_meta import swap_activations
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(swap_activations(net, "arelu", init="preserve", example=torch.randn(1, 4)))
        path  role    before  after
        1     hidden  ReLU    GatedAReLU(ReLU)
        1 swapped, 0 kept, 3 parameters added, complete
        >>> swap_activations(net, "gelu", example=torch.randn(1, 4)).swapped[0].before  # a second one replaces it
        'GatedAReLU(ReLU)'
    """
    activation, named = split_start(activation)
    init = cast(Init | None, named) if init is None else init
    check_arguments(activation, init, share, data, batch_norm)
    check_scalars(activation, init, alpha, beta)
    check_model(model)
    batches = batches_of(data, model)
    if trace and example is None:
        example = batches[0] if batches else example_input(model)
    swap = _Swap(model, activation, init, include, exclude, example, batches, trace, share, batch_norm)
    swap.alpha, swap.beta = alpha, beta
    with unchanged_after_an_error(model):
        remember_base(model)
        return swap.run()


@checked
def unswap(model: nn.Module) -> None:
    """Put back the activations that `swap_activations` replaced, the very same modules.

    Args:
        model: changed in place; one that was never swapped stays as it is. What has been taken out of the model or
            built anew since the swap (a pruned layer, a reset head) stays so.

    Example:
        >>> import torch
        >>> from arelu_meta import swap_activations, unswap
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> _ = swap_activations(net, "arelu")
        >>> unswap(net)
        >>> net[1]
        ReLU()
    """
    for module in list(model.modules()):
        for name in list(vars(module).get(REPLACED, ())):
            put_back(module, name)
        stop_counting(module)
        unpatch(module)
        drop_timm_support(module)
    if (base := base_of(model)) is not None and not base.name:
        forget_base(model)
    match_fast_paths(model)


@dataclass(frozen=True)
class Base:
    """What a model was before anything of it was trained: an adapter holds what has changed since.

    Args:
        prints: by the name of each tensor a number that hangs on all of its bits (`print_of`).
        name: as `create_backbone` takes it; "" for a network that it did not make.
        pretrained: likewise.
        in_chans: likewise.
    """

    prints: dict[str, int]
    name: str = ""
    pretrained: bool | str = False
    in_chans: int = 3


_BASE = "_arelu_meta_base"


def remember_base(model: nn.Module, name: str = "", pretrained: bool | str = False, in_chans: int = 3) -> None:
    """Remember what a model is, if nothing is remembered of it yet; a number a tensor, no copies.

    Args:
        model: before a swap, and before any training.
        name: as `create_backbone` takes it; "" for a network that it did not make.
        pretrained: likewise.
        in_chans: likewise.
    """
    if _BASE not in vars(model):
        prints = {key: print_of(tensor) for key, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
        vars(model)[_BASE] = Base(prints, name, pretrained, in_chans)


def forget_base(model: nn.Module) -> None:
    """Forget what is remembered of a model.

    Args:
        model: any module.
    """
    vars(model).pop(_BASE, None)


def copy_base(source: nn.Module, target: nn.Module) -> None:
    """Remember of a model what is remembered of another.

    Args:
        source: any module.
        target: any module.
    """
    forget_base(target)
    if (base := base_of(source)) is not None:
        vars(target)[_BASE] = base


def base_of(model: nn.Module) -> Base | None:
    """Return what is remembered of a model.

    Args:
        model: any module.
    """
    found: Base | None = vars(model).get(_BASE)
    return found


def print_of(tensor: Tensor) -> int:
    """Return a number that hangs on all bits of a tensor and on their places: training moves it.

    Args:
        tensor: any; of one on the meta device there are no bits.
    """
    if tensor.is_meta or tensor.layout != torch.strided:
        return 0
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def swaps_of(model: nn.Module) -> dict[tuple[str, str | None], list[str]]:
    """List the paths of the sites that a swap filled, by activation and init.

    Args:
        model: any module.
    """
    found: dict[tuple[str, str | None], list[str]] = {}
    for site in find_sites(model):
        if (replaced := replaced_at(site)) is not None:
            found.setdefault((replaced.activation, replaced.init), []).append(site.path)
    return found


def check_arguments(
    activation: str, init: str | None, share: str, data: Tensor | Iterable[object] | None, batch_norm: bool
) -> None:
    """Check the arguments of `swap_activations` that need no model.

    Raises:
        InputError: if a name is unknown, or one needs images and there are none.
    """
    if activation in CONTROLS and activation not in SWAPPED_IN:
        raise InputError(f"activation: {activation!r} is no activation of its own; create_backbone takes it")
    if activation not in STARTED and init is not None:
        raise InputError(
            f"init: {init!r} is an initialization of 'arelu'; {activation!r} starts as it is made, give no init"
        )
    if init is not None and init not in INITS:
        raise InputError(f"init: {init!r} is not known; {nearest_names(init, INITS)}")
    if share not in ("call", "module"):
        raise InputError(f"share: {share!r} is not allowed; give 'call' or 'module'")
    for what, needed in (("init: 'fit'", init == "fit"), ("batch_norm: True", batch_norm)):
        if needed and data is None:
            raise InputError(f"{what} looks at images; give data=, a few unlabelled batches")
    if activation not in SWAPPED_IN:
        create_activation(activation)


def check_scalars(activation: str, init: str | None, alpha: float | None, beta: float | None) -> None:
    """Check where alpha and beta are to start.

    Raises:
        InputError: if the activation or the init has no such start, or a value is out of its range.
    """
    for name, value, low, high in (("alpha", alpha, ALPHA_MIN, ALPHA_MAX), ("beta", beta, -MOST_BETA, MOST_BETA)):
        if value is None:
            continue
        if activation not in STARTED and activation.partition(":")[0] != "elsa":
            raise InputError(f"{name}: {value} is of an AReLU, and {activation!r} has none; leave it out")
        if init in ("nearest", "fit"):
            raise InputError(f"{name}: {value}, and init {init!r} computes its own; leave one out")
        if not low <= value <= high:
            raise InputError(f"{name}: {value} is not allowed; give {low:g} to {high:g}")


def check_model(model: nn.Module) -> None:
    """Refuse a model whose modules cannot be exchanged.

    Raises:
        InputError: if it is scripted, compiled or lazy, or no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    name = type(model).__name__
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise InputError(f"model: {name} is under torch.compile already; swap before it, or swap model._orig_mod")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # what is in it cannot even be seen
            where = repr(path) if path else name
            raise InputError(f"model: {where} is scripted or frozen and cannot be changed; swap before torch.jit")
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(is_lazy(tensor) for tensor in tensors if tensor is not None):
            raise InputError(f"model: {name} has lazy layers that have not seen an input; run it once before the swap")


REPLACED = "_arelu_meta_replaced"
"""Under which name a module keeps what was taken out of it, by the name of the place."""

Maker = Callable[["Filling", int, Collector | None], nn.Module]


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
        alpha: where alpha starts; None where the init says so.
        beta: likewise.
    """

    activation: str
    init: str | None
    tied: bool
    alpha: float | None = None
    beta: float | None = None


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
        filling.modules = [make(filling, call, None) for call in range(filling.calls)]
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
            filling.modules = [make(filling, call, collector) for call, collector in enumerate(looked)]
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

    def make(filling: Filling, call: int, collector: Collector | None) -> nn.Module:
        site = filling.site
        key = (id(site.module), call)
        if wanted.tied and key in made:  # one module gives one activation, wherever it stands
            return made[key]
        device, dtype = _where(model, site)
        if wanted.activation in SWAPPED_IN and wanted.activation.startswith("control:"):
            after = control_of(site.module, wanted.activation, last=call == filling.calls - 1)
        elif wanted.activation not in STARTED:
            after = create_activation(wanted.activation, device=device, dtype=dtype)
        elif wanted.init == "fit":
            after = fit_init(site.module, device, dtype, collector.moments if collector else None)
        else:
            after = INITS[str(wanted.init)](site.module, device=device, dtype=dtype)
        with torch.no_grad():
            for name, value in (("alpha", wanted.alpha), ("beta", wanted.beta)):
                if value is not None:
                    getattr(after, name).fill_(value)
        if wanted.activation == FROZEN:
            freeze_scalars(after)
        if not hasattr(after, "base"):  # which would hold them
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


class _Swap:
    """One swap of a model, step by step."""

    def __init__(
        self,
        model: nn.Module,
        activation: str,
        init: str | None,
        include: Sequence[Pattern] | None,
        exclude: Sequence[Pattern] | None,
        example: Example | None,
        batches: list[Tensor],
        trace: bool,
        share: Share,
        batch_norm: bool,
    ) -> None:
        self.model = model
        self.activation = activation
        self.asked_init = init
        self.init = init
        self.include, self.exclude = include, exclude
        self.example = example if trace else None
        self.batches = batches
        self.trace = trace
        self.share = share
        self.batch_norm = batch_norm
        self.alpha: float | None = None
        self.beta: float | None = None
        self.report = SwapReport()
        self.as_asked = 0
        self.before: dict[tuple[int, str], tuple[str, int]] = {}

    def run(self) -> SwapReport:
        model, report = self.model, self.report
        patched = patch_functional_calls(model)
        sites = find_sites(model)
        check_patterns([*sites, *map(as_before_any_swap, sites)], [*(self.include or ()), *(self.exclude or ())])
        self._put_earlier_originals_back()
        if self.activation in STARTED and self.init is None:
            self.init = default_init(model)
        report.init = self.init
        to_preserve = self._outputs_to_preserve()
        traces = Traces() if self.example is None else trace_calls(model, self.example)
        sites = find_sites(model)
        self._check_there_is_something(sites, traces)
        fillings = self._fillings(sites, traces)
        if self.activation in CONTROLS and CONTROLS[self.activation].at == "last":
            for filling in fillings[:-1]:
                reason = f"{self.activation} replaces the last activation alone"
                report.kept.append(Kept(filling.site.path, filling.site.role, filling.before, reason))
            del fillings[:-1]
        tied = traces.evaluation is None or self.share == "module"
        wanted = Wanted(self.activation, self.init, tied, self.alpha, self.beta)
        if self.batches and fillings:
            drift = fill_by_data(model, fillings, wanted, self.batches, self.batch_norm)
            report.logit_drift = drift.pop("", None)
        else:
            drift = {}
            fill(model, fillings, wanted)
        for module in patched:
            if not vars(module).get(REPLACED, {}).keys() & set(activations_of(module)):
                unpatch(module)
        match_fast_paths(model)
        self._write_entries(sites, fillings, drift)
        self._list_what_stays(traces)
        self._note(traces)
        if to_preserve is not None and fillings:
            self._note_unchecked(check_preserved(model, to_preserve))
        add_timm_support(model)
        return report

    def _put_earlier_originals_back(self) -> None:
        """Let what an earlier swap put in give way to the originals, if it is to be replaced."""
        for site in find_sites(self.model):
            replaced = replaced_at(site)
            either = (site, as_before_any_swap(site))
            kept = all(reason_to_keep(one, self.include, self.exclude) for one in either)
            if kept or self._is_as_asked(site, replaced):
                continue
            self.before[id(site.owner), site.name] = _describe(site.module), _parameters_of(site.module)
            if replaced is not None:
                put_back(site.owner, site.name)

    def _is_as_asked(self, site: Site, replaced: Replaced | None) -> bool:
        if self.alpha is not None or self.beta is not None:
            return False
        if replaced is not None:
            asked = self.asked_init in (None, replaced.init)
            return replaced.activation == self.activation and asked
        if self.activation != "arelu" or not isinstance(site.module, AReLU | GatedAReLU):
            return False
        gated = self.asked_init in ("preserve", *("leak", "open"))
        return self.asked_init is None or isinstance(site.module, GatedAReLU) == gated

    def _outputs_to_preserve(self) -> Outputs | None:
        if self.init != "preserve" or not self.trace:
            return None
        if self.example is None:
            self._note_unchecked("the model does not say what it takes; give example=")
            return None
        if self.batch_norm:
            self._note_unchecked("batch_norm moves the outputs, as it was asked to")
            return None
        found = outputs_to_preserve(self.model, self.example)
        if isinstance(found, str):
            self._note_unchecked(found)
            return None
        return found

    def _note_unchecked(self, why: str) -> None:
        if why:
            self.report.notes.append(f"preserve was not checked: {why}")

    def _check_there_is_something(self, sites: list[Site], traces: Traces) -> None:
        functions = any(trace.functions for trace in traces.both())
        if sites or functions or any(norms_with_activation(self.model)):
            return
        name = type(self.model).__name__
        if traces.evaluation is not None:
            raise InputError(f"model: {name} has no activation; nothing to swap")
        why = f" ({traces.failure})" if traces.failure else ""
        raise InputError(
            f"model: {name} has no activation module, and it was not run to see whether it calls one as a function"
            f"{why}; nothing to swap, or give example=, an input that it takes"
        )

    def _fillings(self, sites: list[Site], traces: Traces) -> list[Filling]:
        fillings: dict[tuple[int, str], Filling] = {}
        for site in sites:
            key = id(site.owner), site.name
            if key not in self.before:
                reason = reason_to_keep(site, self.include, self.exclude)
                if reason:
                    self.report.kept.append(Kept(site.path, site.role, _describe(site.module), reason))
                else:
                    self.as_asked += 1
            elif key in fillings:
                fillings[key].paths.append(site.path)
            elif any(map(parametrize.is_parametrized, site.module.modules())):
                raise InputError(
                    f"model: {site.path!r} is parametrised; remove its parametrisation before the swap, or exclude it"
                )
            else:
                filling = Filling(site, *self.before[key], [site.path])
                if self._decide(filling, traces):
                    fillings[key] = filling
        return list(fillings.values())

    def _decide(self, filling: Filling, traces: Traces) -> bool:
        """See from the traces how often a site is called; return False if it has to stay."""
        path, seen = filling.site.path, traces.both()
        calls = [trace.calls.get(path, []) for trace in seen] if self.share == "call" else []
        if not number_calls(filling, calls):
            self.report.notes.append(f"{path}: its calls come in a changing order, so they share one activation")
        # Where nobody looked, the input may be read again.
        read_again = any(path in trace.read_again for trace in seen) or not seen
        filling.write_back = read_again and works_in_place(filling.site.module)
        ours = self.activation in ("arelu", *SWAPPED_IN)
        if not filling.write_back or ours or write_back(create_activation(self.activation)):
            return True
        if not seen:
            filling.write_back = False
            return True
        reason = f"it works in place and its input is read again; {self.activation!r} cannot work in place"
        self.report.kept.append(Kept(path, filling.site.role, filling.before, reason))
        return False

    def _write_entries(self, sites: list[Site], fillings: list[Filling], drift: dict[str, float]) -> None:
        report, counted = self.report, set[int]()
        by_path = {path: filling for filling in fillings for path in filling.paths}
        for site in sites:
            filling = by_path.get(site.path)
            if filling is None:
                continue
            for call, after in enumerate(filling.modules):
                path = f"{site.path}.{call}" if filling.calls > 1 else site.path
                alpha, beta = None, None
                if isinstance(after, AReLU | GatedAReLU | ELSA) and not after.alpha.is_meta:
                    alpha, beta = after.alpha.item(), after.beta.item()
                moved = drift.get(filling.path_of(call))
                report.swapped.append(Swapped(path, site.role, filling.before, _describe(after), alpha, beta, moved))
                if id(after) not in counted:
                    counted.add(id(after))
                    report.parameters_added += _parameters_of(after)
            if id(site.module) not in counted:
                counted.add(id(site.module))
                report.parameters_added -= filling.parameters_before

    def _list_what_stays(self, traces: Traces) -> None:
        report = self.report
        calls = [call for trace in traces.both() for call in trace.functions]
        for call in dict.fromkeys(calls):
            role = ROLES_OF_FUNCTIONS.get(type(self.model.get_submodule(call.owner)), "hidden")
            reason = WHY_KEPT.get(
                role,
                f"called as a function in {call.where}; write self.act = nn.{MODULE_OF_FUNCTION[call.function]}() "
                "in the module's __init__ and call self.act(x) there",
            )
            report.kept.append(Kept(call.owner, role, call.function, reason))
        for path, norm in norms_with_activation(self.model):
            reason = "its activation is part of the norm's own arithmetic"
            report.kept.append(Kept(path, "hidden", type(norm).__name__, reason))
        left = any(entry.role in REPLACED_ROLES for entry in report.kept)
        report.complete = traces.evaluation is not None and not left

    def _note(self, traces: Traces) -> None:
        notes, why = self.report.notes, ""
        if self.as_asked:
            notes.append(f"{self.as_asked} are {self.activation} from before, and stay as they are")
        if self.activation in STARTED and self.asked_init is None and self.report.swapped:
            look = "do not look pretrained" if self.init == "paper" else "may be pretrained"
            notes.append(f"init: {self.init}, since the weights {look}; give init= to choose another")
        what = "what it calls several times, or as a function, is not known"
        if not self.trace:
            why = "was not run"
        elif self.example is None:
            why = "was not run, for it does not say what it takes (give example=)"
        elif traces.evaluation is None:
            why = f"failed on the example ({traces.failure})"
        elif traces.failure:
            why, what = (
                f"failed in training on the example ({traces.failure})",
                "what training alone calls is not known",
            )
        if why:
            notes.append(f"the model {why}: {what}")


@contextmanager
def unchanged_after_an_error(model: nn.Module) -> Iterator[None]:
    """Give a model back as it was where a swap fails: its tree, its classes, its hooks and all attributes."""
    contents = ("_modules", *HOOKS, REPLACED)
    kept = []
    for module in model.modules():
        attributes = dict(vars(module))
        inner = {name: copy.copy(attributes[name]) for name in contents if isinstance(attributes.get(name), dict)}
        kept.append((module, type(module), attributes, inner))
    try:
        yield
    except BaseException:
        for module, kind, attributes, inner in kept:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in inner.items():
                vars(module)[name].clear()
                vars(module)[name].update(content)
        raise


def _describe(module: nn.Module) -> str:
    if isinstance(module, PerCallActivation):
        return _describe(module[0])
    if isinstance(module, GatedAReLU):
        return f"GatedAReLU({_describe(module.base)})"
    if isinstance(module, ELSA):
        return f"ELSA({_describe(module.base)})"
    return "AReLU" if isinstance(module, AReLU) else type(module).__name__


def _parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
