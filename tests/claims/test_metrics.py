"""What is read off accuracies over learning rates, on curves whose answers are known."""

import math

import pytest

from arelu_meta.claims.metrics import area_over_rates, peak, regret, steps_to, width_within, worth

HILL = {1e-4: 10.0, 1e-3: 50.0, 1e-2: 90.0, 1e-1: 50.0}


def test_the_peak_is_the_best_rate_and_of_equal_ones_the_smaller() -> None:
    assert peak(HILL) == (1e-2, 90.0)
    assert peak({1e-3: 5.0, 1e-2: 5.0}) == (1e-3, 5.0)


def test_the_width_goes_to_where_the_line_leaves_the_share() -> None:
    # 90 % of 90 is 81: (90 - 81) / (90 - 50) of a decade on either side.
    assert width_within(HILL) == pytest.approx(2 * 9 / 40)
    assert width_within({1e-3: 4.0, 1e-2: 4.0, 1e-1: 4.0}) == pytest.approx(2.0)
    assert width_within({1e-3: 4.0}) == 0.0
    assert width_within(HILL, share=0.0) == pytest.approx(3.0)


def test_the_regret_is_the_best_minus_the_mean() -> None:
    assert regret(HILL) == pytest.approx(90 - 50)
    assert regret({1e-3: 7.0}) == 0.0


def test_the_area_is_the_mean_over_the_log_rate() -> None:
    assert area_over_rates(HILL) == pytest.approx((30 + 70 + 70) / 3)


def test_steps_are_counted_to_the_first_that_reaches_the_probe() -> None:
    course = [(0, 10.0), (5, 40.0), (10, 35.0), (15, 60.0)]
    assert steps_to(course, 40.0) == 5
    assert steps_to(course, 61.0) is None


def test_a_contender_that_is_the_reference_at_a_tenth_of_the_rate_is_worth_ten() -> None:
    theirs = {rate: {seed: value + seed for seed in range(4)} for rate, value in HILL.items() if rate < 1e-1}
    ours = {rate / 10: values for rate, values in theirs.items()}
    found = worth(ours, theirs, 1e-4, resamples=50)
    assert found.times == pytest.approx(10)
    assert [found.low, found.high] == pytest.approx([10, 10])
    assert found.words.startswith("× 10")


def test_the_interval_of_the_worth_has_the_seeds_scatter_and_contains_it() -> None:
    theirs = {1e-3: {0: 40.0, 1: 50.0, 2: 60.0}, 1e-2: {0: 80.0, 1: 85.0, 2: 90.0}}
    ours = {1e-3: {0: 60.0, 1: 66.0, 2: 78.0}}
    found = worth(ours, theirs, 1e-3, resamples=300)
    assert 1 < found.low < found.times < found.high < 10


def test_what_the_reference_never_reaches_is_worth_more_than_its_largest_rate() -> None:
    found = worth({1e-3: {0: 95.0, 1: 96.0}}, {1e-3: {0: 1.0, 1: 2.0}, 1e-2: {0: 5.0, 1: 6.0}}, 1e-3, resamples=20)
    assert found.sign == ">"
    assert found.times == pytest.approx(10)
    assert math.isinf(found.high)
    assert found.words == "× >10"


def test_seeds_that_are_not_everywhere_do_not_count() -> None:
    with pytest.raises(ValueError, match="no seed"):
        worth({1e-3: {0: 1.0}}, {1e-3: {1: 1.0}}, 1e-3)
