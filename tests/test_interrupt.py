import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def test_ctrl_c_exits_130_in_one_line_that_names_a_checkpoint_from_which_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8"]
    command = [sys.executable, "-m", "arelu_meta.cli", "finetune", *arguments, "--run.folder", str(folder)]
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
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: interrupted; ")
    checkpoint = Path(errors.split("; ")[1].split(" is written")[0])
    assert checkpoint.is_file()
    assert checkpoint.parent == folder / "checkpoints"
