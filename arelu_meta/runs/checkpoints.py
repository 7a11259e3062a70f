"""Checkpoints: written at once, two kept, each with a checksum; read without running code, refused where unfit."""

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from arelu_meta.data.image_io import compose, decode
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.atomic_io import write_atomically, write_text
from arelu_meta.validation import flatten

KEPT = 2
_NAME = re.compile(r"(epoch|step)-\d+(-step-\d+)?")
_ASIDE = ".aside"
_LONGEST_CHECKSUM = 1024  # characters


def list_checkpoints(folder: Path) -> list[Path]:
    """List a folder's checkpoints, the oldest first.

    Args:
        folder: `checkpoints/` of a run; need not be there. What a person put there under another name is none: it
            would be gone on from, or removed with the older ones.
    """
    return sorted((path for path in folder.glob("*.pt") if _NAME.fullmatch(path.stem) and path.is_file()), key=_when)


def _when(path: Path) -> tuple[list[int], str]:
    """Order by the numbers: `epoch-0003` lies before `epoch-0003-step-000120`, which is of the epoch after it."""
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.stem


def checksum_file(path: Path) -> Path:
    """Return the file that holds a checkpoint's checksum, in the form that `sha256sum --check` reads."""
    return path.with_name(f"{path.name}.sha256")


def digest_of(path: Path) -> str:
    """Compute a file's SHA-256, as 64 hexadecimal digits.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_digest(path: Path, digest: str) -> bool:
    """Say whether a file is there, with the content that a checkpoint remembers.

    Args:
        path: the file.
        digest: what `digest_of` gave.
    """
    return path.is_file() and digest_of(path) == digest


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint and its checksum; drop all of the folder's but the last two.

    Args:
        path: `epoch-N.pt`, `epoch-N-step-N.pt` or `step-N.pt`; the numbers in its name sort by time.
        state: tensors and plain Python values, so that `torch.load(weights_only=True)` reads it.

    Raises:
        RunError: if the disk refuses; the checkpoints before it are intact.
    """

    def write_checksum(whole: Path) -> None:
        # Before the checkpoint has its name: one that is there was always checked against its own checksum.
        write_text(checksum_file(path), f"{digest_of(whole)}  {path.name}\n")

    write_atomically(path, lambda temporary: torch.save(dict(state), temporary), before=write_checksum)
    for old in list_checkpoints(path.parent)[:-KEPT]:
        old.unlink(missing_ok=True)
        checksum_file(old).unlink(missing_ok=True)


def set_aside_later(folder: Path, path: Path) -> list[Path]:
    """Rename the checkpoints after the one that a run goes on from: damaged, or of a course that it leaves.

    Args:
        folder: `checkpoints/` of the run.
        path: what it goes on from, in the folder; nothing is done where it lies elsewhere.

    Returns:
        The new names.
    """
    if path.resolve().parent != folder.resolve():
        return []
    later = [other for other in list_checkpoints(folder) if _when(other) > _when(path)]
    moved = [other.rename(other.with_name(other.name + _ASIDE)) for other in later]
    for other in later:
        checksum_file(other).unlink(missing_ok=True)
    return moved


def why_damaged(path: Path) -> str | None:
    """Say what is wrong with a checkpoint's bytes, if anything.

    Args:
        path: a file.

    Returns:
        A phrase; None where the file is whole and the checksum, if there is one, is right.
    """
    beside = checksum_file(path)
    if beside.is_file():
        with beside.open(encoding="utf-8", errors="replace") as file:
            found = re.match(r"([0-9a-f]{64})\b", file.read(_LONGEST_CHECKSUM))
        if found is None:
            return f"{beside.name} holds no checksum"
        if digest_of(path) != found[1]:
            return f"its bytes are not those that {beside.name} was made of"
    return why_no_archive(path)  # whoever made the file may have made its checksum, too


