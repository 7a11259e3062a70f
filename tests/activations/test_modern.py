"""What today's activations compute; `test_zoo.py` holds the test that every activation passes."""

import torch
from torch.nn import functional as F

from arelu_meta.activations.modern import AconC, StarReLU
from arelu_meta.activations.registry import create_activation


def test_star_relu_standardises_a_standard_normal_input() -> None:
    y = StarReLU()(torch.randn(1_000_000))
    assert abs(y.mean()) < 0.01
    assert abs(y.std() - 1) < 0.01


def test_squared_relu_squares_the_positive_part() -> None:
    assert torch.equal(create_activation("squared_relu")(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, 9.0]))


def test_acon_c_starts_at_silu_and_switches_between_maximum_and_mean() -> None:
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(AconC()(x), F.silu(x))
    torch.testing.assert_close(AconC(p1=1.0, p2=0.25, beta=1e4)(x), F.leaky_relu(x, 0.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(AconC(p1=1.0, p2=0.25, beta=0.0)(x), 0.625 * x)
