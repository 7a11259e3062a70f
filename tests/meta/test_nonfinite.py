"""A meta-training run that diverges says at which task, inner step and layer."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arelu_meta import metatrain
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.errors import RunError
from arelu_meta.meta.engine import VectorizedEngine
from arelu_meta.meta.evaluation import first_nonfinite_step
from arelu_meta.meta.inner_loop import Inner


def _config(folder: Path) -> MetatrainConfig:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(folder), "cpu"
    config.model.name, config.data.image_size = "mnist_linear", 8
    config.task.queries, config.meta.steps, config.meta.batch_tasks = 3, 3, 2
    config.eval.tasks = config.eval.validation_tasks = 4
    return config


def _task() -> TaskBatch:
    labels = torch.arange(2)[None]
    return TaskBatch(torch.randn(1, 2, 1, 4, 4), labels, torch.randn(1, 2, 1, 4, 4), labels)


def _net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


@pytest.mark.parametrize("engine", ["vectorized", "learn2learn"])
def test_a_diverging_inner_loop_is_named_by_task_inner_step_and_layer(tmp_path: Path, engine: str) -> None:
    if engine == "learn2learn":
        pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    config = _config(tmp_path / "run")
    config.meta.inner_lr, config.meta.inner_steps, config.meta.engine = 1e30, 2, engine  # type: ignore[assignment]
    with pytest.raises(RunError) as error:
        metatrain(config)
    said = str(error.value)
    assert re.search(r"query loss of task \d became (nan|inf) at step 1 ", said), said
    assert re.search(r"first in layer '\S+' \(\w+: .*\) after 1 of 2 inner steps; the last good", said), said


def test_an_outer_step_that_leads_to_nan_is_named_by_its_layer(tmp_path: Path) -> None:
    config = _config(tmp_path / "run")
    config.optim.name, config.optim.lr, config.optim.schedule = "sgd", 1e30, "constant"
    config.meta.steps, config.eval.every = 1, 1
    with pytest.raises(RunError) as error:
        metatrain(config)
    said = str(error.value)
    assert re.search(
        r"predictions for task \d became NaN or infinite, first in layer '\S+' \(\w+: .*\) after \d of", said
    ), said


def _broken(task: TaskBatch, model: torch.nn.Module) -> None:
    task.query_images[0, 0] = torch.nan


def _broken_weight(task: TaskBatch, model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_broken, "the query images themselves"),
        (_broken_weight, "layer '3' (Linear: its weight is not finite) after 0 of 2 inner steps"),
        (lambda *_: None, None),
    ],
)
def test_images_and_weights_that_are_broken_are_told_apart(
    spoil: Callable[[TaskBatch, torch.nn.Module], None], expected: str | None
) -> None:
    model, task = _net(), _task()
    engine = VectorizedEngine(model, Inner(0.1, 2))
    spoil(task, model)
    assert first_nonfinite_step(engine.model, engine.loop, task, engine.inner.steps) == expected


def test_float16_meta_training_scales_its_loss_and_learns_as_float32_does(tmp_path: Path) -> None:
    found = {}
    for precision in ("float32", "fp16"):
        config = _config(tmp_path / precision)
        config.run.precision = precision
        metatrain(config)
        state = torch.load(tmp_path / precision / "checkpoints" / "step-000003.pt", weights_only=True)
        found[precision] = state
    assert found["fp16"]["scaler"]["scale"] > 1
    assert not found["float32"]["scaler"]
    for name, value in found["float32"]["model"].items():
        torch.testing.assert_close(found["fp16"]["model"][name], value, rtol=0.05, atol=0.02)


def test_a_step_that_overflows_in_float16_is_left_out_and_the_scale_halved() -> None:
    model, task = _net(), _task()
    engine = VectorizedEngine(model, Inner(0.1, 1), precision="fp16")
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [value.clone() for value in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine.meta_gradient(task)
    engine.scaler.step(optimizer)
    engine.scaler.update()
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))
    assert engine.scaler.get_scale() == 2.0**59
