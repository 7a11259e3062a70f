"""Several processes do what one does: run as a program, this file is one of them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arelu_meta import create_backbone
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.config import RunConfig, TaskConfig
from arelu_meta.data.fewshot import Pool, TaskBatch, TensorSampler
from arelu_meta.meta.distributed import share_of, shared_meta_gradient
from arelu_meta.meta.engine import Inner, Learn2learnEngine, VectorizedEngine
from arelu_meta.meta.normalization import set_normalization
from arelu_meta.runs.distributed import Ranks, join

# Tasks, network, algorithm, normalisation, engine: one process without a task, learned rates, a head unused; running
# averages, with several calls a task, and one.
_CASES = [
    (1, "mnist_conv", "maml", "transductive", VectorizedEngine),
    (5, "mnist_conv", "metasgd", "transductive", VectorizedEngine),
    (3, "conv4_32", "protonet", "transductive", VectorizedEngine),
    (5, "conv4_32", "maml", "running", VectorizedEngine),
    (3, "conv4_32", "protonet", "running", VectorizedEngine),
    (1, "conv4_32", "maml", "running", Learn2learnEngine),
]


def _tasks(numbers: Any) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 28, 28), generator=generator, dtype=torch.uint8)
    pool = Pool(pixels, torch.arange(5).repeat_interleave(6), (0.5,), (0.5,))
    found = TensorSampler(pool, TaskConfig(3, 2, 2), "train").batch(numbers)
    return TaskBatch(
        found.support_images.double(), found.support_labels, found.query_images.double(), found.query_labels
    )


def _meta_step(case: int, ranks: Ranks) -> dict[str, Any]:
    tasks, name, algorithm, normalization, engine = _CASES[case]
    torch.manual_seed(0)
    model = create_backbone(name, num_classes=3, in_chans=1, img_size=28, activation="arelu").double()
    set_normalization(model, normalization)
    for layer in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][:2]:
        layer.momentum = None  # the plain mean of all batches, beside the usual moving one
    for _ in range(2):  # the second from averages that the first has moved
        model.zero_grad()
        losses, accuracies = shared_meta_gradient(
            engine(model, Inner(0.05, 2, algorithm=algorithm)), model, _tasks, range(tasks), ranks
        )
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": losses, "accuracies": accuracies, "gradients": gradients, "averages": dict(model.named_buffers())}


def _start(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *arguments]
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},  # as torchrun sets them
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def _processes(count: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    done = []
    for process in _start(count, *arguments):
        out, error = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return done


def test_two_processes_give_one_processs_meta_gradient(tmp_path: Path) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    done = _processes(2, "meta-steps", str(tmp_path))
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    for number, case in enumerate(_CASES):
        expected = _meta_step(number, Ranks(torch.device("cpu")))
        assert bool(expected["averages"]) == (case[3] == "running")
        largest = max(value.abs().max().item() for value in expected["gradients"].values() if value is not None)
        for rank in range(2):
            found = torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True)
            for measure in ("losses", "accuracies"):
                torch.testing.assert_close(found[measure], expected[measure], rtol=1e-10, atol=0)
            if case[0] == 1:  # the other process has no task, and takes this one's averages
                torch.testing.assert_close(found["averages"], expected["averages"], rtol=1e-8, atol=1e-12)
            for name, average in found["averages"].items():
                assert torch.equal(average, torch.load(tmp_path / f"{number}-0.pt")["averages"][name]), name
                if name.endswith("var"):  # the mean of two processes' is near one process's
                    torch.testing.assert_close(average, expected["averages"][name], rtol=0.5, atol=0)
            for name, gradient in expected["gradients"].items():
                if gradient is None:
                    assert found["gradients"][name] is None, name
                    continue
                # A bias before batch normalisation has a gradient of 0 up to rounding: the largest of all counts, too.
                atol = 1e-8 * max(gradient.abs().max().item(), 1e-6 * largest)
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-8, atol=atol)


_ARGUMENTS = [
    *["metatrain", "--run.device", "cpu", "--model.name", "mnist_linear", "--model.activation", "arelu"],
    *["--data.image_size", "8", "--task.queries", "3", "--meta.steps", "4", "--meta.batch_tasks", "3"],
    *["--meta.inner_lr", "0.1", "--eval.every", "2", "--eval.tasks", "21", "--eval.validation_tasks", "5"],
]


def test_a_run_of_two_processes_has_the_metrics_and_the_model_of_one(tmp_path: Path) -> None:
    found = [_processes(count, *_ARGUMENTS, "--run.folder", str(tmp_path / str(count))) for count in (1, 2)]
    assert [one.returncode for one in found[0] + found[1]] == [0, 0, 0], [one.stderr for one in found[0] + found[1]]
    assert found[1][1].stdout == ""  # the first process speaks for all
    assert "2 processes" in found[1][0].stdout
    one, two = (json.loads((tmp_path / count / "results.json").read_text()) for count in "12")
    for key in ("test_accuracy", "test_low", "test_n", "accuracy_after_0", "steps"):
        assert one[key] == pytest.approx(two[key], abs=1e-9), key
    weights = [read_tensors(tmp_path / count / "model.safetensors") for count in "12"]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
    rows = [(tmp_path / count / "metrics.csv").read_text().splitlines() for count in "12"]
    assert len(rows[0]) == len(rows[1]) == 3


@pytest.mark.slow
def test_divergence_in_one_process_ends_all(tmp_path: Path) -> None:
    found = _processes(2, *_ARGUMENTS, "--meta.inner_lr", "1e30", "--run.folder", str(tmp_path / "run"))
    assert [one.returncode for one in found] == [3, 3]
    assert found[0].stderr.count("error: the query loss of task") == 1
    assert "error:" not in found[1].stderr  # both meet it, the first says it


def test_a_process_that_dies_ends_the_run_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = _start(2, *_ARGUMENTS, "--meta.steps", "1000000", "--run.folder", str(folder))
    try:
        until = time.monotonic() + 240
        while not (folder / "metrics.csv").exists() and time.monotonic() < until:
            time.sleep(0.05)
        second.kill()
        _, said = first.communicate(timeout=240)
    finally:
        first.kill()
        second.communicate()
    assert first.returncode == 3, said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "lost another one" in error
    assert "--run.resume auto" in error
    assert "Traceback" not in said


def test_every_task_has_one_process() -> None:
    shares = [share_of(range(7), rank, 3) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [list(share_of(range(1), rank, 3)) for rank in range(3)] == [[0], [], []]


def _meta_steps(folder: str) -> None:
    ranks = join(RunConfig(device="cpu"))
    for number in range(len(_CASES)):
        torch.save(_meta_step(number, ranks), Path(folder) / f"{number}-{ranks.rank}.pt")
    ranks.wait()


if __name__ == "__main__":
    if sys.argv[1] == "meta-steps":
        _meta_steps(sys.argv[2])
    else:
        from arelu_meta.cli import main

        sys.exit(main(sys.argv[1:]))
