"""Padé activation unit: a learned rational function, in plain PyTorch on any device.

Source: Molina, Schramowski and Kersting, "Padé Activation Units", ICLR 2020.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from arelu_meta.activations.zoo import Device, Variant, check_variant, horner, learned, widen


class _Start(NamedTuple):
    numerator: tuple[float, ...]
    """a_0 to a_5."""
    denominator: tuple[float, ...]
    """b_1 to b_4; the constant term is 1."""


_STARTS = {
    # The paper's table 6, leaky ReLU with slope 0.01 (read from an independent re-implementation that cites it).
    "paper": _Start(
        (0.02979246, 0.61837738, 2.32335207, 3.05202660, 1.48548002, 0.25103717),
        (1.14201226, 4.39322834, 0.87154450, 0.34720652),
    ),
    # `pade_optimized_leakyrelu` in the PAU authors' first release, which the AReLU authors ran.
    "authors": _Start(
        (3.35583603e-02, 5.05000375e-01, 1.65343934e00, 2.01001052e00, 9.31901999e-01, 1.52424124e-01),
        (3.30847488e-06, 3.98021568e00, 5.12471206e-07, 3.01830109e-01),
    ),
}


class PAU(nn.Module):
    """A rational function of degree 5 over 4 whose denominator is at least 1, so that it has no poles.

    "paper": `sum_j a_j x^j / (1 + |sum_k b_k x^k|)`, the paper's safe form.
    "authors": `sum_j a_j x^j / (1 + sum_k |b_k x^k|)`, the form in the PAU authors' CUDA code, which the AReLU authors
    ran with that code's coefficients.

    Both start near leaky ReLU with slope 0.01: on [-3, 3] the largest distance to it is 0.066 ("paper") and 0.034
    ("authors"). Parameters: `numerator` of shape (6,), a_0 first, and `denominator` of shape (4,), b_1 first, shared by
    the layer. Half precision is computed in float32, where x**5 overflows between |x| = 6e7 and 1e8.

    Args:
        variant: which of the two forms and starts.
        device: where the coefficients live.
        dtype: their dtype; the output keeps the input's.

    Source: Molina et al. 2020, section 3 (safe PAU) and table 6.
    """

    def __init__(self, variant: Variant = "paper", device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_variant(variant)
        self.variant = variant
        self.numerator = learned(_STARTS[variant].numerator, device, dtype)
        self.denominator = learned(_STARTS[variant].denominator, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        above = horner(wide, self.numerator.unbind())
        if self.variant == "paper":
            below = 1 + (wide * horner(wide, self.denominator.unbind())).abs()
        else:
            size = wide.abs()
            below = 1 + size * horner(size, self.denominator.abs().unbind())
        return (above / below).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the variant."""
        return f"variant={self.variant!r}"
