"""Channels-last weights: where they are chosen, and that they change nothing but the time."""

import pytest
import timm
import torch

from arelu_meta.backbones.networks import suit_layout

CPU = torch.device("cpu")


def is_channels_last(model: torch.nn.Module) -> bool:
    kernels = [one.weight for one in model.modules() if isinstance(one, torch.nn.Conv2d) and one.kernel_size != (1, 1)]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("test_efficientnet", True), ("test_mambaout", True), ("test_resnet", False), ("test_vit", False)],
)
def test_depthwise_convolutions_decide(name: str, chosen: bool) -> None:
    model = timm.create_model(name)
    assert suit_layout(model, CPU) is chosen
    assert not chosen or is_channels_last(model)


def test_a_gpu_keeps_its_order() -> None:
    model = timm.create_model("test_efficientnet")
    assert suit_layout(model, torch.device("cuda")) is False
    assert not is_channels_last(model)


@pytest.mark.parametrize(("name", "asked"), [("test_resnet", True), ("test_efficientnet", False)])
def test_what_is_asked_is_done(name: str, asked: bool) -> None:
    model = timm.create_model(name)
    assert suit_layout(model, CPU, asked) is asked
    assert is_channels_last(model) is asked


def test_a_model_gives_the_same_of_images_in_either_order() -> None:
    model = timm.create_model("test_efficientnet", num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    suit_layout(model, CPU)
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), before, atol=1e-5, rtol=1e-4)
