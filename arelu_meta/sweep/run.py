"""One run of a sweep: its folder, its process, its rows of metrics, and how it ended.

As a program, `python -m arelu_meta.sweep.run TASK …` is `arelu-meta TASK …` that ends with whoever started it.
"""

import contextlib
import csv
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.cli import main
from arelu_meta.errors import InputError, RunError
from arelu_meta.exit_status import BAD_INPUT, CANNOT_GO_ON
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.run_folder import check_free
from arelu_meta.sweep.spec import Spec, Trial

FINISHED, STOPPED, FAILED, BEGUN, MISSING = "finished", "stopped", "failed", "begun", "missing"
ENDED = (FINISHED, STOPPED, FAILED)
_SECONDS_TO_LEAVE = 60.0  # for a checkpoint, after SIGTERM
_LAST_WORDS = 4096  # bytes of output.log
_PR_SET_PDEATHSIG = 1


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
        """Return its best value of the metric; None without any.

        Args:
            spec: the sweep.
        """
        if self.scores:
            return self.scores[-1]
        found = self.results.get(spec.file.metric)
        return float(found) if isinstance(found, int | float) else None


def folder_of(sweep: Path, trial: Trial) -> Path:
    """Return where a run lies.

    Args:
        sweep: the sweep's folder.
        trial: the run.
    """
    return sweep / "runs" / trial.key


def read_state(folder: Path, spec: Spec) -> State:
    """Read how far a run is from what lies in its folder.

    Args:
        folder: of the run; it need not be there.
        spec: the sweep.
    """
    noted, results = _read_json(folder / "trial.json"), _read_json(folder / "results.json")
    better, scores = max if spec.mode == "max" else min, list[float]()
    for value in _read_metric(folder / "metrics.csv", spec.file.metric):
        scores.append(better([value, *scores[-1:]]))
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


def _read_metric(path: Path, metric: str) -> list[float]:
    """Read a column; a line that is being written, and rows without a number, are left out."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            texts = [row.get(metric) for row in csv.DictReader(file) if None not in row.values()]
    except OSError:
        return []
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(float(text or ""))
    return [value for value in found if math.isfinite(value)]


def note(folder: Path, trial: Trial, status: str, error: str = "") -> None:
    """Write down how a run stands, beside its other files.

    Args:
        folder: of the run; made where it is missing.
        trial: the run.
        status: begun, finished, stopped or failed.
        error: of a failed one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", {"parameters": trial.parameters, "status": status, "error": error})


@dataclass
class Job:
    """What whoever does runs needs to know beside a run.

    Args:
        spec: the sweep.
        sweep: its folder, absolute.
        threads: of each run.
        where: the working directory, which relative paths of a config start from.
        environment: variables on top of the process's own.
    """

    spec: Spec
    sweep: Path
    threads: int
    where: str
    environment: dict[str, str]


class Child:
    """A run in a process of its own, begun or gone on with.

    Args:
        job: the sweep.
        trial: the run.
    """

    def __init__(self, job: Job, trial: Trial) -> None:
        self.job, self.trial, self.folder = job, trial, folder_of(job.sweep, trial)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, most_seconds: float = 600.0) -> None:
        """Start the process, unless the run has ended; wait while another process still works in its folder.

        Args:
            most_seconds: to wait.

        Raises:
            RunError: if the folder is not free by then.
        """
        self._wait_for_folder(most_seconds)
        if read_state(self.folder, self.job.spec).status in ENDED:
            return
        note(self.folder, self.trial, BEGUN)
        content = asdict(self.trial.config)
        content["run"] |= {"folder": str(self.folder), "resume": "auto"}
        write_text(self.folder / "trial.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        command = [sys.executable, "-m", "arelu_meta.sweep.run", self.job.spec.file.task]
        threads = {"OMP_NUM_THREADS": str(self.job.threads), "MKL_NUM_THREADS": str(self.job.threads)}
        with (self.folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(self.folder / "trial.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.job.where,
                env=os.environ | self.job.environment | threads | {"PYTHONUNBUFFERED": "1"},
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
        """Return True if the process has ended (or never had to start); `state` is final then."""
        return self._process is None or self._process.poll() is not None

    def state(self) -> State:
        """Return how the run stands; once it has ended, write that down.

        Raises:
            RunError: if its process was killed: it can be gone on with.
        """
        state = read_state(self.folder, self.job.spec)
        if not self.ended() or state.status in ENDED or self._process is None:
            return state
        status = self._process.returncode
        if status not in (0, 1, BAD_INPUT, CANNOT_GO_ON):
            raise RunError(f"{self.folder}: the run's process was ended from outside (status {status})")
        error = last_words(self.folder / "output.log") or f"it ended with status {status} and left no results"
        note(self.folder, self.trial, FAILED, error)
        return read_state(self.folder, self.job.spec)

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


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent is gone; the run then writes a checkpoint and ends."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
