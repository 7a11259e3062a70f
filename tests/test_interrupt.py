import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ARGUMENTS = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8"]


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "arelu_meta.cli", "finetune", *ARGUMENTS, "--run.folder", str(folder)]


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Where the tests run in a shell's background, they and what they start are told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupt_exits_130_in_one_line_that_names_a_checkpoint_from_which_the_run_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    command = _command(folder)
    running = subprocess.Popen(
        [*command, "--train.epochs", "500"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "epoch-0002.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: interrupted; ")
    checkpoint = Path(errors.split("; ")[1].split(" is written")[0])
    assert checkpoint.is_file()
    assert checkpoint.parent == folder / "checkpoints"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupt_while_a_task_is_imported_exits_130_at_once(number: signal.Signals) -> None:
    # torch swallows the exception where it imports NumPy, and would go on with half of it.
    code = (
        "import os, time\n"
        "from arelu_meta import cli\n"
        f"def swallow(): os.kill(os.getpid(), {int(number)}); time.sleep(0.1); print('went on')\n"
        "with cli._interrupted_at_once():\n"
        "    try: swallow()\n"
        "    except KeyboardInterrupt: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_a_run_whose_reader_stops_is_no_success_and_names_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(_command(folder), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 3
    assert done.stderr.startswith("error: standard output was closed; ")
    assert "epoch-0000.pt is written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "results.json").exists()
