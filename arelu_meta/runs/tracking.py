"""Experiment trackers, TensorBoard to Weights & Biases, through accelerate's classes for them."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from arelu_meta.errors import InputError, MissingExtraError, nearest_names
from arelu_meta.validation import flatten

PROJECT = "arelu-meta"
# Name → the package's import name, and what pip calls it.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "dvclive": ("dvclive", "dvclive"),
    "swanlab": ("swanlab", "swanlab"),
    "trackio": ("trackio", "trackio"),
}


class Trackers:
    """The trackers of one run; one that fails on the way is dropped, for the run is worth more than its record there.

    Args:
        started: name → accelerate's tracker, started.
    """

    def __init__(self, started: Mapping[str, Any]) -> None:
        self.started = dict(started)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log a row of metrics.

        Args:
            row: column → value; what is no number is left out.
            step: where it belongs: an epoch, or optimiser steps.
        """
        values = {name: float(value) for name, value in row.items() if _is_number(value)}
        for name, tracker in list(self.started.items()):
            try:
                tracker.log(values, step=step)
            except Exception as error:  # each tracker has errors of its own, of its network above all
                self._drop(name, error)

    def finish(self) -> None:
        """Write out what is left and close."""
        for name, tracker in list(self.started.items()):
            try:
                tracker.finish()
            except Exception as error:
                self._drop(name, error)
        self.started.clear()

    def _drop(self, name: str, error: Exception) -> None:
        del self.started[name]
        print(f"tracker {name}: dropped ({_one_line(error)}); the run goes on", file=sys.stderr, flush=True)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()


def tracker_names(trackers: str | None) -> list[str]:
    """Split run.trackers at its commas.

    Args:
        trackers: run.trackers.
    """
    return [name.strip() for name in (trackers or "").split(",") if name.strip()]


def check_trackers(names: Sequence[str], where: str = "run.trackers") -> None:
    """Refuse an unknown tracker, or one whose package is missing, before a run begins.

    Args:
        names: keys of `PACKAGES`.
        where: the flag that named them, for errors.

    Raises:
        InputError: with the nearest names.
        MissingExtraError: with the command that installs the package.
    """
    for name in names:
        if name not in PACKAGES:
            raise InputError(f"{where}: {name!r} is not known; {nearest_names(name, PACKAGES)}")
        for module, package in (("accelerate", "accelerate"), PACKAGES[name]):
            if not _is_installed(module):
                raise MissingExtraError(f"{where}: {name!r} needs the package {package}: pip install {package}")


def open_trackers(
    names: Sequence[str], folder: Path, config: object, first_step: int = 0, where: str = "run.trackers"
) -> Trackers:
    """Start trackers for a run.

    TensorBoard writes into the folder's `tensorboard`; the others where their own settings (environment variables,
    logins) say, as project `arelu-meta` and run FOLDER's name. With several processes only the first one logs; call it
    after the run's Accelerator is made, where there is one.

    Args:
        names: keys of `PACKAGES`; none for no tracker.
        folder: of the run; it is there.
        config: the run's config, a dataclass, logged once.
        first_step: of what is to come: after a resume, TensorBoard hides what it holds from this step on.
        where: the flag that named them, for errors.

    Returns:
        The trackers; call `finish`, or use them in a `with`.

    Raises:
        InputError: if one is unknown, is not installed, or cannot be started.
    """
    check_trackers(names, where)
    started: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        try:
            started[name] = _start(name, folder, first_step)
            started[name].store_init_configuration(_plain(flatten(config)))
        except Exception as error:  # no login, no server, a changed interface: whatever the package raises
            Trackers(started).finish()
            raise InputError(
                f"{where}: {name!r} could not be started ({_one_line(error)}); set it up or leave it out"
            ) from error
    return Trackers(started)


def _start(name: str, folder: Path, first_step: int) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # what tells the first process from the others; an Accelerator that is there already made it
    run = folder.resolve().name
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": folder, "purge_step": first_step or None},
        "wandb": {"run_name": PROJECT, "name": run, "dir": str(folder)},
        "mlflow": {"experiment_name": PROJECT, "run_name": run},
        "comet_ml": {"run_name": PROJECT},
        "aim": {"run_name": run, "logging_dir": folder},
        "clearml": {"run_name": PROJECT, "task_name": run},
        "dvclive": {"dir": str(folder / "dvclive")},
        "swanlab": {"run_name": PROJECT, "experiment_name": run, "logdir": str(folder / "swanlab")},
        "trackio": {"run_name": PROJECT, "name": run},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
    tracker.start()
    return tracker


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make values that every tracker takes: a list, or None, becomes its text."""
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module without a spec stands in sys.modules
        return module in sys.modules


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
