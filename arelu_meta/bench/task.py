"""`arelu-meta bench CASE`: what it costs, beside peers in the same run."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from arelu_meta.bench.claims import CASES as CLAIMS_CASES
from arelu_meta.bench.claims import claims_rows
from arelu_meta.bench.episodes import CASES as EPISODE_CASES
from arelu_meta.bench.episodes import TASKS, episode_rows
from arelu_meta.bench.finetune import finetune_cases, finetune_rows, images_per_second
from arelu_meta.bench.maml import ALGORITHMS, CASES, GROWING_STEPS, GROWING_TASKS, maml_rows
from arelu_meta.bench.op import DTYPES, LAYOUTS, PASSES, SIZES, op_rows
from arelu_meta.bench.step import MODELS, deterministic_rows, step_rows
from arelu_meta.bench.swap import SMALLEST, swap_rows
from arelu_meta.bench.timing import Row
from arelu_meta.config import BenchConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.runs.environment import environment
from arelu_meta.runs.folder import write_json
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.validation import validate

Measure = Callable[[], list[Row]]


def bench_task(config: BenchConfig) -> list[Row]:
    """Measure, print a table, and write the rows as JSON where config.json says.

    Args:
        config: what to measure, which cases, where to write.

    Returns:
        The rows.

    Raises:
        InputError: if no case is called so, or the folder of the JSON file does not exist.
    """
    validate(config, BenchConfig)
    # A swap is Python's work, on whatever machine.
    device = choose_device("cpu" if (config.what, config.device) == ("swap", "auto") else config.device)
    maml = _growth_cases if config.growth else _maml_cases
    kinds: dict[str, Callable[[torch.device, int | None], dict[str, Measure]]] = {
        "op": _op_cases,
        "step": partial(_step_cases, deterministic=config.deterministic),
        "maml": maml,
        "swap": _swap_cases,
        "finetune": _finetune_cases,
        "episodes": _episode_cases,
        "claims": _claims_cases,
    }
    cases = kinds[config.what](device, config.rounds)
    wanted = [name for name in cases if config.case is None or _is_wanted(name, config.case, config.growth)]
    if not wanted:
        raise InputError(f"case: {config.case!r} is not known; {nearest_names(config.case or '', cases)}")
    if config.json is not None and not Path(config.json).parent.is_dir():
        raise InputError(f"json: the folder of {config.json!r} does not exist; give a file in a folder that does")
    machine = environment()
    where = ", ".join(machine["devices"]) if device.type == "cuda" else machine["processor"]
    print(f"{where}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}", flush=True)
    rows: list[Row] = []
    for name in wanted:
        found = cases[name]()
        for case, group in itertools.groupby(found, lambda row: row.case):
            _print_rows(case, list(group))
        rows += found
        if config.json is not None:
            write_json(Path(config.json), [dataclasses.asdict(row) for row in rows])
    _summarise(config.what, rows)
    return rows


def _is_wanted(name: str, pattern: str, growth: bool) -> bool:
    """Say whether a case is asked for; the growth of a case has one for each number of tasks and steps."""
    return fnmatch.fnmatchcase(name, pattern) or (growth and fnmatch.fnmatchcase(name, f"{pattern}/*"))


def _summarise(what: str, rows: Sequence[Row]) -> None:
    """Print what people quote: tasks, images or meta-steps a second, or how many swaps keep to their limit."""
    if what == "episodes":
        for row in rows:
            print(f"{row.case} {row.contender}: {1e3 * TASKS / row.median_ms:,.0f} tasks a second", flush=True)
    elif what == "maml":
        for row in rows:
            print(f"{row.case} {row.contender}: {1e3 / row.median_ms:.2f} meta-steps a second", flush=True)
    elif what == "finetune":
        for row in rows:
            rate = images_per_second(row.case, row.median_ms)
            print(f"{row.case} {row.contender}: {rate:.1f} images a second, {1e-6 * row.peak_bytes:.0f} MB", flush=True)
    elif what == "swap":
        slowest = max(rows, key=lambda row: row.ratio_to_peer)
        print(
            f"{sum(row.ratio_to_peer <= 1 for row in rows)} of {len(rows)} models are swapped within {slowest.peer}: "
            f"median ratio {median(row.ratio_to_peer for row in rows):.2f}, "
            f"largest {slowest.ratio_to_peer:.2f} ({slowest.case})",
            flush=True,
        )


def _op_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    cases: dict[str, Measure] = {}
    for size, dtype, layout, which in itertools.product(SIZES, DTYPES, LAYOUTS, PASSES):
        name = f"{'x'.join(map(str, size))}/{str(dtype).removeprefix('torch.')}/{layout}/{which}"

        def measure(
            size: tuple[int, ...] = size, dtype: torch.dtype = dtype, layout: str = layout, which: str = which
        ) -> list[Row]:
            return op_rows([size], [dtype], [layout], [which], rounds or 50, device)

        cases[name] = measure
    return cases


def _step_cases(device: torch.device, rounds: int | None, deterministic: bool = False) -> dict[str, Measure]:
    measure = deterministic_rows if deterministic else step_rows
    cases: dict[str, Measure] = {
        f"{name}/128px/batch32": partial(measure, [name], rounds=rounds or 15, device=device) for name in MODELS
    }
    if device.type == "cuda" and not deterministic:
        cases |= {
            f"{name}/224px/batch256/bf16": partial(step_rows, [name], 224, 256, rounds or 15, device, "bf16")
            for name in MODELS
        }
    return cases


def _maml_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    def measure(name: str) -> list[Row]:
        return [row for algorithm in ALGORITHMS for row in maml_rows([name], rounds or 9, device, algorithm)]

    return {name: partial(measure, name) for name in CASES}


def _growth_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    times = rounds or 3
    by_tasks: dict[str, Measure] = {
        f"{name}/tasks{count}": partial(maml_rows, [name], times, device, tasks=count)
        for name in CASES
        for count in GROWING_TASKS
    }
    by_steps: dict[str, Measure] = {
        f"{name}/steps{count}": partial(maml_rows, [name], times, device, steps=count)
        for name in CASES
        for count in GROWING_STEPS
    }
    return by_tasks | by_steps


def _claims_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    return {name: lambda name=name: claims_rows(name, rounds or 3, device) for name in CLAIMS_CASES}  # type: ignore[misc]


def _swap_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    if device.type != "cpu":
        raise InputError(f"device: {device.type!r} is not allowed here; bench swap measures Python's time, give 'cpu'")
    return {name: lambda name=name: swap_rows([name], rounds or 5) for name in SMALLEST.values()}  # type: ignore[misc]


def _episode_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    return {name: lambda name=name: episode_rows([name], rounds or 5) for name in EPISODE_CASES}  # type: ignore[misc]


def _finetune_cases(device: torch.device, rounds: int | None) -> dict[str, Measure]:
    names = finetune_cases(device)
    return {name: lambda name=name: finetune_rows([name], rounds or 3, device) for name in names}  # type: ignore[misc]


def _print_rows(case: str, rows: list[Row]) -> None:
    header = ["contender", "median ms", f"ratio to {rows[0].peer}", "quartiles", "MB", "copy ms", "dispatch ms"]
    cells = [
        [
            row.contender,
            f"{row.median_ms:.3f}",
            f"{row.ratio_to_peer:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            f"{row.peak_bytes / 1e6:.1f}",
            "" if row.copy_ms is None else f"{row.copy_ms:.3f}",
            "" if row.dispatch_ms is None else f"{row.dispatch_ms:.3f}",
        ]
        for row in rows
    ]
    print_table(f"{case}, medians of {rows[0].rounds} rounds", header, cells)
