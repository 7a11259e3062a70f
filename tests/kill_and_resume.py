"""Kill runs at random moments, resume them, and compare with the run that nobody killed.

    python tests/kill_and_resume.py --times 30
    python tests/kill_and_resume.py --times 3 --quick   # as the tests do: small runs, forked from one process

Fine-tuning and meta-training are killed (SIGKILL) this often each, now and then twice in a row, and gone on from with
`--run.resume auto`. On the CPU the final weights must have the very bits of the uninterrupted run's, metrics.csv,
scalars.csv and gradients.csv the very bytes, and results.json the same values; times (times.csv, `seconds`) and places
(`folder`, also in the header of model.safetensors) alone differ.
"""

import argparse
import contextlib
import csv
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from arelu_meta.backbones.checkpoint import read_spec
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.cli import main as arelu_meta

SAME_BYTES = ("metrics.csv", "scalars.csv", "gradients.csv", "split.json")
DIFFERENT_VALUES = {"seconds", "folder"}
# Dropout draws from torch's global generator and augmentation from Python's and NumPy's: all must be gone on from.
FINETUNE = (
    "finetune --model.name test_resnet --model.pretrained false --model.activation arelu --data.image_size 32 "
    "--data.per_class 20 --data.augmentation rand-m6-n2 --model.drop_rate 0.2 --train.epochs 5 --train.mixup 0.2 "
    "--train.ema 0.9 --optim.name adamw --optim.lr 2e-3 --optim.accumulate 2 --optim.warmup_epochs 1 --run.seed 3"
)
METATRAIN = (
    "metatrain --model.name mnist_linear --model.activation arelu --data.image_size 12 --meta.steps 40 --eval.every 12 "
    "--eval.validation_tasks 10 --eval.tasks 20 --meta.batch_tasks 4 --run.seed 3"
)
COMMANDS = {"finetune": FINETUNE, "metatrain": METATRAIN}
# Enough steps between the first file and the last that a kill meets checkpoints, metrics, models and the test.
QUICK = {
    "finetune": FINETUNE.replace("test_resnet", "mnist_linear").replace("--model.drop_rate 0.2 ", "")
    + " --data.image_size 12 --train.epochs 2",
    "metatrain": METATRAIN + " --meta.steps 12 --eval.every 5 --eval.validation_tasks 4 --eval.tasks 6",
}
IMPORTED = ("arelu_meta.finetuning.finetune", "arelu_meta.meta.metatrain", "sklearn.datasets", "rich.progress")


