"""One activation module that its owner calls several times a forward: as many activations as calls.

Which call it is, a counter tells. It begins anew with each forward of the owner (a forward pre-hook), and belongs to
that forward in its thread alone: threads, nested and repeated forwards do not count for each other. A call outside of
a forward of the owner, such as a part of it that a checkpoint repeats, has no count, and is refused.
"""

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.errors import RunError

_COUNTED = "_arelu_meta_counted"


class PerCallActivation(nn.ModuleList):
    """The activations of one site that is called several times a forward: each call has its own.

    Args:
        modules: one activation a call.
        evaluation: the index of the activation of each call that evaluation makes, in order.
        training: the same for training.
        name: of the site and its owner, for errors.
    """

    def __init__(
        self, modules: Iterable[nn.Module], evaluation: Sequence[int], training: Sequence[int], name: str
    ) -> None:
        super().__init__(modules)
        self.evaluation_order = list(evaluation)
        self.training_order = list(training)
        self.name = name
        self.turn = 0

    @property
    def order(self) -> list[int]:
        """The indices of the activations in the order of the calls, in the mode that the module is in."""
        return self.training_order if self.training else self.evaluation_order

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation whose call this is.

        Raises:
            RunError: if that cannot be told.
        """
        turn = self._turn()
        if turn >= len(self.order):
            raise RunError(self.refusal(f"is called more often than the {len(self.order)} times that the swap saw"))
        y: Tensor = self[self.order[turn]](x)
        return y

    def refusal(self, what: str) -> str:
        """Word an error."""
        return (
            f"{self.name} {what}, so it cannot tell which of its calls this is; call and checkpoint the module that "
            'holds it as a whole, or swap with share="module", which gives all its calls one activation'
        )

    def _turn(self) -> int:
        # torch.compile follows attributes, not context variables. What it compiles as one piece is right in any thread.
        if torch.compiler.is_compiling():
            self.turn += 1
            return self.turn - 1
        forward = _running.get()
        while forward is not None and self not in forward.turns:
            forward = forward.outer
        # In a backward pass that began since, a checkpoint repeats a part of the forward.
        if forward is None or forward.backward_pass != torch._C._current_graph_task_id():
            raise RunError(self.refusal("is called outside of its owner's forward"))
        forward.turns[self] += 1
        return forward.turns[self] - 1


class _Forward:
    """One forward of an owner: how often each of its activations was called so far.

    Args:
        owner: whose forward it is.
        sequences: the activations that it counts.
        outer: the counted forward around it in this thread.
    """

    def __init__(self, owner: nn.Module, sequences: Iterable[PerCallActivation], outer: "_Forward | None") -> None:
        self.owner = owner
        self.turns = dict.fromkeys(sequences, 0)
        self.backward_pass = torch._C._current_graph_task_id()
        self.outer = outer


_running: ContextVar[_Forward | None] = ContextVar("arelu_meta_running", default=None)


def count_calls(owner: nn.Module, path: str) -> None:
    """Let every forward of a module begin the count of a `PerCallActivation` anew.

    Args:
        owner: the module whose forward makes the calls.
        path: of the `PerCallActivation`, from the owner.
    """
    paths, handles = vars(owner).get(_COUNTED, ((), ()))
    if not handles:
        handles = (
            owner.register_forward_pre_hook(_begin, prepend=True),
            owner.register_forward_hook(_end, always_call=True),
        )
    # The handles go along into copies and pickles: they keep their hooks' numbers from being given away again.
    vars(owner)[_COUNTED] = ((*(one for one in paths if one != path), path), handles)


def stop_counting(owner: nn.Module) -> None:
    """Take away what `count_calls` added.

    Args:
        owner: one for which it was called, or any other.
    """
    for handle in vars(owner).pop(_COUNTED, ((), ()))[1]:
        handle.remove()


def _sequences(owner: nn.Module) -> list[PerCallActivation]:
    found = []
    for path in owner.__dict__[_COUNTED][0]:
        module: Any = owner
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, PerCallActivation):
            found.append(module)
    return found


def _begin(owner: nn.Module, _: object) -> None:
    sequences = _sequences(owner)
    for sequence in sequences:
        sequence.turn = 0
    if not torch.compiler.is_compiling():
        _running.set(_Forward(owner, sequences, _running.get()))


def _end(owner: nn.Module, _: object, output: object) -> None:
    if torch.compiler.is_compiling():
        return
    forward = _running.get()
    while forward is not None and forward.owner is not owner:  # an inner one that was interrupted
        forward = forward.outer
    if forward is None:
        return
    _running.set(forward.outer)
    if output is None:  # the forward failed
        return
    for sequence, turns in forward.turns.items():
        if turns not in (0, len(sequence.order)):
            raise RunError(sequence.refusal(f"was called {turns} times, and the swap saw {len(sequence.order)}"))
