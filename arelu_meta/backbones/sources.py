"""The source of a method: read where it surely is the code that runs, and compiled again with calls led elsewhere."""

import __future__

import ast
import copy
import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

_FUTURES = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)
MISSING = object()
"""What a name stands for that cannot be told without running the code."""

Position = tuple[int, int]
"""Where a call ends: line and column. No two calls end at the same place."""


@dataclass(frozen=True)
class Method:
    """A method and its source.

    Args:
        function: the method, as the class holds it.
        node: its definition.
        class_name: of the class around the definition; None outside a class.
        calls: the calls in it, by where they end.
        parents: what is around each node.
        imports: the file's own; for `F.relu(x)` Python compiles other code where `F` was imported.
    """

    function: FunctionType
    node: ast.FunctionDef
    class_name: str | None
    calls: dict[Position, ast.Call]
    parents: dict[ast.AST, ast.AST]
    imports: tuple[ast.stmt, ...]

    @property
    def owner(self) -> str:
        """The name of the method's first argument."""
        return self.function.__code__.co_varnames[0]

    def private(self, name: str) -> str:
        """Say under which name an attribute is kept: Python renames those with two leading underscores.

        Args:
            name: as it is written in the method.
        """
        is_private = self.class_name is not None and name.startswith("__") and not name.endswith("__")
        return f"_{(self.class_name or '').lstrip('_')}{name}" if is_private else name


@functools.lru_cache(maxsize=256)
def read_method(function: FunctionType) -> Method | str:
    """Find a method's source.

    Args:
        function: a plain function.

    Returns:
        The method, or in words why its source is no help: it is not there, or it is not what runs.
    """
    try:
        lines, _ = inspect.findsource(function)
        tree = _parse("".join(lines))
    except (OSError, TypeError, SyntaxError, IndexError):
        return "its source is not at hand"
    found = _definition(tree, function.__code__)
    if found is None:
        return "its source is not at hand"
    node, class_name = found
    if function.__code__.co_argcount == 0:
        return "its method has no plain first argument"
    method = Method(function, node, class_name, _calls(node), _parents(node), _imports(tree))
    try:
        compiled = _compile(method, node)
    except (SyntaxError, ValueError, StopIteration):
        return "its source cannot be compiled alone"
    if not _same(compiled, function.__code__) and not (_asserts(node) and _calls_agree(method)):
        return "the code that runs is not that of its file"
    return method


def fingerprint(function: FunctionType) -> int:
    """Tell one state of a method from another, across processes.

    Args:
        function: a plain function.
    """
    code = function.__code__
    return zlib.crc32(code.co_code + repr((code.co_names, code.co_varnames, code.co_freevars)).encode())


