"""One run of a sweep: its folder, its process, its rows of metrics, and how it ended."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.errors import InputError, RunError
from arelu_meta.exit_status import BAD_INPUT, CANNOT_GO_ON
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.lock import check_free
from arelu_meta.sweeping.spec import Spec, Trial

FINISHED, STOPPED, FAILED, BEGUN, MISSING = "finished", "stopped", "failed", "begun", "missing"
ENDED = (FINISHED, STOPPED, FAILED)
_SECONDS_TO_LEAVE = 60.0  # for a checkpoint, after SIGTERM
_LAST_WORDS = 4096  # bytes of output.log


@dataclass
class State:
    """How far a run is.

    Args:
        status: finished, stopped (early), failed, begun or missing.
        error: why it failed, in one line.
        scores: the best value of the sweep's metric so far, after each row of metrics.
        results: what results.json holds.
    """

    status: str
    error: str
    scores: list[float]
    results: dict[str, Any]

    def score(self, spec: Spec) -> float | None:
        """Give its best value of the metric; None without any.

        Args:
            spec: the sweep.
        """
        if self.scores:
            return self.scores[-1]
        found = self.results.get(spec.metric)
        return float(found) if isinstance(found, int | float) else None


def folder_of(sweep: Path, trial: Trial) -> Path:
    """Say where a run lies.

    Args:
        sweep: the sweep's folder.
        trial: the run.
    """
    return sweep / "runs" / trial.key


def read_state(folder: Path, spec: Spec) -> State:
    """Look how far a run is, by what lies in its folder.

    Args:
        folder: of the run; it need not be there.
        spec: the sweep.
    """
    noted = _read_json(folder / "trial.json")
    results = _read_json(folder / "results.json")
    scores = read_scores(folder, spec)
    if results:
        return State(FINISHED, "", scores, results)
    status = noted.get("status", MISSING)
    return State(status if status in ENDED else BEGUN if noted else MISSING, noted.get("error", ""), scores, {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_scores(folder: Path, spec: Spec) -> list[float]:
    """Read the best value of the metric so far after each row of metrics.csv.

    Args:
        folder: of the run.
        spec: the sweep.

    Returns:
        One number a row; a line that is being written, and rows without a number, are left out.
    """
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            texts = [row.get(spec.metric) for row in csv.DictReader(file) if None not in row.values()]
    except OSError:
        return []
    better = max if spec.mode == "max" else min
    scores: list[float] = []
    for text in texts:
        try:
            value = float(text or "")
        except ValueError:
            continue
        if math.isfinite(value):
            scores.append(better([value, *scores[-1:]]))
    return scores


def note(folder: Path, trial_parameters: Mapping[str, Any], status: str, error: str = "") -> None:
    """Write down how a run stands, beside its other files.

    Args:
        folder: of the run; made where it is missing.
        trial_parameters: field → its value in this run.
        status: begun, finished, stopped or failed.
        error: of a failed one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", {"parameters": dict(trial_parameters), "status": status, "error": error})


class Child:
    """A run in a process of its own, begun or gone on with.

    Args:
        spec: the sweep.
        trial: the run.
        sweep: the sweep's folder.
        threads: that it may use.
        where: the working directory, which relative paths of the config start from.
        environment: variables on top of this process's own.
    """

    def __init__(
        self,
        spec: Spec,
        trial: Trial,
        sweep: Path,
        threads: int = 1,
        where: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.spec, self.trial, self.folder = spec, trial, folder_of(sweep, trial)
        self._process: subprocess.Popen[bytes] | None = None
        self._threads, self._where = threads, where
        self._environment = dict(environment or {})

    def start(self, most_seconds: float = 600.0) -> None:
        """Start the process, unless the run has ended; wait while another process still works in its folder.

        Args:
            most_seconds: to wait.

        Raises:
            RunError: if the folder is not free by then.
        """
        self._wait_for_folder(most_seconds)
        if read_state(self.folder, self.spec).status in ENDED:
            return
        note(self.folder, self.trial.parameters, BEGUN)
        content = asdict(self.trial.config)
        content["run"] |= {"folder": str(self.folder), "resume": "auto"}
        write_text(self.folder / "trial.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        command = [sys.executable, "-m", "arelu_meta.sweeping.child", self.spec.task]
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        with (self.folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(self.folder / "trial.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._where,
                env=os.environ | self._environment | threads | {"PYTHONUNBUFFERED": "1"},
            )

    def _wait_for_folder(self, most_seconds: float) -> None:
        until = time.monotonic() + most_seconds
        while self.folder.is_dir():
            try:
                check_free(self.folder)
                return
            except InputError as error:  # one whose worker was killed writes its checkpoint; or it is run twice at once
                if time.monotonic() > until:
                    raise RunError(str(error)) from error
            time.sleep(0.5)

    def ended(self) -> bool:
        """Say whether the process has ended (or never had to start); if so, `state` is final."""
        return self._process is None or self._process.poll() is not None

    def state(self) -> State:
        """Say how the run stands; once it has ended, write that down.

        Raises:
            RunError: if its process was killed: it can be gone on with.
        """
        state = read_state(self.folder, self.spec)
        if not self.ended() or state.status in ENDED or self._process is None:
            return state
        status = self._process.returncode
        if status not in (0, 1, BAD_INPUT, CANNOT_GO_ON):
            raise RunError(f"{self.folder}: the run's process was ended from outside (status {status})")
        error = last_words(self.folder / "output.log") or f"it ended with status {status} and left no results"
        note(self.folder, self.trial.parameters, FAILED, error)
        return read_state(self.folder, self.spec)

    def stop(self) -> None:
        """End the process: it writes a checkpoint first."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def last_words(log: Path) -> str:
    """Find why a run failed: its last line, without `error: `.

    Args:
        log: what it printed.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_WORDS))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("error: ") if lines else ""
