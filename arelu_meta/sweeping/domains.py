"""The values that a swept field takes: a list, or a range."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arelu_meta.errors import InputError

RANGES = ("uniform", "loguniform", "int")
_EXAMPLES = "a list, or uniform:, loguniform: or int: with [low, high]"


@dataclass(frozen=True)
class Domain:
    """Values of one field.

    Args:
        kind: choice, uniform, loguniform or int (whole numbers, both ends included).
        values: of a choice all, each once; else low and high.
    """

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        """Draw a value, each as likely as another (loguniform: each logarithm).

        Args:
            generator: advanced by one draw.
        """
        if self.kind == "choice":
            return generator.choice(self.values)
        low, high = self.values
        if self.kind == "int":
            return generator.randint(low, high)
        if self.kind == "uniform":
            return generator.uniform(low, high)
        # The exponential of a logarithm may round to just outside.
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)

    def example(self) -> Any:
        """Give one of its values."""
        return self.values[0]

    def plain(self) -> Any:
        """Say it as the sweep's file does."""
        return list(self.values) if self.kind == "choice" else {self.kind: list(self.values)}


def read_domain(name: str, given: Any, kinds: tuple[Any, ...], checked: Callable[[Any], Any], where: str) -> Domain:
    """Read the values that a sweep's file gives a field.

    Args:
        name: of the field.
        given: a list, or a mapping of one of choice, uniform, loguniform, int to a list.
        kinds: types that the field takes.
        checked: reads one value as the field's flag would.
        where: what an error starts with.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    if isinstance(given, list):
        given = {"choice": given}
    if not isinstance(given, dict) or len(given) != 1:
        raise InputError(f"{where}{name}: {given!r} is not allowed; give {_EXAMPLES}")
    kind, values = next(iter(given.items()))
    if kind not in {"choice", *RANGES}:
        raise InputError(f"{where}{name}: {kind!r} is not known; give {_EXAMPLES}")
    if not isinstance(values, list) or not values:
        shown = "an empty list" if values == [] else repr(values)
        raise InputError(f"{where}{name}: {kind}: {shown} is not allowed; give at least one value in [ ]")
    if kind == "choice":
        return Domain(kind, tuple(_once([checked(value) for value in values])))
    _check_kind(name, kind, kinds, where)
    if len(values) != 2:
        raise InputError(f"{where}{name}: {kind}: {values!r} is not allowed; give [low, high]")
    low, high = (_as_number(checked(value), f"{where}{name}: {kind}") for value in values)
    if low >= high or (kind == "loguniform" and low <= 0):
        need = "two numbers above 0, the lower first" if kind == "loguniform" else "two numbers, the lower first"
        raise InputError(f"{where}{name}: {kind}: {values!r} is not allowed; give {need}")
    return Domain(kind, (low, high))


def _once(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in found):
            found.append(value)
    return found


def _check_kind(name: str, kind: str, kinds: tuple[Any, ...], where: str) -> None:
    if (int if kind == "int" else float) in kinds:
        return
    takes = "no numbers, give a list"
    if int in kinds:
        takes = "whole numbers, give int: or a list"
    elif float in kinds:
        takes = "any number, give uniform:, loguniform: or a list"
    raise InputError(f"{where}{name}: {kind} is not allowed; the field takes {takes}")


def _as_number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {value!r} is no number; give [low, high]")
    return value
