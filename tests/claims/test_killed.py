"""Studies that are killed half-way, as by a machine that goes away, and started again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_NETWORK = ["--data.name", "digits", "--model.activation", "relu,arelu"]
STUDIES = {
    "mnist": ["--model.name", "mnist_linear", "--optim.lr", "0.1,0.01", "--train.epochs", "10", "--train.repeats", "3"],
    "meta": ["--model.name", "mnist_linear", "--meta.steps", "3", "--meta.tasks", "8", "--train.repeats", "2"],
    "small-lr": [
        *("--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "28"),
        *("--optim.lr", "0.1,0.01", "--train.epochs", "2", "--train.repeats", "2"),
    ],
}
_PATIENCE = 900  # seconds


def _start(study: str, folder: Path, processes: int) -> "subprocess.Popen[bytes]":
    """Start a study in a process of its own, from the command line."""
    words = [study, *_NETWORK, *STUDIES[study], "--processes", str(processes), "--run.resume", "auto"]
    command = [sys.executable, "-m", "arelu_meta.cli", "claims", *words, "--run.folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _whole_lines(file: Path) -> list[bytes]:
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return [line for line in lines if line.endswith(b"\n")]


def _judged(folder: Path) -> tuple[Any, ...]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return tuple(results[name] for name in ("tables", "verdicts", "curves", "runs", "seeds"))


@pytest.mark.parametrize(("study", "processes"), [("mnist", 2), ("meta", 1), ("small-lr", 2)])
def test_a_study_that_was_killed_goes_on_repeats_nothing_and_ends_with_the_same_tables(
    study: str, processes: int, tmp_path: Path
) -> None:
    folder, file = tmp_path / "killed", tmp_path / "killed" / "runs.jsonl"
    running = _start(study, folder, processes)
    deadline = time.monotonic() + _PATIENCE
    while len(_whole_lines(file)) < 2:
        assert running.poll() is None, running.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()  # returns once the processes of its pool have closed its output too
    assert running.returncode == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    before = _whole_lines(file)

    again = _start(study, folder, processes)
    said = again.communicate()[0].decode()
    assert again.returncode == 0, said
    after = _whole_lines(file)
    assert after[: len(before)] == before
    trials = [json.dumps(json.loads(line)["trial"], sort_keys=True) for line in after]
    assert len(trials) == len(set(trials))
    assert f"{len(after) - len(before)} of {len(after)} runs to do" in said

    # In a process of its own, too: with another number of threads sums are added up in another order.
    whole = _start(study, tmp_path / "whole", processes)
    said = whole.communicate()[0].decode()
    assert whole.returncode == 0, said
    assert _judged(folder) == _judged(tmp_path / "whole")
