"""What batch normalisation does inside an episode, by name. No mode lets a test task change the model.

- `transductive`: statistics of the batch at hand, in training and in test; queries are normalised by each other, so a
  query's class may depend on the other queries. The literature's habit, and the default.
- `support`: statistics of the support set alone, in training and in test: each query is classified by itself.
- `running`: as in ordinary training: running averages are updated while meta-training and used in evaluation.
- `frozen`: the running averages that the model came with, never updated; for pretrained backbones.
- `group`: group normalisation in the place of batch normalisation, with its scale and shift.
- `none`: no normalisation: its scale and shift are left.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from arelu_meta.errors import InputError, nearest_names

NORMALIZATIONS = ("transductive", "support", "running", "frozen", "group", "none")
_GROUPS = 8


def set_normalization(model: nn.Module, mode: str) -> None:
    """Make a model's batch normalisation behave as named, in place.

    Args:
        model: any module; without batch normalisation nothing changes.
        mode: one of `NORMALIZATIONS`.

    Raises:
        InputError: if the mode is unknown.
    """
    if mode not in NORMALIZATIONS:
        raise InputError(f"meta.normalization: {mode!r} is not known; {nearest_names(mode, NORMALIZATIONS)}")
    if mode in {"group", "none"}:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, _BatchNorm):
                    setattr(module, name, _Replacement(child, mode == "group"))
    elif mode in {"transductive", "support"}:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                # Without running averages PyTorch normalises by the batch at hand, in eval mode too.
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None


def train_mode(model: nn.Module, mode: str) -> None:
    """Put a model into training mode, but for what its normalisation keeps frozen.

    Args:
        model: changed in place.
        mode: one of `NORMALIZATIONS`.
    """
    model.train()
    if mode == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class _Replacement(nn.Module):
    """Group normalisation, or scale and shift alone, with a batch normalisation's parameters and what follows it.

    Args:
        norm: what it replaces; timm's may hold dropout and an activation.
        grouped: whether to normalise; up to 8 groups, as many as divide the channels.

    Source: Wu and He 2018 for group normalisation.
    """

    def __init__(self, norm: _BatchNorm, grouped: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.groups = math.gcd(norm.num_features, _GROUPS) if grouped else None
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        if self.groups is not None:
            x = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        elif self.weight is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            x = x * self.weight.view(shape) + self.bias.view(shape)
        y: Tensor = self.act(self.drop(x))
        return y


class SupportStatistics(TorchFunctionMode):
    """Within it, batch normalisation without running averages takes its statistics from a batch's first images.

    Args:
        images: how many come first; they are the support set.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Route a call."""
        if function is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is not None:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        inner = [0, *range(2, input.dim())]
        variance, mean = torch.var_mean(input[: self.images], inner, correction=0, keepdim=True)
        y = (input - mean) * torch.rsqrt(variance + eps)
        shape = (1, -1, *[1] * (input.dim() - 2))
        if weight is not None:
            y = y * weight.view(shape)
        return y if bias is None else y + bias.view(shape)
