"""Whether a forward pass may call other activations in training than in evaluation."""

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

from arelu_meta.backbones.mentions import mentions_in_class
from arelu_meta.backbones.roles import find_slots
from arelu_meta.backbones.walking import named_modules

# Calls that are no activation's, and that call none.
_HARMLESS = ("torch.jit.is_tracing", "torch.jit.is_scripting", "str", "len")


def tells_training_apart(model: nn.Module) -> bool:
    """Say whether the code of a module that holds an activation, or calls a function, depends on `self.training`.

    Args:
        model: any module.
    """
    kinds: set[Any] = {type(slot.owner) for slot in find_slots(model)} | {type(model)}
    modules = [module for _, module in named_modules(model)]
    every: set[Any] = {type(module) for module in modules}
    kinds |= {kind for kind in every if mentions_in_class(kind)}
    bases: set[Any] = {base for kind in kinds for base in kind.__mro__}
    asking = {base: flags for base in bases if (flags := _asks(base))}
    if not asking:
        return False
    return any(
        any(flag is None or vars(module).get(flag) is not False for flag in flags)
        for base, flags in asking.items()
        for module in modules
        if isinstance(module, base)
    )


@functools.cache
def _asks(kind: Any) -> frozenset[str | None]:
    """List the flags of a class's modules that, with `training`, decide what its methods do; None for no flag."""
    # A norm's own statistics depend on the mode, the activation behind it does not.
    if kind.__module__.startswith(("torch.", "timm.layers.norm_act")):
        return frozenset()
    codes = [
        function.__code__
        for name, function in vars(kind).items()
        if hasattr(function, "__code__") and name != "reset_classifier"  # timm's; no forward calls it
    ]
    set_late = {name for code in codes if not code.co_name.startswith(("__init__", "set_")) for name in _set_in(code)}
    flags = {flag for code in codes for flag in _asked_in(code, kind.__module__.startswith("timm."))}
    return frozenset(None if flag in set_late else flag for flag in flags)


def _set_in(code: CodeType) -> list[str]:
    return [step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"]


@functools.cache
def _asked_in(code: CodeType, timms: bool) -> frozenset[str | None]:
    if "training" not in code.co_names:
        return frozenset()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, IndexError):
        return frozenset([None])
    # It calls no activation; what it returns may be a condition to another's code, but not in timm's.
    if timms and all(_name(one.func) in _HARMLESS for one in ast.walk(tree) if isinstance(one, ast.Call)):
        return frozenset()
    return frozenset(_flags(tree))


def _flags(tree: ast.AST) -> Iterator[str | None]:
    """Look at each reading of `training`: it may matter only to a dropout, or only where a flag of the module is on.

    Yields:
        That flag, or None where what the reading matters to cannot be told.
    """
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr != "training":
            continue
        around = parents[node]
        if isinstance(around, ast.keyword) and around.arg == "training":
            call = parents[around]
            if isinstance(call, ast.Call) and "dropout" in _name(call.func):
                continue
        if isinstance(around, ast.Call) and isinstance(around.func, ast.Attribute) and around.func.attr == "train":
            continue  # another module is told the mode
        if isinstance(around, ast.IfExp) and around.test is node and _is_rate(around, parents[around]):
            continue
        sides = around.values if isinstance(around, ast.BoolOp) and isinstance(around.op, ast.And) else []
        own = [one.attr for one in sides if isinstance(one, ast.Attribute) and _name(one.value) == _name(node.value)]
        yield next((name for name in own if name != "training"), None)


def _is_rate(node: ast.IfExp, around: ast.AST) -> bool:
    """Say whether an expression hands a dropout's rate on, `dropout_p=self.drop.p if self.training else 0.0`."""
    plain = all(isinstance(one, ast.Name | ast.Attribute | ast.expr_context) for one in ast.walk(node.body))
    handed = isinstance(around, ast.keyword) and "drop" in (around.arg or "")
    return handed and plain and isinstance(node.orelse, ast.Constant) and node.orelse.value == 0


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
