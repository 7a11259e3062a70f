"""What must hold of any run, whatever its numbers: the laws behind the results."""

import gc
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from arelu_meta import evaluate, finetune, metatrain
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.finetuning.metrics import predict_logits


def _finetune_config(folder: Path, **train: Any) -> FinetuneConfig:
    config = FinetuneConfig()
    config.run.folder, config.run.device = str(folder), "cpu"
    config.data.image_size, config.data.per_class = 12, 10
    config.model.name, config.model.pretrained = "mnist_linear", False
    config.train.epochs = 1
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def _metatrain_config(folder: Path) -> MetatrainConfig:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(folder), "cpu"
    config.model.name, config.data.image_size = "mnist_linear", 12
    config.meta.steps, config.meta.batch_tasks = 2, 2
    config.eval.tasks, config.eval.validation_tasks, config.eval.every = 2, 2, 1
    return config


@pytest.mark.parametrize("init", ["paper", "preserve", "nearest"])
def test_swap_then_unswap_is_the_identity(init: str) -> None:
    model = timm.create_model("test_efficientnet").eval()
    images = torch.randn(2, 3, 64, 64)
    before, state = model(images), {name: value.clone() for name, value in model.state_dict().items()}
    swap_activations(model, "arelu", init=init)  # type: ignore[arg-type]
    unswap(model)
    assert torch.equal(model(images), before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_vanishing_learning_rate_with_frozen_batch_norm_leaves_the_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = _finetune_config(tmp_path / "still", freeze_bn=True)
    config.model.name, config.data.image_size = "test_efficientnet", 32
    config.optim.lr, config.optim.weight_decay = 1e-30, 0.0
    result = finetune(config)
    model, _ = load_model(result["folder"])
    start = torch.load(sorted((Path(result["folder"]) / "checkpoints").glob("*.pt"))[0], weights_only=True)["model"]
    # What was 0 moves by the rate.
    assert all(torch.allclose(value, start[name], rtol=0, atol=1e-20) for name, value in model.state_dict().items())


def test_permuting_the_heads_rows_permutes_the_predictions() -> None:
    model = timm.create_model("test_resnet", num_classes=5).eval()
    images, order = torch.randn(4, 3, 64, 64), torch.tensor([3, 0, 4, 1, 2])
    before = model(images)
    with torch.no_grad():
        head = model.get_classifier()
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    torch.testing.assert_close(model(images), before[:, order])


def test_the_batch_size_does_not_change_an_evaluation() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    images, labels = torch.randn(7, 3, 64, 64), torch.arange(7) % 5
    found = [
        predict_logits(model, zip(images.split(size), labels.split(size), strict=True), torch.device("cpu"))[0]
        for size in (1, 3, 7)
    ]
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], rtol=1e-5, atol=1e-5)


def test_the_batch_size_does_not_change_a_runs_own_evaluation(tmp_path: Path) -> None:
    folder = finetune(_finetune_config(tmp_path / "run"))["folder"]
    assert evaluate(folder)["test_accuracy"] == finetune_accuracy(folder)


def finetune_accuracy(folder: str) -> float:
    import json

    accuracy: float = json.loads((Path(folder) / "results.json").read_text())["test_accuracy"]
    return accuracy


@pytest.mark.parametrize("task", ["finetune", "metatrain"])
def test_deterministic_runs_are_the_same_to_the_last_bit(tmp_path: Path, task: str) -> None:
    weights, metrics = [], []
    for name in ("one", "two"):
        if task == "finetune":
            config = _finetune_config(tmp_path / name)
            config.run.deterministic = True
            folder = finetune(config)["folder"]
        else:
            meta = _metatrain_config(tmp_path / name)
            meta.run.deterministic = True
            folder = metatrain(meta)["folder"]
        torch.rand(3)  # what a process has drawn before does not matter
        weights.append(read_tensors(Path(folder) / "model.safetensors"))
        metrics.append((Path(folder) / "metrics.csv").read_bytes())
    torch.use_deterministic_algorithms(False)
    assert metrics[0] == metrics[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def _resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def _growth_of_runs(place: Path, first: int, more: int) -> float:
    """Return the bytes a run by which memory grows, once everything has been loaded."""
    for number in range(first):
        finetune(_finetune_config(place / f"warm-{number}"))
    before = _resident()
    for number in range(more):
        finetune(_finetune_config(place / f"run-{number}"))
    return (_resident() - before) / more


@pytest.mark.slow
def test_memory_does_not_grow_over_200_runs_in_one_process(tmp_path: Path) -> None:
    assert _growth_of_runs(tmp_path, 20, 200) < 100_000


@pytest.mark.slow
def test_memory_does_not_grow_over_50_epochs(tmp_path: Path) -> None:
    finetune(_finetune_config(tmp_path / "warm", epochs=10))
    before = _resident()
    finetune(_finetune_config(tmp_path / "long", epochs=50))
    assert _resident() - before < 20_000_000
