"""`arelu-meta sweep SPEC`: many runs of one task, each once, and the table of what they found."""

import csv
import importlib.util
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.config import SweepConfig
from arelu_meta.errors import InputError, MissingExtraError, RunError, counted
from arelu_meta.runs import atomic_io
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.progress import ProgressBar, print_table, progress
from arelu_meta.runs.run_folder import check_free, locked
from arelu_meta.sweep.run import BEGUN, ENDED, FAILED, FINISHED, MISSING, STOPPED, State, folder_of, read_state
from arelu_meta.sweep.spec import Spec, Trial, as_text, describe, listed_trials, make_trial, read_spec
from arelu_meta.validation import expanded, validate

_FIGURES = ("seed", "test_accuracy", "test_low", "test_high", "test_n", "seconds")
_SHOWN = 20  # rows on the screen
_SECONDS_TO_LEAVE = 60.0
_SECONDS_BETWEEN_TABLES = 5.0


@dataclass
class Row:
    """A run, and how it stands."""

    trial: Trial
    state: State


def sweep_task(config: SweepConfig) -> dict[str, Any]:
    """Do the runs that a sweep's folder does not hold yet, and write what all of them found.

    Args:
        config: the sweep's file, its folder, and where the runs go.

    Returns:
        What results.json holds; with dry_run, how many runs there are.

    Raises:
        InputError: if the file is wrong, or a package is missing.
        RunError: if no run could be done.
    """
    validate(config)
    spec = read_spec(config.spec)
    sweep = expanded(config.run.folder or f"runs/sweep-{Path(config.spec).stem}")
    trials = [] if spec.file.search == "optuna" else listed_trials(spec)
    _check_launcher(config, spec)
    if config.dry_run:
        return _show(spec, sweep, trials)
    check_place(sweep)
    with locked(sweep):
        return _sweep(config, spec, sweep, trials)


def check_place(sweep: Path) -> None:
    """Refuse a folder that holds something else, or cannot be made.

    Args:
        sweep: the sweep's folder.

    Raises:
        InputError: naming it.
    """
    atomic_io.check_place(sweep)
    if (sweep / "config.yaml").exists() or (sweep / "metrics.csv").exists():
        raise InputError(f"run.folder: {str(sweep)!r} holds a run, not a sweep; give another folder")


