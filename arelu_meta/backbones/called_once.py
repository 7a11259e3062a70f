"""Whether timm's code says by itself that each activation is called once a forward: then none need be traced.

Only timm's own classes are read, as they are written; whatever is not plainly one call (a loop, an alias, two sites, a
call from outside, a hook, a class of the user's) is left to the trace. `arelu-meta swap --all` compares the two.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Container, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from arelu_meta.backbones.mentions import mentions_in_class
from arelu_meta.backbones.roles import Slot, find_slots, is_activation
from arelu_meta.backbones.tracing import Trace
from arelu_meta.backbones.walking import named_modules

# What a method may read of its module to get at children without their names.
_CHILDREN = {"_modules", "children", "modules", "named_children", "named_modules", "get_submodule", "__dict__"}
_ANY = "*"
_LOOPS = (ast.For, ast.While, ast.comprehension, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp, ast.Lambda)
# Methods that no forward runs.
_NO_FORWARD = ("__init__", "init_weights", "reset_parameters", "reset_classifier", "load_pretrained", "extra_repr")
_MANY = 2
_TORCH = "torch.nn.modules."


@dataclass(frozen=True)
class _Reading:
    """What a class's methods do with the attributes of their module in one forward.

    Args:
        calls: by attribute, how often `forward` calls it; two stands for any number above one.
        reached: the attributes that a method other than `forward` calls, by method; None where that cannot be followed.
        foreign: the names of attributes that are read of anything but the module.
        opened: the attributes that are subscripted, looped over, or handed on; `*` for any.
    """

    calls: dict[str, int]
    reached: dict[str, frozenset[str] | None]
    foreign: frozenset[str]
    opened: frozenset[str]


def calls_nothing_twice(model: nn.Module) -> tuple[Trace, Trace] | None:
    """Read a timm model's code instead of tracing its forward, where that tells all a trace would.

    Args:
        model: any module.

    Returns:
        What a trace would find where no activation is called twice in its owner's forward and none as a function, in
        evaluation and in training: nothing to do. None where the code does not say so.
    """
    if not getattr(model, "pretrained_cfg", None) or type(model).__name__ == "FeatureHookNet":
        return None
    kinds: set[Any] = set()
    for _, module in named_modules(model):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        if not is_activation(module):
            kinds.add(type(module))
    readings = {kind: _read(kind, kind.forward) for kind in kinds if not kind.__module__.startswith(_TORCH)}
    if any(reading is None for reading in readings.values()):
        return None
    known = {kind: reading for kind, reading in readings.items() if reading is not None}
    foreign = frozenset().union(*(reading.foreign for reading in known.values()))
    if not all(_once(model, slot, known, foreign) for slot in find_slots(model)):
        return None
    nothing = Trace()
    return nothing, nothing


def _once(model: nn.Module, slot: Slot, known: dict[Any, _Reading], foreign: frozenset[str]) -> bool:
    if slot.name in foreign:
        return False
    owner: Any = type(slot.owner)
    if owner in known and not _runs_children(owner):
        reading = known[owner]
        outside = [names for method, names in reading.reached.items() if method in foreign]
        by_others = any(names is None or slot.name in names for names in outside)
        opened = not reading.opened.isdisjoint((slot.name, _ANY))
        return reading.calls.get(slot.name, 0) <= 1 and not opened and not by_others
    return _runs_children(owner) and _stays_closed(model, slot.path.rpartition(".")[0], known, foreign)


def _runs_children(kind: Any) -> bool:
    return issubclass(kind, nn.Sequential) and kind.forward is nn.Sequential.forward


def _stays_closed(model: nn.Module, path: str, known: dict[Any, _Reading], foreign: frozenset[str]) -> bool:
    """Say whether nobody takes a sequence apart, nor any that it is a part of, so that it calls its children once."""
    while path:
        path, _, name = path.rpartition(".")
        holder = model.get_submodule(path)
        kind: Any = type(holder)
        if _runs_children(kind):
            continue
        return kind in known and known[kind].opened.isdisjoint((name, _ANY)) and name not in foreign
    return False


@functools.lru_cache(maxsize=4096)
def _read(kind: Any, forward: object) -> _Reading | None:
    """Read a class's methods; None for one that is not timm's, or that does what cannot be followed here.

    Args:
        kind: the class.
        forward: its method: another one, put there since, is read anew.
    """
    if not kind.__module__.startswith("timm.") or not callable(forward):
        return None
    if _runs_children(kind) and "forward" not in vars(kind):
        methods: dict[str, FunctionType] = {}
    else:
        methods = _methods(kind)
        if "forward" not in methods or mentions_in_class(kind):
            return None
    reads = {name: _Method(method, methods.keys()) for name, method in methods.items()}
    running = _run_by("forward", reads)
    if any(reads[name].lost for name in running):
        return None
    return _Reading(
        _from("forward", reads, ()) if running else {},
        {name: _all_called(name, reads) for name in reads if name != "forward"},
        frozenset().union(*(reads[name].foreign for name in running)),
        frozenset().union(*(reads[name].opened for name in running)),
    )


def _run_by(name: str, reads: dict[str, "_Method"]) -> set[str]:
    """List a method and those of the same module that it calls, and that they call."""
    found: set[str] = set()
    wanted = [name]
    while wanted:
        one = wanted.pop()
        if one in reads and one not in found:
            found.add(one)
            wanted += reads[one].calls
    return found


def _all_called(name: str, reads: dict[str, "_Method"]) -> frozenset[str] | None:
    running = _run_by(name, reads)
    if any(reads[one].lost for one in running):
        return None
    return frozenset().union(*(reads[one].calls for one in running))


def _methods(kind: Any) -> dict[str, FunctionType]:
    """List what a module of a class answers to, without what is torch's own and what no forward runs."""
    found: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            found.pop(name, None)
            if isinstance(function, FunctionType) and not base.__module__.startswith(("torch.", "builtins")):
                found[name] = inspect.unwrap(function)
    return {name: one for name, one in found.items() if name not in _NO_FORWARD}


