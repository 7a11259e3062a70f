"""`arelu-meta swap --all`: how much of timm a swap takes, model by model, on the meta device."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.progress import progress

_EVO = "EvoNorm: the activation, x * sigmoid(v * x), is divided by the norm's own variance"
_FRN = "filter response norm: the activation is the norm's learned threshold, max(x, tau)"

EXCUSED: dict[str, str] = {
    "ese_vovnet39b_evos": _EVO,
    "regnetz_b16_evos": _EVO,
    "regnetz_c16_evos": _EVO,
    "regnetz_d8_evos": _EVO,
    "resnetv2_50d_evos": _EVO,
    "resnetv2_50d_frn": _FRN,
    "test_efficientnet_evos": _EVO,
}
"""The models of timm in which an activation stays, each with the reason."""


@dataclass(frozen=True)
class Outcome:
    """What a swap did to one of timm's models.

    Args:
        name: the model's.
        complete: whether every hidden activation was replaced.
        swapped: how many activations there are now.
        reason: why not all were, if not.
    """

    name: str
    complete: bool
    swapped: int
    reason: str = ""


def swap_one(name: str, activation: str = "arelu", init: str | None = None) -> Outcome:
    """Make one of timm's models on the meta device, swap its activations, and say whether all were taken.

    Args:
        name: of the model.
        activation: what to swap in.
        init: how an AReLU starts.
    """
    import timm

    from arelu_meta.backbones.swap import swap_activations
    from arelu_meta.backbones.tracing import trace_forward

    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        wrong = _misread(model)
        report = swap_activations(model, activation, init=init)
        # Not the report alone says so: a second look at the swapped model must find no call that is left.
        after = trace_forward(model)
    except Exception as error:  # one model that cannot be swapped must not hide what becomes of the others
        return Outcome(name, False, 0, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    left = Counter(f"{entry.before}: {entry.reason}" for entry in report.kept if entry.role in ("hidden", "se_hidden"))
    left.update(wrong)
    if after is None:
        left["the forward pass fails"] += 1
    elif after[0].functions:
        left[f"{after[0].functions[0].function} is still called in {after[0].functions[0].where}"] += 1
    reason = "; ".join(f"{count} {what}" for what, count in left.items())
    return Outcome(name, report.complete and not left, len(report.swapped), reason)


def _misread(model: nn.Module) -> list[str]:
    """Trace a model whose code was read instead, and list what the reading did not know."""
    from arelu_meta.backbones.called_once import calls_nothing_twice
    from arelu_meta.backbones.tracing import trace_forward

    if calls_nothing_twice(model) is None:
        return []
    traces = trace_forward(model)
    if traces is None:
        return ["its code was read, and its forward pass fails"]
    wrong = [f"{call.function} in {call.where}, which reading the code did not see" for call in traces[0].functions]
    for trace in traces:
        for path, calls in trace.calls.items():
            entries = Counter(call.entry for call in calls)
            if max(entries.values()) > 1:
                wrong.append(f"{path} is called {max(entries.values())} times, and was read as once")
    return wrong


def swap_all(activation: str = "arelu", init: str | None = None, names: list[str] | None = None) -> list[Outcome]:
    """Swap into every model that timm registers, print the share and what is left, each with its reason.

    Args:
        activation: what to swap in.
        init: how an AReLU starts.
        names: only these models.

    Returns:
        What became of each.

    Raises:
        RunError: if a model is neither fully swapped nor excused.
    """
    import timm

    if init == "fit":
        raise InputError("model.init: 'fit' looks at images; `swap --all` has none, give another")
    names = timm.list_models() if names is None else names
    outcomes: list[Outcome] = []
    with progress("swapping", len(names), "models") as bar:
        for outcome in _outcomes(names, activation, init):
            outcomes.append(outcome)
            bar.advance(1, complete=sum(one.complete for one in outcomes) / len(outcomes))
    _print(outcomes)
    failed = [outcome for outcome in outcomes if not outcome.complete and outcome.name not in EXCUSED]
    if failed:
        raise RunError(
            f"swap --all: {len(failed)} of {len(outcomes)} models are neither fully swapped nor excused: "
            + ", ".join(outcome.name for outcome in failed)
        )
    return outcomes


def _outcomes(names: list[str], activation: str, init: str | None) -> Iterator[Outcome]:
    if len(names) < 20:
        yield from (swap_one(name, activation, init) for name in names)
        return
    # Not forked: torch's threads do not survive that.
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), start, initializer=_one_thread) as pool:
        count = len(names)
        yield from pool.map(swap_one, names, [activation] * count, [init] * count, chunksize=4)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _print(outcomes: list[Outcome]) -> None:
    full = sum(outcome.complete for outcome in outcomes)
    activations = sum(outcome.swapped for outcome in outcomes)
    share = 100 * full / max(len(outcomes), 1)
    for outcome in outcomes:
        if not outcome.complete:
            excuse = EXCUSED.get(outcome.name)
            print(f"{outcome.name}: {f'excused ({excuse}); ' if excuse else 'FAILED; '}{outcome.reason}")
    excused = sum(not outcome.complete and outcome.name in EXCUSED for outcome in outcomes)
    print(
        f"{full} of {len(outcomes)} models fully swapped ({share:.1f} %), {activations} activations; "
        f"{excused} excused, {len(outcomes) - full - excused} failed"
    )
