import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from arelu_meta.backbones.networks import mnist_linear
from arelu_meta.claims.matched_learning_rate import NoMatchError, first_steps, matched, solve
from arelu_meta.config import FinetuneConfig, OptimConfig


@pytest.mark.parametrize(
    ("change", "wanted", "expected"),
    [
        (lambda factor: 2.0 * factor, 20.0, 10.0),
        (lambda factor: 0.5 * factor**2, 32.0, 8.0),
        (lambda factor: math.expm1(min(factor, 700.0)), 20.0, 3.04),
        (lambda factor: factor if factor < 50 else math.inf, 40.0, 40.0),
        (lambda factor: 3.0 * factor, 0.3, 0.1),
        (lambda factor: 0.0, 0.0, 1.0),  # a rate so small that nothing moves
    ],
)
def test_the_factor_is_found_at_which_a_change_is_as_large_as_wanted(
    change: Callable[[float], float], wanted: float, expected: float
) -> None:
    assert solve(change, wanted) == pytest.approx(expected, rel=0.06)


def test_what_never_gets_there_stops_at_the_largest_factor_and_does_not_hang() -> None:
    assert solve(lambda factor: min(factor, 5.0), 100.0) == pytest.approx(100, rel=0.05)


def test_a_match_that_asks_for_more_than_a_hundred_times_the_rate_is_refused() -> None:
    with pytest.raises(NoMatchError, match="no rate up to 100 times as large"):
        matched(lambda lr: (1e3 * lr, -0.1), 1e-3, 439.0)


def test_a_match_at_a_rate_where_training_is_lost_is_refused() -> None:
    def steps(lr: float) -> tuple[float, float]:
        return 1e3 * lr, -0.1 if lr < 0.02 else 0.5

    assert matched(steps, 1e-3, 10.0) == pytest.approx(1e-2, rel=0.06)
    with pytest.raises(NoMatchError, match=r"at 0\.04, where they do, the first steps raise the loss"):
        matched(steps, 1e-3, 40.0)
    with pytest.raises(NoMatchError):
        matched(lambda lr: (math.inf, math.inf), 1e-3, 1.0)


def test_what_is_matched_is_clipped_as_it_will_be_trained() -> None:
    model, images = mnist_linear(img_size=8), _images()
    free, clipped = (
        first_steps(model, images, FinetuneConfig(optim=OptimConfig(lr=1e-2, clip_grad=limit)))[0]
        for limit in (1e9, 1e-3)
    )
    assert clipped < 0.1 * free


def _images() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(8, 1, 8, 8), torch.arange(8)) for _ in range(3)]


def test_the_change_of_the_logits_grows_with_the_rate_and_leaves_the_model_alone() -> None:
    model, images = mnist_linear(img_size=8), _images()
    before = [parameter.clone() for parameter in model.parameters()]
    found = [first_steps(model, images, FinetuneConfig(optim=OptimConfig(lr=lr))) for lr in (1e-4, 1e-3, 1e-2)]
    sizes = [size for size, _ in found]
    assert all(loss < 0 for _, loss in found)
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert sizes[1] / sizes[0] == pytest.approx(10, rel=0.2)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_steps_that_overflow_are_infinitely_large() -> None:
    model: nn.Module = mnist_linear(img_size=8)
    assert first_steps(model, _images(), FinetuneConfig(optim=OptimConfig(lr=1e30))) == (math.inf, math.inf)
