"""How a swapped-in activation starts.

- `paper`: AReLU at alpha 0.9, beta 2, as published. What a pretrained network knew is changed by it.
- `preserve`: `act(x) + t * elsa(x)` with the gate t at 0: every logit stays as it was, for any `act`.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Where torch keeps a module's hooks."""


def paper_start(original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Make an AReLU with the paper's start, whatever it replaces.

    Args:
        original: the activation that goes; an in-place one gives an in-place AReLU.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    return AReLU(inplace=bool(getattr(original, "inplace", False)), device=device, dtype=dtype)


def preserve_start(
    original: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Make a gated residual over a copy of the original, its gate at 0.

    Args:
        original: the activation that goes; it is not changed.
        device: where the scalars live.
        dtype: the scalars' dtype.
    """
    base = copy.deepcopy(_without_hooks(original))
    for module in base.modules():
        # The attention reads the input after the base has run.
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return GatedAReLU(base, device=device, dtype=dtype)


def _without_hooks(module: nn.Module) -> nn.Module:
    """Copy the module itself, not what is in it: its hooks move to the activation that takes its place."""
    bare, fresh = copy.copy(module), nn.Module()
    for hooks in HOOKS:
        setattr(bare, hooks, getattr(fresh, hooks))
    return bare


INITS: dict[str, Callable[..., nn.Module]] = {"paper": paper_start, "preserve": preserve_start}
