"""When a run writes a checkpoint between its regular ones: every few minutes, and when it is asked to stop."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from arelu_meta.runs.interrupts import Interrupts, held_back
from arelu_meta.runs.ranks import Ranks

_STEPS_BETWEEN_TALKS = 10  # several processes agree on it, which costs each a wait for the others


class SavePoints:
    """Writes a checkpoint where one is due, always between two steps.

    Args:
        minutes: between two checkpoints.
        save: writes one; every process calls it.
        ranks: the run's processes; default: this one.
    """

    def __init__(self, minutes: float, save: Callable[[], object], ranks: Ranks | None = None) -> None:
        self.seconds, self.save = minutes * 60, save
        self.ranks = ranks or Ranks(torch.device("cpu"))
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
        if self.ranks.processes > 1:
            if step % _STEPS_BETWEEN_TALKS:
                return
            due, stop = self._agreed(due, stop)
        if due or stop:
            self.save()
            self.regular()
        if stop:
            self.interrupts.deliver()
            if self.ranks.processes > 1:
                raise KeyboardInterrupt  # another process was asked

    def _agreed(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """The first process's clock counts for all, and a request to any of them."""
        wishes = torch.tensor([float(due and self.ranks.main), float(stop)])
        first, second = self.ranks.total(wishes).tolist()
        return first > 0, second > 0
