"""Activations that a model calls as functions: each call led to a module of its own, where that is surely the same.

`F.relu(x)` in a method becomes `self.forward_relu(x)`, in a subclass made for this one module; a function that a
module holds, `self.act = F.relu`, becomes a module under that name. Both can then be swapped as any other activation.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from arelu_meta.backbones.functional import is_rewritten
from arelu_meta.backbones.functions import looks_like, name_of, stand_in
from arelu_meta.backbones.mentions import Mention, mentions_in_class
from arelu_meta.backbones.roles import is_activation
from arelu_meta.backbones.sources import MISSING, Method, Position, fingerprint, meaning, read_method
from arelu_meta.backbones.subclass import Recipe, is_made, kind_of, made_class, recipe_of, set_class
from arelu_meta.backbones.tracing import FunctionCall, Trace
from arelu_meta.backbones.writing import Lead, input_of, kept_as, must_overwrite, rebinds_owner

_HELD = "_arelu_meta_held_functions"


@dataclass(frozen=True)
class Refusal:
    """Why a call stays as it is.

    Args:
        why: in words.
        role: what the call is for.
    """

    why: str
    role: str = "hidden"


@dataclass
class Led:
    """What was done to one module.

    Args:
        path: of the module.
        module: the module.
        kind: its class before.
        targets: by the name of each module that it got, what was called before, and where.
    """

    path: str
    module: nn.Module
    kind: type[nn.Module]
    targets: dict[str, tuple[str, str]] = field(default_factory=dict)

    def undo(self) -> None:
        """Make the module what it was before."""
        for name in self.targets:
            _drop(self.module, name)
        set_class(self.module, self.kind)


@dataclass(frozen=True)
class _Site:
    lead: Lead | None  # None where the module holds the function under the target's name
    target: str
    module: nn.Module


def lead_calls(model: nn.Module, traces: tuple[Trace, Trace]) -> list[Led]:
    """Lead the function calls of a model to modules, wherever that is surely the same.

    Args:
        model: changed in place.
        traces: what its forward pass did, in evaluation and in training.

    Returns:
        The modules that were changed.
    """
    led: dict[str, Led] = {}
    leads: dict[str, dict[str, list[Lead]]] = {}
    for path, module, method, end, call in _calls(model, traces):
        site = judge(module, method, end, call)
        if isinstance(site, Refusal):
            continue
        one = led.setdefault(path, Led(path, module, type(module)))
        if site.target in module._modules:
            continue  # a function held by the module, called a second time
        name, where = (call.function, call.where) if isinstance(call, FunctionCall) else (call.name, call.where)
        if site.lead is None:
            module.__dict__.setdefault(_HELD, {})[site.target] = module.__dict__.pop(site.target)
        else:
            leads.setdefault(path, {}).setdefault(method, []).append(site.lead)
        module._modules[site.target] = site.module.train(module.training)
        one.targets[site.target] = (name, where)
    for path, methods in leads.items():
        _give_class(led[path], methods)
    return [one for one in led.values() if one.targets]


def judge(module: nn.Module, method_name: str | None, end: Position, call: FunctionCall | Mention) -> _Site | Refusal:
    """Say to what a call is led, or why it stays.

    Args:
        module: in whose method the call is.
        method_name: of that method.
        end: where the call ends.
        call: what is known of it.
    """
    if method_name is None:
        return Refusal("in a function that belongs to no single module")
    method = _method_of(module, method_name)
    if isinstance(method, str):
        return Refusal(method)
    node = method.calls.get(end)
    if node is None:
        return Refusal("not by a plain call")
    name = call.function if isinstance(call, FunctionCall) else call.name
    if _holds(module, method, node):
        return _held_site(module, node, name)
    is_method = _is_tensor_method(method, node, call)
    called = meaning(node.func, method.function)
    if not is_method and (called is MISSING or name_of(called) != name):
        return Refusal("through a variable, a partial function or getattr")
    x = input_of(node, is_method)
    if x is None or rebinds_owner(method):
        return Refusal("its input or its module cannot be told from the code")
    role = kept_as(method, node, x, name)
    if role is not None:
        return Refusal(role[1], role[0])
    return _called_site(module, method, node, name, x, is_method)


def _called_site(
    module: nn.Module, method: Method, node: ast.Call, name: str, x: ast.expr, is_method: bool
) -> _Site | Refusal:
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
    return _Site(Lead(end, target, is_method, over), target, made)


def _held_site(module: nn.Module, node: ast.Call, name: str) -> _Site | Refusal:
    assert isinstance(node.func, ast.Attribute)
    if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
        return Refusal("through an attribute, with arguments of its own")
    if hasattr(type(module), node.func.attr):
        return Refusal("through an attribute that its class has, too")
    try:
        return _Site(None, node.func.attr, stand_in(name, (), {}))
    except TypeError:
        return Refusal("no module computes the same")


def why_kept(model: nn.Module, call: FunctionCall) -> Refusal:
    """Say why a function call that a trace has seen stays.

    Args:
        model: that was traced.
        call: as it was seen.
    """
    if call.seen is None:
        return Refusal("held where no swap reaches it, in a list, a dict or a closure")
    if call.seen.on_parameter:
        return Refusal("works on a parameter, not on features", "position")
    if call.seen.caller.co_name == "<lambda>" and call.seen.method is None:
        return Refusal("in a lambda")
    found = judge(model.get_submodule(call.owner), call.seen.method, call.seen.end, call)
    return found if isinstance(found, Refusal) else Refusal("its module's class takes no other code")


def missed(model: nn.Module, seen: set[str]) -> Iterator[tuple[str, Mention, Refusal]]:
    """List the function calls that stay and that no trace has reached.

    Args:
        model: any module.
        seen: file and line of the calls that a trace has seen.

    Yields:
        The path of the module that may call it, the call, and why it stays.
    """
    for path, module, mentions in _mentions(model):
        led = _led_ends(module)
        for mention in mentions:
            end = _end_of_call(module, mention)
            if mention.where in seen or end in led:
                continue
            found = judge(module, mention.method, end, mention)
            if mention.is_method:
                found = Refusal("what it is called on cannot be told")
            yield path, mention, found if isinstance(found, Refusal) else Refusal("give an example that reaches it")


def is_led(module: nn.Module) -> bool:
    """Say whether some of a module's function calls are led to modules."""
    return bool(recipe_of(module)) or _HELD in module.__dict__