def with_calls_led(method: Method, leads: Mapping[Position, Callable[[ast.Call], ast.expr]]) -> FunctionType:
    """Compile a method again with some of its calls replaced; all else, closure and line numbers too, stays.

    Args:
        method: from `read_method`.
        leads: by where a call ends, what makes its replacement.
    """
    node = _Leader(leads).visit(copy.deepcopy(method.node))
    function = method.function
    code = _compile(method, node).replace(co_firstlineno=function.__code__.co_firstlineno)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    made = FunctionType(
        code,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
        setattr(made, name, getattr(function, name))
    return made


def meaning(node: ast.expr, function: FunctionType) -> object:
    """Say what an expression stands for without running it: a global, a closure's value, or a part of a module.

    Args:
        node: a name, or attributes of one.
        function: the code it stands in.

    Returns:
        The value, or `MISSING`.
    """
    if isinstance(node, ast.Attribute):
        holder = meaning(node.value, function)
        return getattr(holder, node.attr, MISSING) if isinstance(holder, ModuleType) else MISSING
    if not isinstance(node, ast.Name) or any(node.id in names for names in _locals(function.__code__)):
        return MISSING
    return meaning_of_name(node.id, function)


def meaning_of_name(name: str, function: FunctionType) -> object:
    """Say what a name that is no local stands for.

    Args:
        name: of a global, or of a closure's variable.
        function: the code it stands in.
    """
    if name in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:  # it is not filled yet
            return MISSING
    return function.__globals__.get(name, MISSING)


def nested_codes(code: CodeType) -> list[CodeType]:
    """List a function's code and those of the functions, lambdas and comprehensions in it.

    Args:
        code: of the function.
    """
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return [code, *(one for part in inner for one in nested_codes(part))]


@functools.lru_cache(maxsize=16)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _definition(tree: ast.Module, code: CodeType) -> tuple[ast.FunctionDef, str | None] | None:
    def search(node: ast.AST, class_name: str | None) -> tuple[ast.FunctionDef, str | None] | None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and child.name == code.co_name:
                first = min([child.lineno, *(one.lineno for one in child.decorator_list)])
                if first == code.co_firstlineno:
                    return child, class_name
            inside = child.name if isinstance(child, ast.ClassDef) else None
            found = search(child, inside) if hasattr(child, "body") or isinstance(child, ast.excepthandler) else None
            if found is not None:
                return found
        return None

    return search(tree, None)


def _calls(node: ast.AST) -> dict[Position, ast.Call]:
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    return dict(sorted(((one.end_lineno or 0, one.end_col_offset or 0), one) for one in calls))


def _parents(node: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: parent for parent in ast.walk(node) for child in ast.iter_child_nodes(parent)}


def _imports(tree: ast.Module) -> tuple[ast.stmt, ...]:
    def search(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from search([part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)])

    return tuple(search(tree.body))


def _locals(code: CodeType) -> list[tuple[str, ...]]:
    return [(*one.co_varnames, *one.co_cellvars) for one in nested_codes(code)]


def _compile(method: Method, node: ast.FunctionDef) -> CodeType:
    """Compile a definition as if it stood where it stands: in its class, in the function whose variables it uses."""
    function, class_name = method.function, method.class_name
    bare = copy.copy(node)
    bare.decorator_list = []
    free = [name for name in function.__code__.co_freevars if class_name is None or name != "__class__"]
    outer: Any = ast.parse(f"def _outer({', '.join(free)}): pass")
    outer.body[0].body = [bare]
    if class_name is not None:  # for names with two underscores, and for `super()`
        around: Any = ast.parse(f"class {class_name}: pass").body[0]
        around.body, outer.body[0].body = [bare], [around]
    outer.body = [*method.imports, *outer.body]
    module = ast.fix_missing_locations(outer)
    flags = function.__code__.co_flags & _FUTURES
    code: CodeType = compile(module, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    for name in ("_outer", *([class_name] if class_name is not None else []), node.name):
        parts = [const for const in code.co_consts if isinstance(const, CodeType) and const.co_name == name]
        code = parts[-1]
    return code


def _same(one: CodeType, other: CodeType) -> bool:
    names = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars")
    if any(getattr(one, name) != getattr(other, name) for name in names) or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(mine, theirs) if isinstance(mine, CodeType) and isinstance(theirs, CodeType) else mine == theirs
        for mine, theirs in zip(one.co_consts, other.co_consts, strict=True)
    )


def _asserts(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Assert) for one in ast.walk(node))


def _calls_agree(method: Method) -> bool:
    """Say whether every call that the file shows is in the code: pytest compiles assertions into something else."""
    ends = {place[1::2] for code in nested_codes(method.function.__code__) for place in _positions(code)}
    asserted = {inner for one in ast.walk(method.node) if isinstance(one, ast.Assert) for inner in ast.walk(one)}
    return all(end in ends for end, call in method.calls.items() if call not in asserted)


def _positions(code: CodeType) -> list[tuple[Any, ...]]:
    # (line, end line, column, end column), in which every second one is where it ends
    return list(code.co_positions())


class _Leader(ast.NodeTransformer):
    def __init__(self, leads: Mapping[Position, Callable[[ast.Call], ast.expr]]) -> None:
        self.leads = leads

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        lead = self.leads.get((node.end_lineno or 0, node.end_col_offset or 0))
        if lead is None:
            return node
        made = lead(node)
        for one in ast.walk(made):
            if not hasattr(one, "lineno"):
                ast.copy_location(one, node)
        return made