def why_no_archive(path: Path) -> str | None:
    """Say why a file cannot be what torch.save writes, before anything of it is unpacked.

    Args:
        path: a file.

    Returns:
        A phrase; None where it may be one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return f"it is no archive that torch wrote ({error})"
    # torch stores without compression; what would unpack to more than the file holds is a bomb.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, which torch's files are not"
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        return "it claims to hold more than it is long"
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: a file that `write_checkpoint` wrote.

    Returns:
        Its state.

    Raises:
        InputError: if it is missing, damaged, or no checkpoint.
    """
    where = f"run.resume: {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{where} does not exist; give never, auto or a checkpoint (checkpoints/*.pt)")
    try:
        damage = why_damaged(path)
    except OSError as error:
        raise InputError(
            f"{where} cannot be read ({error.strerror or error}); give another of checkpoints/*.pt"
        ) from error
    if damage is not None:
        raise InputError(
            f"{where} is not a checkpoint of this toolkit, or damaged ({damage}); give one of checkpoints/*.pt"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a damaged file
        # torch's own messages advise to load it without the protection.
        raise InputError(
            f"{where} is not a checkpoint of this toolkit (it is damaged, or holds more than tensors and plain values, "
            "such as code, which is never run); give one of checkpoints/*.pt"
        ) from error
    if not isinstance(state, dict) or not all(map(_are_rows, (state.get("metrics"), state.get("times", [])))):
        raise InputError(f"{where} is not a checkpoint of this toolkit; give one of checkpoints/*.pt")
    return state


def _are_rows(rows: object) -> bool:
    """Say whether something is a table: plain rows, all with the columns of the first."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and row and row.keys() == rows[0].keys() and all(map(is_cell, row.values()))
        for row in rows
    )


def is_cell(value: object) -> bool:
    """Say whether a table may hold a value: lists that hold one another, and endless numbers, can't be written out.

    Args:
        value: of a checkpoint, which may be a stranger's.
    """
    if isinstance(value, int):
        return abs(value) < 2**64
    return value is None or isinstance(value, float | str)


def load_last(folder: Path) -> tuple[dict[str, Any] | None, Path | None, list[str]]:
    """Read the newest whole checkpoint of a run.

    Args:
        folder: `checkpoints/` of the run.

    Returns:
        Its state and path, None where the folder holds no checkpoint; and a sentence for each damaged one after it.

    Raises:
        InputError: if there are checkpoints, but all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), path, damaged
        except InputError as error:
            damaged.append(str(error).removeprefix("run.resume: ").split("; give")[0])
    if damaged:
        raise InputError(
            f"run.resume: no checkpoint in {str(folder)!r} is whole: {'; '.join(damaged)}; give another run.folder"
        )
    return None, None, []


_PARTS = ("train", "validation", "test")
_REMARKS = ("notes", "skipped")  # of split.json: they decide nothing
# Where a run lies, how it is watched, and how its images are had: these may change from one start of a run to the next.
DECIDES_NOTHING = (
    *("run.folder", "run.resume", "run.device", "run.trackers", "run.checkpoint_minutes", "run.pictures"),
    *("train.shard", "train.compile"),
    *("run.detect_anomaly", "run.deterministic", "data.workers", "data.cache", "data.download", "meta.task_chunk"),
    *(
        "data.root",
        "data.labels",
        "train.channels_last",
    ),  # images and labels are compared one by one; the order of memory is the device's
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
    """Say which images came, went or have another content, else what else of two splits differs."""
    was, there = ({name for part in _PARTS for name in _names(split, part)} for split in (then, now))
    before, after = _digests(then), _digests(now)
    changed = {name for name, digest in after.items() if before.get(name, digest) != digest}
    changes = ((there - was, "new"), (was - there, "gone"), (changed, "with another content"))
    if told := [f"{len(names)} {word}, such as {min(names)!r}" for names, word in changes if names]:
        return " and ".join(told)
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
