import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from arelu_meta import create_backbone
from arelu_meta.config import TaskConfig
from arelu_meta.data.episodes import Pool, TaskBatch, TensorSampler
from arelu_meta.meta.engines import Inner, VectorizedEngine
from arelu_meta.meta.ranks import reduce_meta_gradient, share_of


def _tasks(numbers: Any) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 28, 28), generator=generator, dtype=torch.uint8)
    pool = Pool(pixels, torch.arange(5).repeat_interleave(6), (0.5,), (0.5,))
    found = TensorSampler(pool, TaskConfig(3, 2, 2), "train").batch(numbers)
    return TaskBatch(
        found.support_images.double(), found.support_labels, found.query_images.double(), found.query_labels
    )


def _meta_gradient(numbers: Any, total: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = create_backbone("mnist_conv", num_classes=3, in_chans=1, img_size=28, activation="arelu").double()
    if len(numbers):
        VectorizedEngine(model, Inner(0.05, 2)).meta_gradient(_tasks(numbers))
    reduce_meta_gradient(model, len(numbers), total)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _process(tasks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(_meta_gradient(share_of(range(tasks), rank, dist.get_world_size()), tasks), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("tasks", [1, 5])
def test_two_processes_give_one_processs_meta_gradient(tmp_path: Path, tasks: int) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}  # as torchrun sets them
    command = [sys.executable, __file__, str(tasks), str(tmp_path)]
    processes = [subprocess.Popen(command, env=os.environ | where | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    expected = _meta_gradient(range(tasks), tasks)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * other.abs().max().item())


def test_every_task_has_one_process() -> None:
    shares = [share_of(range(7), rank, 3) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(7))


if __name__ == "__main__":
    _process(int(sys.argv[1]), sys.argv[2])