def take_back(module: nn.Module) -> None:
    """Make a module what it was as it was written.

    Args:
        module: changed in place.
    """
    if is_made(module):  # not where a class has been derived from it since, such as a parametrised module's
        for target in [lead.target for _, _, leads in recipe_of(module) for lead in leads]:
            _drop(module, target)
        module.__class__ = kind_of(module)
    for target in list(module.__dict__.get(_HELD, {})):
        _drop(module, target)


def _drop(module: nn.Module, target: str) -> None:
    module._modules.pop(target, None)
    held: dict[str, Any] = module.__dict__.get(_HELD, {})
    if target in held:
        module.__dict__[target] = held.pop(target)
    if not held:
        module.__dict__.pop(_HELD, None)


def _give_class(led: Led, methods: dict[str, list[Lead]]) -> None:
    """Put a module's class in place, in which its calls go to its new modules; where it takes none, all stays."""
    module, kind = led.module, kind_of(led.module)
    known = {name: leads for name, _, leads in recipe_of(module)}
    merged = {name: (*known.get(name, ()), *methods.get(name, ())) for name in known | methods}
    prints = {name: fingerprint(getattr(kind, name)) for name in merged}
    recipe: Recipe = tuple((name, prints[name], tuple(sorted(leads))) for name, leads in sorted(merged.items()))
    try:
        if not _takes_subclass(kind):
            raise TypeError(f"{kind.__qualname__} watches its subclasses")
        set_class(module, made_class(kind, recipe))
    except Exception:  # a stranger's metaclass may refuse in any way
        for lead in [lead for leads in methods.values() for lead in leads]:
            _drop(module, lead.target)
            led.targets.pop(lead.target, None)


def _takes_subclass(kind: type[nn.Module]) -> bool:
    return all(base.__module__ in ("builtins", "typing") for base in kind.__mro__ if "__init_subclass__" in vars(base))


def _calls(
    model: nn.Module, traces: tuple[Trace, Trace]
) -> Iterator[tuple[str, nn.Module, str, Position, FunctionCall | Mention]]:
    """List each call once: those that a trace has seen, then those that stand in code that it did not reach."""
    done: set[tuple[str, str, Position]] = set()
    for call in [*traces[0].functions, *traces[1].functions]:
        seen = call.seen
        if seen is None or seen.method is None or seen.on_parameter:
            continue
        if (call.owner, seen.method, seen.end) not in done:
            done.add((call.owner, seen.method, seen.end))
            yield call.owner, model.get_submodule(call.owner), seen.method, seen.end, call
    for path, module, mentions in list(_mentions(model)):
        for mention in mentions:
            end = _end_of_call(module, mention)
            if mention.method is None or mention.is_method or end in _led_ends(module):
                continue
            if (path, mention.method, end) in done:
                continue
            done.add((path, mention.method, end))
            yield path, module, mention.method, end, mention


def _mentions(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[Mention, ...]]]:
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside or is_activation(module):
            inside.update(module.modules())
        elif not is_rewritten(module):
            yield path, module, mentions_in_class(kind_of(module))


def _led_ends(module: nn.Module) -> set[Position]:
    return {lead.end for _, _, leads in recipe_of(module) for lead in leads}


def _end_of_call(module: nn.Module, mention: Mention) -> Position:
    method = None if mention.method is None else _method_of(module, mention.method)
    if isinstance(method, Method):
        for end, call in method.calls.items():
            if (call.func.end_lineno, call.func.end_col_offset) == mention.end:
                return end
    return 0, 0


def _method_of(module: nn.Module, name: str) -> Method | str:
    function = getattr(kind_of(module), name, None)
    return read_method(function) if isinstance(function, FunctionType) else "its method is no plain function"


def _holds(module: nn.Module, method: Method, node: ast.Call) -> bool:
    func = node.func
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name) or func.value.id != method.owner:
        return False
    return name_of(module.__dict__.get(func.attr)) is not None or func.attr in module.__dict__.get(_HELD, {})


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
        value = MISSING if node.attr == "training" else module.__dict__.get(node.attr, MISSING)
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
