import pytest
import torch
from torch import Tensor

from arelu_meta.runs.replay import Replay


def test_on_a_cpu_every_call_is_an_ordinary_one() -> None:
    calls = []

    def function(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (x + 1,)

    replay = Replay(function)
    for number in range(6):
        assert replay(torch.tensor([float(number)]))[0].item() == number + 1
    assert len(calls) == 6


@pytest.mark.gpu
def test_what_a_replayed_function_writes_in_place_is_written_once_a_call() -> None:
    total = torch.zeros(3, device="cuda")
    calls = []

    def function(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return total.add_(x).clone(), x * 2

    replay = Replay(function)
    for number in range(1, 11):
        x = torch.full((3,), float(number), device="cuda")
        so_far, double = replay(x)
        assert so_far.tolist() == [number * (number + 1) / 2] * 3
        assert torch.equal(double, x * 2)
    assert replay.refused is None
    assert len(calls) == 3  # the last of them to be recorded


@pytest.mark.gpu
def test_other_shapes_and_other_modes_are_computed_anew() -> None:
    mode = [1.0]
    replay = Replay(lambda x: (x * mode[0],), lambda: mode[0])
    for size in [4] * 6 + [3] + [4] * 2 + [5] * 6:
        x = torch.randn(size, device="cuda")
        assert torch.equal(replay(x)[0], x)
    mode[0] = 2.0
    for _ in range(6):
        x = torch.randn(5, device="cuda")
        assert torch.equal(replay(x)[0], 2 * x)


@pytest.mark.gpu
def test_what_waits_for_the_gpu_is_not_recorded_and_computed_nonetheless() -> None:
    replay = Replay(lambda x: (x * float(x.sum()),))
    for _ in range(6):
        x = torch.ones(4, device="cuda")
        assert torch.equal(replay(x)[0], 4 * x)
    assert replay.refused is not None
