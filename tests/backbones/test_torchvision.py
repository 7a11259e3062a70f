"""torchvision's classification models: a swap takes every hidden activation, also those called as functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from arelu_meta.backbones.swap import swap_activations, unswap

# The smallest model of each of torchvision's files.
SAMPLE = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]


class EmptyOnMeta(TorchFunctionMode):
    """Make parameters without data; what a constructor computes from numbers keeps its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}
        return func(*args, **kwargs)


def build(name: str) -> nn.Module:
    # These two warn that their initialisation will change.
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with EmptyOnMeta():
        model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model.to("meta").eval()


def images(name: str, count: int = 1) -> torch.Tensor:
    size = 299 if name == "inception_v3" else 224
    return torch.zeros(count, 3, size, size, device="meta")


def test_the_sample_has_a_model_of_every_file() -> None:
    def file_of(name: str) -> str:
        return str(torchvision.models.get_model_builder(name).__module__)

    names = torchvision.models.list_models(module=torchvision.models)
    assert {file_of(name) for name in names} == {file_of(name) for name in SAMPLE}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_hidden_activation_is_replaced_and_given_back(
    name: str, count_activations: Callable[..., dict[str, int]]
) -> None:
    model = build(name)
    kinds = [type(module) for module in model.modules()]
    report = swap_activations(model, init="paper", example=images(name))
    assert report.complete, str(report)
    # Swin v2 keeps the ReLU with which it turns coordinates into biases, one a block.
    positions = len([entry for entry in report.kept if entry.role == "position"])
    assert count_activations(model, images(name)) == ({"relu": positions} if positions else {})
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads run in training alone
        assert any("aux" in entry.path.lower() for entry in report.swapped)
        assert count_activations(model.train(), images(name, 2)) == {}
    unswap(model)
    assert [type(module) for module in model.modules()] == kinds


def test_inceptions_logits_stay_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = torchvision.models.inception_v3(weights=None, init_weights=False).eval()
    x = torch.randn(1, 3, 80, 80)
    before = model(x)
    assert swap_activations(model, init="preserve", example=x).complete
    assert torch.equal(model(x), before)
