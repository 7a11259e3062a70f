"""How a sweep grows with its workers: `python experiments/sweep_growth.py [--runs 6] [--json FILE]`."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from arelu_meta.bench.timing import Row
from arelu_meta.runs.atomic_io import write_json
from arelu_meta.runs.environment import environment
from arelu_meta.runs.progress import print_table

_CASE = "finetune/conv4_32/32px/digits"
_FIELDS = {
    "model.name": "conv4_32",
    "model.pretrained": "false",
    "data.image_size": "32",
    "data.augmentation": "none",
    "train.epochs": "2",
    "run.device": "cpu",
}
_PEER = "processes one after the other"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One way to do all runs.

    Args:
        start: seconds from the command to the first run's begin.
        each: seconds from the first run's begin to the last one's end, divided by the runs.
        training: mean seconds that a run says it trained and tested.
    """

    start: float
    each: float
    training: float


def by_hand(folder: Path, runs: int) -> Measured:
    """Do the runs as a person would, one command after the other.

    Args:
        folder: empty.
        runs: how many.
    """
    began = time.time()
    for seed in range(runs):
        flags = [f"--{name}={value}" for name, value in _FIELDS.items()]
        own = [f"--run.seed={seed}", f"--run.folder={folder / 'runs' / str(seed)}"]
        _run(["finetune", *flags, *own])
    return Measured(0.0, (time.time() - began) / runs, _training(folder))


def by_sweep(folder: Path, runs: int, workers: int) -> Measured:
    """Do the runs by a sweep on a cluster of its own.

    Args:
        folder: empty.
        runs: how many.
        workers: at once, one core each.
    """
    seeds = ", ".join(str(seed) for seed in range(runs))
    shared = "".join(f"  {name}: {value}\n" for name, value in _FIELDS.items())
    (folder / "spec.yaml").write_text(f"set:\n{shared}parameters:\n  run.seed: [{seeds}]\n", encoding="utf-8")
    began = time.time()
    _run(["sweep", str(folder / "spec.yaml"), "--run.folder", str(folder), "--workers", str(workers)])
    # A run's trial.yaml is written as it begins, its results as it ends.
    first = min(path.stat().st_mtime for path in folder.glob("runs/*/trial.yaml"))
    last = max(path.stat().st_mtime for path in folder.glob("runs/*/results.json"))
    return Measured(first - began, (last - first) / runs, _training(folder))


def _run(words: Sequence[str]) -> None:
    command = [sys.executable, "-m", "arelu_meta.cli", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _training(folder: Path) -> float:
    found = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in folder.glob("runs/*/results.json")]
    return float(sum(found) / len(found))


def measure(runs: int, workers: Sequence[int]) -> dict[str, Measured]:
    """Measure each way once.

    Args:
        runs: of each.
        workers: of the sweeps, one after the other.
    """
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="sweep-growth-") as name:
        for place in ["hand", *map(str, workers)]:
            (Path(name) / place).mkdir()
        found[_PEER] = by_hand(Path(name) / "hand", runs)
        for number in workers:
            found[f"sweep, {number} workers"] = by_sweep(Path(name) / str(number), runs, number)
    return found


def rows_of(found: dict[str, Measured], runs: int) -> list[Row]:
    """Write what was measured as rows of a bench: time a run, and its ratio to the peer's.

    Args:
        found: of `measure`.
        runs: of each.
    """
    peer = found[_PEER].each
    ratios = {name: one.each / peer for name, one in found.items()}
    return [
        Row(_CASE, name, _PEER, one.each * 1e3, 0, ratios[name], ratios[name], ratios[name], runs)
        for name, one in found.items()
    ]


def main() -> int:
    """Measure, print the table, write the rows.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6, help="runs of each way")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the sweeps")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    given = parser.parse_args()
    found = measure(given.runs, given.workers)
    machine = environment()
    header = ["by", "runs an hour", "seconds a run", "of which training", "seconds to the first run"]
    cells = [
        [name, f"{3600 / one.each:.0f}", f"{one.each:.2f}", f"{one.training:.2f}", f"{one.start:.1f}"]
        for name, one in found.items()
    ]
    print_table(f"{_CASE}, {given.runs} runs, {machine['processor']}, {machine['cores']} cores", header, cells)
    if given.json is not None:
        write_json(given.json, [dataclasses.asdict(row) for row in rows_of(found, given.runs)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
