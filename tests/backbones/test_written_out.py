"""Activations that a user's code writes out: each is listed with its line, and nothing else is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.written_out import CEILED, MASKED, PIECES, RELU, SILU, SLOPES

Function = Callable[[Tensor], Tensor]
X = torch.linspace(-2, 2, 12).reshape(3, 4)


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.act, self.function = nn.Linear(4, 4), nn.ReLU(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.act(self.first(x)))


def written_in_between(x: Tensor) -> Tensor:
    bound = torch.zeros_like(x)
    bound[0] = 1.0
    return torch.maximum(x, bound)


ACTIVATIONS: list[tuple[Function, str]] = [
    (lambda x: x.clamp(min=0), RELU),
    (lambda x: x.clamp_(0), RELU),
    (lambda x: x.clip(0.0), RELU),
    (lambda x: torch.clamp(x, min=0), RELU),
    (lambda x: torch.clamp_min(x, 0), RELU),
    (lambda x: x.clamp(0, 6), CEILED),
    (lambda x: torch.maximum(x, torch.zeros_like(x)), RELU),
    (lambda x: torch.max(torch.tensor(0.0), x), RELU),
    (lambda x: torch.max(x, other=x.new_zeros(())), RELU),
    (lambda x: x * (x > 0), MASKED),
    (lambda x: (x > 0).float() * x, MASKED),
    (lambda x: torch.where(x > 0, x, 0.1 * x), PIECES),
    (lambda x: x * torch.where(x > 0, 1.0, 0.1), SLOPES),
    (lambda x: x * torch.sigmoid(1.702 * x), SILU),
]

NONE: list[Function] = [
    lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-6),
    lambda x: x.clamp(0, 1),
    lambda x: x.clamp(-6, 6),
    lambda x: x.clamp(max=0.5),
    lambda x: torch.maximum(x, x.mean(1, keepdim=True)),
    lambda x: x.max(1, keepdim=True)[0],
    lambda x: x * (x.mean() > 0),
    lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    lambda x: torch.where(torch.ones_like(x) > 0, x, -x),
    lambda x: x.sum().clamp(min=0),
    written_in_between,
]


@pytest.mark.parametrize(("function", "name"), ACTIVATIONS)
def test_an_activation_that_is_written_out_is_listed_with_its_line(function: Function, name: str) -> None:
    report = swap_activations(Net(function), init="preserve", example=X)
    (kept,) = report.kept
    line = function.__code__.co_firstlineno
    assert (kept.before, kept.role) == (name, "hidden")
    assert f"test_written_out.py:{line}" in kept.reason
    assert "written out, not called" in kept.reason
    assert not report.complete


@pytest.mark.parametrize("function", NONE)
def test_what_only_looks_like_one_is_not_listed(function: Function) -> None:
    report = swap_activations(Net(function), init="preserve", example=X)
    assert not report.kept
    assert report.complete


def test_a_parameters_clamp_is_no_activation() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.scale = nn.ReLU(), nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(x) * self.scale.clamp(min=0)
            return y

    assert swap_activations(Scaled(), init="preserve", example=X).complete
