"""How often studies say what is not so: many seeded studies of made-up accuracies whose truth is known."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from arelu_meta.claims.mnist_tables import conclude as conclude_mnist
from arelu_meta.claims.small_lr_tables import conclude as conclude_small_lr
from arelu_meta.claims.statistics import compare


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Hide what is loaded from the garbage collector: statsmodels runs it at every correction."""
    import statsmodels.stats.multitest  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out how many seeds would be needed: it takes the most time and decides no verdict."""
    monkeypatch.setattr("arelu_meta.claims.statistics.seeds_needed", lambda spread: 2)


def _at_most(rate: float, studies: int) -> int:
    """Give the count that studies whose true rate is this exceed once in a thousand times."""
    return int(stats.binom.ppf(0.999, studies, rate))


def _verdicts(studies: int, truth: float, pairs: int, spread: float, margin: float) -> Counter[str]:
    """Judge studies of one claim; a seed makes its accuracy larger or smaller for both sides alike."""
    found: Counter[str] = Counter()
    for study in range(studies):
        random = np.random.default_rng([study, pairs])
        shared = random.normal(90, 3, pairs)
        ours, theirs = shared + truth + random.normal(0, spread, pairs), shared + random.normal(0, spread, pairs)
        found[compare("ours", dict(enumerate(ours)), dict(enumerate(theirs)), margin).verdict] += 1
    return found


@pytest.mark.parametrize(("studies", "pairs", "spread"), [(1000, 5, 2.0), (300, 3, 0.5)])
def test_where_the_truth_is_the_margin_itself_each_verdict_is_given_at_most_once_in_forty(
    studies: int, pairs: int, spread: float
) -> None:
    found = _verdicts(studies, 1.0, pairs, spread, margin=1.0)
    assert found["holds"] <= _at_most(0.025, studies)
    assert found["does not hold"] <= _at_most(0.025, studies)
    assert found["cannot tell"] > 0.9 * studies


def test_without_a_difference_and_a_margin_a_verdict_is_given_at_most_once_in_twenty() -> None:
    found = _verdicts(300, 0.0, pairs=3, spread=1.0, margin=0.0)
    assert found["holds"] + found["does not hold"] <= _at_most(0.05, 300)


def test_without_a_difference_a_claim_of_one_point_hardly_ever_holds() -> None:
    assert _verdicts(1000, 0.0, pairs=3, spread=2.0, margin=1.0)["holds"] <= _at_most(0.025, 1000)


def test_a_difference_of_five_points_is_found_by_three_seeds_where_they_scatter_by_half_a_point() -> None:
    found = _verdicts(300, 5.0, pairs=3, spread=0.5, margin=1.0)
    assert found["does not hold"] == 0
    assert found["holds"] > 0.9 * 300


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


def test_a_whole_table_without_a_difference_has_a_claim_that_holds_in_at_most_one_study_of_twenty() -> None:
    studies, alarms = 60, 0
    for study in range(studies):
        outcome = conclude_mnist(_mnist_rows(np.random.default_rng(study), 0.0), margin=0.0)
        alarms += any(one.verdict == "holds" for one in outcome.comparisons)
    assert alarms <= _at_most(0.05, studies)


def test_a_whole_table_finds_five_points_in_every_cell() -> None:
    outcome = conclude_mnist(_mnist_rows(np.random.default_rng(0), 5.0), margin=1.0)
    assert {one.verdict for one in outcome.comparisons} == {"holds"}


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
        assert len(outcome.comparisons) == 4
        alarms += any(one.verdict == "holds" for one in outcome.comparisons)
    assert alarms <= _at_most(0.05, studies)
