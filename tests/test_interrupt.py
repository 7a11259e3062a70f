import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arelu_meta import cli
from arelu_meta.runs.signals import terminated_as_by_ctrl_c

ARGUMENTS = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8"]


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "arelu_meta.cli", "finetune", *ARGUMENTS, "--run.folder", str(folder)]


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Where the tests run in a shell's background, they and what they start are told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupt_exits_130_in_one_line_that_names_a_checkpoint_from_which_the_run_goes_on(
    tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    folder = tmp_path / "run"
    command = [*_command(folder), "--data.workers", workers, "--data.cache", "false"]
    running = subprocess.Popen(
        [*command, "--train.epochs", "500"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "epoch-0002.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(running.pid, number)  # as a terminal does, and Slurm: the workers hear it too
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: interrupted; ")
    checkpoint = Path(errors.split("; ")[1].split(" is written")[0])
    assert checkpoint.is_file()
    assert checkpoint.parent == folder / "checkpoints"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc to find the workers by")
def test_a_stopped_data_worker_keeps_nobody_from_leaving(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--data.workers", "1", "--data.cache", "false", "--train.epochs", "500"]
    running = subprocess.Popen(
        [*_command(folder), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline, workers = time.monotonic() + 120, ""
    while not (folder / "checkpoints" / "epoch-0001.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    while not workers and time.monotonic() < deadline:
        workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
    os.kill(int(workers.split()[0]), signal.SIGSTOP)
    time.sleep(1)  # the step in hand ends, and the next waits for the worker
    for _ in range(2):  # whoever asks twice is in a hurry
        running.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: interrupted; ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=str)
def test_an_interrupt_while_a_task_is_imported_exits_130_at_once(number: signal.Signals) -> None:
    # torch swallows the exception where it imports NumPy, and would go on with half of it.
    code = (
        "import os, time\n"
        "from arelu_meta import cli\n"
        "from arelu_meta.runs.signals import terminated_as_by_ctrl_c\n"
        f"def swallow(): os.kill(os.getpid(), {int(number)}); time.sleep(0.1); print('went on')\n"
        "with terminated_as_by_ctrl_c(), cli._interrupted_at_once():\n"
        "    try: swallow()\n"
        "    except KeyboardInterrupt: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_a_run_whose_reader_stops_goes_on_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(_command(folder), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "results.json").exists()


def test_who_handles_a_warning_already_is_left_to_it_while_a_task_is_imported() -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        mine = signal.getsignal(signal.SIGUSR1)
        with terminated_as_by_ctrl_c(), cli._interrupted_at_once():
            assert signal.getsignal(signal.SIGUSR1) is mine
            assert signal.getsignal(signal.SIGUSR2) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)
