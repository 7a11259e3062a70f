"""Nothing piles up over epochs, tasks and runs in one process: live tensors in CI, bytes where slow tests run."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta import finetune, metatrain
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.data.fewshot import TaskBatch, TensorSampler
from arelu_meta.runs.run_folder import RunFolder


def _finetune_config(folder: Path, epochs: int) -> FinetuneConfig:
    config = FinetuneConfig()
    config.run.folder, config.run.device, config.run.pictures = str(folder), "cpu", False
    config.data.image_size, config.data.per_class = 12, 10
    config.model.name, config.model.pretrained, config.model.activation = "mnist_linear", False, "arelu"
    config.train.epochs = epochs
    return config


def _metatrain_config(folder: Path, tasks: int, chunk: int) -> MetatrainConfig:
    config = MetatrainConfig()
    config.run.folder, config.run.device, config.run.pictures = str(folder), "cpu", False
    config.model.name, config.data.image_size, config.task.queries = "mnist_linear", 8, 2
    config.meta.steps, config.meta.batch_tasks, config.meta.task_chunk = 1, 2, chunk
    config.eval.tasks, config.eval.validation_tasks = tasks, 2
    return config


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def _after_each_epoch(config: FinetuneConfig, measure: Callable[[], int], patch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    append = RunFolder.append_metrics

    def measured(self: RunFolder, row: dict[str, Any]) -> None:
        append(self, row)
        found.append(measure())

    patch.setattr(RunFolder, "append_metrics", measured)
    finetune(config)
    return found


def _at_each_batch(config: MetatrainConfig, measure: Callable[[], int], patch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    batch = TensorSampler.batch

    def measured(self: TensorSampler, tasks: Sequence[int]) -> TaskBatch:
        found.append(measure())
        return batch(self, tasks)

    patch.setattr(TensorSampler, "batch", measured)
    metatrain(config)
    return found


def test_no_tensor_outlives_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _after_each_epoch(_finetune_config(tmp_path / "run", 5), _live_tensors, monkeypatch)
    assert len(found) == 5
    assert max(found[2:]) <= found[1]


def test_no_tensor_outlives_its_evaluation_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _at_each_batch(_metatrain_config(tmp_path / "run", 24, 2), _live_tensors, monkeypatch)[-12:]
    assert len(found) == 12
    assert max(found[2:]) <= found[1]


@pytest.mark.slow
def test_memory_does_not_grow_over_10000_evaluation_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _at_each_batch(_metatrain_config(tmp_path / "run", 10_000, 50), _resident, monkeypatch)
    assert len(found) > 200
    assert found[-1] - found[40] < 10_000_000
