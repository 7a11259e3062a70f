"""Going on from a checkpoint's state, which may be another run's or a stranger's: refused where it does not fit."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.data.provenance import compose
from arelu_meta.data.sets import decode
from arelu_meta.errors import InputError, RunError
from arelu_meta.validation import flatten

_PARTS = ("train", "validation", "test")
_REMARKS = ("notes", "skipped")  # of split.json: they decide nothing
# Where a run lies, how it is watched, and how its images are had: these may change from one start of a run to the next.
DECIDES_NOTHING = (
    *("run.folder", "run.resume", "run.device", "run.trackers", "run.checkpoint_minutes", "run.pictures"),
    *("train.shard", "train.compile", "train.sync_bn"),
    *("run.detect_anomaly", "run.deterministic", "data.workers", "data.cache", "data.download", "meta.task_chunk"),
    *("data.root", "train.channels_last"),  # images are compared one by one; the order of memory is the device's
)
_RESOLVED_LATER = (("model.head_init", "auto"), ("data.range", "auto"))  # once classes and pixels are known
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


def check_same_config(folder: Path, resolve: Callable[[int], object]) -> None:
    """Refuse a config that would give other figures than the run in a folder has, or had begun with.

    Args:
        folder: of the run; one without a readable config.yaml is let through.
        resolve: gives the config to compare, its defaults resolved for a number of training images.

    Raises:
        InputError: naming the first field that decides figures and differs, with both values.
    """
    ended = (folder / "results.json").exists()
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
        free = name in DECIDES_NOTHING or (name, value) in _RESOLVED_LATER
        if free or before == value or json.loads(json.dumps(value)) == before:
            continue
        if (not ended and name in _RATES) or (not ended and name in _LENGTHS and value > before):
            print(f"{name}: {value} instead of {before} from here on")
            continue
        if name in _LENGTHS:
            state = "has ended after" if ended else "was planned for"
            raise InputError(
                f"{name}: {value}, and the run in {str(folder)!r} {state} {before}; give that, or another run.folder "
                f"with --model.pretrained {folder}, a new run from its model"
            )
        raise InputError(
            f"{name}: {value!r}, and the run in {str(folder)!r} {'ended' if ended else 'began'} with {before!r}; give "
            "what it had, or another run.folder"
        )


def check_same_images(folder: Path, split: Mapping[str, Any], where: str) -> None:
    """Refuse other images than a run had, or another split of them: what was trained on would be tested on.

    Args:
        folder: of the run; without a readable split.json, as of a checkpoint that was taken out, it is let through.
        split: what this run trains, validates and tests on; JSON types.
        where: what the sentence starts with.

    Raises:
        InputError: naming the first image that came, went or changed.
    """
    try:
        then = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    now = json.loads(json.dumps(dict(split)))
    if not isinstance(then, dict) or ("train_classes" in then) != ("train_classes" in now):
        return  # of another task: whoever reads its state says so
    if what := _what_differs(then, now):
        raise InputError(
            f"{where} is of a run on other images, or on another split of them ({what}); give the data and the "
            "run.seed of its run, or another run.folder"
        )


def _what_differs(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say which images came or went, else whose content is another, else what else of two splits differs."""
    was, there = ({name for part in _PARTS for name in _names(split, part)} for split in (then, now))
    changes = ((there - was, "new"), (was - there, "gone"))
    told = [f"{len(names)} {word}, such as {min(names)!r}" for names, word in changes if names]
    if told:
        return " and ".join(told)
    before, after = _digests(then), _digests(now)
    changed = [name for name, digest in after.items() if before.get(name, digest) != digest]
    if changed:
        return f"{len(changed)} with another content, such as {changed[0]!r}"
    texts = [name for name in now if name not in _REMARKS and not name.endswith("_digests")]
    codes = [name for name in now if name.endswith("_digests") and name in then]
    other = next((name for name in texts if _names(then, name) != _names(now, name)), None)
    other = other or next((name for name in codes if then[name] != now[name]), None)
    return None if other is None else f"{other} in split.json differs"


def _names(split: Mapping[str, Any], part: str) -> list[str]:
    """List a part's names with their letters composed: a copy of the folder may have taken them apart."""
    found = split.get(part)
    return [compose(str(name)) for name in found] if isinstance(found, list) else []


def _digests(split: Mapping[str, Any]) -> dict[str, int]:
    """Read each image's digest; none of a split that 0.1 wrote, and none of names that stand for several images."""
    found: dict[str, int] = {}
    names = [name for part in _PARTS for name in _names(split, part)]
    if len(set(names)) < len(names):
        return found
    for part in _PARTS:
        with contextlib.suppress(ValueError, TypeError):
            found |= zip(_names(split, part), decode(split.get(f"{part}_digests", "")).tolist(), strict=True)
    return found
