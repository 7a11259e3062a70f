"""Modules in a list."""

import pytest
import timm
import torch
from torch import nn

from arelu_meta.backbones.walking import named_modules


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
