"""The few places where timm calls an activation as a function: the same code, with the call led to a module.

`F.relu(x)` in a method becomes `self._activation_of_call(k)(x)`. A module so treated belongs to a subclass made for
it; it is still an instance of timm's class, bears its name, and can be copied and pickled.
"""

import ast
import copyreg
import functools
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.backbones.walking import named_modules

VALUE = "value_act"
"""Where a linear attention gets the activation of its values."""

# Class → method → what each `F.relu` in it stands for: the module of its own, or the tap of this index.
_CALLS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("timm.models.mobilevit", "LinearSelfAttention"): {"_forward_self_attn": (VALUE,), "_forward_cross_attn": (VALUE,)},
    ("timm.models.nasnet", "NASNetALarge"): {
        "forward_intermediates": ("feat_idx", "feat_idx - 1"),
        "forward_features": ("1", "2", "3"),
    },
    ("timm.models.pnasnet", "PNASNet5Large"): {
        "forward_intermediates": ("feat_idx", "feat_idx - 1"),
        "forward_features": ("1", "2", "3"),
    },
    ("timm.models.xception", "Xception"): {"forward_intermediates": ("feat_idx", "feat_idx - 1")},
}
_TAPS = "_arelu_meta_taps"
_LAST_TAP = "tap_act"


def functional_owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the modules whose calls of `F.relu` can be led to modules.

    Args:
        model: any module.

    Yields:
        Path and module. Those of a timm whose code reads otherwise are left out.
    """
    for path, module in named_modules(model):
        kind = type(module)
        if (kind.__module__, kind.__name__) in _CALLS and not is_rewritten(module) and _rewritten(kind) is not None:
            yield path, module


def is_rewritten(module: nn.Module) -> bool:
    """Say whether a module's calls have been led to modules."""
    return hasattr(type(module), "_arelu_meta_original")


def has_value(module: nn.Module) -> bool:
    """Say whether a module's function calls need an activation of their own (or are taps of its parts)."""
    kind = type(module)
    return VALUE in {what for calls in _CALLS[kind.__module__, kind.__name__].values() for what in calls}


def rewrite(module: nn.Module) -> None:
    """Lead a module's function calls to modules, before its activations are swapped.

    A linear attention gets an `nn.ReLU` of its own under the name `value_act`. A network that can be tapped between
    its cells takes, for a tap, the activation with which the next cell begins, as timm's feature hooks do.

    Args:
        module: one of `functional_owners`; its class changes.
    """
    made = _rewritten(type(module))
    if made is None:
        raise ValueError(f"{type(module).__name__} calls no activation that is known here")
    if has_value(module):
        module.add_module(VALUE, nn.ReLU())
    module.__class__ = made
    remember_taps(module)


def remember_taps(module: nn.Module) -> None:
    """Keep the activations that taps use, for a network that is pruned loses the cells that hold them.

    Args:
        module: a rewritten one; to be called again when its activations have been replaced.
    """
    module.__dict__[_TAPS] = {} if has_value(module) else {i: _at_tap(module, i) for i in range(len(_info(module)))}


def unreadable_owners(model: nn.Module) -> Iterator[str]:
    """List the paths of modules whose function calls are known of, but whose code reads otherwise than expected."""
    for path, module in named_modules(model):
        kind = type(module)
        if (kind.__module__, kind.__name__) in _CALLS and not is_rewritten(module) and _rewritten(kind) is None:
            yield path


def _info(module: nn.Module) -> list[dict[str, Any]]:
    return list(getattr(module, "feature_info", []))


def _at_tap(module: nn.Module, index: int) -> nn.Module | None:
    found: Any = module
    for name in _info(module)[index]["module"].split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def restore(module: nn.Module) -> None:
    """Take back `rewrite`.

    Args:
        module: a rewritten one.
    """
    module.__class__ = type(module)._arelu_meta_original  # type: ignore[attr-defined]
    module.__dict__.pop(_TAPS, None)
    module._modules.pop(VALUE, None)
    module._modules.pop(_LAST_TAP, None)


def _tap(self: nn.Module, index: int, x: Tensor) -> Tensor:
    activation = _at_tap(self, index)
    if activation is None:
        activation = self._modules.get(_LAST_TAP)
    return torch.relu(x) if activation is None else activation(x)


def _prune(self: nn.Module, *args: Any, **kwargs: Any) -> list[int]:
    kept: list[int] = type(self)._arelu_meta_original.prune_intermediate_layers(self, *args, **kwargs)  # type: ignore[attr-defined]
    last = self.__dict__[_TAPS].get(max(kept))
    if last is not None and _at_tap(self, max(kept)) is None:
        self.add_module(_LAST_TAP, last)
    return kept


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # What pickle and copy make of any module, but the class is made anew: no file holds it.
    kind = type(self)._arelu_meta_original  # type: ignore[attr-defined]
    return _empty, (kind,), self.__dict__


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = _rewritten(kind)
    module: nn.Module = copyreg.__newobj__(kind if made is None else made)  # type: ignore[attr-defined]
    return module


def _rewritten(kind: type[nn.Module]) -> type[nn.Module] | None:
    return _made(kind.__module__, kind.__name__)


@functools.cache
def _made(file: str, name_of_class: str) -> type[nn.Module] | None:
    """Make the subclass; None where a method does not read as expected."""
    kind: type[nn.Module] = getattr(sys.modules[file], name_of_class)
    methods: dict[str, Any] = {}
    for name, calls in _CALLS[file, name_of_class].items():
        method = _led_to_modules(getattr(kind, name, None), calls)
        if method is None:
            return None
        methods[name] = method
    methods |= {"_arelu_meta_original": kind, "_tap": _tap, "__reduce_ex__": _reduce}
    if not any(VALUE in calls for calls in _CALLS[kind.__module__, kind.__name__].values()):
        methods["prune_intermediate_layers"] = _prune
    methods |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), methods)


def _led_to_modules(method: Callable[..., Any] | None, calls: tuple[str, ...]) -> Callable[..., Any] | None:
    function: Any = inspect.unwrap(method) if method is not None else None
    if function is None or function.__closure__:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    leader = _Leader(calls)
    definition = leader.visit(tree).body[0]
    if leader.seen != len(calls):
        return None
    definition.decorator_list = []
    # The text is put where Python looks for the lines of a file: torch.jit.script reads it.
    text, file = ast.unparse(definition) + "\n", f"<arelu_meta: {function.__module__}.{function.__qualname__}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    code = compile(text, file, "exec")
    namespace: dict[str, Any] = {}
    exec(code, function.__globals__, namespace)
    made: Callable[..., Any] = namespace[function.__name__]
    made.__dict__.update(function.__dict__)  # where torch.jit.ignore leaves its mark
    return made


class _Leader(ast.NodeTransformer):
    def __init__(self, calls: tuple[str, ...]) -> None:
        self.calls = calls
        self.seen = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != "F.relu" or len(node.args) != 1 or node.keywords:
            return node
        what = self.calls[self.seen] if self.seen < len(self.calls) else VALUE
        self.seen += 1
        text = f"self.{VALUE}(x)" if what == VALUE else f"self._tap({what}, x)"
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        call.args[-1] = node.args[0]
        return ast.copy_location(call, node)
