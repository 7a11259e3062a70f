"""A user's own activation classes are told by what they compute, and listed, each with its line."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.backbones.hand_written import hand_written
from arelu_meta.backbones.swap import swap_activations

X = torch.linspace(-2, 2, 12).reshape(3, 4)


class OwnMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Rectifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) ** 2


class OfMapsOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return torch.sin(x.reshape(batch, channels, height * width)).reshape(x.shape)


class Switch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(3 * x)


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.25


class Normed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(-1)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Counting(nn.Module):
    """Says how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(x)


class Net(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.own = nn.Linear(4, 4), nn.ReLU(), own

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(self.act(self.first(x)))
        return y


@pytest.mark.parametrize("kind", [OwnMish, Sine, Rectifier, Squared])
def test_an_own_activation_class_is_listed_whole_with_the_line_of_its_class(kind: type[nn.Module]) -> None:
    model = Net(kind())
    before = model(X)
    report = swap_activations(model, init="preserve", example=X)
    (kept,) = report.kept
    assert (kept.path, kept.role, kept.before) == ("own", "hidden", kind.__name__)
    assert f"test_hand_written.py:{inspect.getsourcelines(kind)[1]}" in kept.reason
    assert [entry.path for entry in report.swapped] == ["act"]
    assert not report.complete
    assert torch.equal(model(X), before)


def test_one_that_takes_maps_only_is_known_too() -> None:
    (kept,) = hand_written(nn.Sequential(nn.Conv2d(3, 4, 1), OfMapsOnly()))
    assert (kept.path, kept.role) == ("1", "hidden")


def test_an_own_gate_is_listed_as_one_and_nothing_is_missed() -> None:
    report = swap_activations(Net(Switch()), init="preserve", example=X)
    (kept,) = report.kept
    assert (kept.path, kept.role) == ("own", "gate")
    assert report.complete


@pytest.mark.parametrize("kind", [Scaled, Normed, Pooled, Noise])
def test_what_mixes_elements_or_only_scales_them_is_no_activation(kind: type[nn.Module]) -> None:
    assert not hand_written(nn.Sequential(nn.Linear(4, 4), kind()))


def test_a_class_around_one_function_is_swapped_inside_as_before() -> None:
    report = swap_activations(Net(Wrapped()), init="preserve", example=X)
    assert [entry.path for entry in report.swapped] == ["act", "own.forward_relu"]
    assert report.complete


def test_the_trial_runs_on_a_copy() -> None:
    counting = Counting()
    assert [entry.path for entry in hand_written(nn.Sequential(counting))] == ["0"]
    assert counting.calls == 0
