from dataclasses import replace

import pytest
import torch

from arelu_meta.claims.in_memory_training import (
    Tensors,
    Trial,
    build,
    epoch_order,
    load_tensors,
    shelved,
    train_one,
    train_stacked,
)
from arelu_meta.config import DataConfig


@pytest.fixture(scope="module")
def digits() -> Tensors:
    return load_tensors(DataConfig(name="digits"), 0, side=28).share(0.3)


def _trials(**changes: str) -> list[Trial]:
    first = replace(Trial("digits", "mnist_linear", "arelu", "authors", "sgd", 0.1, 0, epochs=2), **changes)  # type: ignore[arg-type]
    return [replace(first, lr=lr, seed=seed) for lr in (0.1, 0.01) for seed in (0, 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam"},
        {"network": "mnist_conv"},
        {"network": "mnist_conv", "activation": "pau"},
        {"activation": "maxout", "variant": "paper"},
        {"activation": "relu"},
    ],
)
def test_stacked_networks_have_the_curves_of_single_ones(digits: Tensors, changes: dict[str, str]) -> None:
    trials = _trials(**changes)
    stacked, single = train_stacked(trials, digits), [train_one(trial, digits) for trial in trials]
    assert [len(rows) for rows in stacked] == [2] * 4
    losses = [[row["train_loss"] for row in rows] for rows in stacked]
    assert torch.allclose(
        torch.tensor(losses), torch.tensor([[row["train_loss"] for row in rows] for rows in single]), rtol=1e-3
    )
    for mine, theirs in zip(stacked, single, strict=True):
        assert [row["accuracy"] for row in mine] == pytest.approx([row["accuracy"] for row in theirs], abs=0.02)


def test_networks_learn(digits: Tensors) -> None:
    rows = train_one(replace(_trials()[0], epochs=8), digits)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["accuracy"] > 0.5


def test_a_run_is_repeated_to_the_last_bit(digits: Tensors) -> None:
    trial = replace(_trials()[0], activation="rrelu")
    assert train_one(trial, digits) == train_one(trial, digits)
    assert train_one(trial, digits) != train_one(replace(trial, seed=5), digits)


def test_all_activations_of_a_seed_start_from_the_same_weights_and_see_the_same_order() -> None:
    first, other = (build(replace(_trials()[0], activation=name), 10, 1, 28) for name in ("relu", "apl"))
    weights = dict(other.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in first.named_parameters())
    assert torch.equal(epoch_order(100, 3, 1), epoch_order(100, 3, 1))
    assert not torch.equal(epoch_order(100, 3, 1), epoch_order(100, 4, 1))
    assert not torch.equal(epoch_order(100, 3, 1), epoch_order(100, 3, 2))


@pytest.mark.parametrize(("variant", "terms"), [("authors", 2), ("paper", 5)])
def test_the_variant_decides_which_slaf_is_built(variant: str, terms: int) -> None:
    model = build(replace(_trials()[0], activation="slaf", variant=variant), 10, 1, 28)
    assert [p.numel() for name, p in model.named_parameters() if "coefficients" in name] == [terms]


def test_a_set_comes_back_from_its_shelf_as_it_was(digits: Tensors) -> None:
    with shelved(digits) as shelf:
        found = shelf.open()
        assert torch.equal(found.train_images, digits.train_images)
        assert torch.equal(found.test_labels, digits.test_labels)
        assert found.classes == 10


def test_a_named_set_keeps_all_its_training_images(data_root: object) -> None:
    whole = load_tensors(DataConfig(name="mnist", download=False), 0)
    assert (whole.train_images.shape, whole.test_images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert whole.train_images.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["mnist_linear", "mnist_conv"])
def test_networks_stacked_on_a_gpu_have_the_curves_of_single_ones_on_a_cpu(digits: Tensors, network: str) -> None:
    trials = _trials(network=network)
    there = train_stacked(trials, digits.to(torch.device("cuda")))
    for mine, theirs in zip(there, [train_one(trial, digits) for trial in trials], strict=True):
        assert [row["train_loss"] for row in mine] == pytest.approx([row["train_loss"] for row in theirs], rel=1e-2)
        assert [row["accuracy"] for row in mine] == pytest.approx([row["accuracy"] for row in theirs], abs=0.03)
