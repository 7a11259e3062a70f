"""Give one module code of its own: a subclass made for it, under its class's name, that can be copied and pickled."""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, NoReturn

from torch import nn

from arelu_meta.backbones.calls import _RESETS, _UNCOUNTED, restart_calls
from arelu_meta.backbones.sources import fingerprint, read_method, with_calls_led
from arelu_meta.backbones.writing import Lead, lead_to

Recipe = tuple[tuple[str, int, tuple[Lead, ...]], ...]
"""By method: its name, its fingerprint, and what becomes of its calls."""

_RECIPE, _KIND = "_arelu_meta_recipe", "_arelu_meta_kind"


def kind_of(module: nn.Module) -> Any:
    """Give the class that a module was written as.

    Args:
        module: any module.
    """
    now = type(module)
    return getattr(now, _KIND, getattr(now, _UNCOUNTED, now))


def recipe_of(module: nn.Module) -> Recipe:
    """Say which of a module's calls are led to modules: none, for a module as it was written.

    Args:
        module: any module.
    """
    recipe: Recipe = getattr(type(module), _RECIPE, ())
    return recipe


def is_made(module: nn.Module) -> bool:
    """Say whether a module's class is one that was made here, and none derived from it."""
    return _RECIPE in vars(type(module))


@functools.lru_cache(maxsize=4096)
def made_class(kind: Any, recipe: Recipe) -> type[nn.Module]:
    """Make the subclass in which calls are led to modules.

    Args:
        kind: the class as it was written.
        recipe: which calls.

    Raises:
        TypeError: if the class's source is not what it was when the recipe was made, or it takes no subclass.
    """
    members: dict[str, Any] = {_KIND: kind, _RECIPE: recipe, "__reduce_ex__": _reduce}
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    members |= {"__init__": _init, "__prepare_scriptable__": _refuse_script}
    for name, print_of_it, leads in recipe:
        function = getattr(kind, name, None)
        method = read_method(function) if isinstance(function, FunctionType) else "it is not there"
        if isinstance(method, str) or fingerprint(method.function) != print_of_it:
            why = method if isinstance(method, str) else "it has changed"
            raise TypeError(
                f"{kind.__qualname__}.{name}: its activations were swapped where it calls functions, and {why}; "
                "load the model with the code that it was saved with, or save it after unswap(model)"
            )
        members[name] = with_calls_led(
            method, {lead.end: functools.partial(lead_to, method.owner, lead) for lead in leads}
        )
    made: type[nn.Module] = type(kind)(kind.__name__, (kind,), members)
    return made


def set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change a module's class, and let its forward go on restarting the counts of calls that it restarts.

    Args:
        module: changed in place.
        kind: with or without that.
    """
    module.__class__ = vars(kind).get(_UNCOUNTED, kind)
    for path in list(module.__dict__.get(_RESETS, ())):
        restart_calls(module, path)


def _init(self: nn.Module, *arguments: Any, **named: Any) -> None:
    # A user's code that makes a module like this one, by `type(self)(…)`, gets one as it was written.
    kind = kind_of(self)
    self.__class__ = kind
    kind.__init__(self, *arguments, **named)


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # What pickle and copy make of the class it was, whose name they find, and then the class it is now.
    kind = kind_of(self)
    reduced: Any = kind.__reduce_ex__(self, protocol)
    made, arguments, *rest = reduced
    return _made_again, (recipe_of(self), made, *(kind if one is type(self) else one for one in arguments)), *rest


def _made_again(recipe: Recipe, made: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    module = made(*arguments)
    kind: Any = type(module)
    module.__class__ = made_class(kind, recipe)
    return module


def _refuse_script(self: nn.Module) -> NoReturn:
    raise RuntimeError(
        f"{type(self).__name__} cannot be scripted: where it calls functions its activations were swapped, which "
        "torch.jit.script would not see; use torch.jit.trace or torch.export, or unswap(model) first"
    )
