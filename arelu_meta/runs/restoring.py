"""Going on from a checkpoint's state, which may be another run's or a stranger's: refused where it does not fit."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError, RunError

_REMARKS = ("notes", "skipped")  # of split.json: they decide nothing


@contextlib.contextmanager
def restoring(where: str, state: Mapping[str, Any], optimizer: str) -> Iterator[None]:
    """Turn what goes wrong inside the block, which restores a checkpoint's state, into one sentence.

    Args:
        where: what the sentence starts with.
        state: of the checkpoint.
        optimizer: optim.name of this run, which must be the checkpoint's.

    Raises:
        InputError: if the checkpoint does not fit the config.
    """
    try:
        if state["optimizer_name"] != optimizer:
            raise ValueError(f"its optim.name is {state['optimizer_name']!r}, not {optimizer!r}")
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # torch raises whatever it meets in a state that no run of ours wrote
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise InputError(f"{where} does not fit this config ({reason}); give the config of its run") from error


def check_kinds(state: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse a state that does not hold what a run counts with.

    Args:
        state: of a checkpoint.
        kinds: name → the type of its value; whole numbers are counts, and do where a float is asked for.

    Raises:
        KeyError: if a value is missing; TypeError and ValueError if it is of another kind, or a count below 0.
    """
    for name, kind in kinds.items():
        value: Any = state[name]
        if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
            raise TypeError(f"its {name} is a {type(value).__name__}")
        if kind is int and value not in range(2**32):
            raise ValueError(f"its {name} is {value}")


def check_same_images(checkpoint: Path, split: Mapping[str, Any]) -> None:
    """Refuse to go on with other images, or with another split of them: what was trained on would be tested on.

    Args:
        checkpoint: a file in a run's `checkpoints/`; one that was taken out of its folder is let through.
        split: what this run trains, validates and tests on; JSON types.

    Raises:
        InputError: naming the first part that differs from the run's split.json.
    """
    try:
        then = json.loads((checkpoint.parent.parent / "split.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    now = json.loads(json.dumps(dict(split)))
    parts = [name for name in now if name not in _REMARKS]
    if isinstance(then, dict) and (other := next((name for name in parts if then.get(name) != now[name]), None)):
        raise InputError(
            f"run.resume: {str(checkpoint)!r} is of a run on other images, or on another split of them ({other} in "
            "split.json differs); give the data and the run.seed of its run, or another run.folder"
        )
