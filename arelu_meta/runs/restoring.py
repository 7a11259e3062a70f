"""Going on from a checkpoint's state, which may be another run's or a stranger's: refused where it does not fit."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.errors import InputError, RunError
from arelu_meta.validation import flatten

_REMARKS = ("notes", "skipped")  # of split.json: they decide nothing
# Where a run lies, how it is watched, and how its images are had: these may change from one start of a run to the next.
DECIDES_NOTHING = (
    *("run.folder", "run.resume", "run.device", "run.trackers", "run.checkpoint_minutes", "run.pictures"),
    *("train.shard", "train.compile", "train.sync_bn"),
    *("run.detect_anomaly", "run.deterministic", "data.workers", "data.cache", "data.download", "meta.task_chunk"),
)
_DATA_PLACE = ("data.root",)  # images may be moved while a run is not done: their digests are compared then
# Once the model and its device are known.
_RESOLVED_LATER = (("optim.act_lr", None), ("train.channels_last", "auto"), ("model.head_init", "auto"))
_LENGTHS = ("train.epochs", "meta.steps")
_RATES = ("optim.lr", "optim.head_lr", "optim.act_lr")  # a run that diverged goes on at a smaller one


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


def check_same_config(folder: Path, resolve: Callable[[int], object], ended_only: bool = False) -> None:
    """Refuse a config that would give other figures than the run in a folder has, or had begun with.

    Args:
        folder: of the run; one without a readable config.yaml is let through.
        resolve: gives the config to compare, its defaults resolved for a number of training images.
        ended_only: whether a run that has not ended is let through.

    Raises:
        InputError: naming the first field that decides figures and differs, with both values.
    """
    ended = (folder / "results.json").exists()
    if ended_only and not ended:
        return
    try:
        then = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        images = len(json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return
    now = flatten(resolve(images))
    if not isinstance(then, dict) or ("meta" in then) != ("meta.steps" in now):
        return  # of another task: whoever reads its state says so
    for name, value in now.items():
        group, _, field = name.rpartition(".")
        found = (then.get(group) if group else then) or {}
        before = found.get(field, value) if isinstance(found, dict) else value
        free = name in DECIDES_NOTHING or (name in _DATA_PLACE and not ended) or (name, value) in _RESOLVED_LATER
        if free or before == value or json.loads(json.dumps(value)) == before:
            continue
        if (not ended and name in _RATES) or (not ended and name in _LENGTHS and value > before):
            print(f"{name}: {value} instead of {before} from here on")
            continue
        if name in _LENGTHS:
            raise InputError(
                f"{name}: {value}, and the run in {str(folder)!r} was planned for {before}, over which its learning "
                f"rate goes down; --model.pretrained {folder} starts a new run from its model"
            )
        raise InputError(
            f"{name}: {value!r}, and the run in {str(folder)!r} {'ended' if ended else 'began'} with {before!r}; give "
            "what it had, or another run.folder"
        )


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
    if not isinstance(then, dict) or ("train_classes" in then) != ("train_classes" in now):
        return  # of another task: whoever reads its state says so
    parts = [name for name in parts if name in then or not name.endswith("_digests")]  # 0.1 wrote none
    if other := next((name for name in parts if then.get(name) != now[name]), None):
        raise InputError(
            f"run.resume: {str(checkpoint)!r} is of a run on other images, or on another split of them "
            f"({_what_differs(other, then, now)}); give the data and the run.seed of its run, or another run.folder"
        )


def _what_differs(part: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which images of a part came, went or changed."""
    if part.endswith("_digests"):
        return f"a file among the {part.removesuffix('_digests')} images has another content"
    before, after = then.get(part), now[part]
    if not isinstance(before, list) or not isinstance(after, list):
        return f"{part} in split.json differs"
    came, went = (
        sorted(set(map(str, after)) - set(map(str, before))),
        sorted(set(map(str, before)) - set(map(str, after))),
    )
    told = [f"{len(names)} {word}, such as {names[0]!r}" for names, word in ((came, "new"), (went, "gone")) if names]
    return f"{part}: {' and '.join(told) or 'another order'}"
