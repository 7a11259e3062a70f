"""What each activation is for, in the families where it is not plain."""

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from arelu_meta.backbones.activation_sites import find_activations, norms_with_activation
from arelu_meta.backbones.swap import swap_activations

# Counted in timm's code: role and class → how many.
FAMILIES: dict[str, dict[tuple[str, str], int]] = {
    # Twelve blocks: an MLP, a position MLP and an attention softmax each.
    "swinv2_tiny_window8_256": {("hidden", "GELU"): 12, ("position", "ReLU"): 12, ("gate", "Softmax"): 12},
    # The queries' and keys' kernel: the one activation of a linear attention that is not on features.
    "efficientvit_b0": {("hidden", "Hardswish"): 24, ("attention_kernel", "ReLU"): 4},
    "eva02_tiny_patch14_224": {("glu", "SiLU"): 12},
    "mambaout_femto": {("glu", "GELU"): 18, ("hidden", "GELU"): 2},
    "starnet_s1": {("glu", "ReLU6"): 15, ("hidden", "ReLU6"): 1},
    "focalnet_tiny_srf": {("glu", "GELU"): 12, ("hidden", "GELU"): 12 + 12 * 2},
    # A spatial gating unit is no activation; the MLP before it is an ordinary one.
    "gmlp_ti16_224": {("hidden", "GELU"): 30},
    "legacy_seresnet18": {("hidden", "ReLU"): 1 + 8, ("se_hidden", "ReLU"): 8, ("gate", "Sigmoid"): 8},
    "resnest14d": {("hidden", "ReLU"): 3 + 3 * 4, ("se_hidden", "ReLU"): 4},
    "test_efficientnet": {("hidden", "SiLU"): 9, ("se_hidden", "SiLU"): 2, ("gate", "Sigmoid"): 2},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_activation_of_a_family_has_its_role(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = Counter((role, type(module).__name__) for _, module, role in find_activations(model))
    assert found == FAMILIES[name]


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "efficientvit_b0", "eva02_tiny_patch14_224"])
def test_by_default_hidden_and_glu_are_replaced_and_the_others_kept_with_a_reason(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    report = swap_activations(model, "arelu")
    roles = {role for role, _ in FAMILIES[name]}
    assert {entry.role for entry in report.swapped} == roles & {"hidden", "se_hidden", "glu"}
    assert {entry.role for entry in report.kept} == roles - {"hidden", "se_hidden", "glu"}
    assert all(entry.reason for entry in report.kept)
    assert report.complete


class GatedMLP(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.scale, self.down, self.act = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.act(self.scale(x)) * self.up(x))
        return y


class MyGEGLU(GatedMLP):
    pass


@pytest.mark.parametrize(("act", "role"), [(nn.GELU(), "glu"), (nn.Sigmoid(), "gate")])
def test_in_a_gated_mlp_a_sigmoid_is_a_gate_and_what_is_not_bounded_is_not(act: nn.Module, role: str) -> None:
    assert [role for _, _, role in find_activations(MyGEGLU(act))] == [role]


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softmax])
def test_gates_are_known_by_what_they_compute(gate: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), gate())
    assert [role for _, _, role in find_activations(model)] == ["gate"]


def test_roles_select_what_to_swap() -> None:
    model = nn.ModuleDict({"cpb_mlp": nn.Sequential(nn.Linear(2, 4), nn.ReLU()), "act": nn.ReLU()})
    assert [e.path for e in swap_activations(model, include=["position"], trace=False).swapped] == ["cpb_mlp.1"]
    assert [e.path for e in swap_activations(model, trace=False).swapped] == ["act"]


@pytest.mark.parametrize(("name", "kind"), [("test_efficientnet_evos", "EvoNorm2dS0"), ("resnetv2_50d_frn", "Filter")])
def test_an_activation_inside_a_norm_is_listed_and_the_swap_not_complete(name: str, kind: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    norms = list(norms_with_activation(model))
    assert norms
    report = swap_activations(model)
    listed = [entry for entry in report.kept if "norm's own arithmetic" in entry.reason]
    assert [entry.path for entry in listed] == [path for path, _ in norms]
    assert all(entry.before.startswith(kind) for entry in listed)
    assert not report.complete
