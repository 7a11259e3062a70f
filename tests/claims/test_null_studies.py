"""How often studies say what is not so, and how often their intervals hold the truth: simulated, over thousands."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from arelu_meta import statistics
from arelu_meta.statistics import Comparison, compare, judge

STUDIES = 4000
MARGIN = 1.0


@pytest.fixture(autouse=True)
def _no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out how many seeds would be needed: it takes time and decides no verdict."""
    monkeypatch.setattr(statistics, "_more_seeds", lambda *_: None)


Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]


def _independent(random: np.random.Generator, seeds: int) -> Values:
    return random.normal(0, 1.5, seeds)


def _resplit(random: np.random.Generator, seeds: int) -> Values:
    """Draw differences of seeds that re-split one data set: they share what test / (test + train) of it says."""
    shared = 0.2
    found: Values = np.sqrt(1 - shared) * random.normal(0, 1.5, seeds) + np.sqrt(shared) * random.normal(0, 1.5)
    return found


KINDS: dict[str, tuple[Draw, float]] = {"independent": (_independent, 0.0), "resplit": (_resplit, 0.25)}


def _study(random: np.random.Generator, kind: str, seeds: int, truths: tuple[float, float]) -> list[Comparison]:
    """Make up a study of two claims whose true differences are known; both share a part of each seed's luck."""
    draw, ratio = KINDS[kind]
    luck, claims = draw(random, seeds), []
    for number, truth in enumerate(truths):
        noise = (luck + draw(random, seeds)) / np.sqrt(2)
        ours = dict(enumerate((truth + noise).tolist()))
        claims.append(compare(f"claim {number}", ours, dict.fromkeys(ours, 0.0), MARGIN, resplit=ratio))
    return judge(claims)


def _is_false(verdict: str, truth: float) -> bool:
    """Return True if a verdict is wrong, of a difference that may lie on the margin, where nothing is so."""
    return {
        "ahead": truth <= MARGIN,
        "behind": truth >= -MARGIN,
        "level": abs(truth) >= MARGIN,
        "need more seeds": False,
    }[verdict]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_an_interval_holds_the_truth_in_95_of_100_studies(kind: str, seeds: int) -> None:
    random = np.random.default_rng(seeds)
    found = [one for _ in range(STUDIES // 2) for one in _study(random, kind, seeds, (0.0, 0.7))]
    covered = [one.low <= truth <= one.high for one, truth in zip(found, [0.0, 0.7] * (STUDIES // 2), strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("truths", [(0.0, 0.0), (1.0, 1.0), (1.0, -1.0), (0.0, 1.0)], ids=str)
def test_a_false_verdict_of_either_kind_stands_in_at_most_one_study_of_twenty(
    kind: str, seeds: int, truths: tuple[float, float]
) -> None:
    random, studies, wrong = np.random.default_rng(100 + seeds), STUDIES // 4, 0
    for _ in range(studies):
        judged = _study(random, kind, seeds, truths)
        wrong += any(_is_false(one.verdict, truth) for one, truth in zip(judged, truths, strict=True))
    assert wrong <= 0.05 * studies + 3 * np.sqrt(0.05 * 0.95 * studies)


def test_a_simulated_study_finds_what_is_there() -> None:
    random = np.random.default_rng(0)
    found = [one.verdict for _ in range(20) for one in _study(random, "independent", 10, (6.0, -6.0))]
    assert found == ["ahead", "behind"] * 20
