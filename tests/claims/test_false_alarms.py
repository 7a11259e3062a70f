"""How often studies say what is not so: a thousand seeded studies of made-up accuracies whose truth is known."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from arelu_meta.claims.mnist_tables import conclude as conclude_mnist
from arelu_meta.claims.small_lr_tables import conclude as conclude_small_lr
from arelu_meta.claims.statistics import compare, judge

STUDIES = 1000


def _at_most(rate: float, studies: int = STUDIES) -> int:
    """Give the count that studies whose true rate is this exceed once in a thousand times."""
    return int(stats.binom.ppf(0.999, studies, rate))


def _verdicts(truth: float, pairs: int, spread: float, margin: float) -> Counter[str]:
    """Judge studies of one claim; a seed makes its accuracy larger or smaller for both sides alike."""
    found: Counter[str] = Counter()
    for study in range(STUDIES):
        random = np.random.default_rng([study, pairs])
        shared = random.normal(90, 3, pairs)
        ours, theirs = shared + truth + random.normal(0, spread, pairs), shared + random.normal(0, spread, pairs)
        (one,) = judge([compare("ours", dict(enumerate(ours)), dict(enumerate(theirs)), margin)])
        found[one.verdict] += 1
    return found


@pytest.mark.parametrize(("pairs", "spread"), [(3, 0.5), (5, 2.0), (10, 2.0)])
def test_where_the_truth_is_the_margin_itself_each_verdict_is_given_at_most_once_in_forty(
    pairs: int, spread: float
) -> None:
    found = _verdicts(1.0, pairs, spread, margin=1.0)
    assert found["holds"] <= _at_most(0.025)
    assert found["does not hold"] <= _at_most(0.025)
    assert found["cannot tell"] > 0.9 * STUDIES


@pytest.mark.parametrize("pairs", [3, 5])
def test_without_a_difference_and_a_margin_a_verdict_is_given_at_most_once_in_twenty(pairs: int) -> None:
    found = _verdicts(0.0, pairs, spread=1.0, margin=0.0)
    assert found["holds"] + found["does not hold"] <= _at_most(0.05)


def test_without_a_difference_a_claim_of_one_point_hardly_ever_holds() -> None:
    assert _verdicts(0.0, pairs=3, spread=2.0, margin=1.0)["holds"] <= _at_most(0.025)


def test_a_difference_of_five_points_is_found_by_three_seeds_where_they_scatter_by_half_a_point() -> None:
    found = _verdicts(5.0, pairs=3, spread=0.5, margin=1.0)
    assert found["does not hold"] == 0
    assert found["holds"] > 0.95 * STUDIES


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
    studies = 200
    alarms = 0
    for study in range(studies):
        outcome = conclude_mnist(_mnist_rows(np.random.default_rng(study), 0.0), margin=0.0)
        alarms += any(one.verdict == "holds" for one in outcome.comparisons)
    assert alarms <= _at_most(0.05, studies)


def test_a_whole_table_finds_five_points_in_every_cell() -> None:
    outcome = conclude_mnist(_mnist_rows(np.random.default_rng(0), 5.0), margin=1.0)
    assert {one.verdict for one in outcome.comparisons} == {"holds"}


def test_choosing_each_one_s_best_rate_on_validation_images_makes_nothing_ahead_that_is_not() -> None:
    studies, alarms = 200, 0
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
