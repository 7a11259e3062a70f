import pytest
import torch
from torch import nn

from arelu_meta import AReLU, GatedAReLU
from arelu_meta.backbones.report import scalars_results


def gated(*gates: float, learns: bool = True) -> nn.Sequential:
    layers = [GatedAReLU(nn.ReLU(), t=gate) for gate in gates]
    for layer in layers:
        layer.requires_grad_(learns)
    return nn.Sequential(*layers)


def test_gates_that_stayed_shut_are_told_with_what_opens_them() -> None:
    found = scalars_results(gated(0.0001, -0.0003), 0.03, 3e-4)
    assert found["gates"] == (
        "gates: mean |t| 0.0002: the network is still the original's; --optim.act_lr 0.03 opens them"
    )
    assert (found["gate_mean"], found["gate_largest"]) == pytest.approx((0.0002, 0.0003))
    again = scalars_results(gated(0.0), 0.03, 0.03)["gates"]
    assert again.endswith("the original's; more epochs or a larger --optim.act_lr open them")


def test_gates_that_nobody_trained_are_told_so() -> None:
    assert scalars_results(gated(0.0, learns=False), 0.03)["gates"].endswith("for its gates were not trained")


def test_gates_that_opened_are_told_with_the_widest_and_the_slopes() -> None:
    line = scalars_results(gated(0.1, -0.3), 0.03, 3e-4)["gates"]
    assert line == "gates: mean |t| 0.2, largest 0.3 at 1; alpha 0.9 to 0.9, beta 2 to 2"


def test_a_paper_start_is_told_by_its_slopes() -> None:
    found = scalars_results(nn.Sequential(AReLU(0.8, 1.5), nn.Linear(2, 2), AReLU(0.95, 2.5)))
    assert found["gates"] == "AReLU: alpha 0.8 to 0.95, beta 1.5 to 2.5 over 2 layers"
    assert (found["alpha_low"], found["beta_high"]) == pytest.approx((0.8, 2.5))
    assert "gate_mean" not in found


def test_a_model_without_one_says_nothing() -> None:
    assert scalars_results(nn.Sequential(nn.ReLU())) == {}
    with torch.device("meta"):
        assert scalars_results(nn.Sequential(AReLU())) == {}
