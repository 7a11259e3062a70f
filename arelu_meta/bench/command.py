"""`arelu-meta bench CASE`: what it costs, beside peers in the same run."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arelu_meta.bench.finetune import finetune_cases, images_per_second
from arelu_meta.bench.maml import maml_cases
from arelu_meta.bench.op import op_cases
from arelu_meta.bench.step import step_cases
from arelu_meta.bench.timing import Cases, Row
from arelu_meta.config import BenchConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.runs.atomic_io import write_json
from arelu_meta.runs.environment import environment
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.validation import validate


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
    device = choose_device(config.device)
    kinds: dict[str, Callable[..., Cases]] = {
        "op": op_cases,
        "step": partial(step_cases, deterministic=config.deterministic),
        "maml": partial(maml_cases, growth=config.growth),
        "finetune": finetune_cases,
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
    for row in rows if config.what in ("maml", "finetune") else ():
        print(f"{row.case} {row.contender}: {_rate(config.what, row)}", flush=True)
    return rows


def _is_wanted(name: str, pattern: str, growth: bool) -> bool:
    """Return True if a case is asked for; the growth of a case has one for each number of tasks and steps."""
    return fnmatch.fnmatchcase(name, pattern) or (growth and fnmatch.fnmatchcase(name, f"{pattern}/*"))


def _rate(what: str, row: Row) -> str:
    """Say a row in the words in which people quote it."""
    if what == "maml":
        return f"{1e3 / row.median_ms:.2f} meta-steps a second"
    return f"{images_per_second(row.case, row.median_ms):.1f} images a second, {1e-6 * row.peak_bytes:.0f} MB"


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
