from typing import Any

import pytest
import timm
import torch
from torch import nn

from arelu_meta import create_backbone, swap_activations
from arelu_meta.config import OptimConfig, Schedule
from arelu_meta.errors import InputError
from arelu_meta.finetuning.optimizer import (
    activation_parameters,
    build_optimizer,
    build_schedule,
    check_optimizer_name,
    head_parameters,
    parameter_groups,
    peak_rate,
)
from arelu_meta.meta.inner_loop import Inner, attach_loop


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    rates = (peak_rate(config), config.act_lr, config.head_lr)
    return parameter_groups(model, *rates, weight_decay=config.weight_decay, layer_decay=config.layer_decay)


@pytest.fixture
def model() -> nn.Module:
    backbone = create_backbone("mnist_conv", num_classes=7)
    swap_activations(backbone, "arelu", init="preserve")
    return backbone


def test_every_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    grouped = [id(p) for group in _groups(model, OptimConfig(lr=0.1)) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_head_and_scalars_have_learning_rates_of_their_own(model: nn.Module) -> None:
    rates = {}
    for group in _groups(model, OptimConfig(lr=0.1, head_lr=0.2, act_lr=0.3)):
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    assert {rates[id(p)] for p in head_parameters(model)} == {0.2}
    assert {rates[id(p)] for p in activation_parameters(model)} == {0.3}
    rest = rates.keys() - {id(p) for p in [*head_parameters(model), *activation_parameters(model)]}
    assert {rates[key] for key in rest} == {0.1}


def test_without_rates_of_their_own_all_groups_learn_at_lr(model: nn.Module) -> None:
    assert {group["lr"] for group in _groups(model, OptimConfig(lr=0.05))} == {0.05}


def test_weight_decay_spares_one_dimensional_parameters(model: nn.Module) -> None:
    for group in _groups(model, OptimConfig(lr=0.1, weight_decay=0.5)):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)


def test_the_scalars_are_alpha_beta_and_t_of_every_layer_and_nothing_else(model: nn.Module) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    found = sorted(names[id(p)].rpartition(".")[2] for p in activation_parameters(model))
    assert found == ["alpha"] * 3 + ["beta"] * 3 + ["t"] * 3


def test_frozen_parameters_are_left_out(model: nn.Module) -> None:
    model.requires_grad_(False)
    for parameter in head_parameters(model):
        parameter.requires_grad_(True)
    groups = _groups(model, OptimConfig(lr=0.1))
    assert {group["group_name"] for group in groups} == {"head"}


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb"])
def test_timms_optimisers_keep_the_groups_learning_rates(model: nn.Module, name: str) -> None:
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, act_lr=0.7))
    assert {g["lr"] for g in optimizer.param_groups if g["group_name"] == "activations"} == {0.7}


def test_an_unknown_optimiser_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"optim\.name: 'adamww' is not known; nearest: 'adamw'"):
        check_optimizer_name("adamww")


def _rates(config: OptimConfig, epochs: int, updates: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak_rate(config))
    schedule = build_schedule(optimizer, config, epochs, updates)
    rates = []
    for update in range(1, epochs * updates + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(update)
    return rates


def test_cosine_falls_from_the_full_rate_towards_zero() -> None:
    rates = _rates(OptimConfig(lr=1.0, schedule="cosine"), epochs=2, updates=50)
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 20])
def test_step_divides_by_ten_twice_after_each_third(epochs: int) -> None:
    rates = _rates(OptimConfig(lr=1.0, schedule="step"), epochs=epochs, updates=30)
    thirds = [rates[start : start + 10 * epochs] for start in (0, 10 * epochs, 20 * epochs)]
    assert thirds == [pytest.approx([rate] * 10 * epochs) for rate in (1.0, 0.1, 0.01)]


def test_constant_stays() -> None:
    assert set(_rates(OptimConfig(lr=0.3, schedule="constant"), epochs=2, updates=5)) == {0.3}


def test_warm_up_rises_and_its_first_step_already_learns() -> None:
    rates = _rates(OptimConfig(lr=1.0, schedule="constant", warmup_epochs=1), epochs=3, updates=10)
    assert 0 < rates[0] < rates[4] < 1
    assert rates[10:] == [1.0] * 20


@pytest.mark.parametrize("schedule", ["poly", "step", "tanh", "wsd"])
def test_every_offered_schedule_lowers_the_rate_by_the_end(schedule: str) -> None:
    rates = _rates(OptimConfig(lr=1.0, schedule=schedule), epochs=6, updates=10)  # type: ignore[arg-type]
    assert rates[0] == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 0.2


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly", "step", "tanh", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 9])
@pytest.mark.parametrize(("epochs", "updates"), [(1, 1), (1, 2), (2, 1), (3, 1), (1, 4)])
def test_every_offered_schedule_takes_a_run_however_short(
    schedule: Schedule, warmup: int, epochs: int, updates: int
) -> None:
    rates = _rates(OptimConfig(lr=1.0, schedule=schedule, warmup_epochs=warmup), epochs, updates)
    assert all(0 < rate <= 1 for rate in rates)


def test_layers_farther_from_the_head_learn_more_slowly_and_scalars_with_their_layer() -> None:
    backbone = timm.create_model("test_resnet", num_classes=4)
    swap_activations(backbone, "arelu", init="preserve", example=torch.zeros(1, 3, 64, 64))
    rates: dict[int, float] = {}
    for group in _groups(backbone, OptimConfig(lr=0.1, act_lr=0.2, layer_decay=0.5)):
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in backbone.named_parameters()}
    assert named["fc.weight"] == pytest.approx(0.1)
    order = [named[name] for name in ("conv1.0.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")]
    assert 0 < order[0] < order[1] < order[2] < 0.1
    for name, rate in named.items():
        if name.startswith("layer1.0.") and name.endswith("alpha"):
            assert rate == pytest.approx(2 * named["layer1.0.conv1.weight"])


def test_layer_decay_of_a_model_that_names_no_layers_is_refused_not_ignored() -> None:
    with pytest.raises(InputError, match=r"optim\.layer_decay: 0\.5 needs a timm model"):
        _groups(create_backbone("conv4", num_classes=4), OptimConfig(lr=0.1, layer_decay=0.5))


def test_what_a_model_names_itself_is_spared_from_weight_decay() -> None:
    backbone = timm.create_model("test_vit", num_classes=4)
    spared = {id(p) for name, p in backbone.named_parameters() if name in backbone.no_weight_decay() and p.ndim > 1}
    assert spared
    for group in _groups(backbone, OptimConfig(lr=0.1, weight_decay=0.5)):
        for parameter in group["params"]:
            if id(parameter) in spared:
                assert group["weight_decay"] == 0


def test_learned_rates_of_an_inner_loop_are_spared_from_weight_decay() -> None:
    backbone = create_backbone("mnist_linear", num_classes=4, in_chans=1, img_size=8)
    loop = attach_loop(backbone, Inner(0.1, 2, algorithm="metasgd"))
    rates = {id(p) for p in loop.parameters() if p.ndim > 1}
    groups = _groups(backbone, OptimConfig(lr=0.1, weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert rates
    assert {decays[key] for key in rates} == {0}
    assert 0.5 in decays.values()


def test_a_rate_that_was_not_looked_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"optim\.lr: 'auto' is not allowed here"):
        _groups(timm.create_model("test_vit"), OptimConfig(lr="auto"))