def _check_launcher(config: SweepConfig, spec: Spec) -> None:
    if config.launcher == "ray":
        needed = {"ray.tune": "sweep", **({"optuna": "sweep"} if spec.file.search == "optuna" else {})}
    else:
        needed = {"submitit": "slurm"}
        if spec.file.search == "optuna" or spec.halving is not None:
            what = "search: optuna" if spec.file.search == "optuna" else "early_stopping"
            raise InputError(f"launcher: submitit starts every run at once, and {what} needs --launcher ray")
    for module, extra in needed.items():
        if not _is_installed(module):
            raise MissingExtraError(
                f"launcher: {config.launcher} needs the package {module.split('.')[0]}: "
                f"pip install 'arelu-meta[{extra}]'"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _show(spec: Spec, sweep: Path, trials: Sequence[Trial]) -> dict[str, Any]:
    """Print the runs without doing any."""
    rows = read_rows(sweep, spec, trials)
    if rows:
        _print_rows(spec, rows)
    done = _count(rows, *ENDED)
    runs = spec.file.samples if spec.file.search == "optuna" else len(rows)
    print(f"{counted(runs, 'run')}, {done} of them done; nothing was started")
    return {"runs": runs, "done": done}


def _sweep(config: SweepConfig, spec: Spec, sweep: Path, trials: list[Trial]) -> dict[str, Any]:
    started = time.monotonic()
    # The sweep as it was understood, for whoever opens the folder.
    write_text(sweep / "sweep.yaml", yaml.safe_dump(describe(spec), sort_keys=False, allow_unicode=True))
    known, pending = _divide(config, spec, sweep, trials)
    left = max(spec.file.samples - len(known), len(pending)) if spec.file.search == "optuna" else len(pending)
    print(f"{counted(len(known) + left, 'run')} of {spec.file.task}, {len(known)} of them done; in {sweep}", flush=True)
    if left:
        with progress("sweep", left, "runs") as bar:
            watch = _Watch(spec, sweep, trials, bar, started)
            try:
                _launch(config, spec, sweep, known, pending, watch)
            except KeyboardInterrupt as stopped:
                how = "Slurm goes on with the rest, and the same command waits for it"
                if type(stopped) is KeyboardInterrupt:  # not slurm.LeftQueued
                    _wait_for_checkpoints(sweep)
                    how = "the same command goes on with the rest"
                rows = read_rows(sweep, spec, trials)
                write_table(sweep, spec, rows)
                said = f"{counted(_count(rows, *ENDED), 'run')} done; {how}"
                raise KeyboardInterrupt(said) from None
    rows = read_rows(sweep, spec, trials)
    write_table(sweep, spec, rows)
    results = write_results(sweep, spec, rows, time.monotonic() - started)
    _print_rows(spec, rows)
    _say(spec, sweep, rows)
    return results


def _divide(config: SweepConfig, spec: Spec, sweep: Path, trials: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    """Tell runs that have ended from those that are to be done."""
    known: list[Trial] = []
    pending: list[Trial] = []
    for trial in trials or _known_trials(sweep, spec):
        folder = folder_of(sweep, trial)
        status = read_state(folder, spec).status
        if status == FAILED and config.retry_failed:
            (folder / "trial.json").unlink()
            status = BEGUN
        (known if status in ENDED else pending).append(trial)
    return known, pending


def _launch(
    config: SweepConfig, spec: Spec, sweep: Path, known: list[Trial], pending: list[Trial], watch: "_Watch"
) -> None:
    if config.launcher == "submitit":
        from arelu_meta.sweep.slurm import run_on_slurm

        run_on_slurm(config, spec, sweep, pending, watch.ended)
        return
    from arelu_meta.sweep.ray_tune import run_on_ray

    run_on_ray(config, spec, sweep, known, pending, watch.ended)


class _Watch:
    """Shows and writes down each run that has ended.

    Args:
        spec: the sweep.
        sweep: its folder.
        trials: as in `read_rows`.
        bar: counts runs.
        started: time.monotonic of the sweep.
    """

    def __init__(self, spec: Spec, sweep: Path, trials: list[Trial], bar: ProgressBar, started: float) -> None:
        self.spec, self.sweep, self.trials, self.bar, self.started = spec, sweep, trials, bar, started
        self._done = {trial.key for trial in trials if self._has_ended(trial)}
        self._best: float | None = None
        self._written = 0.0

    def _has_ended(self, trial: Trial) -> bool:
        return read_state(folder_of(self.sweep, trial), self.spec).status in ENDED

    def ended(self, trial: Trial) -> None:
        """Count a run; one that had ended before this start of the sweep does not count again.

        Args:
            trial: the run.
        """
        if trial.key in self._done:
            return
        self._done.add(trial.key)
        state = read_state(folder_of(self.sweep, trial), self.spec)
        score = state.score(self.spec)
        if score is not None and state.status == FINISHED:
            better = max if self.spec.mode == "max" else min
            self._best = score if self._best is None else better(self._best, score)
        hours = (time.monotonic() - self.started) / 3600
        rate = {"runs_per_hour": (self.bar.done + 1) / max(hours, 1e-9)}
        self.bar.advance(1, **rate, **({} if self._best is None else {"best": self._best}))
        values = ", ".join(f"{name} {as_text(value)}" for name, value in trial.parameters.items())
        figure = f"{self.spec.file.metric} {score:.4g}" if score is not None else ""
        shown = {FINISHED: figure, STOPPED: f"stopped early, {figure}", FAILED: f"failed: {state.error}"}
        self.bar.line(
            f"{self.bar.done}/{self.bar.total} {trial.key}: {values}: {shown.get(state.status, state.status)}"
        )
        if time.monotonic() - self._written > _SECONDS_BETWEEN_TABLES:
            write_table(self.sweep, self.spec, read_rows(self.sweep, self.spec, self.trials))
            self._written = time.monotonic()


def _wait_for_checkpoints(sweep: Path) -> None:
    """Wait until the runs that were told to end have written their checkpoints."""
    until = time.monotonic() + _SECONDS_TO_LEAVE
    for folder in sorted((sweep / "runs").glob("*")):
        while time.monotonic() < until:
            try:
                check_free(folder)
                break
            except InputError:
                time.sleep(0.2)


def _say(spec: Spec, sweep: Path, rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row.state.status == FAILED]
    if failed and len(failed) == len(rows):
        which = "the only run" if len(rows) == 1 else f"all {len(rows)} runs"
        raise RunError(
            f"{which} failed; {failed[0].trial.key}: {failed[0].state.error} (mend it and give --retry_failed)"
        )
    best = _best_of(rows)
    if best is not None:
        values = " ".join(f"--{name} {as_text(value)}" for name, value in best.trial.parameters.items())
        results = best.state.results
        print(f"best by {spec.file.metric}: {values}, in {folder_of(sweep, best.trial)}")
        if {"test_accuracy", "test_low", "test_high"} <= results.keys():
            print(
                f"its test accuracy: {results['test_accuracy']:.1%} "
                f"(95 % interval {results['test_low']:.1%} to {results['test_high']:.1%})"
            )
    if left := len(rows) - _count(rows, *ENDED):
        print(f"{counted(left, 'run')} not done yet; the same command goes on with the rest")
    if failed:
        print(f"{counted(len(failed), 'run')} failed; results.csv says why, --retry_failed runs them again")
    print(f"written to {sweep}", flush=True)


# -- the table ---------------------------------------------------------------------------------------------------------


def read_rows(sweep: Path, spec: Spec, trials: Sequence[Trial] = ()) -> list[Row]:
    """Read how a sweep's runs stand, the best first.

    Args:
        sweep: its folder.
        spec: the sweep.
        trials: those that belong to it; of a search that chooses as it goes, those that lie in the folder.
    """

    def order(row: Row) -> tuple[bool, float]:
        score = row.state.score(spec)
        if score is None or row.state.status in (FAILED, MISSING):
            return True, 0.0
        return False, -score if spec.mode == "max" else score

    trials = trials or _known_trials(sweep, spec)
    return sorted([Row(trial, read_state(folder_of(sweep, trial), spec)) for trial in trials], key=order)


def _known_trials(sweep: Path, spec: Spec) -> list[Trial]:
    """List the runs in a sweep's folder that this sweep could have chosen."""
    found = []
    for path in sorted((sweep / "runs").glob("*/trial.json")):
        try:
            parameters = json.loads(path.read_text(encoding="utf-8"))["parameters"]
            trial = make_trial(spec, parameters)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            continue
        if trial.key == path.parent.name and parameters.keys() == spec.parameters.keys():
            found.append(trial)
    return found


def write_table(sweep: Path, spec: Spec, rows: Sequence[Row]) -> None:
    """Write results.csv: the parameters, the score, and the figures of each run.

    Args:
        sweep: its folder.
        spec: the sweep.
        rows: the best first.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # None is an empty cell
    writer.writerow(["run", *spec.parameters, "status", spec.file.metric, "rows", *_FIGURES, "error"])
    for row in rows:
        parameters = [row.trial.parameters[name] for name in spec.parameters]
        figures = [row.state.results.get(name) for name in _FIGURES]
        score = [row.state.status, row.state.score(spec), len(row.state.scores)]
        writer.writerow([row.trial.key, *parameters, *score, *figures, row.state.error])
    write_text(sweep / "results.csv", text.getvalue())


def _count(rows: Sequence[Row], *statuses: str) -> int:
    return sum(row.state.status in statuses for row in rows)


def _best_of(rows: Sequence[Row]) -> Row | None:
    """Find the best run that finished; its test figures were not looked at to choose it."""
    return next((row for row in rows if row.state.status == FINISHED), None)


def write_results(sweep: Path, spec: Spec, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """Write results.json: what the sweep found, with the best run's test.

    Args:
        sweep: its folder.
        spec: the sweep.
        rows: the best first.
        seconds: that this start of the sweep took.

    Returns:
        What the file holds.
    """
    file = spec.file
    results: dict[str, Any] = {"task": "sweep", "of": file.task, "search": file.search, "metric": file.metric}
    results |= {"mode": spec.mode, "seed": file.seed, "runs": len(rows)}
    results |= {status: _count(rows, status) for status in ENDED}
    best = _best_of(rows)
    if best is not None:
        results["best_run"] = best.trial.key
        results |= {f"best_{name}": value for name, value in best.trial.parameters.items()}
        results |= {f"best_{file.metric}": best.state.score(spec)}
        figures = ("test_accuracy", "test_low", "test_high", "test_n", "model", "activation", "init")
        results |= {name: best.state.results[name] for name in figures if name in best.state.results}
    results |= {"seconds": round(seconds, 2), "folder": str(sweep)}
    write_json(sweep / "results.json", results)
    return results


def _print_rows(spec: Spec, rows: Sequence[Row]) -> None:
    """Print the best runs, and how many of the others there are."""

    def short(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else as_text(value)

    header = ["run", *spec.parameters, "status", spec.file.metric, "test accuracy", "seconds"]
    cells = []
    for row in rows[:_SHOWN]:
        score, results = row.state.score(spec), row.state.results
        test = f"{results['test_accuracy']:.1%}" if "test_accuracy" in results else "-"
        seconds = f"{results['seconds']:.0f}" if "seconds" in results else "-"
        figures = [row.state.status, "-" if score is None else f"{score:.4f}", test, seconds]
        cells.append([row.trial.key, *map(short, row.trial.parameters.values()), *figures])
    print_table(f"{spec.file.search} over {', '.join(spec.parameters)}", header, cells)
    if len(rows) > _SHOWN:
        print(f"and {len(rows) - _SHOWN} more in results.csv")
