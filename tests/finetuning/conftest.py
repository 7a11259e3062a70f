"""A run of seconds, for all tests of fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.config import FinetuneConfig


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
