"""What reading timm's code may conclude, and where it must leave a model to the trace."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from arelu_meta.backbones.called_once import calls_nothing_twice
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.tracing import trace_forward


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "mobilenetv3_small_050", "test_efficientnet", "resnet18"]
)
def test_a_model_that_is_read_is_swapped_without_a_forward(name: str) -> None:
    model = timm.create_model(name)
    assert calls_nothing_twice(model) is not None
    calls: list[nn.Module] = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: calls.append(module))
    try:
        report = swap_activations(model)
    finally:
        handle.remove()
    assert report.complete
    assert report.swapped
    assert not calls


@pytest.mark.parametrize("name", ["dla46x_c", "res2net50_26w_4s", "efficientvit_m0", "hrnet_w18_small"])
def test_a_module_that_is_called_twice_in_a_forward_is_left_to_the_trace(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert calls_nothing_twice(model) is None


@pytest.mark.parametrize("name", ["nasnetalarge", "mobilevitv2_050", "vit_tiny_patch16_dinov3_qkvb"])
def test_reading_and_tracing_agree_or_reading_does_not_say(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    read, traces = calls_nothing_twice(model), trace_forward(model)
    assert traces is not None
    for trace in traces if read is not None else ():
        assert not trace.functions
        assert all(len({call.entry for call in calls}) == len(calls) for calls in trace.calls.values())


class Outside(nn.Module):
    """A user's model around timm's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(4)
        self.pretrained_cfg = {"input_size": (3, 4, 4)}

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.mlp(self.mlp.act(x))
        return found


def _hooked(model: nn.Module) -> None:
    model.get_submodule("layer1.0.act1").register_forward_hook(lambda *_: None)


def _overridden(model: nn.Module) -> None:
    block = model.get_submodule("layer1.0")
    plain = block.forward
    block.forward = lambda x: plain(x)


def _subclassed(model: nn.Module) -> None:
    model.get_submodule("layer1.0").__class__ = type("Mine", (BasicBlock,), {"__module__": __name__})


def _without_a_size(model: nn.Module) -> None:
    model.pretrained_cfg = None  # type: ignore[assignment]


@pytest.mark.parametrize("change", [_hooked, _overridden, _subclassed, _without_a_size])
def test_what_a_user_changed_is_not_read(change: Callable[[nn.Module], None]) -> None:
    model = timm.create_model("resnet18")
    assert calls_nothing_twice(model) is not None
    change(model)
    assert calls_nothing_twice(model) is None


def test_another_forward_put_into_timms_class_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("resnet18")
    assert calls_nothing_twice(model) is not None
    plain = BasicBlock.forward
    monkeypatch.setattr(BasicBlock, "forward", lambda self, x: self.act1(plain(self, x)))
    assert calls_nothing_twice(model) is None


def test_a_users_model_around_timms_parts_is_traced() -> None:
    assert calls_nothing_twice(Outside()) is None
