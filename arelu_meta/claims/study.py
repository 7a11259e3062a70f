"""`arelu-meta claims STUDY`: the study's runs, its verdicts, its folder and its page."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from arelu_meta.claims.amounts import thinned
from arelu_meta.claims.inputs import check_inputs, image_folders, inputs_of
from arelu_meta.claims.ledger import Ledger, write_rows
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import resolve
from arelu_meta.claims.running import announce, run_missing
from arelu_meta.claims.tables import Outcome, print_outcome
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, MissingExtraError, RunError, counted
from arelu_meta.runs.environment import environment
from arelu_meta.runs.folder import check_apart, open_run, write_json, write_text
from arelu_meta.runs.lock import locked
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.validation import validate

_MODULES = {
    "mnist": "arelu_meta.claims.mnist",
    "small-lr": "arelu_meta.claims.small_lr",
    "gradients": "arelu_meta.claims.gradients",
    "transfer": "arelu_meta.claims.transfer",
    "architectures": "arelu_meta.claims.architectures",
    "meta": "arelu_meta.claims.maml",
    "focus": "arelu_meta.claims.focus",
}

_NOTHING_JUDGED = (
    "No claim is judged: that takes two contenders with two values in common; mnist, gradients and meta judge arelu "
    "against relu."
)


def claims_task(config: ClaimsConfig) -> dict[str, Any]:
    """Run a study, or what is left of it, and judge its claims.

    Args:
        config: which study, and what of its recipe is changed.

    Returns:
        What results.json holds: `task`, `study`, `size`, `seeds`, `seconds`, `verdicts`, `tables`, `curves`,
        `heatmaps`, `images`, `notes`, `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the disk refuses, or a process was killed; finished runs are kept.
    """
    validate(config, ClaimsConfig)
    config = resolve(config)
    device = choose_device(config.run.device)
    folder = open_run(config.run, f"claims-{config.study}")
    if folder.finished and (found := _finished(folder.path, config)) is not None:
        return found
    study = importlib.import_module(_MODULES[config.study])
    with study.plan(thinned(config), device) as plan:
        check_apart(folder, image_folders(config))
        with locked(folder.path):
            ledger = Ledger(folder.path / "runs.jsonl")
            inputs = inputs_of(config)
            _start(folder.path, config, check_inputs(inputs, folder.path) if ledger.rows else inputs)
            return _run(config, plan, ledger, folder.path)


def _run(config: ClaimsConfig, plan: Plan, ledger: Ledger, folder: Path) -> dict[str, Any]:
    started = monotonic()
    missing = [trial for trial in plan.trials if trial not in ledger]
    print(plan.headline, flush=True)
    if missing:
        print(f"trying a few short runs, to say how long {counted(len(missing), 'run')} will take", flush=True)
    try:
        seconds = plan.seconds(missing) if missing else 0.0
    except KeyboardInterrupt:  # what the run says that was measured is of a folder that is gone
        done = len(plan.trials) - len(missing)
        raise KeyboardInterrupt(
            f"while the time was being estimated; {done} of {len(plan.trials)} runs are finished; the same command "
            "with --run.resume auto goes on"
        ) from None
    announce(len(missing), len(plan.trials), seconds, plan.processes)
    run_missing(ledger, plan.groups, plan.work, plan.processes)
    outcome = plan.conclude(ledger, folder)
    outcome.complete()
    if not outcome.claims:
        outcome.notes.insert(0, _NOTHING_JUDGED)
    write_rows(folder / "runs.csv", ledger.of_all(plan.trials))
    results = _results(config, plan, outcome, folder, monotonic() - started)
    write_json(folder / "results.json", results)
    print_outcome(outcome, folder)
    _write_page(folder)
    return results


def _start(folder: Path, config: ClaimsConfig, inputs: dict[str, str]) -> None:
    import shlex
    import sys

    try:
        # What ended here before had other flags; left there, it would pass for this study's end if this one is stopped.
        (folder / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"run.folder: {str(folder)!r} cannot be written ({error.strerror})") from error
    command = shlex.join(sys.argv)
    content = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", f"# {command}\n{content}")
    write_json(folder / "environment.json", environment() | {"command": command})
    write_json(folder / "inputs.json", inputs)


def _results(config: ClaimsConfig, plan: Plan, outcome: Outcome, folder: Path, seconds: float) -> dict[str, Any]:
    return {
        "task": "claims",
        "study": config.study,
        "size": config.size,
        "headline": plan.headline,
        "seed": config.run.seed,
        "seeds": sorted({trial.seed for trial in plan.trials}),
        "runs": len(plan.trials),
        "seconds": round(seconds, 1),
        **outcome.as_results(),
        "folder": str(folder),
    }


def _finished(folder: Path, config: ClaimsConfig) -> dict[str, Any] | None:
    """Return a finished study's results; None if it was another: its runs count all the same where they fit."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        found = f"{results['task']} {results['study']}"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"run.folder: {str(folder)!r} holds no finished study ({error!r}); give another") from error
    if found != f"claims {config.study}":
        raise InputError(f"run.folder: {str(folder)!r} holds {found}, not claims {config.study}; give another")
    now = asdict(config)
    for mapping in (before, now):
        mapping.pop("run", None)
        mapping.pop("processes", None)
    if before != now or results["seed"] != config.run.seed:
        return None
    print(f"finished already: {folder}")
    for verdict in results["verdicts"]:
        print(verdict["sentence"])
    if not (folder / "report.html").exists():
        _write_page(folder)
    return results  # type: ignore[no-any-return]


def _write_page(folder: Path) -> None:
    """Write the study's page; where what draws it is missing, say so: the study itself is done."""
    try:
        from arelu_meta.report import write_report

        write_report([folder], folder / "report.html")
    except MissingExtraError as error:
        print(f"no report.html: {error}", flush=True)
        return
    print(f"open {folder / 'report.html'}", flush=True)
