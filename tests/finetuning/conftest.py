"""A run of seconds, for all tests of fine-tuning, and one of several processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.config import FinetuneConfig

_PROGRAM = "import sys; from arelu_meta.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def digits(tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """Make configs of MNIST-Linear on the embedded digits; `train_epochs=4` sets train.epochs."""

    def make(folder: str = "run", **changes: Any) -> FinetuneConfig:
        config = FinetuneConfig()
        config.run.folder, config.run.device = str(tmp_path / folder), "cpu"
        config.run.pictures = False  # they take longer than such a run
        config.data.image_size, config.data.per_class = 12, 20
        config.model.name, config.model.pretrained = "mnist_linear", False
        config.optim.lr, config.train.epochs = 0.1, 2
        for name, value in changes.items():
            group, _, field = name.partition("_")
            assert hasattr(getattr(config, group), field)
            setattr(getattr(config, group), field, value)
        return config

    return make


@pytest.fixture
def run_processes() -> Callable[..., list["subprocess.CompletedProcess[str]"]]:
    """Run a Python program in several gloo processes; default: the command line."""

    def run(processes: int, *arguments: str, program: str = _PROGRAM) -> list["subprocess.CompletedProcess[str]"]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", program, *arguments]
        shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                command,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        done = []
        for process in started:
            out, error = process.communicate(timeout=240)
            done.append(subprocess.CompletedProcess(command, process.returncode, out, error))
        return done

    return run
