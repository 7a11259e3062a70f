"""PAU: its formula in float64, its start, and that it has no pole; `test_zoo.py` holds the test that all pass."""

import copy

import pytest
import torch
from torch.nn import functional as F

from arelu_meta.activations.pau import PAU
from arelu_meta.activations.registry import create_activation


@pytest.mark.parametrize(("variant", "distance"), [("paper", 0.066), ("authors", 0.034)])
def test_pau_starts_as_near_to_leaky_relu_as_it_says(variant: str, distance: float) -> None:
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    off = (create_activation("pau", variant=variant, dtype=torch.float64)(x) - F.leaky_relu(x, 0.01)).abs().max()
    assert distance - 0.001 < off < distance


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_pau_equals_its_formula_in_float64_and_float32_stays_with_it(variant: str) -> None:
    module = create_activation("pau", variant=variant, dtype=torch.float64)
    assert isinstance(module, PAU)
    with torch.no_grad():
        module.denominator.copy_(torch.randn(4))
        module.numerator.copy_(torch.randn(6))
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    a, b = module.numerator.detach(), module.denominator.detach()
    terms = torch.stack([b[k - 1] * x**k for k in range(1, 5)])
    below = 1 + (terms.sum(0).abs() if variant == "paper" else terms.abs().sum(0))
    expected = sum(a[j] * x**j for j in range(6)) / below
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    scale = sum(a[j].abs() * x.abs() ** j for j in range(6)) / below
    single = copy.deepcopy(module).float()
    rounding = (single(x.float()).double() - expected).abs()
    conditioning = 1 + terms.abs().sum(0) / below
    assert (rounding <= 20 * torch.finfo(torch.float32).eps * scale * conditioning + 1e-30).all()


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_pau_has_no_pole_whatever_it_has_learned(variant: str) -> None:
    x = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    for _ in range(50):
        module = create_activation("pau", variant=variant, dtype=torch.float64)
        assert isinstance(module, PAU)
        with torch.no_grad():
            module.denominator.copy_(10 * torch.randn(4))
        above = module.numerator.detach().abs() @ x.abs() ** torch.arange(6)[:, None]
        assert (module(x).abs() <= above + 1e-9).all()


def test_pau_stays_finite_up_to_the_size_it_names() -> None:
    module = PAU()
    x = torch.tensor([-6e7, 6e7], requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not module(torch.tensor([1e8])).isfinite().all()
