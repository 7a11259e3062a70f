"""Backbones by name: what they are made with, and what the pretrained ones know."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.networks import check_model_name, embedded_models, model_names
from arelu_meta.backbones.swap import unswap
from arelu_meta.errors import InputError

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    """The pretrained network as it came; tests must not change it."""
    return create_backbone(LITE0, pretrained=True).eval()


def activation_types(model: nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules() if type(m).__name__ in {"AReLU", "GatedAReLU", "ReLU", "ReLU6"}}


# What the pretrained network knows


@pytest.mark.parametrize("activation", [None, "arelu"])
@pytest.mark.parametrize(("photo", "meaning"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_pretrained_lite0_recognises_a_photo(photo: str, meaning: str, activation: str | None) -> None:
    """A Chinese summer palace, and a composite flower: dahlias are not among ImageNet's classes, the daisy is kin."""
    model = create_backbone(LITE0, pretrained=True, activation=activation).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.no_grad():
        probabilities = model(transform(Image.fromarray(load_sample_image(photo)))[None]).softmax(1)[0]
    best = int(probabilities.argmax())
    assert ImageNetInfo().index_to_description(best).split(",")[0] == meaning
    assert probabilities[best] > 0.25


def test_pretrained_lite0_tells_a_photo_from_noise(lite0: nn.Module) -> None:
    transform = create_transform(**resolve_data_config({}, model=lite0))
    photo = transform(Image.fromarray(load_sample_image("china.jpg")))[None]
    with torch.no_grad():
        assert lite0(photo).softmax(1).max() > 2 * lite0(torch.rand_like(photo)).softmax(1).max()


def test_grey_images_give_a_pretrained_network_of_one_channel_the_same_logits(lite0: nn.Module) -> None:
    grey = create_backbone(LITE0, pretrained=True, in_chans=1).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        colour = lite0(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(x), colour, rtol=1e-3, atol=1e-3)
    assert colour.std() > 0.5


def test_a_new_head_stands_on_the_pretrained_features(lite0: nn.Module) -> None:
    model = create_backbone(LITE0, pretrained=True, num_classes=17).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert model(x).shape == (2, 17)
        assert torch.equal(model.forward_features(x), lite0.forward_features(x))  # type: ignore[operator]


def test_without_pretrained_the_weights_are_random(lite0: nn.Module) -> None:
    fresh = create_backbone(LITE0)
    assert not torch.equal(
        fresh.get_parameter("blocks.3.0.conv_dw.weight"), lite0.get_parameter("blocks.3.0.conv_dw.weight")
    )


def test_the_config_that_people_print_holds_no_weights(lite0: nn.Module) -> None:
    config: dict[str, Any] = lite0.pretrained_cfg  # type: ignore[assignment]
    assert not any(isinstance(value, Tensor | dict) for value in config.values())
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 224, 224), (0.5,) * 3, (0.5,) * 3)


def test_other_weights_come_through_timms_own_code(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = create_backbone("test_resnet", pretrained=True, num_classes=5, in_chans=1, pretrained_cfg_overlay=overlay)
    ours, theirs = model.state_dict(), source.state_dict()
    torch.testing.assert_close(ours["conv1.0.weight"], theirs["conv1.0.weight"].sum(1, keepdim=True))
    assert ours["fc.weight"].shape == (5, source.num_features)
    assert torch.equal(ours["layer4.0.conv2.weight"], theirs["layer4.0.conv2.weight"])


def test_without_a_network_the_error_is_one_line_that_names_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        create_backbone("resnet18", pretrained=True)
    message = str(caught.value)
    assert message.startswith("model.pretrained: weights of 'resnet18' cannot be had (")
    assert message.endswith(f"without a network there are: {', '.join(embedded_models())}")
    assert "\n" not in message


# What it is made with


@pytest.mark.parametrize("name", ["test_resnet", "test_vit.r160_in1k", "conv4", "mnist_conv"])
def test_names_of_timm_and_of_the_papers_are_known_with_or_without_a_tag(name: str) -> None:
    model = create_backbone(name, num_classes=4, in_chans=1)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    assert model.training
    assert model(torch.randn(2, 1, *config["input_size"][1:])).shape == (2, 4)


def test_num_classes_left_out_is_the_models_own() -> None:
    assert create_backbone("test_resnet").get_classifier().out_features == 1000  # type: ignore[operator]
    assert create_backbone("mnist_conv").get_classifier().out_features == 10  # type: ignore[operator]


def test_further_arguments_reach_the_model() -> None:
    model = create_backbone("test_vit", img_size=48, drop_rate=0.3)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 1000)
    assert model.get_submodule("head_drop").p == 0.3


