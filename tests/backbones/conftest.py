"""What the tests of backbones share: activations counted where torch computes them, not where a report says so."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATORS = {"relu", "relu6", "hardtanh", "hardswish", "gelu", "silu", "leaky_relu", "elu", "mish", "softplus"}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in _OPERATORS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


CountActivations = Callable[..., dict[str, int]]


@pytest.fixture(scope="session")
def count_activations() -> CountActivations:
    """Run a model on its inputs and count torch's own activation operators, by name."""

    def count(model: nn.Module, *inputs: Any) -> dict[str, int]:
        with torch.no_grad(), _Counter() as counter:
            model(*inputs)
        return dict(counter.counts)

    return count
