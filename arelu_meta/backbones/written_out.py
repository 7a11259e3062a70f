"""Activations that code writes out, `x * torch.sigmoid(x)` or a GELU by its error function: no swap can take them."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

SILU, GELU = "x * sigmoid(x)", "erf(x)"
WRITTEN_OUT = (SILU, GELU)
_PRODUCTS = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")


class Watch:
    """Tell, operation by operation, whether one completes an activation that is written out."""

    def __init__(self) -> None:
        # By a sigmoid's result: the result, to know it again, and the input. None is kept alive.
        self._sigmoids: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}

    def sees(self, function: Callable[..., Any], args: tuple[Any, ...], result: object) -> str | None:
        """Look at one operation.

        Args:
            function: the operation.
            args: what it was called with.
            result: what it gave.

        Returns:
            The activation's name, if this was one.
        """
        name = getattr(function, "__name__", "")
        if name == "sigmoid" and args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            self._sigmoids[id(result)] = weakref.ref(result), weakref.ref(args[0])
        elif name == "erf":
            return GELU
        elif name in _PRODUCTS and len(args) == 2 and (self._is_own(*args) or self._is_own(*args[::-1])):
            return SILU
        return None

    def _is_own(self, gate: object, x: object) -> bool:
        known = self._sigmoids.get(id(gate))
        return known is not None and known[0]() is gate and known[1]() is x
