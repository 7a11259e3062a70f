"""How a call of an activation function reads, and how it reads when it is led to a module."""

import ast
from typing import NamedTuple

from arelu_meta.backbones.sources import Method, Position

_PURE = (ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.Tuple, ast.UnaryOp)
_ATTENTION_INPUTS = ("q", "k", "query", "key", "queries", "keys")


class Lead(NamedTuple):
    """A call that is led to a module.

    Args:
        end: where the call ends in the file.
        target: the name under which the method's owner holds the module.
        is_method: whether it is a tensor's method, `x.relu()`.
        over: whether the result must be written over the input.
    """

    end: Position
    target: str
    is_method: bool
    over: bool


def input_of(call: ast.Call, is_method: bool) -> ast.expr | None:
    """Find the expression that an activation is applied to.

    Args:
        call: of the function, or of a tensor's method.
        is_method: which of both.

    Returns:
        None if it cannot be told, as in `F.relu(*inputs)`.
    """
    if any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords):
        return None
    if is_method:
        return call.func.value if isinstance(call.func, ast.Attribute) else None
    named = [one.value for one in call.keywords if one.arg == "input"]
    return next(iter([*call.args, *named]), None)


def lead_to(owner: str, lead: Lead, call: ast.Call) -> ast.expr:
    """Write a call anew: `F.relu(x)` becomes `self.forward_relu(x)`.

    Args:
        owner: the name of the method's first argument.
        lead: where to.
        call: the call as it was.

    Returns:
        Where the input must be overwritten, `x.copy_(self.forward_relu(x.clone()))`.
    """
    x = input_of(call, lead.is_method)
    assert x is not None
    text = ast.unparse(x)
    if lead.over:
        return ast.parse(f"({text}).copy_({owner}.{lead.target}(({text}).clone()))", mode="eval").body
    made = ast.parse(f"{owner}.{lead.target}(x)", mode="eval").body
    assert isinstance(made, ast.Call)
    made.args[0] = x
    return made


def must_overwrite(method: Method, call: ast.Call, x: ast.expr) -> bool | None:
    """Say whether code after an in-place activation looks at its input again, and so at the result.

    Args:
        method: around the call.
        call: of the activation.
        x: its input.

    Returns:
        None if it does and the input is no variable that could be written over.
    """
    parent = method.parents[call]
    pure = _is_variable(x)
    if isinstance(parent, ast.Expr):
        return True if pure else None
    if not pure or isinstance(parent, ast.Return):
        return False
    if isinstance(parent, ast.Assign) and [ast.unparse(target) for target in parent.targets] == [ast.unparse(x)]:
        return False
    if not isinstance(x, ast.Name):
        return True
    end = (call.end_lineno or 0, call.end_col_offset or 0)
    names = [one for one in ast.walk(method.node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)]
    return any(one.id == x.id and (one.lineno, one.col_offset) >= end for one in names) or _in_loop(method, call)


def kept_as(method: Method, call: ast.Call, x: ast.expr, name: str) -> tuple[str, str] | None:
    """Say which role a call has by how it is written, where that is one that a swap keeps.

    Args:
        method: around the call.
        call: of the activation.
        x: its input.
        name: of the function.

    Returns:
        The role and the reason: a hard sigmoid written out, a linear attention's feature map; None for any other.
    """
    parent = method.parents[call]
    if name in ("relu6", "hardtanh") and _adds(x, 3) and isinstance(parent, ast.BinOp):
        return "gate", "a hard sigmoid written out, whose range matters"
    if name == "elu" and _adds(parent, 1):
        return "attention_kernel", "an attention's kernel, which must not be negative"
    if isinstance(x, ast.Name) and x.id in _ATTENTION_INPUTS:
        return "attention_kernel", "an attention's kernel, which must not be negative"
    return None


def rebinds_owner(method: Method) -> bool:
    """Say whether a method gives another meaning to the name of its first argument.

    Args:
        method: any.
    """
    nodes = list(ast.walk(method.node))
    arguments = sum(isinstance(one, ast.arg) and one.arg == method.owner for one in nodes)
    stored = (
        isinstance(one, ast.Name) and one.id == method.owner and not isinstance(one.ctx, ast.Load) for one in nodes
    )
    return arguments > 1 or any(stored)


def _is_variable(node: ast.expr) -> bool:
    return not isinstance(node, ast.Constant) and all(
        isinstance(one, (*_PURE, ast.expr_context, ast.unaryop)) for one in ast.walk(node)
    )


def _adds(node: ast.AST, number: int) -> bool:
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) else []
    return any(isinstance(side, ast.Constant) and side.value == number for side in sides)


def _in_loop(method: Method, node: ast.AST) -> bool:
    around: ast.AST | None = node
    while around is not None and not isinstance(around, ast.For | ast.While):
        around = method.parents.get(around)
    return around is not None
