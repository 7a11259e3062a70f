from typing import Any

import pytest

from arelu_meta.config import FinetuneConfig
from arelu_meta.finetuning.defaults import scalars_share, settle, settle_rates
from arelu_meta.validation import flatten

MANY = 600  # images

CHOSEN = ("model.head_init", "train.freeze_bn", "optim.clip_grad", "optim.act_lr")


def _config(**changes: Any) -> FinetuneConfig:
    config = FinetuneConfig()
    for name, value in changes.items():
        group, _, field = name.partition("_")
        assert hasattr(getattr(config, group), field)
        setattr(getattr(config, group), field, value)
    return config


def _chosen(**changes: Any) -> tuple[Any, ...]:
    flat = flatten(settle_rates(settle(_config(**changes)), MANY))
    return tuple(flat[name] for name in CHOSEN)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, ("probe", True, 1.0, None)),
        ({"model_activation": "arelu", "optim_lr": 0.2}, ("probe", True, 1.0, 0.002)),
        ({"model_activation": "arelu", "model_init": "preserve", "optim_lr": 0.2}, ("probe", True, 1.0, 0.002)),
        ({"model_activation": "arelu", "model_init": "paper"}, ("zero", False, None, None)),
        ({"model_activation": "gelu"}, ("zero", False, None, None)),
        ({"model_pretrained": False, "model_activation": "arelu"}, ("random", False, None, None)),
        ({"model_pretrained": "run"}, ("auto", True, 1.0, 3e-4)),
        ({"model_pretrained": "run", "model_reset_head": True}, ("probe", True, 1.0, 3e-4)),
        ({"train_mode": "activations", "model_activation": "arelu"}, ("probe", True, 1.0, 0.009)),
        ({"train_mode": "head"}, ("probe", True, None, None)),
        ({"train_mode": "head", "model_activation": "arelu"}, ("probe", True, None, None)),
        ({"train_mode": "probe", "model_pretrained": False}, ("probe", False, None, None)),
        ({"optim_lr": "auto", "model_activation": "arelu"}, ("probe", True, 1.0, None)),
    ],
)
def test_what_is_left_open_is_gentle_where_the_pretrained_function_is_kept(
    changes: dict[str, Any], chosen: tuple[Any, ...]
) -> None:
    assert _chosen(**changes) == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 0.03),
        ({"model_activation": "arelu"}, 0.03),
        ({"model_pretrained": False, "model_activation": "arelu"}, 0.01),
        ({"model_activation": "arelu", "model_init": "paper"}, 0.003),
        ({"model_activation": "gelu"}, 0.003),
        ({"optim_name": "SGDW"}, 0.03),
        ({"optim_name": "momentum"}, 0.03),
        ({"optim_name": "adamw"}, 0.001),
        ({"optim_name": "adamw", "model_activation": "arelu", "model_init": "paper"}, 0.0001),
        ({"optim_lr": 0.2}, 0.2),
        ({"optim_lr": "auto"}, "auto"),
    ],
)
def test_the_rate_that_is_left_open_suits_the_start_and_the_optimiser(
    changes: dict[str, Any], rate: float | str
) -> None:
    assert settle_rates(settle(_config(**changes)), MANY).optim.lr == pytest.approx(rate)


@pytest.mark.parametrize(
    ("changes", "images", "rate"),
    [
        ({"model_activation": "arelu"}, 6000, 0.03),
        ({"model_activation": "arelu"}, 60, 0.003),
        ({"model_activation": "arelu"}, 27, 0.00135),
        ({"model_activation": "arelu"}, 101, 0.00505),
        ({"model_activation": "arelu", "optim_name": "adamw"}, 60, 0.0001),
        ({"model_activation": "arelu", "optim_lr": 0.02}, 60, 0.02),
        ({"model_activation": "arelu", "model_init": "paper"}, 60, 0.003),
        ({"model_pretrained": False}, 60, 0.01),
    ],
)
def test_few_images_move_pretrained_features_less(changes: dict[str, Any], images: int, rate: float) -> None:
    assert settle_rates(settle(_config(**changes)), images).optim.lr == pytest.approx(rate)


def test_what_is_given_is_taken() -> None:
    given = {"model_head_init": "zero", "train_freeze_bn": False, "optim_clip_grad": 7.0, "optim_act_lr": 0.5}
    assert _chosen(model_activation="arelu", **given) == ("zero", False, 7.0, 0.5)


@pytest.mark.parametrize(("shard", "layout"), [(True, False), (False, "auto")])
def test_a_run_that_is_shared_out_keeps_the_order_of_its_weights(shard: bool, layout: bool | str) -> None:
    assert settle(_config(train_shard=shard)).train.channels_last == layout


def test_settling_twice_changes_nothing_and_leaves_the_config_as_it_was() -> None:
    config = _config(model_activation="arelu")
    settled = settle_rates(settle(config), MANY)
    assert config == _config(model_activation="arelu")
    assert settle_rates(settle(settled), 60) == settled


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"model_activation": "arelu"}, 0.01),
        ({"model_pretrained": "run"}, 0.01),
        ({}, None),
        ({"model_activation": "arelu", "model_init": "paper"}, None),
        ({"model_activation": "arelu", "train_mode": "activations"}, 0.3),
    ],
)
def test_scalars_learn_at_a_share_of_a_rate_that_is_yet_to_be_found(
    changes: dict[str, Any], share: float | None
) -> None:
    assert scalars_share(settle_rates(settle(_config(optim_lr="auto", **changes)), MANY)) == share
