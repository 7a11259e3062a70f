"""A sweep on a local cluster; each test starts one, which takes seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed")
SHARED = (
    "set: {model: {name: mnist_linear, pretrained: false}, run.device: cpu, train.epochs: EPOCHS, "
    "data: {image_size: 8, per_class: 4, batch_size: 10, augmentation: none}}\n"
)


def _start(folder: Path, text: str, epochs: int, *more: str) -> subprocess.Popen[str]:
    spec = folder.parent / "spec.yaml"
    spec.write_text(SHARED.replace("EPOCHS", str(epochs)) + text)
    command = [sys.executable, "-m", "arelu_meta.cli", "sweep", str(spec), "--run.folder", str(folder), *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


def _finish(running: subprocess.Popen[str]) -> str:
    out, errors = running.communicate(timeout=300)
    assert (running.returncode, errors) == (0, ""), out + errors
    return out


def _rows(folder: Path) -> dict[str, int]:
    """Count each run's rows of metrics."""
    return {path.parent.name: len(path.read_text().splitlines()) - 1 for path in folder.glob("runs/*/metrics.csv")}


def _wait_until(reached: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes(folder: Path) -> dict[int, int]:
    """Find the runs' processes: each one's id, and its parent's, the worker's."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines() if str(folder) in line]
    return {int(pid): int(parent) for pid, parent, words in lines if "arelu_meta.sweep.run" in words}


@pytest.mark.slow
def test_a_sweep_is_quiet_and_does_nothing_the_second_time(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    text = "parameters: {optim.lr: [1e-2]}\n"
    out = _finish(_start(folder, text, 1))
    assert "1/1 " in out
    assert "ray" not in out.lower().replace(str(tmp_path).lower(), "")
    results = json.loads((folder / "results.json").read_text())
    assert (results["task"], results["runs"], results["finished"]) == ("sweep", 1, 1)
    assert {"test_accuracy", "test_low", "test_high", "test_n", "seconds", "seed"} <= results.keys()
    first = next(folder.glob("runs/*/results.json"))
    before = first.stat().st_mtime_ns
    assert "1 run of finetune, 1 of them done" in _finish(_start(folder, text, 1))
    assert first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_only_what_is_new_in_a_sweeps_file_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    _finish(_start(folder, "parameters: {optim.lr: [1e-2]}\n", 1))
    first = next(folder.glob("runs/*/results.json"))
    before = first.stat().st_mtime_ns
    out = _finish(_start(folder, "parameters: {optim.lr: [1e-2, 2e-2]}\n", 1))
    assert "2 runs of finetune, 1 of them done" in out
    assert first.stat().st_mtime_ns == before
    assert len((folder / "results.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_killed_worker_and_then_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    folder, epochs = tmp_path / "sweep", 400
    text = "parameters: {optim.lr: [1e-2, 2e-2]}\n"
    running = _start(folder, text, epochs, "--workers", "2")
    _wait_until(lambda: any(count > 3 for count in _rows(folder).values()), running)
    killed, worker = next(iter(_processes(folder).items()))
    os.kill(worker, signal.SIGKILL)
    _wait_until(lambda: killed not in _processes(folder) and len(_processes(folder)) > 0, running)
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 60
    while _processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _processes(folder)  # every run's process ended with its worker
    before = _rows(folder)
    assert before
    assert not (folder / "results.json").exists()
    _finish(_start(folder, text, epochs, "--workers", "2"))
    assert set(_rows(folder).values()) == {epochs}
    resumed = [path.read_text() for path in folder.glob("runs/*/output.log")]
    assert len(resumed) == 2
    for path in folder.glob("runs/*/metrics.csv"):
        numbers = [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]
        assert numbers == list(range(1, epochs + 1))


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_with_130_and_the_table_of_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    running = _start(folder, "parameters: {optim.lr: [1e-2, 2e-2]}\n", 5000, "--workers", "1")
    _wait_until(lambda: any(count > 3 for count in _rows(folder).values()), running)
    running.send_signal(signal.SIGTERM)  # as Ctrl-C, but heard in a background shell too
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert errors == "error: interrupted; 0 runs done; the same command goes on with the rest\n"
    assert (folder / "results.csv").is_file()
    assert list(folder.glob("runs/*/checkpoints/*.pt"))
    assert not _processes(folder)


@pytest.mark.slow
def test_optuna_and_early_stopping_share_what_they_know_and_go_on_from_what_lies_there(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    folder = tmp_path / "sweep"
    text = (
        "search: optuna\nsamples: SAMPLES\nearly_stopping: {grace: 1, factor: 2}\n"
        "parameters: {optim.lr: {loguniform: [1e-4, 1.0]}, model.activation: [null, arelu]}\n"
    )
    _finish(_start(folder, text.replace("SAMPLES", "4"), 4, "--workers", "2"))
    first = json.loads((folder / "results.json").read_text())
    assert first["runs"] == first["finished"] + first["stopped"] == 4
    out = _finish(_start(folder, text.replace("SAMPLES", "5"), 4, "--workers", "2"))
    assert "5 runs of finetune, 4 of them done" in out
    assert json.loads((folder / "results.json").read_text())["runs"] == 5


@pytest.mark.slow
def test_runs_that_fail_are_in_the_table_and_a_sweep_of_nothing_else_exits_3(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    text = "parameters: {model.name: [no_such_model, mnist_linear]}\n"
    out = _finish(_start(folder, text, 1))
    assert "1 run failed" in out
    assert "no_such_model' is not known" in (folder / "results.csv").read_text()
    running = _start(tmp_path / "other", "parameters: {model.name: [no_such_model]}\n", 1)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 3
    assert errors.startswith("error: the only run failed; ")


@pytest.mark.slow
def test_a_run_too_large_for_every_machine_is_refused_at_once(tmp_path: Path) -> None:
    running = _start(tmp_path / "sweep", "parameters: {run.seed: [1]}\n", 1, "--gpus", "9")
    _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: gpus: 9 is more than any machine of the cluster has")
