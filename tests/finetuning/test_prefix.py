from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from arelu_meta import finetune, swap_activations
from arelu_meta.config import FinetuneConfig, TrainConfig
from arelu_meta.finetuning.modes import set_learning, set_training
from arelu_meta.finetuning.prefix import Suffix, _given, frozen_prefix

_LAST = TrainConfig(mode="last-1", freeze_bn=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    draw = np.random.default_rng(0)
    for name, place in (("left", slice(0, 16)), ("right", slice(16, 32))):
        (root / name).mkdir()
        for number in range(16):
            pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[:, place] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def _last_stage_learns(name: str, size: int | None = None) -> nn.Module:
    options = {} if size is None else {"img_size": size}
    model: nn.Module = timm.create_model(name, num_classes=3, **options)
    swap_activations(model, "arelu", init="preserve")
    set_learning(model, _LAST)
    set_training(model, _LAST)
    return model


@pytest.mark.parametrize(
    ("name", "size", "image"),
    [
        ("resnet10t", None, 64),
        ("test_efficientnet", None, 64),
        ("test_convnext", None, 64),
        ("densenet121", None, 64),
        ("test_vit", 32, 32),
        ("regnetx_002", None, 64),
    ],
)
def test_what_the_frozen_stages_give_makes_the_same_logits_and_gradients(name: str, size: int, image: int) -> None:
    model = _last_stage_learns(name, size)
    names = frozen_prefix(model)
    assert names
    model.eval()
    images = torch.randn(4, 3, image, image)
    with torch.no_grad():
        values = _given(model, names, images, "float32")
    assert values is not None
    gradients = []
    for forward, inputs in ((model, images), (Suffix(model, names), values)):
        model.zero_grad()
        forward(inputs).square().sum().backward()
        gradients.append([one.grad for one in model.parameters() if one.requires_grad])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(model(images), Suffix(model, names)(values)), "the model is as it was"


def test_modules_that_do_not_come_one_after_the_other_are_found_out() -> None:
    class TwoPaths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.first.requires_grad_(False)
            self.second.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.first(x) + self.second(x))
            return found

    model = TwoPaths()
    assert frozen_prefix(model) == ["first", "second"]
    assert _given(model, ["first", "second"], torch.randn(2, 4), "float32") is None


def test_what_drops_something_out_is_not_part_of_the_prefix() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    model[3].requires_grad_(True)
    assert frozen_prefix(model) == ["0"]
    model[1].eval()
    assert frozen_prefix(model) == ["0", "1", "2"]


def _config(root: Path, folder: Path) -> FinetuneConfig:
    config = FinetuneConfig()
    config.data.root, config.data.image_size, config.data.batch_size = str(root), 32, 8
    config.data.augmentation = "none"
    config.model.name, config.model.pretrained, config.model.activation = "test_resnet", False, "arelu"
    config.train.mode, config.train.epochs, config.optim.lr = "last-1", 3, 0.01
    config.train.ema = 0.5
    config.run.folder = str(folder)
    return config


def test_a_run_on_cached_features_is_the_run_on_images(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(_config(shapes, tmp_path / "cached"))
    assert "frozen features are computed once; the last stages train on them" in capsys.readouterr().out
    monkeypatch.setattr("arelu_meta.finetuning.course.cached_prefix", lambda *_: "a test compares")
    finetune(_config(shapes, tmp_path / "images"))
    assert "features are not cached: a test compares" in capsys.readouterr().out
    cached, images = (
        np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True) for name in ("cached", "images")
    )
    assert len(cached) == 3
    for column in cached.dtype.names or ():
        np.testing.assert_allclose(cached[column], images[column], rtol=1e-5, err_msg=column)


def test_last_stages_under_augmentation_say_why_nothing_is_cached(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(shapes, tmp_path / "run")
    config.data.augmentation, config.train.epochs = "auto", 1
    finetune(config)
    assert "features are not cached: data.augmentation auto changes every image" in capsys.readouterr().out
