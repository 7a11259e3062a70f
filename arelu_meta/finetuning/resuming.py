"""What a fine-tuning run's checkpoint must hold before a run goes on from it: it may be a stranger's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError
from arelu_meta.finetuning.loop import Sums
from arelu_meta.runs.restoring import check_kinds, restoring

_KINDS = {  # beside weights, tables and the optimiser's state
    "epoch": int,
    "updates": int,
    "peak_rate": float,
    "rate": float,
    "seconds": float,
    "model_digest": str,
}


def check_state(state: Mapping[str, Any], path: Path | None, optimizer: str) -> None:
    """Refuse another task's checkpoint, and one that no run could have written.

    Args:
        state: of the checkpoint.
        path: where it came from.
        optimizer: optim.name of this run.

    Raises:
        InputError: naming the first value that does not fit.
    """
    where = f"run.resume: {str(path)!r}"
    if "epoch" not in state:
        raise InputError(f"{where} is not one of a fine-tuning run; give one of arelu-meta finetune")
    with restoring(where, state, optimizer):
        check_kinds(state, _KINDS)
        judged = [float(row["validation_accuracy"] - row["validation_loss"]) for row in state["metrics"]]
        if len(judged) != state["epoch"]:
            raise ValueError(f"its metrics are of {len(judged)} epochs, not of {state['epoch']}")


def read_sums(values: Sequence[Any]) -> Sums:
    """Read what an epoch had come to.

    Args:
        values: steps, loss, right answers and images, as the checkpoint holds them.

    Raises:
        TypeError: if they are no numbers; ValueError likewise.
    """
    steps, loss, right, seen = values
    return Sums(int(steps), float(loss), int(right), int(seen))
