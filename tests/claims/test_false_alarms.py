"""How often whole studies say what is not so: made-up accuracies whose truth is known."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from arelu_meta import statistics
from arelu_meta.claims.mnist import conclude as conclude_mnist
from arelu_meta.claims.small_lr import conclude as conclude_small_lr


@pytest.fixture(autouse=True)
def _no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out how many seeds would be needed: it takes time and decides no verdict."""
    monkeypatch.setattr(statistics, "_more_seeds", lambda *_: None)


def _at_most(rate: float, studies: int) -> int:
    """Give the count that studies whose true rate is this exceed once in a thousand times."""
    return int(stats.binom.ppf(0.999, studies, rate))


def _mnist_rows(random: np.random.Generator, truth: float) -> list[dict[str, Any]]:
    """Make up four cells of five activations and five seeds; AReLU alone is `truth` points ahead."""
    place = {"network": "mnist_conv", "optimizer": "sgd", "data": "digits", "variant": "authors", "epoch": 1}
    names = ("relu", "elu", "selu", "gelu", "arelu")
    return [
        {**place, "lr": lr, "seed": seed, "activation": name, "accuracy": value / 100}
        for lr in (1e-1, 1e-2, 1e-3, 1e-4)
        for seed, shared in enumerate(random.normal(80, 3, 5))
        for name, value in zip(names, shared + random.normal(0, 1, 5) + [0, 0, 0, 0, truth], strict=True)
    ]


def test_a_whole_table_without_a_difference_has_a_verdict_in_at_most_one_study_of_twenty() -> None:
    studies, alarms = 60, 0
    for study in range(studies):
        outcome = conclude_mnist(_mnist_rows(np.random.default_rng(study), 0.0), margin=0.0)
        alarms += any(one.verdict != "need more seeds" for one in outcome.claims)
    assert alarms <= _at_most(0.05, studies)


def test_a_whole_table_finds_five_points_in_every_cell() -> None:
    outcome = conclude_mnist(_mnist_rows(np.random.default_rng(0), 5.0), margin=1.0)
    assert {one.verdict for one in outcome.claims} == {"ahead"}


def test_choosing_each_one_s_best_rate_on_validation_images_makes_nothing_ahead_that_is_not() -> None:
    studies, alarms = 60, 0
    for study in range(studies):
        random = np.random.default_rng(study)
        shared = random.normal(70, 3, 5)
        rows = [
            {"contender": name, "lr": lr, "seed": seed, "step": 1, "rate": lr, "pipeline": "finetune"}
            | {"accuracy": validation, "validation_accuracy": validation, "test_accuracy": test}
            for name in ("original", "gelu", "arelu:paper")
            for lr in (1e-1, 1e-2, 1e-3)
            for seed in range(5)
            for validation, test in [(shared[seed] + random.normal(0, 1, 2)) / 100]
        ]
        outcome = conclude_small_lr(rows, small=1e-3, margin=0.0, target=None)
        assert len(outcome.claims) == 2  # of AReLU, at the small and at its best rate; gelu is described
        alarms += any(one.verdict != "need more seeds" for one in outcome.claims)
    assert alarms <= _at_most(0.05, studies)
