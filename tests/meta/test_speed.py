"""What a run says of its engine's speed is what the table says."""

import re

import pytest

from arelu_meta.meta.inner_loop import ALGORITHMS, BASELINES
from arelu_meta.meta.speed import known_speed, measured


def test_the_table_holds_every_algorithm_that_meta_trains_and_both_ways_of_going_through_a_batch() -> None:
    rows = measured()
    assert {row.algorithm for row in rows} == set(ALGORITHMS) - set(BASELINES) - {"fomaml"}  # MAML of order 1
    assert {row.at_once > 1 for row in rows} == {True, False}
    assert {1, 2} == {row.order for row in rows}
    assert len({(row.model, row.ways) for row in rows}) >= 8


@pytest.mark.parametrize("at_once", [1, 16])
def test_the_phrase_says_the_slowest_and_the_fastest_set_up_measured_alike(at_once: int) -> None:
    said = re.match(
        r"([\d.]+) to ([\d.]+) times as fast as learn2learn in the (\d+) set-ups", known_speed("cpu", at_once)
    )
    assert said is not None
    alike = [row.speed_up for row in measured() if (row.at_once > 1) == (at_once > 1)]
    assert float(said[1]) == pytest.approx(min(alike), abs=0.05)
    assert float(said[2]) == pytest.approx(max(alike), abs=0.05)
    assert int(said[3]) == len(alike)


def test_nothing_is_said_of_a_device_that_was_not_measured() -> None:
    assert known_speed("mps", 16) == (
        "its speed beside learn2learn's was not measured on such a device; arelu-meta bench maml measures it"
    )
