"""Kill runs at random moments, resume them, and compare with the run that nobody killed.

    python tests/kill_and_resume.py --times 30

Fine-tuning and meta-training are killed (SIGKILL) this often each, now and then twice in a row, and gone on from with
`--run.resume auto`. On the CPU the final weights must have the very bits of the uninterrupted run's, metrics.csv,
scalars.csv and gradients.csv the very bytes, and results.json the same values; times (times.csv, `seconds`) and places
(`folder`, also in the header of model.safetensors) alone differ.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from arelu_meta.backbones.saving import read_spec, read_tensors

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


@dataclass
class Outcome:
    """What became of one killed run.

    Args:
        killed: seconds after which it was killed, once or more.
        differences: what is not as in the uninterrupted run.
    """

    killed: list[float] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def command(task: str, folder: Path) -> list[str]:
    """Return the command line of a run that writes a checkpoint after every step, so that a kill meets all of them."""
    always = ["--run.folder", str(folder), "--run.resume", "auto", "--run.checkpoint_minutes", "0"]
    return [sys.executable, "-m", "arelu_meta.cli", *COMMANDS[task].split(), *always, "--run.device", "cpu"]


def environment() -> dict[str, str]:
    """Return the environment of a run: one thread, the same in all of them."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_whole(task: str, folder: Path) -> float:
    """Do a run to its end.

    Returns:
        How many seconds passed between its first file and its last.
    """
    process = subprocess.Popen(command(task, folder), stdout=subprocess.DEVNULL, env=environment())
    started = wait_for(folder / "config.yaml", process)
    if process.wait() != 0:
        raise RuntimeError(f"{task} ended with {process.returncode}")
    return time.monotonic() - started


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> float:
    """Wait until a file is there, or the process has ended; return the time."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


def kill_and_resume(task: str, folder: Path, seconds: float, chance: random.Random) -> Outcome:
    """Kill a run at a random moment, mostly once, and go on until it ends by itself.

    Args:
        task: finetune or metatrain.
        folder: of the run; must not be there.
        seconds: that an uninterrupted run takes.
        chance: decides when.

    Returns:
        When it was killed; differences are not looked for yet.
    """
    outcome = Outcome()
    kills = chance.choice([1, 1, 2, 3])
    while True:
        process = subprocess.Popen(
            command(task, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
        )
        if len(outcome.killed) < kills:
            # Of the first run, from its first file on; later ones live in a folder that is there already.
            if not outcome.killed:
                wait_for(folder / "config.yaml", process)
            alive = chance.uniform(0, seconds * (1.1 if not outcome.killed else 1.6))
            try:
                process.wait(alive)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                outcome.killed.append(alive)
        _, errors = process.communicate()
        if process.returncode == 0:
            return outcome
        if process.returncode != -signal.SIGKILL:
            outcome.differences.append(f"ended with {process.returncode}: {errors.decode().strip()}")
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
    given = parser.parse_args()
    tasks = list(COMMANDS) if given.task == "both" else [given.task]
    chance, failures = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as place:
        for task in tasks:
            whole = Path(place) / task
            seconds = run_whole(task, whole)
            print(f"{task}: uninterrupted, {seconds:.1f} s from the first file to the end", flush=True)
            for number in range(1, given.times + 1):
                folder = Path(place) / f"{task}-{number}"
                outcome = kill_and_resume(task, folder, seconds, chance)
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
