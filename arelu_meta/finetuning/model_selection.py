"""Which epoch's model a run keeps: the best by validation, as far as so many images can tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arelu_meta.config import Keep


@dataclass(frozen=True)
class Judged:
    """An epoch (0: before training) and what validation said of its model."""

    epoch: int = 0
    accuracy: float = -1.0
    loss: float = 0.0


class Keeper:
    """The best epoch so far, and the one whose model is kept.

    Args:
        rule: best keeps the highest accuracy, of equal ones the lowest loss; last the last epoch; one_se the last of
            those whose accuracy is within one standard error of the highest. Of a hundred images, the epochs' highest
            accuracy is high by luck as well, and epochs at a falling learning rate are the better the later they are.
        images: how many are validated on.

    Source: the one-standard-error rule of Breiman, Friedman, Olshen and Stone 1984, section 3.4.3.
    """

    def __init__(self, rule: Keep, images: int) -> None:
        self.rule, self.images = rule, images
        self.best = self.kept = Judged()

    def judge(self, found: Judged) -> bool:
        """Take an epoch into account.

        Args:
            found: the epoch, later than all before.

        Returns:
            Whether its model is the one to keep.
        """
        if (found.accuracy, -found.loss) > (self.best.accuracy, -self.best.loss):
            self.best = found
        near = self.best.accuracy - standard_error(self.best.accuracy, self.images)
        keeps = found is self.best or self.rule == "last" or (self.rule == "one_se" and found.accuracy >= near)
        if keeps:
            self.kept = found
        return keeps

    def why(self, epochs: int) -> str:
        """Say which epoch's model is kept, and why.

        Args:
            epochs: that the run took.
        """
        kept = f"epoch {self.kept.epoch} of {epochs}" if self.kept.epoch else "the model before the first epoch"
        accuracy = f"validation accuracy {self.kept.accuracy:.1%}"
        if self.rule == "last":
            return f"kept: {kept}, the last, as train.keep asks ({accuracy})"
        if self.kept.epoch == 0 and epochs:
            return f"kept: {kept}, nothing learned helped ({accuracy})"
        if self.kept == self.best:
            return f"kept: {kept}, the best by validation ({accuracy}, loss {self.kept.loss:.3f})"
        error = standard_error(self.best.accuracy, self.images)
        return (
            f"kept: {kept}, the last within one standard error ({error:.1%}) of the best, {self.best.accuracy:.1%} in "
            f"epoch {self.best.epoch} ({accuracy})"
        )

    def restart(self, epoch: int) -> None:
        """Forget what was judged: what follows counts from an epoch on.

        Args:
            epoch: that has ended.
        """
        self.best = self.kept = Judged(epoch)

    def state(self) -> dict[str, list[float]]:
        """Return what a checkpoint keeps of it."""
        return {"best": _values(self.best), "kept": _values(self.kept)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept.

        Args:
            state: as `state` gave it.

        Raises:
            KeyError: if something is missing; TypeError or ValueError if it is no such state.
        """
        self.best, self.kept = _judged(state["best"]), _judged(state["kept"])


def standard_error(accuracy: float, images: int) -> float:
    """Tell how far an accuracy may be off: its standard error.

    Args:
        accuracy: the share of right answers.
        images: how many were asked for.

    Returns:
        A fraction, above 0 for all right and all wrong, too: two right and two wrong answers are added.

    Source: Agresti and Coull 1998.
    """
    trials = images + 4
    share = (accuracy * images + 2) / trials
    return math.sqrt(share * (1 - share) / trials)


def _values(one: Judged) -> list[float]:
    return [one.epoch, one.accuracy, one.loss]


def _judged(values: Sequence[Any]) -> Judged:
    epoch, accuracy, loss = values
    return Judged(int(epoch), float(accuracy), float(loss))
