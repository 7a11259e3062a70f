"""Activations that code writes out, `x * torch.sigmoid(x)` or `x.clamp(min=0)`: no swap can take them."""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

SILU, GELU, RELU, CEILED = "x * sigmoid(x)", "erf(x)", "max(x, 0)", "min(max(x, 0), …)"
MASKED, PIECES, SLOPES = "x * (x > 0)", "where(x > 0, x, …)", "x * where(x > 0, …)"
WRITTEN_OUT = (SILU, GELU, RELU, CEILED, MASKED, PIECES, SLOPES)

_PRODUCTS = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")
_COMPARISONS = ("gt", "ge", "lt", "le", "greater", "less", "__gt__", "__ge__", "__lt__", "__le__")
_ZEROS = ("zeros", "zeros_like", "new_zeros")
_CASTS = ("to", "float", "half", "double", "type_as", "type")

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class Watch:
    """Tell, operation by operation, whether one completes an activation that is written out."""

    def __init__(self) -> None:
        # By the identity of a factor that depends on x alone: the factor, to know it again, x, and what their product
        # is. None is kept alive.
        self._factors: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], str]] = {}
        self._multiples: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}
        self._zeros: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def sees(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, result: object) -> str | None:
        """Look at one operation.

        Args:
            function: the operation.
            args: what it was called with.
            kwargs: the same, by name.
            result: what it gave.

        Returns:
            The activation's name, if this was one.
        """
        look = _looks().get(getattr(function, "__name__", ""))
        return look(self, args, kwargs, result) if look is not None and isinstance(result, Tensor) else None

    def _erf(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        return GELU

    def _zero(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        self._zeros[id(result)] = weakref.ref(result), result._version
        return None

    def _sigmoid(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        if args and isinstance(args[0], Tensor):
            multiple = self._multiples.get(id(args[0]))
            x = multiple[1]() if multiple and multiple[0]() is args[0] else args[0]
            if x is not None:
                self._note(result, x, SILU)
        return None

    def _compare(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        if len(args) == 2:
            for x, bound in (args, args[::-1]):
                if _is_map(x) and self._is_zero(bound):
                    self._note(result, x, MASKED)
        return None

    def _cast(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        known = self._factors.get(id(args[0])) if args else None
        if known is not None and known[0]() is args[0] and (x := known[1]()) is not None:
            self._note(result, x, known[2])
        return None

    def _product(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        if len(args) != 2:
            return None
        for x, factor in (args, args[::-1]):
            known = self._factors.get(id(factor))
            if known is not None and known[0]() is factor and known[1]() is x:
                return known[2]
            if isinstance(x, Tensor) and type(factor) in (int, float):
                self._multiples[id(result)] = weakref.ref(result), weakref.ref(x)
        return None

    def _choose(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        known = self._factors.get(id(args[0])) if len(args) == 3 else None
        x = known[1]() if known is not None and known[0]() is args[0] and known[2] == MASKED else None
        if x is None:
            return None
        if any(one is x for one in args[1:]):
            return PIECES
        self._note(result, x, SLOPES)
        return None

    def _clamp(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        low, high = (*args[1:], None, None)[:2]
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        if not args or not _is_map(args[0]) or low is None or not self._is_zero(low):
            return None
        if high is None:
            return RELU
        # Up to 1 it is a share or a gate, whose range matters.
        return CEILED if type(high) in (int, float) and high > 1 else None

    def _maximum(self, args: Args, kwargs: Kwargs, result: Tensor) -> str | None:
        pair = (*args, *(kwargs[name] for name in ("other",) if name in kwargs))
        if len(pair) == 2 and all(isinstance(one, Tensor) for one in pair):
            for x, bound in (pair, pair[::-1]):
                if _is_map(x) and self._is_zero(bound):
                    return RELU
        return None

    def _note(self, factor: Tensor, x: Tensor, product: str) -> None:
        self._factors[id(factor)] = weakref.ref(factor), weakref.ref(x), product

    def _is_zero(self, value: object) -> bool:
        if type(value) in (int, float):
            return value == 0
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            return False
        made = self._zeros.get(id(value))
        if made is not None and made[0]() is value:
            return made[1] == value._version  # nothing was written into it since
        return not value.is_meta and value.numel() == 1 and not bool(value.detach().any())


def _is_map(x: object) -> bool:
    """Say whether something may be features: a batch of real values, and no parameter."""
    return isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.ndim > 1 and x.is_floating_point()


@functools.cache
def _looks() -> Mapping[str, Callable[[Watch, Args, Kwargs, Tensor], str | None]]:
    looks = {"erf": Watch._erf, "sigmoid": Watch._sigmoid, "where": Watch._choose}
    looks |= dict.fromkeys(_ZEROS, Watch._zero) | dict.fromkeys(_COMPARISONS, Watch._compare)
    looks |= dict.fromkeys(_CASTS, Watch._cast) | dict.fromkeys(_PRODUCTS, Watch._product)
    looks |= dict.fromkeys(("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), Watch._clamp)
    return looks | dict.fromkeys(("maximum", "max", "fmax"), Watch._maximum)
