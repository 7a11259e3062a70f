"""Ctrl-C, SIGTERM and Slurm's warnings: held back until a step is done, then a checkpoint is written."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arelu_meta.runs.distributed import Ranks


# What Slurm sends ahead of the end of a job's time or its pre-emption: SIGTERM, or by `sbatch --signal` any other;
# SIGUSR1 and SIGUSR2 are what people and submitit choose.
WARNINGS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
HEARD = ("SIGINT", *WARNINGS)

Handler = Callable[[int, FrameType | None], Any]


_raised: list[int] = []  # signals that `interrupt` has heard since the command began


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, and take note of it: Python drops what is raised in a weak reference's callback.

    Args:
        number: of the signal.
        frame: where it arrived.
    """
    _raised.append(number)
    signal.default_int_handler(number, frame)


class Interrupts:
    """Signals that arrived while a step was under way."""

    def __init__(self) -> None:
        self._waiting: tuple[int, Handler] | None = None

    @property
    def waiting(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._waiting is not None

    def hear(self, number: int, handler: Handler) -> None:
        """Take note of a signal.

        Args:
            number: of the signal.
            handler: what it would have done, and does now where it is the second: whoever asks twice is in a hurry.
        """
        if self.waiting:
            handler(number, None)
        self._waiting = (number, handler)

    def deliver(self) -> None:
        """Let the signal that waits do what it does, which mostly is to raise KeyboardInterrupt."""
        if self._waiting is not None:
            (number, handler), self._waiting = self._waiting, None
            handler(number, None)


def _hear(found: Interrupts, handler: Handler, number: int, frame: FrameType | None) -> None:
    found.hear(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[Interrupts]:
    """Hold signals back inside the block, until `deliver` is called; what is left is delivered behind the block.

    One that was raised before and dropped waits from the start.

    Only signals that would raise an exception are held; those that are ignored, or end the process at once, and all of
    them in a thread other than the main one, are left alone.
    """
    found, before = Interrupts(), {}
    if _raised:
        found.hear(_raised[-1], signal.default_int_handler)
    if threading.current_thread() is threading.main_thread():
        for name in HEARD:
            number = getattr(signal, name, None)  # Windows has not all of them
            handler = None if number is None else signal.getsignal(number)
            if number is not None and callable(handler):
                before[number] = handler
                signal.signal(number, partial(_hear, found, handler))
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found.deliver()


@contextlib.contextmanager
def handling(number: int, handler: Handler) -> Iterator[None]:
    """Handle a signal inside the block, unless its sender's shell has it ignored (nohup) or this is no main thread.

    Args:
        number: of the signal.
        handler: what is done.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that start inside the block never hear what asks a run to stop, as a terminal and Slurm ask all.

    This process hears what came in the meantime behind the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in HEARD])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def terminated_as_by_ctrl_c() -> Iterator[None]:
    """Let what asks a process to leave end a run as Ctrl-C does."""
    _raised.clear()
    with contextlib.ExitStack() as stack:
        stack.callback(_raised.clear)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            stack.enter_context(handling(signal.SIGINT, interrupt))
        for number in [getattr(signal, name) for name in WARNINGS if hasattr(signal, name)]:
            # Whoever handles it already, as submitit does, is asked first, and told when the run can be stopped.
            if number == signal.SIGTERM or not callable(signal.getsignal(number)):
                stack.enter_context(handling(number, interrupt))
        yield


_STEPS_BETWEEN_TALKS = 10  # several processes agree on it, which costs each a wait for the others


class SavePoints:
    """Writes a checkpoint where one is due, always between two steps.

    Args:
        minutes: between two checkpoints.
        save: writes one; every process calls it.
        ranks: the run's processes; default: this one.
    """

    def __init__(self, minutes: float, save: Callable[[], object], ranks: "Ranks | None" = None) -> None:
        self.seconds, self.save = minutes * 60, save
        self.ranks = ranks
        self.last = time.monotonic()
        self.interrupts = Interrupts()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block a request to stop waits for the next `between`."""
        with held_back() as self.interrupts:
            yield

    def regular(self) -> None:
        """Take note that a regular checkpoint was written."""
        self.last = time.monotonic()

    def between(self, step: int) -> None:
        """Write a checkpoint if it is time, or if the run is asked to stop, which it then does.

        Args:
            step: steps done; several processes call this with the same numbers.

        Raises:
            KeyboardInterrupt: if the run is asked to stop, by Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2.
        """
        due, stop = time.monotonic() - self.last >= self.seconds, self.interrupts.waiting
        several = self.ranks is not None and self.ranks.processes > 1
        if several:
            if step % _STEPS_BETWEEN_TALKS:
                return
            due, stop = self._agreed(due, stop)
        if due or stop:
            self.save()
            self.regular()
        if stop:
            self.interrupts.deliver()
            if several:
                raise KeyboardInterrupt  # another process was asked

    def _agreed(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """The first process's clock counts for all, and a request to any of them."""
        import torch

        assert self.ranks is not None
        wishes = torch.tensor([float(due and self.ranks.main), float(stop)])
        first, second = self.ranks.total(wishes).tolist()
        return first > 0, second > 0
