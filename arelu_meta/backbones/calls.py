"""One activation module that its owner calls several times a forward: as many activations as calls."""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # public, but not in its __all__

from arelu_meta.backbones.walking import named_modules

_RESETS = "_arelu_meta_resets"
_UNCOUNTED = "_arelu_meta_uncounted"
# What lies between a call and the module that it calls: torch's machinery, and that of what traces with torch.fx.
_BETWEEN = (nn.Module.__call__.__code__.co_filename, str(Path(torch.fx.__file__).parent), __file__)
_TRACERS = (str(Path("torchvision", "models", "feature_extraction.py")),)


def call_site(depth: int = 1) -> str:
    """Name the place in the code that calls a module.

    Args:
        depth: how many frames above this function the search starts.

    Returns:
        The calling function's name and its position in the bytecode: the same for each pass through that place.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and _is_between(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_name}@{frame.f_lasti}"


@functools.cache
def _is_between(file: str) -> bool:
    return file.startswith(_BETWEEN) or file.endswith(_TRACERS)


class CallSequence(nn.ModuleList):
    """The activations of one place that is called several times a forward: each call has its own.

    A call is known by its place in the owner's code, and in a loop by its turn there; so the calls that a checkpoint
    repeats, or that only training makes, find their own. Compiled and scripted code cannot see the place: there the
    turn within the forward decides, in the order that was traced for the mode (training or not) that the module is in.

    Args:
        modules: one activation a call.
        evaluation: the places that evaluation calls, in order, each with the index of its activation.
        training: the same for training; default: as in evaluation.
    """

    # As torch.jit.script is to read them.
    evaluation_order: list[int]
    training_order: list[int]
    scripted_turn: int

    def __init__(
        self,
        modules: Iterable[nn.Module],
        evaluation: Sequence[tuple[str, int]],
        training: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        super().__init__(modules)
        training = evaluation if training is None else training
        self.evaluation_order = [index for _, index in evaluation]
        self.training_order = [index for _, index in training]
        self.scripted_turn = 0
        self.sites: dict[str, list[int]] = {}
        for place, index in [*evaluation, *training]:
            known = self.sites.setdefault(place, [])
            if index not in known:
                known.append(index)
        self.restart()

    def restart(self) -> None:
        """Begin a new forward of the owner."""
        self.turn = 0
        # Replaced, never changed: the replicas of data parallel training share what is not a module.
        self.turns: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation whose call this is."""
        if is_scripting():
            return self._scripted(x)
        y: Tensor = self[self._index()](x)
        return y

    def _scripted(self, x: Tensor) -> Tensor:
        # Nobody restarts it in a script, so it ends each forward where it began.
        order = self.training_order if self.training else self.evaluation_order
        index = order[self.scripted_turn % len(order)]
        self.scripted_turn = (self.scripted_turn + 1) % len(order)
        y = x
        for number, activation in enumerate(self):
            if number == index:
                y = activation(x)
        return y

    def _index(self) -> int:
        turn = self.turn
        self.turn = turn + 1
        if not torch.compiler.is_compiling():
            place = call_site()
            at_place = self.sites.get(place)
            if at_place is not None:
                if len(at_place) == 1:
                    return at_place[0]
                turn = self.turns.get(place, 0)
                self.turns = {**self.turns, place: turn + 1}
                return at_place[turn % len(at_place)]
        order = self.training_order if self.training else self.evaluation_order
        return order[turn % len(order)]


def restart_calls(owner: nn.Module, path: str) -> None:
    """Let every forward of a module begin the count of a sequence of calls anew.

    The module's class becomes a subclass that does so, under the same name. A hook would do, too, but torch.jit.script
    compiles hooks, and wants to know the types of their arguments, which are the owner's.

    Args:
        owner: the module whose forward makes the calls.
        path: of the `CallSequence`, from the owner.
    """
    paths = owner.__dict__.setdefault(_RESETS, [])
    if not hasattr(type(owner), _UNCOUNTED):
        _count(owner)
    if path not in paths:
        paths.append(path)


def forget_calls(model: nn.Module) -> None:
    """Take away what `restart_calls` added.

    Args:
        model: changed in place, with all that is in it.
    """
    for _, module in named_modules(model):
        if module.__dict__.pop(_RESETS, None) is not None:
            # Not where a class has been derived from it since, such as a parametrised module's.
            module.__class__ = type(module).__dict__.get(_UNCOUNTED, type(module))


@functools.cache
def _counted(kind: Any) -> Any:
    """Make the subclass of a class of modules whose calls restart the counts in it."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _restart(self)
        return kind.__call__(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # What pickle and copy make of the class it was, whose name they find, and then the class it is now.
        reduced: Any = kind.__reduce_ex__(self, protocol)
        made, args, *rest = reduced
        return _made_again, (made, *(kind if arg is type(self) else arg for arg in args)), *rest

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {_UNCOUNTED: kind, "__call__": call, "__reduce_ex__": reduce, **names})


def _made_again(made: Callable[..., nn.Module], *args: Any) -> nn.Module:
    module = made(*args)
    _count(module)
    return module


def _count(module: nn.Module) -> None:
    kind: Any = type(module)
    module.__class__ = _counted(kind)


def _restart(owner: nn.Module) -> None:
    # The owner is an argument, so a replica, a copy and a pickled model each restart their own.
    for path in owner.__dict__.get(_RESETS, ()):
        sequence: object = owner
        for name in path.split("."):
            sequence = getattr(sequence, name, None)
        if isinstance(sequence, CallSequence):
            sequence.restart()
