import math

import pytest

from arelu_meta.intervals import accuracy_interval, mean_interval, proportion_interval


def test_proportion_interval_is_wilsons() -> None:
    # Wilson 1927 for 8 of 10 at z = 1.96, worked out by hand.
    low, high = proportion_interval(8, 10)
    z = 1.959963984540054
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert low == pytest.approx(centre - half)
    assert high == pytest.approx(centre + half)


def test_proportion_interval_of_a_perfect_score_still_has_width() -> None:
    low, high = proportion_interval(20, 20)
    assert low < 0.9
    assert high == 1.0


def test_mean_interval_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305284263 * math.sqrt(5 / 3) / 2  # t(0.975; 3) * s / sqrt(n)
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def test_an_accuracys_interval_stays_within_0_and_1_and_is_students_inside() -> None:
    low_end, high_end = [0.0, 0.0, 0.2], [1.0, 1.0, 0.8]
    assert mean_interval(low_end)[1] < 0 < accuracy_interval(low_end)[2]
    assert accuracy_interval(low_end)[1] == 0.0
    assert accuracy_interval(high_end)[2] == 1.0 < mean_interval(high_end)[2]
    assert accuracy_interval([0.4, 0.5, 0.6]) == mean_interval([0.4, 0.5, 0.6])
