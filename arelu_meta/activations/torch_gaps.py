"""torch.nn's classes where torch itself lacks a second derivative or vmap, written from its differentiable pieces.

Each is a subclass of torch.nn's, so what looks for that class still finds it. Checked against torch 2.15.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.activations.zoo import widen


class Hardsigmoid(nn.Hardsigmoid):
    """`relu6(x + 3) / 6`, twice differentiable: torch has no derivative of its own kernel's backward.

    `inplace` is taken and has no effect.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the function's value, of the input's shape and dtype."""
        return (F.relu6(widen(input) + 3) / 6).to(input.dtype)


class RReLU(nn.RReLU):
    """Randomised leaky ReLU that also runs under `torch.func.vmap` and in half precision on a CPU.

    In training each negative input gets a slope drawn uniformly from [lower, upper], under vmap as its `randomness`
    says; in evaluation all get the mean slope. `inplace` is honoured in evaluation.

    Source: Xu et al. 2015, section 2.4.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the function's value, of the input's shape and dtype."""
        if not self.training:
            return F.leaky_relu(input, (self.lower + self.upper) / 2, self.inplace)
        slopes = self.lower + (self.upper - self.lower) * torch.rand_like(input)
        return torch.where(input >= 0, input, slopes * input)
