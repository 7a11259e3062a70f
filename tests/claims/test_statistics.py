import gc
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from arelu_meta.claims.statistics import (
    Comparison,
    compare,
    compare_published,
    correct,
    judge,
    seeds_needed,
)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at each correction, which in a large process takes nearly all of the time."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def _by_seed(values: NDArray[np.float64]) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def _study(truth: float, seed: int, pairs: int = 5, spread: float = 0.5) -> Comparison:
    random = np.random.default_rng(seed)
    shared = random.normal(90, 3, pairs)  # what a seed makes easy or hard for both
    ours = shared + truth + random.normal(0, spread, pairs)
    return compare("ours is ahead", _by_seed(ours), _by_seed(shared + random.normal(0, spread, pairs)))


def test_difference_interval_and_p_are_scipys_paired_test() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(92, 1, 5), random.normal(90, 2, 5)
    found = compare("", _by_seed(ours), _by_seed(theirs))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx((ours - theirs).mean())
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.effect_size == pytest.approx((ours - theirs).mean() / (ours - theirs).std(ddof=1))


def test_of_a_thousand_studies_without_a_difference_one_in_twenty_looks_significant_and_hardly_one_holds() -> None:
    found = [_study(0.0, seed) for seed in range(1000)]
    assert 0.03 < np.mean([one.p < 0.05 for one in found]) < 0.07
    assert sum(one.verdict == "holds" for one in found) <= 5
    assert np.mean([one.verdict == "does not hold" for one in found]) > 0.5


def test_a_difference_of_five_points_is_found() -> None:
    assert all(_study(5.0, seed).verdict == "holds" for seed in range(200))


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    covered = [one.low <= 3.0 <= one.high for one in (_study(3.0, seed) for seed in range(1000))]
    assert 0.93 < np.mean(covered) < 0.97


def test_pairing_sees_what_two_separate_samples_would_not() -> None:
    shared = np.array([70.0, 80, 90, 95, 60])
    ours = shared + np.array([2.0, 2.2, 1.9, 2.1, 1.8])
    assert compare("", _by_seed(ours), _by_seed(shared)).verdict == "holds"
    assert stats.ttest_ind(ours, shared).pvalue > 0.5


def test_only_seeds_that_both_have_are_paired() -> None:
    found = compare("", {0: 5.0, 1: 6.5, 7: 99.0}, {1: 5.0, 0: 4.0, 8: 0.0})
    assert (found.n, found.difference) == (2, 1.25)


def test_two_runs_that_differ_by_much_and_unevenly_cannot_tell_and_say_with_how_many() -> None:
    found = compare("AReLU is ahead", {0: 50.0, 1: 90.0}, {0: 40.0, 1: 60.0})
    assert found.verdict == "cannot tell"
    assert "cannot tell with 2 runs" in found.sentence
    assert f"about {found.seeds_needed:,} pairs" in found.sentence
    assert found.seeds_needed > 1000


def _equal(difference: float, pairs: int) -> Comparison:
    return compare("", {seed: 3.0 + seed + difference for seed in range(pairs)}, {s: 3.0 + s for s in range(pairs)})


def test_equal_differences_are_judged_by_the_sign_test_where_there_are_two_of_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two, three, behind, same = _equal(2.0, 2), _equal(2.0, 3), _equal(-2.0, 2), _equal(0.0, 2)
    assert (two.verdict, two.low, two.effect_size) == ("cannot tell", 2.0, None)
    assert two.p == stats.binomtest(2, 2).pvalue
    assert "both differences are the same, so their interval says nothing" in two.sentence
    assert "about 3 pairs" in two.sentence
    assert (three.verdict, three.low, three.high, three.p) == ("holds", 2.0, 2.0, 0.0)
    assert "sign test" not in three.sentence
    assert (behind.verdict, _equal(-2.0, 3).verdict) == ("cannot tell", "does not hold")
    assert (same.verdict, same.difference, same.p) == ("does not hold", 0.0, 1.0)


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_on_few_images_seldom_find_a_difference_that_is_not_there(seeds: int) -> None:
    # Accuracies on 16 images take 17 values, so that two seeds often differ by as much.
    random = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        drawn = random.binomial(16, 0.6, (4, 2, seeds)) * 100 / 16
        studied = judge([compare("", dict(enumerate(ours)), dict(enumerate(theirs))) for ours, theirs in drawn])
        found += any(one.verdict == "holds" for one in studied)
    assert found <= stats.binom.ppf(0.999, 200, 0.05)


