"""Fine-tuning on a CUDA device: every precision and shape of it learns, and a resumed run has the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta import evaluate, finetune
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.config import FinetuneConfig, RunConfig
from arelu_meta.finetuning.trainer import Trainer

pytestmark = pytest.mark.gpu
Make = Callable[..., FinetuneConfig]


@pytest.fixture
def network(digits: Make) -> Make:
    """Make configs of a small pretrained-shaped network on the embedded digits, on the GPU."""

    def make(folder: str = "run", **changes: Any) -> FinetuneConfig:
        return digits(folder, **({"run_device": "cuda", "model_name": "mnist_conv", "data_image_size": 28} | changes))

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run_precision": "bf16"},
        {"run_precision": "fp16"},
        {"train_channels_last": True},
        {"train_compile": True},
        {"model_init": "preserve"},
        {"train_ema": 0.9},
        {"data_workers": 2},
        {"optim_accumulate": 2, "optim_clip_grad": 1.0},
        {"train_mode": "head"},
        {"train_mode": "activations"},
    ],
    ids=str,
)
def test_a_run_on_a_gpu_learns_what_one_on_a_cpu_learns(network: Make, changes: dict[str, Any]) -> None:
    settings = {"model_activation": "arelu", "train_epochs": 4, "data_per_class": 60, "optim_lr": 0.01} | changes
    there = finetune(network("gpu", **settings))
    settings |= {"run_device": "cpu", "train_compile": False}
    here = finetune(network("cpu", **settings))
    assert abs(there["test_accuracy"] - here["test_accuracy"]) < 0.08
    assert there["test_accuracy"] > 0.15


def test_a_deterministic_run_has_the_same_bits_twice_and_when_resumed(
    network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model_activation": "arelu", "run_deterministic": True, "train_epochs": 3}
    folders = [Path(finetune(network(name, **settings))["folder"]) for name in ("one", "other")]
    done, validate = [], Trainer._validate

    def stop_in_the_third(trainer: Trainer, number: int) -> tuple[float, float]:
        done.append(number)
        if len(done) == 3:
            raise KeyboardInterrupt
        return validate(trainer, number)

    monkeypatch.setattr(Trainer, "_validate", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune(network("resumed", **settings))
    monkeypatch.undo()
    folders.append(Path(finetune(network("resumed", run_resume="auto", **settings))["folder"]))
    first, *others = [(folder / "metrics.csv").read_bytes() for folder in folders]
    assert others == [first, first]
    weights = [read_tensors(folder / "model.safetensors") for folder in folders]
    for name, value in weights[0].items():
        assert all(torch.equal(value, other[name]) for other in weights[1:]), name


def test_what_was_trained_on_a_gpu_is_used_on_a_cpu(network: Make) -> None:
    results = finetune(network("run", model_activation="arelu"))
    for device in ("cpu", "cuda"):
        judged = evaluate(results["folder"], run=RunConfig(device=device))
        assert judged["test_accuracy"] == pytest.approx(results["test_accuracy"], abs=0.01)


def test_a_gpus_memory_does_not_grow_from_epoch_to_epoch(network: Make) -> None:
    finetune(network("first", model_activation="arelu", train_epochs=1))
    before = torch.cuda.memory_allocated()
    for number in range(3):
        finetune(network(f"run{number}", model_activation="arelu", train_epochs=1))
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
