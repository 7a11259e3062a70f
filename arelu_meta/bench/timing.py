"""Timing several contenders fairly on a machine that others use, too.

A load that comes and goes hits everyone alike if the contenders take turns, so a ratio is formed within a round, and
the median over rounds is what counts.
"""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_SHORTEST = 2e-3  # seconds; what is over sooner is repeated within a round
_MOST_REPEATS = 200
_LONG = 1.0  # seconds; what takes longer leaves caches and the allocator in a state of its own, and needs no call ahead


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Args:
        case: what was computed: a fixed string.
        contender: by whom.
        peer: the contender to which the ratio refers.
        median_ms: the median over rounds of one call's time, in milliseconds.
        peak_bytes: on a CPU what is kept for the backward, on CUDA the allocator's peak above the start; of whole
            epochs all that training has allocated at its peak.
        ratio_to_peer: the median over rounds of this contender's time divided by the peer's; below 1 is faster.
        ratio_low: the ratios' lower quartile.
        ratio_high: the ratios' upper quartile.
        rounds: how many rounds the medians are over.
        copy_ms: how long a copy of as many bytes takes as must be moved at least, at the bandwidth measured in the
            same rounds: what bounds a large tensor. None where nothing was said about bytes.
        dispatch_ms: the same call's median time on a single element: what bounds a small tensor. None if not measured.
    """

    case: str
    contender: str
    peer: str
    median_ms: float
    peak_bytes: int
    ratio_to_peer: float
    ratio_low: float
    ratio_high: float
    rounds: int
    copy_ms: float | None = None
    dispatch_ms: float | None = None


Cases = dict[str, Callable[[], list[Row]]]
"""What a `bench` can measure: by each case's id, what measures it."""


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Args:
        call: the timed part; given what `prepare` returned.
        prepare: run before each call, outside the clock; a call may use up what it returns.
    """

    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


def time_in_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Let every contender run in every round, each after a call of its own that does not count, unless it is long.

    On Linux the process keeps freed memory from then on instead of giving it back to the system: page faults, which
    take longer than an activation, would else hit one contender here and another there.

    Args:
        contenders: by name; calls shorter than 2 ms are repeated within a round.
        rounds: at least 1.
        device: where they compute; CUDA is waited for before and after each measurement.
        clock: returns seconds.

    Returns:
        For every contender the seconds of one call, round by round.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _no_wait

    def measure(contender: Contender, repeats: int, ahead: bool = True) -> float:
        # One call ahead brings caches and the allocator into the state in which the contender leaves them itself.
        if ahead:
            contender.call(contender.prepare())
        prepared = [contender.prepare() for _ in range(repeats)]
        wait()
        start = clock()
        for value in prepared:
            contender.call(value)
        wait()
        return (clock() - start) / repeats

    if torch.device(device).type == "cpu":
        _keep_freed_memory()
    # The first call compiles, the second says how long one takes.
    repeats, is_long = {}, {}
    for name, contender in contenders.items():
        contender.call(contender.prepare())
        one = max(measure(contender, 1, ahead=False), _SHORTEST / _MOST_REPEATS)
        repeats[name], is_long[name] = max(1, round(_SHORTEST / one)), one > _LONG
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(measure(contender, repeats[name], ahead=not is_long[name]))
    return times


def ratio_quartiles(times: Sequence[float], peer_times: Sequence[float]) -> tuple[float, float, float]:
    """Divide round by round, and return the middle half of the ratios.

    Args:
        times: one contender's, round by round.
        peer_times: the peer's in the same rounds.

    Returns:
        The lower quartile, the median and the upper quartile of the ratios.
    """
    ratios = sorted(mine / theirs for mine, theirs in zip(times, peer_times, strict=True))
    quarter = (len(ratios) - 1) // 4
    return ratios[quarter], median(ratios), ratios[-1 - quarter]


def make_row(
    case: str,
    contender: str,
    peer: str,
    times: Mapping[str, Sequence[float]],
    peak_bytes: int,
    copy_ms: float | None = None,
    dispatch_ms: float | None = None,
) -> Row:
    """Summarise one contender's rounds.

    Args:
        case: as in `Row`.
        contender: a key of `times`.
        peer: a key of `times`.
        times: what `time_in_turns` returned.
        peak_bytes: as in `Row`.
        copy_ms: as in `Row`.
        dispatch_ms: as in `Row`.
    """
    low, ratio, high = ratio_quartiles(times[contender], times[peer])
    milliseconds = median(times[contender]) * 1e3
    rounds = len(times[contender])
    return Row(case, contender, peer, milliseconds, peak_bytes, ratio, low, high, rounds, copy_ms, dispatch_ms)


def kept_bytes(forward: Callable[[], object], owned: Sequence[Tensor] = ()) -> int:
    """Count the memory that a forward pass keeps for its backward.

    Args:
        forward: builds the graph; its result is dropped.
        owned: tensors that stay in memory anyway, such as parameters; what shares their storage does not count.

    Returns:
        The bytes of all storages that autograd saved, each counted once.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in owned}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or a freed storage's address could come back as another's

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def cpu_peak_bytes(call: Callable[[], object]) -> int:
    """Measure by how much the memory of torch's tensors on the CPU grows during a call, at its peak.

    Args:
        call: run once, under torch's profiler.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of every start, and of GPUs that are not there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    highest: int = max(itertools.accumulate((size for _, size in sizes), initial=0))
    return highest


def cuda_peak_bytes(call: Callable[[], object]) -> int:
    """Measure by how much what CUDA's allocator has given out grows during a call, at its peak.

    Args:
        call: run once.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _keep_freed_memory() -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # a constant for each: M_MMAP_MAX, no block of its own, and M_TRIM_THRESHOLD, never
            mallopt(-4, 0)
            mallopt(-1, 2**31 - 1)


def _no_wait() -> None:
    return None