def test_who_has_as_many_pairs_as_are_needed_is_not_told_to_take_so_many() -> None:
    one = compare("", {0: 1.1, 1: 1.11, 2: 1.09}, {0: 0.0, 1: 0.0, 2: 0.0}, margin=1.1)
    assert (one.verdict, one.seeds_needed) == ("cannot tell", 2)
    assert "pairs would show" not in one.sentence


@pytest.mark.parametrize(("ours", "theirs"), [({0: 1.0}, {0: 2.0}), ({0: 1.0, 1: 2.0}, {2: 1.0}), ({}, {})])
def test_fewer_than_two_pairs_are_refused(ours: dict[int, float], theirs: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        compare("", ours, theirs)


def test_a_run_that_became_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        compare("", {0: float("nan"), 1: 2.0}, {0: 1.0, 1: 2.0})


def test_the_margin_decides_what_counts_as_ahead() -> None:
    ours, theirs = {0: 91.0, 1: 91.1, 2: 90.9}, {0: 90.5, 1: 90.5, 2: 90.4}
    assert compare("", ours, theirs).verdict == "does not hold"
    assert compare("", ours, theirs, margin=0.1).verdict == "holds"


def test_holm_multiplies_the_smallest_p_by_the_number_of_comparisons() -> None:
    found = judge([_study(truth, seed) for seed, truth in enumerate((0.0, 0.5, 1.0, 2.0, 0.1))])
    p = np.array([one.p for one in found])
    order = np.argsort(p)
    expected = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(5, 0, -1)))
    assert np.array([one.p_holm for one in found])[order] == pytest.approx(expected)
    assert judge([]) == []


def test_what_one_comparison_would_show_many_may_not() -> None:
    # An interval above the margin, but with a p that does not outlast the 99 others beside it.
    one = compare("", _by_seed(np.array([4.0, 5.5, 7.0])), _by_seed(np.zeros(3)))
    assert one.verdict == "holds"
    many = judge([one] + [_study(0.0, seed) for seed in range(99)])
    assert many[0].verdict == "cannot tell"
    assert many[0].p == one.p


def test_with_twenty_comparisons_and_no_difference_hardly_a_study_finds_one_after_holm() -> None:
    false = [min(one.p_holm for one in judge([_study(0.0, 20 * s + i) for i in range(20)])) < 0.05 for s in range(20)]
    assert sum(false) <= 3


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0, 7.0])
def test_seeds_needed_reach_the_power_and_one_fewer_does_not(spread: float) -> None:
    needed = seeds_needed(spread)

    def power(pairs: int) -> float:
        shift, critical = np.sqrt(pairs) / spread, stats.t.ppf(0.975, pairs - 1)
        there = stats.nct(pairs - 1, shift)
        return float(there.sf(critical) + there.cdf(-critical))

    assert power(needed) >= 0.8
    assert needed == 2 or power(needed - 1) < 0.8


def test_seeds_needed_has_bounds() -> None:
    assert seeds_needed(0.0) == 2
    assert seeds_needed(1e9) == 100_000


def test_a_published_cell_is_compared_by_scipys_welch_test() -> None:
    ours = [92.4, 92.6, 92.9, 92.5, 92.7]
    found = compare_published(ours, 92.6, 1.0, 5)
    expected = stats.ttest_ind_from_stats(np.mean(ours), np.std(ours, ddof=1), 5, 92.6, 1.0, 5, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.low < 0 < found.high
    assert found.within
    # The interval and the test are one thing: at the edge of the interval p is 0.05.
    shifted = compare_published(ours, float(np.mean(ours)) - (found.high - found.difference), 1.0, 5)
    assert shifted.p == pytest.approx(0.05, abs=1e-6)


def test_a_published_cell_far_off_is_not_within_what_the_runs_can_tell() -> None:
    assert not compare_published([90.0, 90.1, 90.2], 95.0, 0.2, 5).within
    assert compare_published([90.0, 90.0], 90.0, 0.0, 5).within
    assert not compare_published([90.0, 90.0], 91.0, 0.0, 5).within


def test_cells_are_corrected_for_their_number() -> None:
    cell = compare_published([90.0, 90.4, 90.2], 90.7, 0.2, 5)
    assert not cell.within
    assert correct([cell] * 100)[0].within
    assert correct([]) == []


def test_a_comparison_is_written_with_its_verdict_and_plain_types() -> None:
    import json

    row = json.loads(json.dumps(_study(5.0, 0).as_row()))
    assert row["verdict"] == "holds"
    needed = {"claim", "verdict", "sentence", "difference", "low", "high", "p", "p_holm", "effect_size", "n", "margin"}
    assert needed | {"seeds_needed", "unit", "runs"} == set(row)
