"""The starts that the study compares."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import swap_activations
from experiments.init_study.starts import STARTS, first_step


def _zero_head(init: str | None) -> nn.Module:
    model = create_backbone("test_resnet", num_classes=3, activation="arelu" if init else None, init=init)  # type: ignore[arg-type]
    nn.init.zeros_(model.get_parameter("fc.weight"))
    nn.init.zeros_(model.get_parameter("fc.bias"))
    return model.train()


@pytest.mark.parametrize("init", [None, "paper"])
@pytest.mark.parametrize("rate", [1e-3, 1.0])
def test_the_first_step_is_what_sgd_does_to_the_logits(init: str | None, rate: float) -> None:
    torch.manual_seed(0)
    model, images, labels = _zero_head(init), torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    expected = first_step(model, [images], labels, signed=False) * rate
    optimizer = torch.optim.SGD(model.get_submodule("fc").parameters(), lr=rate)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    with torch.no_grad():
        changed = model(images)  # the logits were 0
    assert changed.square().mean().sqrt().item() == pytest.approx(expected, rel=1e-3)


def test_the_first_step_is_what_adamw_does_to_the_logits() -> None:
    torch.manual_seed(0)
    model, images, labels = _zero_head(None), torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    expected = first_step(model, [images], labels, signed=True) * 0.01
    optimizer = torch.optim.AdamW(model.get_submodule("fc").parameters(), lr=0.01, weight_decay=0.0, eps=1e-30)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    with torch.no_grad():
        changed = model(images)
    assert changed.square().mean().sqrt().item() == pytest.approx(expected, rel=1e-3)


def test_looking_at_features_leaves_statistics_and_mode_as_they_were() -> None:
    model = _zero_head(None).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first_step(model, [torch.randn(4, 3, 32, 32)], torch.arange(4) % 3, signed=False)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "init"), [("leak-slow", "leak"), ("open-0.2", "open")])
def test_the_studys_opened_starts_are_those_that_are_offered(name: str, init: str) -> None:
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(0)
    model = create_backbone("test_resnet", num_classes=3, activation="arelu", init="preserve")
    prepare = STARTS[name].prepare
    assert prepare is not None
    prepare(model, [images])
    torch.manual_seed(0)
    offered = create_backbone("test_resnet", num_classes=3)
    swap_activations(offered, init=init, data=images, batch_norm=True)  # type: ignore[arg-type]
    for (name, one), other in zip(model.state_dict().items(), offered.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("name", STARTS)
def test_every_start_leaves_gates_and_statistics_that_are_finite(name: str) -> None:
    torch.manual_seed(0)
    start, images = STARTS[name], torch.randn(8, 3, 32, 32)
    model = create_backbone(
        "test_resnet", num_classes=3, activation="arelu" if start.init else None, init=start.init, data=images
    )
    if start.prepare is not None:
        start.prepare(model, [images])
    gates = [module.t.item() for module in model.modules() if isinstance(module, GatedAReLU)]
    opened = sum(gate > 0 for gate in gates)
    expected = {"open": len(gates), "negative": len(gates), "leak": len(gates), "last": 1}.get(name.split("-")[0], 0)
    assert opened == (len(gates) if name == "last-some" else expected)
    assert all(value.isfinite().all() for value in model.state_dict().values())
