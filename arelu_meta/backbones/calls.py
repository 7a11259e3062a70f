"""One activation module that its owner calls several times a forward: as many activations as calls."""

import sys
from collections.abc import Iterable, Sequence
from types import FrameType

import torch
from torch import Tensor, nn

_RESETS = "_arelu_meta_resets"
_TORCH = (nn.Module.__call__.__code__.co_filename, __file__)


def call_site(depth: int = 1) -> str:
    """Name the place in the code that calls a module.

    Args:
        depth: how many frames above this function the search starts.

    Returns:
        The calling function's name and its position in the bytecode: the same for each pass through that place.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename in _TORCH:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_name}@{frame.f_lasti}"


class CallSequence(nn.ModuleList):
    """The activations of one place that is called several times a forward: each call has its own.

    A call is known by its place in the owner's code, and in a loop by its turn there; so the calls that a checkpoint
    repeats, or that only training makes, find their own. Compiled code cannot see the place: there the turn within
    the forward decides, in the order that was traced for the mode (training or not) that the module is in.

    Args:
        modules: one activation a call.
        evaluation: the places that evaluation calls, in order, each with the index of its activation.
        training: the same for training; default: as in evaluation.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        evaluation: Sequence[tuple[str, int]],
        training: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        super().__init__(modules)
        training = evaluation if training is None else training
        self.orders = {False: [index for _, index in evaluation], True: [index for _, index in training]}
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
        y: Tensor = self[self._index()](x)
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
        order = self.orders[self.training]
        return order[turn % len(order)]


def restart_calls(owner: nn.Module, path: str) -> None:
    """Let every forward of a module begin the count of a sequence of calls anew.

    Args:
        owner: the module whose forward makes the calls.
        path: of the `CallSequence`, from the owner.
    """
    paths = owner.__dict__.setdefault(_RESETS, [])
    if not paths:
        owner.register_forward_pre_hook(_restart)
    if path not in paths:
        paths.append(path)


def forget_calls(model: nn.Module) -> None:
    """Take away what `restart_calls` added.

    Args:
        model: changed in place, with all that is in it.
    """
    for module in model.modules():
        if module.__dict__.pop(_RESETS, None) is not None:
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _restart]:
                del module._forward_pre_hooks[key]


def _restart(owner: nn.Module, _: object) -> None:
    # The owner is an argument, so a replica, a copy and a pickled model each restart their own.
    for path in owner.__dict__[_RESETS]:
        sequence: object = owner
        for name in path.split("."):
            sequence = getattr(sequence, name, None)
        if isinstance(sequence, CallSequence):
            sequence.restart()
