"""The activations that torch offers as functions, and for each the module that computes the same."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# By function: the module, and the function's arguments after the input, in order. Where there is no module that
# computes the same whatever the arguments, there is None: a PReLU's weight belongs to who calls it, and an RReLU
# called as a function does not follow the mode.
_MODULES: dict[str, tuple[type[nn.Module] | None, tuple[str, ...]]] = {
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "elu": (nn.ELU, ("alpha", "inplace")),
    "selu": (nn.SELU, ("inplace",)),
    "celu": (nn.CELU, ("alpha", "inplace")),
    "gelu": (nn.GELU, ("approximate",)),
    "silu": (nn.SiLU, ("inplace",)),
    "mish": (nn.Mish, ("inplace",)),
    "hardswish": (nn.Hardswish, ("inplace",)),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "softsign": (nn.Softsign, ()),
    "tanhshrink": (nn.Tanhshrink, ()),
    "hardshrink": (nn.Hardshrink, ("lambd",)),
    "softshrink": (nn.Softshrink, ("lambd",)),
    "threshold": (nn.Threshold, ("threshold", "value", "inplace")),
    "prelu": (None, ()),
    "rrelu": (None, ()),
}


@functools.cache
def activation_functions() -> Mapping[Callable[..., Any], str]:
    """List torch's activation functions, each with its name; one that works in place ends in an underscore."""
    return {
        getattr(home, name): name
        for home in (F, torch, torch.Tensor, torch._C._nn)
        for plain in _MODULES
        for name in (plain, f"{plain}_")
        if callable(getattr(home, name, None))
    }


def name_of(function: object) -> str | None:
    """Say which activation a function is; None if it is none.

    Args:
        function: anything.
    """
    try:
        return activation_functions().get(function)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # it cannot be hashed, so it is none
        return None


def is_method(name: str) -> bool:
    """Say whether a tensor has a method that is an activation of this name.

    Args:
        name: for example `relu_`.
    """
    return name.rstrip("_") in _MODULES and hasattr(torch.Tensor, name)


def looks_like(name: str) -> bool:
    """Say whether a name is that of an activation function.

    Args:
        name: for example `relu_`.
    """
    return name.rstrip("_") in _MODULES


def has_module(name: str) -> bool:
    """Say whether there are modules that compute what a function does.

    Args:
        name: of the function.
    """
    return _MODULES[name.rstrip("_")][0] is not None


def stand_in(name: str, arguments: Sequence[object], keywords: Mapping[str, object]) -> nn.Module:
    """Make the module that computes what a function call does.

    Args:
        name: of the function.
        arguments: those after the input.
        keywords: those given by name.

    Raises:
        TypeError: if there is no such module.
    """
    kind, names = _MODULES[name.rstrip("_")]
    if kind is None or len(arguments) > len(names):
        raise TypeError(f"{name}: no module computes the same")
    named = dict(zip(names, arguments, strict=False)) | dict(keywords)
    if name.endswith("_"):
        named["inplace"] = True
    return kind(**named)