@dataclass
class Outcome:
    """What became of one killed run.

    Args:
        killed: seconds after which it was killed, once or more.
        differences: what is not as in the uninterrupted run.
    """

    killed: list[float] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class Running(Protocol):
    """A run under way."""

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end, or for so many seconds; return its exit status (minus a signal's number), None alive."""
        ...

    def kill(self) -> None:
        """Send SIGKILL."""
        ...


class Started:
    """A run as a person starts it: an interpreter of its own.

    Args:
        arguments: behind `arelu-meta`.
        errors: what gets its stderr.
    """

    def __init__(self, arguments: list[str], errors: Path) -> None:
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arelu_meta.cli", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait(self, seconds: float | None = None) -> int | None:
        """See `Running`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> None:
        """See `Running`."""
        self.process.kill()


class Forked:
    """A run forked from this process, which has imported everything already; see `Started`."""

    def __init__(self, arguments: list[str], errors: Path) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=_in_fork, args=(arguments, errors))
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """See `Running`."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> None:
        """See `Running`."""
        self.process.kill()


def prepare_to_fork() -> None:
    """Import what runs import."""
    torch.set_num_threads(1)  # threads do not outlive a fork
    for name in IMPORTED:
        importlib.import_module(name)


def _in_fork(arguments: list[str], errors: Path) -> None:
    for path, number in ((Path(os.devnull), 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.exit(arelu_meta(arguments))


def start(task: str, folder: Path, quick: bool) -> Running:
    """Start or resume a run that writes a checkpoint after every step, so that a kill meets all of them.

    Args:
        task: finetune or metatrain.
        folder: of the run.
        quick: a smaller run, forked from this process.
    """
    always = f"--run.resume auto --run.checkpoint_minutes 0 --run.device cpu --run.folder {folder}"
    own = f"{QUICK[task]} --run.pictures false" if quick else COMMANDS[task]
    arguments = f"{own} {always}".split()
    return (Forked if quick else Started)(arguments, _errors(folder))


def _errors(folder: Path) -> Path:
    return folder.with_suffix(".errors")


def run_whole(task: str, folder: Path, quick: bool) -> float:
    """Do a run to its end.

    Returns:
        How many seconds passed between its first file and its last.
    """
    process = start(task, folder, quick)
    started = wait_for(folder / "config.yaml", process)
    if (status := process.wait()) != 0:
        raise RuntimeError(f"{task} ended with {status}: {_errors(folder).read_text()}")
    return time.monotonic() - started


def wait_for(path: Path, process: Running) -> float:
    """Wait until a file is there, or the process has ended; return the time."""
    while not path.exists() and process.wait(0.005) is None:
        pass
    return time.monotonic()


def kill_and_resume(task: str, folder: Path, seconds: float, chance: random.Random, quick: bool) -> Outcome:
    """Kill a run at a random moment, mostly once, and go on until it ends by itself.

    Args:
        task: finetune or metatrain.
        folder: of the run; must not be there.
        seconds: that an uninterrupted run takes.
        chance: decides when.
        quick: see `start`.

    Returns:
        When it was killed; differences are not looked for yet.
    """
    outcome = Outcome()
    kills = 1 if quick else chance.choice([1, 1, 2, 3])
    while True:
        process = start(task, folder, quick)
        if len(outcome.killed) < kills:
            # Of the first run, from its first file on; later ones live in a folder that is there already.
            if not outcome.killed:
                wait_for(folder / "config.yaml", process)
            # Of a few quick runs none should have ended before; of many, some are killed at their very end.
            longest = 0.6 if quick else 1.1 if not outcome.killed else 1.6
            alive = chance.uniform(0, seconds * longest)
            if process.wait(alive) is None:
                process.kill()
                outcome.killed.append(alive)
        status = process.wait()
        if status == 0:
            return outcome
        if status != -signal.SIGKILL:
            outcome.differences.append(f"ended with {status}: {_errors(folder).read_text().strip()}")
            return outcome


def compare(whole: Path, resumed: Path) -> list[str]:
    """List what differs between an uninterrupted run and one that was killed and resumed."""
    differences = []
    for name in SAME_BYTES:
        one, other = whole / name, resumed / name
        if one.exists() != other.exists():
            differences.append(f"{name} is in one of them only")
        elif one.exists() and one.read_bytes() != other.read_bytes():
            differences.append(f"{name} differs")
    differences += compare_models(whole / "model.safetensors", resumed / "model.safetensors")
    one, other = (json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (whole, resumed))
    differences += [
        f"results.json: {key} {one.get(key)} and {other.get(key)}"
        for key in sorted(one.keys() | other.keys())
        if key not in DIFFERENT_VALUES and one.get(key) != other.get(key)
    ]
    for name in ("metrics.csv", "times.csv"):
        with (resumed / name).open(newline="", encoding="utf-8") as file:
            firsts = [row[0] for row in csv.reader(file)]
        if len(firsts) != len(set(firsts)):
            differences.append(f"{name} has a row twice")
    litter = [path.name for path in (*resumed.glob(".*"), *(resumed / "checkpoints").glob(".*"))]
    return differences + [f"{name} is left over" for name in litter]


def compare_models(whole: Path, resumed: Path) -> list[str]:
    """List the tensors that are not the same to the last bit, and say whether the headers differ."""
    specs, tensors = [], []
    for path in (whole, resumed):
        _, spec = read_spec(path)
        spec.config["run"]["folder"] = None
        specs.append(spec)
        tensors.append(read_tensors(path))
    names = sorted(tensors[0].keys() | tensors[1].keys())
    found = [name for name in names if _bits(tensors[0], name) != _bits(tensors[1], name)]
    return [f"{name} of the model differs" for name in found] + (["its header differs"] if specs[0] != specs[1] else [])


def _bits(tensors: dict[str, Tensor], name: str) -> bytes | None:
    return tensors[name].numpy().tobytes() if name in tensors else None


def main() -> int:
    """Do what the module says; the exit status is 1 where anything differs."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, compare.")
    parser.add_argument("--times", type=int, default=30, help="killed runs a task")
    parser.add_argument("--task", choices=[*COMMANDS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--quick", action="store_true", help="small runs, forked from this process")
    given = parser.parse_args()
    if given.quick:
        prepare_to_fork()
    tasks = list(COMMANDS) if given.task == "both" else [given.task]
    chance, failures = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as place:
        for task in tasks:
            whole = Path(place) / task
            seconds = run_whole(task, whole, given.quick)
            print(f"{task}: uninterrupted, {seconds:.1f} s from the first file to the end", flush=True)
            for number in range(1, given.times + 1):
                folder = Path(place) / f"{task}-{number}"
                outcome = kill_and_resume(task, folder, seconds, chance, given.quick)
                found = outcome.differences or compare(whole, folder)
                failures += bool(found)
                moments = ", ".join(f"{moment:.2f}" for moment in outcome.killed) or "never: it had ended"
                print(
                    f"{task} {number}/{given.times}: killed after {moments} s: {'; '.join(found) or 'the same'}",
                    flush=True,
                )
    print(f"{len(tasks) * given.times} killed runs, {failures} differ from the uninterrupted one")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
