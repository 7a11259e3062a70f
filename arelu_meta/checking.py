"""What a config may hold: each field's type and range, and what only fits together; checked before anything is read."""

import math
import os
import re
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from arelu_meta.errors import InputError, nearest_names

# Lowest value allowed, and whether it is itself allowed.
_RANGES: dict[str, tuple[float, bool]] = {
    "run.seed": (0, True),
    "run.checkpoint_minutes": (0, True),
    "data.image_size": (1, True),
    "data.batch_size": (1, True),
    "data.per_class": (1, True),
    "optim.lr": (0, False),
    "optim.head_lr": (0, False),
    "optim.act_lr": (0, False),
    "optim.weight_decay": (0, True),
    "optim.warmup_epochs": (0, True),
    "optim.open_gates": (0, False),
    "optim.layer_decay": (0, False),
    "optim.clip_grad": (0, False),
    "optim.accumulate": (1, True),
    "data.folds": (2, True),
    "data.fold": (1, True),
    "data.workers": (0, True),
    "model.drop_rate": (0, True),
    "train.repeats": (1, True),
    "train.ema": (0, False),
    "train.label_smoothing": (0, True),
    "train.mixup": (0, True),
    "train.cutmix": (0, True),
    "train.patience": (1, True),
    "train.epochs": (1, True),
    "task.ways": (2, True),
    "task.shots": (1, True),
    "task.queries": (1, True),
    "meta.inner_lr": (0, False),
    "meta.inner_act_lr": (0, False),
    "meta.inner_steps": (1, True),
    "meta.batch_tasks": (1, True),
    "meta.task_chunk": (1, True),
    "meta.steps": (1, True),
    "eval.tasks": (2, True),
    "eval.inner_steps": (1, True),
    "eval.every": (1, True),
    "eval.validation_tasks": (1, True),
    "eval.patience": (1, True),
    "rounds": (1, True),
    "top_k": (1, True),
    "workers": (1, True),
    "cpus": (0, False),
    "gpus": (0, True),
    "retries": (0, True),
    "slurm.minutes": (1, True),
    "optim.small_lr": (0, False),
    "meta.tasks": (2, True),
    "meta.shots": (1, True),
    "focus.count": (1, True),
    "target": (0, False),
    "depth": (2, True),
    "margin": (0, True),
    "processes": (1, True),
}
# What a share must not exceed, and whether it may reach it.
_SHARES: dict[str, bool] = {
    "optim.open_gates": True,
    "optim.layer_decay": True,
    "model.drop_rate": False,
    "train.ema": False,
    "train.label_smoothing": False,
    "target": True,
}
_LARGEST = 2**32 - 1
LARGEST_IMAGE = 2**14  # pixels a side; beyond it torch counts elements in numbers that overflow
_LISTS = {"data.name", "model.name", "model.activation", "optim.name", "optim.lr", "pairs", "depth", "focus.runs"}
_LONGEST_SHOWN = 10**100
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes; what Linux allows


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """List a config's values by their flag's name.

    Args:
        config: a dataclass of `config.py`.
        prefix: what stands before each name.

    Returns:
        `{"run.seed": 0, "optim.lr": 0.001, …}` in the fields' order.
    """
    flat: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def validate(config: object) -> None:
    """Check every value that can be checked without reading anything.

    Args:
        config: a dataclass of `config.py`; a path in it becomes its text.

    Raises:
        InputError: naming the field, its value and what is allowed; no text may be empty.
    """
    _check_fields(config)
    for name, value in flatten(config).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_text(name, text)
        if name in _RANGES and value is not None and not isinstance(value, str):  # auto, or several with commas
            high = LARGEST_IMAGE if name == "data.image_size" else _LARGEST
            _check_number(name, value, *_RANGES[name], high)
        if name in _SHARES and value is not None and (value > 1 or (value == 1 and not _SHARES[name])):
            low = "at least 0" if _RANGES[name][1] else "above 0"
            most = "at most 1" if _SHARES[name] else "below 1"
            raise InputError(f"{name}: {value!r} is not allowed; give a number {low} and {most}")
    _check_together(flatten(config))
    device = flatten(config).get("run.device")
    if device is not None and device.split(":")[0] not in {"auto", "cpu", "cuda", "mps", "xpu"}:
        raise InputError(f"run.device: {device!r} is not known; give auto, cpu, cuda, cuda:N, mps or xpu")


