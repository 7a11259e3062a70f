"""A model whose tensors have a shape and no values, for as long as a forward pass is looked at."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.backbones.walking import named_modules

_OF_ANY_MODULE = vars(nn.Module()).keys() - {"_modules"}


@contextmanager
def without_data(model: nn.Module) -> Iterator[None]:
    """Set a model's tensors aside for ones on the meta device, and its hooks that look at outputs; then put all back.

    Not a copy: to copy all modules takes as long as the forward pass. What the forward changes is undone: attributes
    that it sets anew, and what it adds to lists, sets and dicts of the modules (a cache by device).

    Args:
        model: as it was, afterwards.
    """
    modules = [module for _, module in named_modules(model)]
    kept = [_Kept(module) for module in modules]
    alike: dict[tuple[Any, ...], Tensor] = {}
    empty = {id(tensor): _empty(tensor, alike) for module in modules for tensor in _tensors(module)}
    # A hook may belong to a stranger: it would report calls that never were.
    hooked = type(model).__name__ == "FeatureHookNet"
    try:
        for module in modules:
            _take_out(module, empty, hooked)
        yield
    finally:
        for one in kept:
            one.put_back()


class _Kept:
    """A module's attributes, and what is in those that a forward may change in place."""

    def __init__(self, module: nn.Module) -> None:
        self.attributes = vars(module)
        self.values = dict(self.attributes)
        own = [] if _is_plain(module) else [self.values[name] for name in self.values.keys() - _OF_ANY_MODULE]
        self.contents = [(value, copy.copy(value)) for value in own if type(value) in (dict, list, set)]

    def put_back(self) -> None:
        self.attributes.clear()
        self.attributes.update(self.values)
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _is_plain(module: nn.Module) -> bool:
    """Say whether a class is torch's own and its modules hold no tensors in lists, nor change one in a forward."""
    kind: Any = type(module)
    return _is_plain_type(kind)


@functools.lru_cache(maxsize=4096)
def _is_plain_type(kind: Any) -> bool:
    return kind.__module__.startswith("torch.nn.modules.") and not issubclass(kind, nn.RNNBase)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor


def _empty(tensor: Tensor, alike: dict[tuple[Any, ...], Tensor]) -> Tensor:
    """Make a stand-in without data, one for all tensors that are alike: making them is a good part of a swap."""
    kind = tensor.shape, tensor.dtype, tensor.requires_grad, type(tensor)
    made = alike.get(kind)
    if made is None:
        made = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        alike[kind] = made
    return made


def _take_out(module: nn.Module, empty: dict[int, Tensor], hooked: bool) -> None:
    attributes: dict[str, Any] = vars(module)
    for table in ("_parameters", "_buffers"):
        attributes[table] = {
            name: None if tensor is None else empty[id(tensor)] for name, tensor in attributes[table].items()
        }
    for name in () if _is_plain(module) else attributes.keys() - _OF_ANY_MODULE:
        value = attributes[name]
        if type(value) is list and any(id(one) in empty for one in value):  # such as an LSTM's flat weights
            attributes[name] = [empty.get(id(one), one) for one in value]
    if attributes["_forward_hooks"] and not hooked:
        attributes["_forward_hooks"] = type(attributes["_forward_hooks"])()
