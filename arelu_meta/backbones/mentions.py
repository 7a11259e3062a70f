"""Where code names an activation function: what one traced forward pass need not have reached."""

import dis
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from arelu_meta.backbones.functions import is_method, looks_like, name_of
from arelu_meta.backbones.sources import MISSING, Position, meaning_of_name, nested_codes

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Mention:
    """One place in a function's code that names an activation function.

    Args:
        function: around it.
        method: the name of the class's method that it is; None for any other function.
        name: of the activation function.
        where: file and line.
        end: line and column where the name ends.
        is_method: whether it is a tensor's method without arguments, `x.relu()`: then what it is called on is unknown.
        scripted: whether it is called in a scripted function that the function calls, where no trace sees it.
    """

    function: FunctionType
    method: str | None
    name: str
    where: str
    end: Position
    is_method: bool = False
    scripted: bool = False


@functools.lru_cache(maxsize=4096)
def mentions_in_class(kind: Any) -> tuple[Mention, ...]:
    """List the activation functions in what a class's forward pass may run: its methods, and functions of its file.

    Args:
        kind: a module's class. What is torch's own is left out.
    """
    found: list[Mention] = []
    for function, method in _reachable(kind):
        found += mentions_in_function(function, method)
    return tuple(found)


def mentions_in_function(function: FunctionType, method: str | None = None) -> Iterator[Mention]:
    """List the activation functions that a function names.

    Args:
        function: any that is written in Python.
        method: the name of the class's method that it is.
    """
    for code in nested_codes(function.__code__):
        names = (*code.co_names, *code.co_freevars)
        for name in (one for outer in names for one in _scripted(meaning_of_name(outer, function))):
            place = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
            yield Mention(function, method, name, place, (0, 0), scripted=True)
        if any(looks_like(name) or name_of(function.__globals__.get(name)) for name in names):
            yield from _mentions(function, code, method)


def mentions_in_hooks(module: nn.Module) -> Iterator[Mention]:
    """List the activation functions that a module's forward hooks name.

    Args:
        module: any.
    """
    for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
        function = inspect.unwrap(getattr(hook, "__func__", hook))
        if isinstance(function, FunctionType) and not _is_torchs(function):
            yield from mentions_in_function(function)


def _reachable(kind: type[nn.Module]) -> list[tuple[FunctionType, str | None]]:
    """Follow the names in `forward` to the class's methods and the file's functions, and the names in those."""
    found: dict[FunctionType, str | None] = {}
    wanted: list[tuple[Any, str | None]] = [(inspect.getattr_static(kind, "forward", None), "forward")]
    while wanted:
        what, method = wanted.pop()
        function = what if isinstance(what, FunctionType) else getattr(what, "__func__", None)
        if not isinstance(function, FunctionType) or function in found:
            continue
        wrapped = inspect.unwrap(function)
        if wrapped is not function:
            wanted.append((wrapped, None))
        if _is_torchs(function):
            continue
        found[function] = method if function is what else None
        for name in {name for code in nested_codes(function.__code__) for name in code.co_names}:
            wanted.append((meaning_of_name(name, function), None))
            if method is not None:
                if "super" in function.__code__.co_names:
                    wanted += [(vars(base).get(name), None) for base in kind.__mro__[1:]]
                # Looked at first: what both ways lead to is a method.
                wanted.append((inspect.getattr_static(kind, name, None), name))
    return list(found.items())


def _scripted(function: object) -> list[str]:
    if not isinstance(function, torch.jit.ScriptFunction):
        return []
    kinds = [node.kind().removeprefix("aten::") for node in function.inlined_graph.nodes()]  # type: ignore[attr-defined]
    return [kind for kind in kinds if looks_like(kind)]


def _is_torchs(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith(_TORCH)


def _mentions(function: FunctionType, code: CodeType, method: str | None) -> Iterator[Mention]:
    value: object = MISSING
    outer = function.__code__.co_freevars
    last = ""  # the attribute that was read last, of something unknown
    end: Position = (0, 0)
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL" or (step.opname == "LOAD_DEREF" and step.argval in outer):
            value = meaning_of_name(step.argval, function)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            value, last = _part(value, step.argval), step.argval
        elif step.opname == "CALL" and step.arg == 0 and is_method(last):
            yield Mention(function, method, last, _where(code, end), end, is_method=True)
            continue
        elif step.opname in ("PRECALL", "PUSH_NULL", "CACHE"):
            continue
        else:
            value, last = MISSING, ""
        position = step.positions
        end = ((position.end_lineno or 0), (position.end_col_offset or 0)) if position else (0, 0)
        name = name_of(value)
        if name is not None:
            yield Mention(function, method, name, _where(code, end), end)
            last = ""


def _part(value: object, name: str) -> object:
    return getattr(value, name, MISSING) if isinstance(value, ModuleType) else MISSING


def _where(code: CodeType, end: Position) -> str:
    return f"{Path(code.co_filename).name}:{end[0]}"
