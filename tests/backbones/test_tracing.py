"""Activations that a model calls as functions."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import is_activation
from arelu_meta.backbones.tracing import example_input, functional_activations, trace_forward


class Calls(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.drop(self.function(self.norm(self.first(x)))))
        return logits


def trace(model: nn.Module, example: Tensor | None = None) -> list[tuple[str, str]] | None:
    return functional_activations(model, torch.randn(2, 3) if example is None else example, is_activation)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: x.relu_(), "relu_"),
        (torch.relu_, "relu_"),
        (F.relu6, "relu6"),
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
        (F.silu, "silu"),
        (F.mish, "mish"),
        (F.hardswish, "hardswish"),
        (F.leaky_relu, "leaky_relu"),
        (F.elu, "elu"),
        (F.selu, "selu"),
        (F.celu, "celu"),
        (F.softplus, "softplus"),
        (F.hardtanh, "hardtanh"),
    ],
)
def test_an_activation_called_as_a_function_is_found_once_under_its_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    assert trace(Calls(function)) == [("", name)]


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, torch.exp, lambda x: x * 2, lambda x: F.softmax(x, -1)]
)
def test_gates_and_plain_arithmetic_are_no_hidden_activations(function: Callable[[Tensor], Tensor]) -> None:
    assert trace(Calls(function)) == []


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.PReLU(), nn.SELU()])
def test_what_an_activation_module_calls_inside_does_not_count(module: nn.Module) -> None:
    assert trace(Calls(module)) == []


def test_the_owner_is_the_module_whose_code_makes_the_call() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Identity(), Calls(F.relu)), nn.Linear(2, 3), Calls(F.gelu))
    assert trace(model) == [("1.1", "relu"), ("3", "gelu")]


def test_every_call_counts_in_the_order_of_the_forward_pass() -> None:
    assert trace(Calls(lambda x: F.relu(F.silu(F.relu(x))))) == [("", "relu"), ("", "silu"), ("", "relu")]


def test_a_model_without_functions_has_none() -> None:
    assert trace(timm.create_model("test_resnet"), torch.zeros(1, 3, 32, 32)) == []


def test_the_model_is_left_as_it_was() -> None:
    model = Calls(F.relu).train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert [model.training, model.norm.training, model.drop.training] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError])
def test_a_forward_pass_that_fails_is_told_as_none_and_leaves_the_model_as_it_was(error: type[Exception]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("no")

    model = Calls(fail).train()
    assert trace(model) is None
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    # The recorder is off again: later calls are nobody's business.
    assert F.relu(torch.tensor(-1.0)).item() == 0


def test_an_example_of_the_wrong_shape_is_told_as_none() -> None:
    assert trace(Calls(F.relu), torch.zeros(2, 7)) is None


# Examples


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("resnet18", 224), ("mnist_conv", 28)])
def test_an_example_has_the_size_that_the_model_asks_for(name: str, size: int) -> None:
    model = create_backbone(name)
    example = example_input(model)
    assert example is not None
    assert example.shape == (1, 3, size, size)
    assert model.eval()(example).shape[0] == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "conv4"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_example_has_the_models_own_channels(name: str, channels: int) -> None:
    model = create_backbone(name, in_chans=channels)
    example = example_input(model)
    assert example is not None
    assert example.shape[1] == channels
    assert trace(model, example) == []


def test_an_example_follows_dtype_and_device() -> None:
    example = example_input(create_backbone("test_resnet").to(torch.bfloat16))
    assert example is not None
    assert example.dtype == torch.bfloat16
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    example = example_input(model)
    assert example is not None
    assert example.device.type == "meta"


def test_a_model_that_does_not_say_what_it_takes_has_no_example() -> None:
    assert example_input(nn.Linear(3, 3)) is None
    assert example_input(nn.ReLU()) is None


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("resnet18", False),
        ("efficientnet_b0", False),
        ("densenet121", False),
        ("levit_128s", False),
        ("volo_d1_224", True),
    ],
)
def test_training_is_traced_apart_only_where_a_forward_asks_for_more_than_dropout(name: str, apart: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = trace_forward(model)
    assert found is not None
    assert (found[0] is not found[1]) == apart


def test_a_forward_that_branches_on_training_is_traced_in_both_modes() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.dropout(self.act(x), p=0.5, training=self.training)
            y: Tensor = self.act(x) if self.training else x
            return y

    found = trace_forward(Branches(), torch.randn(2, 3))
    assert found is not None
    assert [len(trace.calls["act"]) for trace in found] == [1, 2]