@pytest.mark.parametrize(
    ("pretrained", "init", "expected"),
    [(True, None, GatedAReLU), (False, None, AReLU), (True, "paper", AReLU), (False, "preserve", GatedAReLU)],
)
def test_arelu_starts_with_preserve_over_pretrained_weights_and_with_the_papers_otherwise(
    pretrained: bool, init: str | None, expected: type[nn.Module]
) -> None:
    model = create_backbone(LITE0, pretrained=pretrained, activation="arelu", init=init)  # type: ignore[arg-type]
    found = [module for module in model.modules() if isinstance(module, AReLU | GatedAReLU)]
    assert [type(module) for module in found] == [expected] * 33
    assert all(module.training for module in model.modules())


def test_preserve_keeps_the_pretrained_logits(lite0: nn.Module) -> None:
    model = create_backbone(LITE0, pretrained=True, activation="arelu").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), lite0(x))


def test_without_an_activation_nothing_is_swapped(lite0: nn.Module) -> None:
    assert activation_types(lite0) == {"ReLU6"}


def test_another_activation_can_be_swapped_in_and_out_again() -> None:
    model = create_backbone("test_resnet", activation="gelu")
    assert sum(isinstance(module, nn.GELU) for module in model.modules()) == 12
    assert activation_types(model) == set()
    unswap(model)
    assert activation_types(model) == {"ReLU"}


def test_a_swapped_network_has_no_part_on_another_device_or_of_another_dtype() -> None:
    with torch.device("meta"):
        model = create_backbone("test_resnet", activation="arelu")
    assert {p.device.type for p in model.parameters()} == {"meta"}


# Bad input


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "'resnet18'"),
        ("Conv-4", "'conv4'"),
        ("tf_efficientnet_lite", "'tf_efficientnet_lite0'"),
        ("mnist_con", "'mnist_conv'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    for refuse in (create_backbone, check_model_name):
        with pytest.raises(InputError, match=f"model.name: '{name}' is not known; nearest: .*{nearest}"):
            refuse(name)


def test_every_known_name_passes_the_check() -> None:
    names = model_names()
    assert {"conv4", "conv4_32", "mnist_conv", "mnist_linear", "resnet18", LITE0} <= set(names)
    assert names == sorted(names)
    assert len(names) > 1000
    for name in names:
        check_model_name(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18.no_such_tag"}, "Invalid pretrained tag"),
        ({"name": "test_resnet", "img_sise": 64}, "img_sise"),
        ({"name": "test_vit", "img_size": 0}, "image size"),
        ({"name": "conv4", "img_size": 8}, "too small"),
        ({"name": "conv4", "no_such": 1}, "no_such"),
        ({"name": "test_resnet", "in_chans": 0}, "in_chans: 0 is not allowed; give 1 or more"),
        ({"name": "conv4", "num_classes": -1}, "num_classes: -1 is not allowed; give 0 or more"),
        ({"name": "test_resnet", "activation": "aerlu"}, "'aerlu' is not known; nearest: 'arelu'"),
        ({"name": "test_resnet", "activation": "arelu", "init": "papper"}, "'papper' is not known; nearest: 'paper'"),
        ({"name": "test_resnet", "activation": "gelu", "init": "paper"}, "'paper' is an initialization of 'arelu'"),
    ],
)
def test_an_argument_that_does_not_fit_is_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_backbone(**arguments)
