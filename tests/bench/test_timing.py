"""Timing in turns: who is called when, what a ratio is, and what counts as kept. No test looks at a real clock."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from arelu_meta.bench.timing import Contender, cpu_peak_bytes, kept_bytes, make_row, ratio_quartiles, time_in_turns


class Clock:
    """Time passes only where a contender says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[[object], None]:
        def call(_: object) -> None:
            self.now += seconds

        return call


def test_a_call_takes_what_its_clock_says() -> None:
    clock = Clock()
    times = time_in_turns({"a": Contender(clock.spend(0.5)), "b": Contender(clock.spend(2.0))}, 3, clock=clock)
    assert times == {"a": [0.5] * 3, "b": [2.0] * 3}


def test_preparation_is_not_timed() -> None:
    clock = Clock()
    slow = Contender(clock.spend(1.0), prepare=lambda: clock.spend(100.0)(None))
    assert time_in_turns({"slow": slow}, 2, clock=clock) == {"slow": [1.0, 1.0]}


def test_each_call_gets_what_was_prepared_for_it() -> None:
    clock, made, used = Clock(), iter(range(1000)), list[int]()

    def use(value: int) -> None:
        clock.now += 0.5e-3
        used.append(value)

    time_in_turns({"a": Contender(use, prepare=lambda: next(made))}, 2, clock=clock)
    assert used == sorted(set(used))


def test_contenders_take_turns_within_every_round() -> None:
    clock, order = Clock(), list[str]()

    def contender(name: str) -> Contender:
        def call(_: object) -> None:
            order.append(name)
            clock.now += 1.0

        return Contender(call)

    time_in_turns({"a": contender("a"), "b": contender("b")}, 3, clock=clock)
    assert order[-12:] == ["a", "a", "b", "b"] * 3  # each once ahead and once by the clock


def test_a_long_call_needs_none_ahead() -> None:
    clock, calls = Clock(), list[float]()

    def call(_: object) -> None:
        calls.append(clock.now)
        clock.now += 2.0

    assert time_in_turns({"long": Contender(call)}, 3, clock=clock) == {"long": [2.0] * 3}
    assert len(calls) == 2 + 3


def test_the_peak_of_a_call_is_what_it_holds_at_once() -> None:
    kept = torch.ones(1000)

    def call() -> None:
        first = kept + 1
        second = first * 2
        del first
        _ = second[:500] + 1

    assert cpu_peak_bytes(call) == pytest.approx(2 * 4000, abs=64)  # scalars beside them


def test_a_short_call_is_repeated_and_its_time_divided() -> None:
    clock, calls = Clock(), list[float]()

    def call(_: object) -> None:
        calls.append(clock.now)
        clock.now += 1e-4

    times = time_in_turns({"short": Contender(call)}, 1, clock=clock)
    assert len(calls) == 2 + 1 + 20  # two to warm up, one call ahead, and then 2 ms' worth
    assert times["short"] == [pytest.approx(1e-4)]


def test_a_ratio_is_the_median_over_rounds_of_ratios_within_a_round() -> None:
    """Under a load that comes and goes the ratio of the medians is another number, and wrong."""
    mine, theirs = [2.0, 20.0, 200.0, 2.0, 20.0], [1.0, 10.0, 100.0, 10.0, 1.0]
    low, ratio, high = ratio_quartiles(mine, theirs)
    assert ratio == 2.0
    assert (low, high) == (2.0, 2.0)


def test_quartiles_hold_the_middle_half_of_the_ratios() -> None:
    low, ratio, high = ratio_quartiles([1.0, 5.0, 2.0, 4.0, 3.0], [1.0] * 5)
    assert (low, ratio, high) == (2.0, 3.0, 4.0)


def test_rounds_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio_quartiles([1.0, 2.0], [1.0])


def test_a_row_gives_milliseconds_and_the_ratio_to_its_peer() -> None:
    row = make_row("case", "b", "a", {"a": [1.0, 2.0, 4.0], "b": [3.0, 6.0, 8.0]}, peak_bytes=7, dispatch_ms=0.5)
    assert (row.case, row.contender, row.peer, row.rounds, row.peak_bytes) == ("case", "b", "a", 3, 7)
    assert row.median_ms == 6000.0
    assert row.ratio_to_peer == 3.0
    assert (row.copy_ms, row.dispatch_ms) == (None, 0.5)


def test_a_peer_is_its_own_measure() -> None:
    assert make_row("case", "a", "a", {"a": [1.0, 7.0]}, 0).ratio_to_peer == 1.0


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(8, 16, requires_grad=True)


def test_relu_keeps_its_output_and_a_product_both_factors(x: torch.Tensor) -> None:
    other = torch.randn(8, 16, requires_grad=True)
    assert kept_bytes(lambda: torch.relu(x)) == 8 * 16 * 4
    assert kept_bytes(lambda: x * other) == 2 * 8 * 16 * 4
    assert kept_bytes(lambda: x + other) == 0


def test_a_storage_that_is_kept_twice_counts_once(x: torch.Tensor) -> None:
    assert kept_bytes(lambda: x * x) == 8 * 16 * 4
    assert kept_bytes(lambda: x.sin() + x.exp().view(16, 8).t().relu() * 0) > kept_bytes(lambda: x.sin())


def test_parameters_and_what_shares_their_storage_do_not_count(x: torch.Tensor) -> None:
    layer = nn.Linear(16, 4)
    assert kept_bytes(lambda: layer(x), owned=[*layer.parameters(), x]) == 0
    assert kept_bytes(lambda: layer(x), owned=list(layer.parameters())) == 8 * 16 * 4


def test_intermediate_results_that_nobody_keeps_do_not_count(x: torch.Tensor) -> None:
    assert kept_bytes(lambda: (x + 1) + 2) == 0
