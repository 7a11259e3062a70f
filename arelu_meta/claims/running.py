"""Running what a study lacks: side by side in processes of one thread each, each run once, noted as it ends."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from arelu_meta.claims.ledger import Ledger, Row
from arelu_meta.errors import RunError, counted
from arelu_meta.runs.progress import ProgressBar, progress

Work = Callable[[Sequence[Any]], list[list[Row]]]
"""Runs trials together and returns each one's rows; it must be picklable."""

_LOOK = 0.5  # seconds between two looks at whether the study is still there


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(asked: int | None, device: torch.device) -> int:
    """Say how many runs go side by side: one a core of a CPU, and one alone on a GPU.

    Args:
        asked: processes, which counts on a CPU; None leaves it open.
        device: where runs compute.
    """
    return (asked or cores()) if device.type == "cpu" else 1


def run_missing(ledger: Ledger, groups: Sequence[Sequence[Any]], work: Work, processes: int) -> None:
    """Run what the ledger does not hold, and note every run as soon as it has ended.

    Args:
        ledger: of the study.
        groups: trials that run together; the first are begun first.
        work: runs a group.
        processes: how many groups at once; 1 runs them in this process.

    Raises:
        KeyboardInterrupt: with how to go on; the runs that had ended are kept.
        RunError: if a process was killed, such as for its memory.
    """
    missing = [left for group in groups if (left := [trial for trial in group if trial not in ledger])]
    total, done = sum(map(len, groups)), sum(trial in ledger for group in groups for trial in group)
    if not missing:
        return
    try:
        with progress("study", total - done, "runs") as bar:
            for group, found in _results(missing, work, min(processes, len(missing))):
                for trial, rows in zip(group, found, strict=True):
                    ledger.append(trial, rows)
                    bar.advance(1, **_metric(rows))
    except KeyboardInterrupt:
        finished = sum(trial in ledger for group in groups for trial in group)
        raise KeyboardInterrupt(
            f"{finished} of {total} runs are finished and kept; the same command with --run.resume auto goes on"
        ) from None
    except BrokenProcessPool as error:
        raise RunError(
            "a process of the study was killed, perhaps for its memory; the runs that had ended are kept: go on with "
            "--run.resume auto and fewer --processes"
        ) from error


def _metric(rows: Sequence[Row]) -> dict[str, float]:
    found = [float(row["accuracy"]) for row in rows if row.get("accuracy") is not None]
    return {"accuracy": found[-1]} if found else {}


def _results(
    groups: Sequence[Sequence[Any]], work: Work, processes: int
) -> Iterator[tuple[Sequence[Any], list[list[Row]]]]:
    """Yield each group with its trials' rows, in the order in which they end."""
    if processes == 1:
        with one_thread():
            for group in groups:
                yield group, work(group)
        return
    pool = ProcessPoolExecutor(
        processes, torch.multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        waiting: dict[Future[list[list[Row]]], Sequence[Any]] = {pool.submit(work, group): group for group in groups}
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                yield waiting.pop(future), future.result()
    except BaseException:
        # A run takes minutes: do not wait for those that are under way.
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, as in a process of a pool: the sums are the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(parent: int) -> None:
    """Set up a process of the pool: one thread; the parent alone answers Ctrl-C; without the parent it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def probe(run: Callable[[int], object], lengths: tuple[int, int] = (1, 2)) -> Callable[[int], float]:
    """Measure a run of two lengths in one thread, as in a process of a pool, and say what any length takes.

    Args:
        run: does a run of some length, in epochs or steps.
        lengths: a short and a longer one.

    Returns:
        Seconds by length.
    """
    short, longer = lengths
    times = []
    with one_thread():
        run(short)  # the first call loads the data and prepares kernels
        for length in lengths:
            started = time.perf_counter()
            run(length)
            times.append(time.perf_counter() - started)
    more = max(0.0, times[1] - times[0]) / (longer - short)
    return lambda length: times[0] + more * max(0, length - short)


def announce(missing: int, total: int, seconds: float, processes: int) -> None:
    """Say how many runs there are and about how long they take.

    Args:
        missing: runs to do.
        total: runs of the study.
        seconds: of all missing runs one after the other in one process.
        processes: how many at once.
    """
    left = f"{missing} of {counted(total, 'run')} to do" if missing < total else counted(total, "run")
    print(f"{left}, {processes} at once: about {describe_seconds(seconds / max(1, processes))}", flush=True)


def describe_seconds(seconds: float) -> str:
    """Say a time in the unit that a person would use."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} seconds"


__all__ = [
    "ProgressBar",
    "Work",
    "announce",
    "cores",
    "describe_seconds",
    "one_thread",
    "probe",
    "run_missing",
    "side_by_side",
]
