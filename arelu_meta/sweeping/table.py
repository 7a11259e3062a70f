"""What a sweep found: one row a run, in results.csv, in results.json and on the screen."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.progress import print_table
from arelu_meta.sweeping.runs import FAILED, FINISHED, MISSING, STOPPED, State, folder_of, read_state
from arelu_meta.sweeping.spec import Spec, Trial, as_text, make_trial

_FIGURES = ("seed", "test_accuracy", "test_low", "test_high", "test_n", "seconds")
_SHOWN = 20  # rows on the screen


@dataclass
class Row:
    """A run, and how it stands."""

    trial: Trial
    state: State


def read_rows(sweep: Path, spec: Spec, trials: Sequence[Trial] = ()) -> list[Row]:
    """Look at a sweep's runs, the best first.

    Args:
        sweep: its folder.
        spec: the sweep.
        trials: those that belong to it; of a search that chooses as it goes, those that lie in the folder.
    """
    trials = trials or known_trials(sweep, spec)
    rows = [Row(trial, read_state(folder_of(sweep, trial), spec)) for trial in trials]
    return sorted(rows, key=lambda row: _order(row, spec))


def _order(row: Row, spec: Spec) -> tuple[bool, float]:
    score = row.state.score(spec)
    if score is None or row.state.status in (FAILED, MISSING):
        return True, 0.0
    return False, -score if spec.mode == "max" else score


def known_trials(sweep: Path, spec: Spec) -> list[Trial]:
    """List the runs in a sweep's folder that this sweep could have chosen.

    Args:
        sweep: its folder.
        spec: the sweep.
    """
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
    writer = csv.writer(text)
    writer.writerow(["run", *spec.parameters, "status", spec.metric, "rows", *_FIGURES, "error"])
    for row in rows:
        state = row.state
        values = ["" if row.trial.parameters[name] is None else row.trial.parameters[name] for name in spec.parameters]
        figures = [state.results.get(name, "") for name in _FIGURES]
        score = state.score(spec)
        start = [row.trial.key, *values, state.status, "" if score is None else score, len(state.scores)]
        writer.writerow([*start, *figures, state.error])
    write_text(sweep / "results.csv", text.getvalue())


def count(rows: Sequence[Row], *statuses: str) -> int:
    """Count the runs that stand so.

    Args:
        rows: of `read_rows`.
        *statuses: as in `State`.
    """
    return sum(row.state.status in statuses for row in rows)


def best_of(rows: Sequence[Row]) -> Row | None:
    """Find the best run that finished; its test figures were not looked at to choose it.

    Args:
        rows: the best first.
    """
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
    best = best_of(rows)
    results: dict[str, Any] = {
        "task": "sweep",
        "of": spec.task,
        "search": spec.search,
        "metric": spec.metric,
        "mode": spec.mode,
        "seed": spec.seed,
        "runs": len(rows),
        "finished": count(rows, FINISHED),
        "stopped": count(rows, STOPPED),
        "failed": count(rows, FAILED),
    }
    if best is not None:
        results["best_run"] = best.trial.key
        results |= {f"best_{name}": value for name, value in best.trial.parameters.items()}
        results |= {f"best_{spec.metric}": best.state.score(spec)}
        figures = ("test_accuracy", "test_low", "test_high", "test_n", "model", "activation", "init")
        results |= {name: best.state.results[name] for name in figures if name in best.state.results}
    results |= {"seconds": round(seconds, 2), "folder": str(sweep)}
    write_json(sweep / "results.json", results)
    return results


def print_rows(spec: Spec, rows: Sequence[Row]) -> None:
    """Print the best runs, and how many of the others there are.

    Args:
        spec: the sweep.
        rows: the best first.
    """
    header = ["run", *spec.parameters, "status", spec.metric, "test accuracy", "seconds"]
    cells = []
    for row in rows[:_SHOWN]:
        score, results = row.state.score(spec), row.state.results
        parameters = [_short(value) for value in row.trial.parameters.values()]
        test = f"{results['test_accuracy']:.1%}" if "test_accuracy" in results else "-"
        seconds = f"{results['seconds']:.0f}" if "seconds" in results else "-"
        shown = "-" if score is None else f"{score:.4f}"
        cells.append([row.trial.key, *parameters, row.state.status, shown, test, seconds])
    print_table(f"{spec.search} over {', '.join(spec.parameters)}", header, cells)
    if len(rows) > _SHOWN:
        print(f"and {len(rows) - _SHOWN} more in results.csv")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)
