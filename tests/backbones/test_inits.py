"""How a swapped-in activation starts."""

from typing import get_args

import pytest
import timm.models.metaformer
import torch
from torch import Tensor, nn

from arelu_meta import config
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.inits import INITS, paper_start, preserve_start


def test_what_the_command_line_offers_is_what_there_is() -> None:
    assert set(get_args(config.Init)) == set(INITS)


@pytest.mark.parametrize("original", [nn.ReLU(), nn.GELU(), nn.PReLU(4), nn.ReLU6()])
def test_the_papers_start_is_the_papers_whatever_it_replaces(original: nn.Module) -> None:
    after = paper_start(original)
    assert type(after) is AReLU
    assert after.alpha.tolist() == pytest.approx([0.9])
    assert after.beta.tolist() == [2.0]


@pytest.mark.parametrize("inplace", [False, True])
def test_the_papers_start_works_in_place_where_the_original_did(inplace: bool) -> None:
    after = paper_start(nn.ReLU(inplace=inplace))
    assert isinstance(after, AReLU)
    assert after.inplace is inplace


@pytest.mark.parametrize("init", INITS)
def test_every_start_takes_device_and_dtype(init: str) -> None:
    after = INITS[init](nn.ReLU(), device=torch.device("meta"), dtype=torch.float16)
    assert {(p.device.type, p.dtype, tuple(p.shape)) for p in after.parameters()} == {("meta", torch.float16, (1,))}


@pytest.mark.parametrize("init", INITS)
def test_every_start_learns(init: str) -> None:
    assert all(p.requires_grad for p in INITS[init](nn.ReLU()).parameters())


def test_preserve_starts_with_a_closed_gate_over_the_same_function() -> None:
    after = preserve_start(nn.Hardtanh(-0.3, 0.7))
    assert isinstance(after, GatedAReLU)
    assert after.t.tolist() == [0.0]
    x = torch.randn(100)
    assert torch.equal(after(x), x.clamp(-0.3, 0.7))


def test_preserve_opens_to_the_papers_start() -> None:
    """With the gate at 1 over ReLU it is AReLU as published."""
    after = preserve_start(nn.ReLU())
    with torch.no_grad():
        after.get_parameter("t").fill_(1.0)
    x = torch.randn(100)
    torch.testing.assert_close(after(x), AReLU()(x))


def test_preserve_copies_the_original_and_leaves_it_alone() -> None:
    original = nn.PReLU(3, init=0.1)
    after = preserve_start(original)
    with torch.no_grad():
        after.get_parameter("base.weight").fill_(9.0)
    assert original.weight.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("original", [nn.ReLU(True), nn.SiLU(True), timm.models.metaformer.StarReLU(inplace=True)])
def test_preserve_over_an_in_place_original_overwrites_nothing(original: nn.Module) -> None:
    after = preserve_start(original)
    x = torch.randn(50)
    before = x.clone()
    y = after(x)
    assert torch.equal(x, before)
    assert torch.equal(y, original(before.clone()))
    assert any(getattr(module, "inplace", False) for module in original.modules())


def test_preserve_leaves_hooks_to_the_module_that_takes_over() -> None:
    ran: list[str] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran.append(type(module).__name__)

    original = nn.ReLU()
    original.register_forward_hook(note)
    preserve_start(original)(torch.randn(3))
    assert ran == []
    original(torch.randn(3))
    assert ran == ["ReLU"]
