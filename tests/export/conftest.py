"""Run folders to export, made in a second: a small network with open gates, odd class names, results."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta.backbones.checkpoint import ModelSpec, save_model
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.loaders import InputSpec

CLASSES = ["ant", "花 | <b>`x`</b>", "new\nline **bold** $x$ [a](b)"]
META = {"ways": 3, "shots": 1, "queries": 1, "inner_steps": 1, "inner_lr": 0.1, "normalization": "running"}


def _make_run(
    folder: Path,
    name: str = "mnist_linear",
    activation: str | None = "arelu",
    task: str = "finetune",
    channels: int = 3,
) -> Path:
    config = FinetuneConfig()
    config.data.root, config.run.folder, config.optim.lr = "/home/someone/private/my flowers", "/secret", 0.007
    spec = ModelSpec(
        task=task,
        name=name,
        num_classes=len(CLASSES),
        activation=activation,
        init="preserve" if activation else None,
        inputs=InputSpec(32, channels, (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.4)[:channels], "bilinear", 0.9),
        classes=CLASSES,
        meta={**META, "inverted": False} if task == "metatrain" else {},
        config=asdict(config),
    )
    model = spec.build()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".t"):
                parameter.fill_(0.4)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model.safetensors", model, spec)
    results: dict[str, Any] = {"task": task, "test_accuracy": 0.875, "test_low": 0.7, "test_high": 0.95, "test_n": 40}
    results |= {"ece": 0.043, "worst_class": CLASSES[1], "worst_recall": 0.5}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "split.json").write_text(json.dumps({"train": ["a"] * 7, "validation": ["b"], "test": ["c"] * 40}))
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Write model.safetensors, results.json and split.json into a folder as a run does."""
    return _make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that ended."""
    return _make_run(tmp_path / "run")
