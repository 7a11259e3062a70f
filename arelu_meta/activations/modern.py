"""Activations that people use now and neither torch.nn nor `timm.layers` has.

As in `zoo.py`, a layer shares one of each parameter, whatever its number of channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.activations.zoo import Device, learned, widen


class SquaredReLU(nn.Module):
    """`relu(x) ** 2`, without parameters.

    Source: So et al. 2021 (Primer).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        return F.relu(x).square()


class StarReLU(nn.Module):
    """`scale * relu(x) ** 2 + bias`, both learned and of shape (1,).

    Args:
        scale: its start; with the default pair a standard normal input gives mean 0 and variance 1.
        bias: its start.
        device: where they live.
        dtype: their dtype; the output keeps the input's.

    Source: Yu et al. 2022 (MetaFormer baselines), which rounds the pair to 0.8944 and -0.4472.
    """

    def __init__(
        self,
        scale: float = 2 / math.sqrt(5),
        bias: float = -1 / math.sqrt(5),
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = learned([float(scale)], device, dtype)
        self.bias = learned([float(bias)], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        squared = F.relu(widen(x)).square()
        return (self.scale.reshape(()) * squared + self.bias.reshape(())).to(x.dtype)


class AconC(nn.Module):
    """`(p1 - p2) * x * sigmoid(beta * (p1 - p2) * x) + p2 * x`, all three learned and of shape (1,).

    The paper has one triple a channel, and its code draws p1 and p2 from N(0, 1). One draw for a whole layer would
    leave the layer's very sign to chance, so the shared triple starts at p1 = 1, p2 = 0, beta = 1: the paper's ACON-A,
    which is SiLU.

    Args:
        p1: start of one linear branch's slope.
        p2: start of the other's.
        beta: start of the switch between their maximum (large) and their mean (0).
        device: where they live.
        dtype: their dtype; the output keeps the input's.

    Source: Ma et al. 2021 (Activate or Not), ACON-C.
    """

    def __init__(
        self,
        p1: float = 1.0,
        p2: float = 0.0,
        beta: float = 1.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.p1 = learned([float(p1)], device, dtype)
        self.p2 = learned([float(p2)], device, dtype)
        self.beta = learned([float(beta)], device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value, of x's shape and dtype."""
        wide = widen(x)
        p1, p2, beta = self.p1.reshape(()), self.p2.reshape(()), self.beta.reshape(())
        difference = (p1 - p2) * wide
        return (difference * torch.sigmoid(beta * difference) + p2 * wide).to(x.dtype)
