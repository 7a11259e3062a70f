"""What batch normalisation does inside an episode, by name.

- `transductive`: statistics of the batch at hand, in training and in test; queries are normalised by each other, so a
  query's class may depend on the other queries. The literature's habit, and the default.
- `support`: statistics of the task's support set alone, for its queries too: each query is classified by itself.
- `running`: as in ordinary training: running averages are updated while meta-training and used in evaluation.
- `frozen`: the running averages that the model came with, never updated; for pretrained backbones.
- `group`: group normalisation in the place of batch normalisation, its scale and shift taken over.
- `none`: no normalisation in the place of batch normalisation.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from arelu_meta.config import Normalization
from arelu_meta.errors import InputError, nearest_names

NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
_MOST_GROUPS = 8
_MARK = "support_statistics"


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
    if mode in ("transductive", "support"):
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                # Without running averages PyTorch normalises by the batch at hand, in eval mode too.
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
                setattr(module, _MARK, mode == "support")
    elif mode in ("group", "none"):
        _replace(model, _grouped if mode == "group" else _removed)


def _replace(model: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> None:
    made: dict[int, nn.Module] = {}  # a layer that is used twice stays one
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                made.setdefault(id(child), make(child).train(child.training))
                setattr(module, name, made[id(child)])


def _after(norm: _BatchNorm) -> dict[str, nn.Module]:
    """List what timm's norm-act layers do after they have normalised, by the names under which it is saved."""
    parts = {name: getattr(norm, name, None) for name in ("drop", "act")}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


class _GroupNorm(nn.GroupNorm):
    """Group normalisation, then what a norm-act layer in its place does, saved under that layer's names."""

    def __init__(self, groups: int, norm: _BatchNorm) -> None:
        super().__init__(groups, norm.num_features, norm.eps, norm.affine)
        for name, part in _after(norm).items():
            self.add_module(name, part)

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        for part in self.children():
            found = part(found)
        return found


def _grouped(norm: _BatchNorm) -> nn.Module:
    groups = max(number for number in range(1, _MOST_GROUPS + 1) if norm.num_features % number == 0)
    group = _GroupNorm(groups, norm)
    if norm.affine:
        group.weight, group.bias = norm.weight, norm.bias
    return group


def _removed(norm: _BatchNorm) -> nn.Module:
    return nn.Sequential(OrderedDict(_after(norm))) if _after(norm) else nn.Identity()


def updates_averages(model: nn.Module) -> bool:
    """Return True if a model's batch normalisation updates running averages at each call."""
    return any(
        isinstance(module, _BatchNorm)
        and module.training
        and module.track_running_stats
        and module.running_mean is not None
        for module in model.modules()
    )


def uses_batch_statistics(model: nn.Module) -> bool:
    """Return True if a model normalises by the batch at hand, so that images depend on each other."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules())


def uses_support_statistics(model: nn.Module) -> bool:
    """Return True if a model's queries are to be normalised by their support set."""
    return any(getattr(module, _MARK, False) for module in model.modules())


@contextlib.contextmanager
def support_statistics(count: int) -> Iterator[None]:
    """Within this, batch normalisation without running averages takes the statistics of the first `count` images.

    Args:
        count: how many images of a batch are the support set, which stand before the queries.
    """
    with _Statistics(lambda input: _batch_statistics(input[:count])):
        yield


Statistics = list[tuple[Tensor, Tensor]]
"""Mean and variance of every call of a batch normalisation without running averages, in the calls' order."""


@contextlib.contextmanager
def noting_statistics(into: Statistics) -> Iterator[None]:
    """Within this, batch normalisation without running averages notes the statistics that it takes.

    Args:
        into: filled in the order of the calls.
    """

    def note(images: Tensor) -> tuple[Tensor, Tensor]:
        into.append(_batch_statistics(images))
        return into[-1]

    with _Statistics(note):
        yield


@contextlib.contextmanager
def given_statistics(statistics: Statistics) -> Iterator[None]:
    """Within this, batch normalisation without running averages takes these, so that no image depends on another.

    Args:
        statistics: what `noting_statistics` noted of the same model.
    """
    calls = iter(statistics)
    with _Statistics(lambda _: next(calls)):
        yield


def _batch_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a batch's channels, of shape (1, channels, 1 …)."""
    over = [dim for dim in range(images.dim()) if dim != 1]
    variance, mean = torch.var_mean(images, over, correction=0, keepdim=True)
    return mean, variance


class _Statistics(TorchFunctionMode):
    """Normalises by the statistics that a function gives for the input, where there are no running averages."""

    def __init__(self, choose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.choose = choose

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm:
            found = self._batch_norm(*args, **(kwargs or {}))
            if found is not None:
                return found
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
    ) -> Tensor | None:
        if running_mean is not None or not training:
            return None
        mean, variance = self.choose(input)
        shape = (1, -1, *[1] * (input.dim() - 2))
        normalised = (input - mean) * torch.rsqrt(variance + eps)
        if weight is not None:
            normalised = normalised * weight.view(shape)
        return normalised if bias is None else normalised + bias.view(shape)


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
