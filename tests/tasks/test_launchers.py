import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arelu_meta.cli import TASKS

ROOT = Path(__file__).parents[2]
TINY = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8"]


def _launch(task: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tasks" / f"{task}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_a_launcher_that_is_the_command_line(task: str) -> None:
    done = _launch(task, "--help")
    assert done.returncode == 0, done.stderr
    assert f"arelu-meta {task}" in done.stdout


def test_every_launcher_is_thin() -> None:
    for path in (ROOT / "tasks").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60


def test_finetune_takes_two_steps_on_a_cpu(tmp_path: Path) -> None:
    arguments = [*TINY, "--data.per_class", "2", "--data.batch_size", "10", "--train.epochs", "1"]
    done = _launch("finetune", *arguments, "--run.folder", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epochs"] == 1


def test_metatrain_takes_two_steps_on_a_cpu_and_keeps_gyms_notice_off_the_screen(tmp_path: Path) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    arguments = [*TINY, "--meta.steps", "2", "--meta.batch_tasks", "1", "--eval.tasks", "2", "--task.queries", "2"]
    done = _launch("metatrain", *arguments, "--run.folder", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Gym" not in done.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 2
