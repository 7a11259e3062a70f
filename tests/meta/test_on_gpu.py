"""Meta-learning on a CUDA device: both engines' gradients are the CPU's, and a run there learns to learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta import create_backbone, metatrain
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.meta.engine import Inner, Learn2learnEngine, VectorizedEngine
from arelu_meta.meta.normalization import set_normalization, train_mode

pytestmark = pytest.mark.gpu

CASES = [
    ("mnist_conv", "arelu", 28, "transductive"),
    ("mnist_linear", "arelu", 8, "transductive"),
    ("conv4_32", "arelu", 16, "transductive"),
    ("conv4_32", None, 16, "frozen"),
    ("test_resnet", "arelu", 32, "transductive"),
    ("test_efficientnet", "preserve", 32, "frozen"),
    ("test_vit", "preserve", 32, "none"),
]


def _tasks(size: int, channels: int) -> TaskBatch:
    labels = torch.arange(3).repeat_interleave(2).repeat(3, 1)
    images = torch.rand(2, 3, 6, channels, size, size, dtype=torch.float64)
    return TaskBatch(images[0], labels, images[1], labels)


def _gradients(engine: Any, model: nn.Module, tasks: TaskBatch) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        engine.meta_gradient(tasks)
    return {name: value.grad.clone().cpu() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", [VectorizedEngine, Learn2learnEngine])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("name", "activation", "size", "normalization"), CASES)
def test_the_meta_gradient_is_the_cpus(
    name: str, activation: str | None, size: int, normalization: str, first_order: bool, kind: type[Any]
) -> None:
    if kind is Learn2learnEngine:
        pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    channels = 3 if name.startswith("test_") else 1
    init = "preserve" if activation == "preserve" else "paper"
    sized: dict[str, Any] = {} if name in ("test_resnet", "test_efficientnet") else {"img_size": size}
    model = create_backbone(
        name,
        num_classes=3,
        in_chans=channels,
        activation="arelu" if activation else None,
        init=init if activation else None,  # type: ignore[arg-type]
        **sized,
    ).double()
    set_normalization(model, normalization)
    train_mode(model, normalization)
    inner, tasks = Inner(0.05, 2, first_order), _tasks(size, channels)
    expected = _gradients(VectorizedEngine(model, inner), model, tasks)
    found = _gradients(kind(model.cuda(), inner), model, tasks.to(torch.device("cuda")))
    largest = max(value.abs().max().item() for value in expected.values())
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max().item() <= 1e-7 * max(value.abs().max().item(), 1e-3 * largest), key


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("model", ["mnist_linear", "conv4_32"])
def test_a_run_on_a_gpu_learns_to_learn(model: str, precision: str, tmp_path: Path) -> None:
    config = MetatrainConfig()
    config.run.folder, config.run.device, config.run.precision = str(tmp_path / "run"), "cuda", precision  # type: ignore[assignment]
    config.model.name, config.model.activation, config.data.image_size = model, "arelu", 16
    config.task.queries, config.meta.steps, config.meta.batch_tasks, config.meta.inner_lr = 5, 60, 4, 0.1
    config.optim.lr, config.eval.tasks, config.eval.every = 0.003, 100, 20
    results = metatrain(config)
    assert results["test_accuracy"] > 0.3
