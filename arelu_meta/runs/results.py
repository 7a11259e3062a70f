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
    unit = "images"
    if results["task"] == "metatrain":
        unit = "tasks of unseen classes" if results.get("test_seen", 0) == 0 else "tasks"
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
    if (told := seen_line(results)) is not None:
        print(told)
    if results.get("folder"):
        print(f"written to {results['folder']}", flush=True)


def seen_line(results: Mapping[str, Any]) -> str | None:
    """Say in a sentence how much of what was tested on the model had seen before; None where it was nothing.

    Args:
        results: what results.json holds; of a version before 0.2 nothing is known.
    """
    unit = "test classes" if results.get("task") == "metatrain" else "test images"
    total = results.get("test_classes", results.get("test_n"))
    if "test_seen" not in results or results["test_seen"] == 0:
        return None
    if results["test_seen"] is None:
        return f"not known: how many of the {total} {unit} were trained on, by a model from before version 0.2"
    return f"NOT all unseen: {results['test_seen']} of {total} {unit} were trained or validated on before"


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
    if "folder" in results:
        results["folder"] = str(folder.path)  # it may have been moved since
    print(f"finished already: {folder.path}")
    try:
        report_results(results)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error!r}); remove it to run again") from error
    return results