MODES = ("full", "head", "activations", "gradual", "probe")
LAST_STAGES = re.compile(r"last-([1-9]\d*)")


def check_mode(mode: str) -> None:
    """Refuse an unknown train.mode.

    Args:
        mode: train.mode.

    Raises:
        InputError: with what is allowed.
    """
    if mode not in MODES and not LAST_STAGES.fullmatch(mode):
        raise InputError(f"train.mode: {mode!r} is not known; give {', '.join(MODES)} or last-N, as last-2")


def _check_together(flat: dict[str, Any]) -> None:
    """Check values that mean something only beside each other."""
    if "train.mode" in flat:
        check_mode(flat["train.mode"])
    warmup, epochs = flat.get("optim.warmup_epochs", 0), flat.get("train.epochs")
    if epochs is not None and warmup > epochs:
        raise InputError(f"optim.warmup_epochs: {warmup} is more than train.epochs, {epochs}; give at most {epochs}")
    fold, folds = flat.get("data.fold"), flat.get("data.folds")
    if fold is not None and folds is None:
        raise InputError(f"data.fold: {fold} is one of how many? give --data.folds with it")
    if fold is not None and folds is not None and fold > folds:
        raise InputError(f"data.fold: {fold} is not allowed; give a number from 1 to data.folds, {folds}")
    if folds is not None and flat.get("train.repeats", 1) > 1:
        raise InputError(f"train.repeats: {flat['train.repeats']} does not go with data.folds; give one of them")


def _check_fields(config: object, prefix: str = "") -> None:
    """Check what a command line or a YAML file cannot get wrong, but Python code can: names and types of fields."""
    hints = get_type_hints(type(config))
    for name in vars(config).keys() - hints.keys():
        raise InputError(f"{prefix}{name}: no such field; {nearest_names(name, hints)}")
    for name, hint in hints.items():
        value = getattr(config, name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
            setattr(config, name, value)
        if not _is_a(value, hint):
            raise InputError(f"{prefix}{name}: {value!r} is not allowed; give {describe_type(hint)}")
        if is_dataclass(hint):
            _check_fields(value, f"{prefix}{name}.")


def _is_a(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_is_a(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_a(one, get_args(hint)[0]) for one in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def describe_type(hint: Any) -> str:
    """Say in words what a field takes.

    Args:
        hint: the field's type.
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(describe_type(one) for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is Literal:
        choices = ", ".join(repr(choice) for choice in get_args(hint))
        return choices if len(get_args(hint)) == 1 else f"one of {choices}"
    if get_origin(hint) is list:
        return "a list of texts"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return words.get(hint) or f"a {hint.__name__}"


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"{name}: {text!r} is empty; give a value or leave {name} out")
    if "\0" in text or text != text.encode("utf-8", "replace").decode("utf-8"):
        raise InputError(f"{name}: {text!r} is no text that a file could be named by; give UTF-8 without null bytes")
    parts = re.split("[/,]" if name in _LISTS else "/", text)  # a study takes several names with commas between
    if len(text.encode()) > _LONGEST_PATH or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise InputError(f"{name}: {text[:20] + '…'!r} is too long ({len(text)} characters) to name anything")


def _check_number(name: str, value: float, low: float, inclusive: bool, high: int) -> None:
    allowed = f"{'at least' if inclusive else 'above'} {low:g}"
    # Whole numbers beyond this overflow inside torch and NumPy, each in its own way.
    if isinstance(value, int) and not -high <= value <= high:
        shown = value if abs(value) < _LONGEST_SHOWN else "a number of so many digits"  # Python prints no longer ones
        raise InputError(f"{name}: {shown} is not allowed; give a number {allowed} and at most {high}")
    if not math.isfinite(value) or value < low or (value == low and not inclusive):
        raise InputError(f"{name}: {value!r} is not allowed; give a number {allowed}")
