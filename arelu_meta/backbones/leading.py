"""Activations that a model calls as functions: each call led to a module of its own, where that is surely the same.

`F.relu(x)` in a method becomes `self.forward_relu(x)`, in a subclass made for this one module; a function that a
module holds, `self.act = F.relu`, becomes a module under that name. Both can then be swapped as any other activation.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from arelu_meta.backbones.functional import is_rewritten
from arelu_meta.backbones.hand_written import is_part_of_one
from arelu_meta.backbones.judging import HELD, ON_PARAMETER, Refusal, judge, method_of
from arelu_meta.backbones.mentions import Mention, mentions_in_class
from arelu_meta.backbones.roles import is_activation
from arelu_meta.backbones.sources import Method, Position, fingerprint, nested_codes
from arelu_meta.backbones.subclass import Recipe, is_made, kind_of, made_class, recipe_of, set_class
from arelu_meta.backbones.tracing import FunctionCall, Trace
from arelu_meta.backbones.walking import named_modules
from arelu_meta.backbones.writing import Lead
from arelu_meta.backbones.written_out import WRITTEN_OUT


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
        if isinstance(site, Refusal) or is_part_of_one(module, site.module):
            continue
        one = led.setdefault(path, Led(path, module, type(module)))
        if site.target in module._modules:
            continue  # a function held by the module, called a second time
        name, where = (call.function, call.where) if isinstance(call, FunctionCall) else (call.name, call.where)
        if site.lead is None:
            module.__dict__.setdefault(HELD, {})[site.target] = module.__dict__.pop(site.target)
        else:
            leads.setdefault(path, {}).setdefault(method, []).append(site.lead)
        module._modules[site.target] = site.module.train(module.training)
        one.targets[site.target] = (name, where)
    for path, methods in leads.items():
        _give_class(led[path], methods)
    return [one for one in led.values() if one.targets]


def why_kept(model: nn.Module, call: FunctionCall) -> Refusal:
    """Say why a function call that a trace has seen stays.

    Args:
        model: that was traced.
        call: as it was seen.
    """
    if call.function in WRITTEN_OUT:
        return Refusal("written out, not called")
    if call.seen is None:
        return Refusal("held where no swap reaches it, in a list, a dict or a closure")
    if call.seen.on_parameter:
        return ON_PARAMETER
    owner = model.get_submodule(call.owner)
    if call.seen.method is None:
        return Refusal(_where_no_owner_is(owner, call.seen.caller))
    found = judge(owner, call.seen.method, call.seen.end, call)
    return found if isinstance(found, Refusal) else Refusal("its module's class takes no other code")


def _where_no_owner_is(module: nn.Module, code: CodeType) -> str:
    if code.co_name == "<lambda>":
        return "in a lambda"
    members = [getattr(one, "__func__", one) for base in kind_of(module).__mro__ for one in vars(base).values()]
    functions = [inspect.unwrap(one) for one in members if isinstance(one, FunctionType)]
    if any(code in nested_codes(one.__code__) for one in functions):
        return "in a method that is decorated, static, set on the instance or reached through super()"
    return "in a function that is no module's method"


def missed(model: nn.Module, seen: set[str]) -> Iterator[tuple[str, Mention, Refusal]]:
    """List the function calls that stay and that no trace has reached.

    Args:
        model: any module.
        seen: file and line of the calls that a trace has seen.

    Yields:
        The path of the module that may call it, the call, and why it stays.
    """
    for path, module, mentions in _mentions(model):
        led = _led_ends(module) if mentions else set()
        for mention in mentions:
            end = _end_of_call(module, mention)
            if mention.where in seen or end in led:
                continue
            found = judge(module, mention.method, end, mention)
            if mention.is_method:
                found = Refusal("what it is called on cannot be told")
            elif mention.scripted:
                found = Refusal("in a scripted function")
            yield path, mention, found if isinstance(found, Refusal) else Refusal("give an example that reaches it")


def is_led(module: nn.Module) -> bool:
    """Say whether some of a module's function calls are led to modules."""
    return bool(recipe_of(module)) or HELD in module.__dict__


def take_back(module: nn.Module) -> None:
    """Make a module what it was as it was written.

    Args:
        module: changed in place.
    """
    if is_made(module):  # not where a class has been derived from it since, such as a parametrised module's
        for target in [lead.target for _, _, leads in recipe_of(module) for lead in leads]:
            _drop(module, target)
        module.__class__ = kind_of(module)
    for target in list(module.__dict__.get(HELD, {})):
        _drop(module, target)


def _drop(module: nn.Module, target: str) -> None:
    module._modules.pop(target, None)
    held: dict[str, Any] = module.__dict__.get(HELD, {})
    if target in held:
        module.__dict__[target] = held.pop(target)
    if not held:
        module.__dict__.pop(HELD, None)


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
        if seen is None or seen.method is None or (call.owner, seen.method, seen.end) in done:
            continue
        done.add((call.owner, seen.method, seen.end))
        if not seen.on_parameter:
            yield call.owner, model.get_submodule(call.owner), seen.method, seen.end, call
    for path, module, mentions in list(_mentions(model)):
        for mention in mentions:
            end = _end_of_call(module, mention)
            if mention.method is None or mention.is_method or mention.scripted or end in _led_ends(module):
                continue
            if (path, mention.method, end) in done:
                continue
            done.add((path, mention.method, end))
            yield path, module, mention.method, end, mention


def _mentions(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[Mention, ...]]]:
    inside: set[nn.Module] = set()
    for path, module in named_modules(model):
        if module in inside or is_activation(module):
            inside.update(module.modules())
        elif not is_rewritten(module):
            yield path, module, mentions_in_class(kind_of(module))


def _led_ends(module: nn.Module) -> set[Position]:
    return {lead.end for _, _, leads in recipe_of(module) for lead in leads}


def _end_of_call(module: nn.Module, mention: Mention) -> Position:
    method = None if mention.method is None else method_of(module, mention.method)
    if isinstance(method, Method):
        for end, call in method.calls.items():
            if (call.func.end_lineno, call.func.end_col_offset) == mention.end:
                return end
    return 0, 0
