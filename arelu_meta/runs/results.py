"""What a finished run says."""

import json
from collections.abc import Mapping
from typing import Any

from arelu_meta.errors import InputError
from arelu_meta.runs.folder import RunFolder


def report_results(results: Mapping[str, Any]) -> None:
    """Print a run's test accuracy with its interval, and where the run lies.

    Args:
        results: what results.json holds.
    """
    unit = "tasks of unseen classes" if results["task"] == "metatrain" else "images"
    judged = f"{results['test_n']} {unit}"
    if results.get("normalization"):
        judged += f", {results['normalization']} normalisation"
    mean, over = "", ""
    if runs := results.get("runs"):
        mean, over, judged = "mean ", f"over {runs} runs ", f"{judged} in all"
    print(
        f"{mean}test accuracy {results['test_accuracy']:.1%} "
        f"(95 % interval {over}{results['test_low']:.1%} to {results['test_high']:.1%}, {judged})"
    )
    if results.get("folder"):
        print(f"written to {results['folder']}", flush=True)


def finished_results(folder: RunFolder, task: str) -> dict[str, Any]:
    """Say that a run had ended already, and return what it found.

    Args:
        folder: holds results.json.
        task: whose results they must be.

    Raises:
        InputError: if the results cannot be read, or are another task's.
    """
    path = folder.path / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error}); remove it to run again") from error
    found = results.get("task") if isinstance(results, dict) else None
    if found != task:
        raise InputError(
            f"run.folder: {str(folder.path)!r} holds results of {found}, not of {task}; give another folder"
        )
    print(f"finished already: {folder.path}")
    try:
        report_results(results)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error!r}); remove it to run again") from error
    return results
