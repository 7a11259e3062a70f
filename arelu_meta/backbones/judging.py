"""Whether a call of an activation function can surely be led to a module, and to which."""

import ast
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from arelu_meta.backbones.functions import has_module, looks_like, name_of, stand_in
from arelu_meta.backbones.mentions import Mention
from arelu_meta.backbones.sources import MISSING, Method, Position, meaning, read_method
from arelu_meta.backbones.subclass import kind_of
from arelu_meta.backbones.tracing import FunctionCall
from arelu_meta.backbones.writing import Lead, input_of, kept_as, must_overwrite, rebinds_owner

HELD = "_arelu_meta_held_functions"
"""Where a module keeps the functions that it held, by name, while modules stand there."""


@dataclass(frozen=True)
class Refusal:
    """Why a call stays as it is.

    Args:
        why: in words.
        role: what the call is for.
    """

    why: str
    role: str = "hidden"


ON_PARAMETER = Refusal("works on a parameter, not on features", "position")


@dataclass(frozen=True)
class Site:
    """A call that can be led to a module.

    Args:
        lead: how; None where the module holds the function under the target's name.
        target: the name that the module gets.
        module: what computes the same as the function.
    """

    lead: Lead | None
    target: str
    module: nn.Module


def judge(module: nn.Module, method_name: str | None, end: Position, call: FunctionCall | Mention) -> Site | Refusal:
    """Say to what a call is led, or why it stays.

    Args:
        module: in whose method the call is.
        method_name: of that method.
        end: where the call ends.
        call: what is known of it.
    """
    if method_name is None:
        return Refusal("in a function that is no module's method, or one reached through super()")
    if method_name in vars(module):
        return Refusal("in a method that another hides, set on the instance")
    if isinstance(module, torch.fx.GraphModule):
        return Refusal("in code that torch.fx has made and may make again: swap before torch.fx")
    if parametrize.is_parametrized(module):
        return Refusal("its module is parametrised: remove its parametrisation before the swap")
    method = method_of(module, method_name)
    if isinstance(method, str):
        return Refusal(method)
    node = method.calls.get(end)
    if node is None:
        return Refusal("not by a plain call")
    name = call.function if isinstance(call, FunctionCall) else call.name
    if _holds(module, method, node):
        return _held_site(module, method, node, name)
    is_method = _is_tensor_method(method, node, call)
    called = meaning(node.func, method.function)
    if not is_method and (called is MISSING or name_of(called) != name):
        return Refusal("through a variable, a partial function or getattr")
    if not has_module(name):
        return Refusal("its weight belongs to the module, or it depends on the mode: no module computes the same")
    x = input_of(node, is_method)
    if x is None or rebinds_owner(method):
        return Refusal("its input or its module cannot be told from the code")
    role = kept_as(method, node, x, name)
    if role is not None:
        return Refusal(role[1], role[0])
    if isinstance(x, ast.Attribute) and ast.unparse(x.value) == method.owner and x.attr in module._parameters:
        return ON_PARAMETER
    return _called_site(module, method, node, name, x, is_method)


def _called_site(
    module: nn.Module, method: Method, node: ast.Call, name: str, x: ast.expr, is_method: bool
) -> Site | Refusal:
    positional = [
        _value(one, module, method) for one in (node.args if is_method else [a for a in node.args if a is not x])
    ]
    named = {str(one.arg): _value(one.value, module, method) for one in node.keywords if one.value is not x}
    if MISSING in [*positional, *named.values()]:
        return Refusal("with arguments that are not constants")
    try:
        made = stand_in(name, positional, named)
    except TypeError:
        return Refusal("no module computes the same with these arguments")
    over = False
    settings: Any = made
    if getattr(made, "inplace", False):
        needed = must_overwrite(method, node, x)
        if needed is None:
            return Refusal("in place, on what is no variable")
        over = needed
        settings.inplace = not over
    end = (node.end_lineno or 0, node.end_col_offset or 0)
    target = _target(module, method, node, name)
    return Site(Lead(end, target, is_method, over), target, made)


def _held_site(module: nn.Module, method: Method, node: ast.Call, name: str) -> Site | Refusal:
    assert isinstance(node.func, ast.Attribute)
    if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
        return Refusal("through an attribute, with arguments of its own")
    attribute = method.private(node.func.attr)
    if hasattr(type(module), attribute):
        return Refusal("through an attribute that its class has, too")
    try:
        return Site(None, attribute, stand_in(name, (), {}))
    except TypeError:
        return Refusal("no module computes the same")


def method_of(module: nn.Module, name: str) -> Method | str:
    """Read a method of the class that a module was written as.

    Args:
        module: any module.
        name: of the method.

    Returns:
        The method, or in words why its source is no help.
    """
    function = getattr(kind_of(module), name, None)
    return read_method(function) if isinstance(function, FunctionType) else "its method is no plain function"


def _holds(module: nn.Module, method: Method, node: ast.Call) -> bool:
    func = node.func
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name) or func.value.id != method.owner:
        return False
    name = method.private(func.attr)
    return name_of(module.__dict__.get(name)) is not None or name in module.__dict__.get(HELD, {})


def _is_tensor_method(method: Method, node: ast.Call, call: FunctionCall | Mention) -> bool:
    if not isinstance(call, FunctionCall) or call.seen is None or not isinstance(node.func, ast.Attribute):
        return False
    unknown = meaning(node.func, method.function) is MISSING
    return unknown and call.seen.function == getattr(Tensor, node.func.attr, None)


def _value(node: ast.expr, module: nn.Module, method: Method) -> object:
    """Say what an argument is: a constant, a global one, or a plain attribute of the module as it is now."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        value = meaning(node, method.function)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == method.owner:
        value = MISSING if node.attr == "training" else module.__dict__.get(method.private(node.attr), MISSING)
    return value if isinstance(value, bool | int | float | str) else MISSING


def _target(module: nn.Module, method: Method, node: ast.Call, name: str) -> str:
    """Name the module that a call gets: by method and function, numbered in the order of the file."""
    plain = name.rstrip("_")
    alike = [call for call in method.calls.values() if _last_name(call.func).rstrip("_") == plain]
    number = alike.index(node) + 1 if node in alike else 0
    target = f"{method.function.__name__.removeprefix('__')}_{plain}" + (f"_{number}" if number > 1 else "")
    while hasattr(module, target):
        target += "_act"
    return target


def _last_name(node: ast.expr) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name if looks_like(name) else ""
