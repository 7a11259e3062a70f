"""The scripts of configs/launch, with gloo processes on this machine's cores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "configs" / "launch"
ARGUMENTS = [
    *["--data.image_size", "8", "--data.per_class", "10", "--data.batch_size", "20", "--data.augmentation", "none"],
    *["--model.name", "mnist_linear", "--model.pretrained", "false", "--run.device", "cpu"],
]


META = [
    *["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "12", "--run.device", "cpu"],
    *["--meta.batch_tasks", "2", "--meta.inner_steps", "1", "--eval.every", "10", "--eval.tasks", "4"],
    *["--eval.validation_tasks", "2"],
]


def _start(folder: Path, processes: int, epochs: int, restarts: int) -> subprocess.Popen[str]:
    return _launch(folder, "finetune", [*ARGUMENTS, "--train.epochs", str(epochs)], processes, restarts)


def _launch(folder: Path, task: str, given: list[str], processes: int, restarts: int) -> subprocess.Popen[str]:
    environment = {"PYTHON": sys.executable, "GPUS": str(processes), "RESTARTS": str(restarts), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", str(LAUNCH / "one-machine.sh"), task, *given, "--run.folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


def _kill_one_rank(folder: Path, running: subprocess.Popen[str], checkpoint: str = "epoch-0002*.pt") -> int:
    """Kill the last process of the run, once a checkpoint is there; return its id."""
    deadline = time.monotonic() + 240
    while not list(folder.glob(f"checkpoints/{checkpoint}")) and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    ranks = [int(pid) for pid, parent, words in rows if parent == str(running.pid) and str(folder) in words]
    os.kill(ranks[-1], signal.SIGKILL)
    return ranks[-1]


def _epochs(folder: Path) -> list[int]:
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_one_run_is_shared_by_several_processes_of_one_machine(tmp_path: Path, processes: int) -> None:
    running = _start(tmp_path / "run", processes, 1, 0)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    assert f"{processes} processes" in out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test_n"] > 0


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_which_names_it(tmp_path: Path) -> None:
    running = _start(tmp_path / "run", 2, 3000, 0)
    _kill_one_rank(tmp_path / "run", running)
    out, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "SIGKILL" in out
    assert "rank" in out
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_the_run_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, epochs = tmp_path / "run", 300
    running = _start(folder, 2, epochs, 3)
    _kill_one_rank(folder, running)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    assert _epochs(folder) == list(range(1, epochs + 1))
    assert json.loads((folder / "results.json").read_text())["epochs"] == epochs


@pytest.mark.slow
def test_meta_training_goes_on_too_where_a_rank_was_killed(tmp_path: Path) -> None:
    folder, steps = tmp_path / "run", 600
    running = _launch(folder, "metatrain", [*META, "--meta.steps", str(steps)], 2, 1)
    _kill_one_rank(folder, running, "step-000020*.pt")
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    assert _epochs(folder) == list(range(10, steps + 1, 10))
    assert json.loads((folder / "results.json").read_text())["steps"] == steps


def test_every_script_is_one_that_bash_reads_and_says_its_command() -> None:
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert f"configs/launch/{script.name} finetune" in script.read_text()
        assert os.access(script, os.X_OK)


def test_the_file_for_accelerate_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    path = LAUNCH / "two-nodes.yaml"
    read = ClusterConfig.from_yaml_file(str(path))
    assert (read.num_machines, read.num_processes) == (2, 16)
    assert set(yaml.safe_load(path.read_text())) <= set(ClusterConfig.__dataclass_fields__)