def _tree(method: FunctionType) -> ast.FunctionDef | None:
    if not str(method.__module__).startswith("timm."):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _from(name: str, reads: dict[str, "_Method"], running: tuple[str, ...]) -> dict[str, int]:
    """Count what one run of a method calls of its module, through the methods that it calls."""
    counts: dict[str, int] = {}
    for called, times in reads[name].calls.items():
        if called in running:
            return dict.fromkeys(reads[name].calls, _MANY)
        inner = _from(called, reads, (*running, name)) if called in reads else {called: 1}
        for attribute, count in inner.items():
            counts[attribute] = min(_MANY, counts.get(attribute, 0) + count * times)
    return counts


class _Method:
    """What one method reads of its module: calls by attribute, and what is done with the others.

    Args:
        method: as it is written.
        methods: the names of its class's methods.
    """

    def __init__(self, method: FunctionType, methods: Container[str]) -> None:
        self.calls: dict[str, int] = {}
        self.foreign: set[str] = set()
        self.opened: set[str] = set()
        tree = _tree(method)
        self.lost = tree is None
        if tree is None:
            return
        self._parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                self._name(node)
            elif isinstance(node, ast.Attribute) and not _is_self(node.value):
                self.foreign.add(node.attr)
            elif isinstance(node, ast.Attribute):
                self._attribute(node, methods)

    def _name(self, node: ast.Name) -> None:
        around = self._parents[node]
        if node.id in ("super", "setattr", "vars"):
            self.lost = True
        elif _is_self(node) and not isinstance(around, ast.Attribute):
            if isinstance(around, ast.Call) and ast.unparse(around.func) == "getattr":
                name = ast.literal_eval(around.args[1]) if isinstance(around.args[1], ast.Constant) else None
                self.lost |= not isinstance(name, str)
                self.opened.add(str(name))
            elif _is_looped_over(node, self._parents):
                self.opened.add(_ANY)
            else:
                self.lost = True

    def _attribute(self, node: ast.Attribute, methods: Container[str]) -> None:
        around = self._parents[node]
        if node.attr in _CHILDREN:
            self.opened.add(_ANY)
        elif isinstance(around, ast.Call) and around.func is node:
            many = any(isinstance(one, _LOOPS) or one in self._nested for one in _around(node, self._parents))
            self.calls[node.attr] = min(_MANY, self.calls.get(node.attr, 0) + (_MANY if many else 1))
        elif node.attr in methods:
            self.calls[node.attr] = _MANY  # handed on: who knows how often it is called
        elif not _is_asked(node, self._parents):
            self.opened.add(node.attr)

    @functools.cached_property
    def _nested(self) -> set[ast.AST]:
        return {one for one in self._parents if isinstance(one, ast.FunctionDef)}


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_looped_over(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    around = parents[node]
    if isinstance(around, ast.Call) and ast.unparse(around.func) == "enumerate":
        node, around = around, parents[around]
    return isinstance(around, ast.For) and around.iter is node


def _around(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _is_asked(node: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Say whether an attribute is only asked whether it is there, or set."""
    if isinstance(node.ctx, ast.Store | ast.Del):
        return True
    part: ast.AST = node
    around = parents[node]
    if isinstance(around, ast.Compare) and all(isinstance(one, ast.Is | ast.IsNot) for one in around.ops):
        return True
    while isinstance(around, ast.BoolOp | ast.UnaryOp | ast.Compare):
        part, around = around, parents[around]
    return isinstance(around, ast.If | ast.IfExp | ast.Assert) and around.test is part
