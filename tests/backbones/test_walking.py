"""Modules in a list."""

import pytest
import timm
import torch
from torch import nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.walking import named_modules, tree_changed, tree_stays


@pytest.mark.parametrize("name", ["hrnet_w18_small", "coat_tiny", "test_vit"])
def test_the_list_is_what_torch_yields(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert named_modules(model) == list(model.named_modules())


def test_a_shared_module_stands_once_and_a_missing_one_not_at_all() -> None:
    shared = nn.Sequential(nn.ReLU())
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(1, 1)})
    model.register_module("nothing", None)
    assert named_modules(model) == list(model.named_modules())
    assert [path for path, _ in named_modules(model)] == ["", "a", "a.0", "b", "c"]


def test_a_tree_that_stays_is_walked_once_until_it_is_said_to_have_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with tree_stays(model):
        assert [path for path, _ in named_modules(model)] == ["", "0"]
        model.append(nn.ReLU())
        assert [path for path, _ in named_modules(model)] == ["", "0"]
        tree_changed(model)
        assert [path for path, _ in named_modules(model)] == ["", "0", "1"]
        with tree_stays(model):
            model.append(nn.ReLU())
        model.append(nn.ReLU())
        assert [path for path, _ in named_modules(model)] == ["", "0", "1"]
    assert [path for path, _ in named_modules(model)] == ["", "0", "1", "2", "3"]


def test_what_was_found_is_handed_out_as_a_list_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with tree_stays(model):
        named_modules(model).clear()
        assert len(named_modules(model)) == 2


def test_a_module_that_the_traced_forward_makes_is_swapped_too() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "late"):
                self.late = nn.GELU()
            y: torch.Tensor = self.late(self.act(self.fc(x)))
            return y

    model = Late()
    swap_activations(model, init="preserve", example=torch.randn(2, 4))
    assert {type(model.act), type(model.late)} == {GatedAReLU}
