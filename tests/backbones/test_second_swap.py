"""A second swap replaces what the first put in, or leaves what is as asked for; `unswap` goes back to the first."""

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.activation_sites import PerCallActivation
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import InputError

X = torch.linspace(-2, 2, 12).reshape(3, 4)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gelu(self.act(self.second(self.act(self.first(x)))))
        return y


ARELU: dict[str, Any] = {init: {"init": init} for init in ("paper", "preserve", "nearest")}
SWAPS: dict[str, dict[str, Any]] = {**ARELU, "gelu": {"activation": "gelu"}, "prelu": {"activation": "prelu"}}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Twice(), nn.ReLU(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(SWAPS, 2)))
def test_a_second_swap_gives_what_it_alone_would_and_says_what_it_replaced(first: str, second: str) -> None:
    model, other = build(), build()
    original, modules = model(X), dict(model.named_modules())
    put_in = swap_activations(model, example=X, **SWAPS[first])
    count = sum(p.numel() for p in model.parameters())
    report = swap_activations(model, example=X, **SWAPS[second])
    alone = swap_activations(other, example=X, **SWAPS[second])
    assert torch.equal(model(X), other(X))
    assert list(model.state_dict()) == list(other.state_dict())
    assert [(e.path, e.role, e.after) for e in report.swapped] == [(e.path, e.role, e.after) for e in alone.swapped]
    assert [entry.before for entry in report.swapped] == [entry.after for entry in put_in.swapped]
    assert (report.kept, report.complete) == ([], True)
    assert sum(p.numel() for p in model.parameters()) == count + report.parameters_added
    unswap(model)
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(X), original)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("without_init", [False, True])
def test_the_same_swap_again_keeps_what_was_learned_and_says_so(swap: str, without_init: bool) -> None:
    model = build()
    swap_activations(model, example=X, **SWAPS[swap])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    again = {key: value for key, value in SWAPS[swap].items() if not (without_init and key == "init")}
    report = swap_activations(model, example=X, **again)
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert (report.swapped, report.complete) == ([], True)
    assert report.notes == [f"3 are {again.get('activation', 'arelu')} from before, and stay as they are"]


def test_calls_that_had_scalars_of_their_own_are_shared_again_and_the_other_way_round() -> None:
    model = build()
    swap_activations(model, init="paper", example=X)
    assert isinstance(model.get_submodule("0.act"), PerCallActivation)
    swap_activations(model, init="preserve", example=X, share="module")
    assert isinstance(model.get_submodule("0.act"), GatedAReLU)
    model(X)
    swap_activations(model, init="paper", example=X)
    assert isinstance(model.get_submodule("0.act"), PerCallActivation)
    model(X)


def test_what_a_second_swap_does_not_take_stays_from_the_first() -> None:
    model = build()
    swap_activations(model, init="paper", example=X)
    kept = model[1]  # type: ignore[index]
    report = swap_activations(model, "silu", include=["0.*"], example=X)
    assert [entry.path for entry in report.swapped] == ["0.act.0", "0.act.1", "0.gelu"]
    assert [(entry.path, entry.before, entry.reason) for entry in report.kept] == [("1", "AReLU", "not included")]
    assert model[1] is kept  # type: ignore[index]
    report = swap_activations(model, "silu", include=[nn.ReLU], example=X)
    assert [(entry.path, entry.before, entry.after) for entry in report.swapped] == [("1", "AReLU", "SiLU")]


@pytest.mark.parametrize("part_first", [True, False])
def test_a_part_and_the_whole_may_be_swapped_and_taken_back_in_any_order(part_first: bool) -> None:
    model = build()
    modules, before = dict(model.named_modules()), model(X)
    for part in (model[0], model) if part_first else (model, model[0]):  # type: ignore[index]
        swap_activations(part, init="preserve" if part is model else "paper", example=X)
    assert isinstance(model[1], GatedAReLU)  # type: ignore[index]
    assert isinstance(model.get_submodule("0.gelu"), GatedAReLU if part_first else AReLU)
    unswap(model[0])  # type: ignore[index]
    assert isinstance(model.get_submodule("0.gelu"), nn.GELU)
    unswap(model)
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(X), before)


def test_a_part_that_moves_into_another_model_can_still_be_taken_back() -> None:
    model = build()
    swap_activations(model, init="paper", example=X)
    other = nn.Sequential(*list(model.children())[:1])
    unswap(other)
    assert [type(other[0].act), type(other[0].gelu)] == [nn.ReLU, nn.GELU]


def test_a_second_swap_that_fails_leaves_the_first() -> None:
    model = build()
    swap_activations(model, init="preserve", example=X)
    modules, after = dict(model.named_modules()), model(X)
    with pytest.raises(InputError, match="the model cannot take it"):
        swap_activations(model, init="fit", data=[X, torch.zeros(3, 9)])
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(X), after)
    unswap(model)
    assert isinstance(model[1], nn.ReLU)  # type: ignore[index]


@pytest.mark.parametrize("name", ["test_resnet", "legacy_seresnet18", "mobilevitv2_050"])
def test_a_model_of_timm_is_swapped_again_from_its_own_activations(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    first = swap_activations(model, init="preserve")
    second = swap_activations(model, "gelu")
    third = swap_activations(model, init="paper")
    for report in (second, third):
        assert report.complete
        assert [entry.path for entry in report.swapped] == [entry.path for entry in first.swapped]
    assert {entry.before for entry in second.swapped} == {entry.after for entry in first.swapped}
    assert third.parameters_added == 2 * len(third.swapped)


def test_a_network_that_was_made_with_arelu_is_swapped_as_any_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), AReLU(), nn.Linear(4, 2)).eval()
    before = model(X)
    assert swap_activations(model, example=X).swapped == []
    report = swap_activations(model, init="preserve", example=X)
    assert [entry.after for entry in report.swapped] == ["GatedAReLU(AReLU)"]
    assert torch.equal(model(X), before)
    swap_activations(model, "relu", example=X)
    assert type(model[1]) is nn.ReLU
