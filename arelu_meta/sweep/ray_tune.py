"""A sweep on Ray Tune: on this machine, or on a cluster with a shared file system."""

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: no statistics to its makers, no files or notices of Tune's own.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run without a GPU sees none
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # what has been done lies in the run folders
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
)

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from arelu_meta.config import SweepConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.sweep.run import ENDED, FAILED, STOPPED, Child, Job, folder_of, last_words, note, read_state
from arelu_meta.sweep.spec import Domain, Spec, Trial, make_trial

_POLL = 0.2  # seconds
_OBJECT_STORE = 100 << 20  # bytes; nothing but parameters goes through it


_MOST_ROWS = 10_000  # of metrics; how far the halving counts


class SweepRun(tune.Trainable):
    """A run on a worker: a process beside it, of which it reports row after row of metrics.

    Rows that are on disk already are reported again, at once: the search and early stopping then know what they knew.
    """

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """Start the run, or go on with it.

        Args:
            config: its parameters.
            job: everything else; always given.
        """
        assert job is not None
        self._spec, self._told = job.spec, 0
        self._child = Child(job, make_trial(job.spec, config["parameters"]))
        self._child.start()

    def step(self) -> dict[str, Any]:
        """Wait for the next row of metrics, or for the end.

        Returns:
            The best value of the metric so far, and whether the run has ended.
        """
        while True:
            ended = self._child.ended()
            state = self._child.state()
            if self._told < len(state.scores):
                self._told += 1
                return {"score": state.scores[self._told - 1], "done": False}
            if ended:
                score = None if state.status == FAILED else state.score(self._spec)
                worst = -math.inf if self._spec.mode == "max" else math.inf
                return {"score": worst if score is None else score, "done": True}
            time.sleep(_POLL)

    def cleanup(self) -> None:
        """End the run's process."""
        if hasattr(self, "_child"):
            self._child.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: checkpoints lie in the run's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restore nothing: the run goes on by itself."""


class _Watcher(tune.Callback):
    """Notes what early stopping and dead workers did to runs, and tells of each that has ended."""

    def __init__(self, job: Job, tell: Callable[[Trial], object]) -> None:
        self._job, self._tell = job, tell

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, STOPPED, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        why = last_words(Path(trial.error_file)) if trial.error_file else ""
        self._ended(trial, FAILED, why or "its worker was lost")

    def _ended(self, trial: Any, status: str, why: str) -> None:
        made = make_trial(self._job.spec, trial.config["parameters"])
        folder = folder_of(self._job.sweep, made)
        if read_state(folder, self._job.spec).status not in ENDED:
            note(folder, made, status, why)
        self._tell(made)


def run_on_ray(
    config: SweepConfig,
    spec: Spec,
    sweep: Path,
    known: Sequence[Trial],
    pending: Sequence[Trial],
    tell: Callable[[Trial], object],
) -> None:
    """Do a sweep's runs.

    What has been done lies in the run folders, which a sweep with another file shares, so that Ray's own record of an
    experiment (`Tuner.restore`) is not needed.

    Args:
        config: workers, cores and GPUs a run, address, retries.
        spec: the sweep.
        sweep: its folder.
        known: runs that have ended; the search and early stopping take them into account.
        pending: the runs to do; of Optuna, those begun.
        tell: called with each run that has ended.

    Raises:
        InputError: if the cluster cannot be reached, or no machine in it could hold a run.
        RunError: if Ray fails.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith("ARELU_META_")}
    job = Job(spec, sweep.absolute(), max(1, int(config.cpus)), str(Path.cwd()), environment)
    storage = job.sweep / ".ray"
    storage.mkdir(parents=True, exist_ok=True)
    by_search = spec.file.search == "optuna"
    # With early stopping those that have ended run again, at once: its halving compares with them.
    listed = [trial.parameters for trial in ([*known, *pending] if spec.halving else pending)]
    with _stderr_to(storage / "driver.log"), _cluster(config):
        resources = {"cpu": config.cpus, "gpu": _gpus(config, spec)}
        _check_room(resources)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(SweepRun, job=job), resources),
            param_space=None if by_search else {"parameters": tune.grid_search(listed)},
            tune_config=tune.TuneConfig(
                search_alg=_optuna(spec, job.sweep, known, pending) if by_search else None,
                scheduler=_scheduler(spec),
                num_samples=max(spec.file.samples - len(known), 0) if by_search else 1,
                max_concurrent_trials=config.workers,
            ),
            run_config=tune.RunConfig(
                name=f"{os.getpid()}",
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=config.retries),
                callbacks=[_Watcher(job, tell)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except ray.exceptions.RayError as error:
            raise RunError(f"ray: {str(error).splitlines()[0]}; see {storage / 'driver.log'}") from error
        finally:
            shutil.rmtree(storage / f"{os.getpid()}", ignore_errors=True)


def _scheduler(spec: Spec) -> ASHAScheduler | None:
    if spec.halving is None:
        return None
    return ASHAScheduler(
        metric="score",
        mode=spec.mode,
        max_t=_MOST_ROWS,
        grace_period=spec.halving.grace,
        reduction_factor=spec.halving.factor,
        stop_last_trials=False,  # a run's test comes after its last row
    )


def _optuna(spec: Spec, sweep: Path, known: Sequence[Trial], pending: Sequence[Trial]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {"parameters": {name: _range(domain) for name, domain in spec.parameters.items()}}
    search = OptunaSearch(
        OptunaSearch.convert_search_space(space),
        metric="score",
        mode=spec.mode,
        points_to_evaluate=[_point(trial) for trial in pending],
        seed=spec.file.seed + len(known),  # or it would draw again what it drew first
    )
    for trial in known:
        score = read_state(folder_of(sweep, trial), spec).score(spec)
        if score is not None:
            search.add_evaluated_point(_point(trial), score)
    return search


def _range(domain: Domain) -> Any:
    """Write a field's values as Ray does."""
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    low, high = domain.values
    return tune.randint(low, high + 1) if domain.kind == "int" else getattr(tune, domain.kind)(low, high)


def _point(trial: Trial) -> dict[str, Any]:
    return {f"parameters/{name}": value for name, value in trial.parameters.items()}


def _gpus(config: SweepConfig, spec: Spec) -> float:
    if config.gpus != "auto":
        return config.gpus
    wanted = spec.base.run.device.split(":")[0] in {"auto", "cuda"}
    return 1.0 if wanted and ray.cluster_resources().get("GPU", 0) else 0.0


def _check_room(resources: dict[str, float]) -> None:
    """Refuse what no machine of the cluster could ever hold: Ray would wait for it."""
    for name, needed in resources.items():
        most = max((node["Resources"].get(name.upper(), 0) for node in ray.nodes() if node["Alive"]), default=0)
        if needed > most:
            raise InputError(f"{name}s: {needed:g} is more than any machine of the cluster has; give at most {most:g}")


@contextlib.contextmanager
def _cluster(config: SweepConfig) -> Iterator[None]:
    """Use a cluster: the one at config.address, the one that this process has joined already, or one of our own."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if config.address is None and not os.environ.get("RAY_ADDRESS"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = max(cores, math.ceil((config.workers or 1) * config.cpus))
        quiet |= {"num_cpus": room, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=config.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"address: {config.address!r} cannot be reached ({reason}); give a Ray cluster's HOST:PORT, or leave it out"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own ends the driver with status 1
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Send what this process and those that it starts say on standard error to a file: not all goes through Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
