"""A sweep as Slurm's job arrays, without Ray: through submitit, whose local executor does the same on one machine."""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arelu_meta.config import SweepConfig
from arelu_meta.errors import InputError, RunError, counted
from arelu_meta.runs.atomic_io import write_text
from arelu_meta.sweep.run import ENDED, FAILED, Child, Job, folder_of, note, read_state
from arelu_meta.sweep.spec import Spec, Trial

_POLL = 0.5  # seconds
_TIMEOUTS = 1000  # how often a job may be put back into the queue
_SECONDS_TO_CHECKPOINT = 120  # that Slurm's signal comes ahead of the end
_LOST_AFTER = 30.0  # seconds from a job's end, until its files must be seen: a shared file system shows them late
_ASK_EVERY = 30.0  # seconds between two questions to Slurm
_NAME = "arelu-meta-sweep"  # of each job
_children: list[Child] = []  # of this job: what its signal handler must reach


class LeftQueued(KeyboardInterrupt):
    """The command was interrupted, and Slurm goes on with the jobs."""


@dataclass
class RunTrial:
    """What a job does; submitit pickles it, calls it, and calls `checkpoint` when the job's time is up.

    Args:
        job: the sweep.
        retries: how often a run whose process was killed is gone on with.
    """

    job: Job
    retries: int

    def __call__(self, trial: Trial) -> str:
        """Do the run, or go on with it.

        Args:
            trial: the run.

        Returns:
            How it ended.
        """
        for left in range(self.retries, -1, -1):
            child = Child(self.job, trial)
            _children[:] = [child]
            child.start()
            while not child.ended():
                time.sleep(_POLL)
            try:
                return child.state().status
            except RunError:
                if not left:
                    raise
        raise AssertionError("every attempt returns or raises")

    def checkpoint(self, trial: Trial) -> Any:
        """End the run's process, which writes a checkpoint, and put the job back into the queue.

        Args:
            trial: the run.
        """
        import submitit

        for child in _children:
            child.stop()
        return submitit.helpers.DelayedSubmission(self, trial)


def run_on_slurm(
    config: SweepConfig, spec: Spec, sweep: Path, pending: Sequence[Trial], tell: Callable[[Trial], object]
) -> None:
    """Queue a sweep's runs, and wait for them unless told not to; what an earlier start queued is not queued again.

    Args:
        config: workers, cores and GPUs a run, how Slurm is asked.
        spec: the sweep.
        sweep: its folder, on a file system that all nodes share.
        pending: the runs to do.
        tell: called with each run that has ended.

    Raises:
        InputError: if Slurm is not there or refuses.
        LeftQueued: if it is interrupted; the jobs stay.
    """
    executor = _executor(config, spec, sweep)
    job = Job(spec, sweep.absolute(), max(1, int(config.cpus)), str(Path.cwd()), {})
    work = RunTrial(job, config.retries)
    if executor.cluster == "local":
        _run_here(executor, work, pending, config.workers or os.cpu_count() or 1, tell)
        return
    still = queued()
    ids = {trial.key: _read(_id_file(job, trial)) for trial in pending}
    new = [trial for trial in pending if ids[trial.key] not in still]
    if len(new) < len(pending):
        print(f"{counted(len(pending) - len(new), 'job')} of an earlier start still queued", flush=True)
    if new:
        ids |= _submit(executor, work, new)
    if config.slurm.wait:
        try:
            _wait(job, {trial.key: trial for trial in pending}, ids, tell)
        except KeyboardInterrupt:
            raise LeftQueued from None


def queued() -> set[str]:
    """List the ids of the user's jobs of sweeps that Slurm has still to end.

    Raises:
        RunError: if Slurm does not answer.
    """
    question = ["squeue", "--me", f"--name={_NAME}", "--noheader", "--array", "--format=%i"]
    try:
        return set(subprocess.run(question, capture_output=True, text=True, check=True, timeout=60).stdout.split())
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(f"slurm: squeue does not answer ({error}); the same command later goes on") from error


def _submit(executor: Any, work: RunTrial, trials: Sequence[Trial]) -> dict[str, str]:
    """Queue runs as one array, and write down which job does which run."""
    import submitit

    try:
        handles = executor.map_array(work, trials)
    except (submitit.core.utils.FailedJobError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        # A cluster without GPUs does not say that it was asked for one.
        hint = "; it has no GPUs to give: --gpus 0 asks for none" if "gres" in said.lower() else ""
        raise InputError(f"launcher: Slurm refused the jobs ({said}){hint}") from error
    ids = {trial.key: str(handle.job_id) for trial, handle in zip(trials, handles, strict=True)}
    for trial in trials:
        write_text(_id_file(work.job, trial), f"{ids[trial.key]}\n")
    array = handles[0].job_id.split("_")[0]
    print(f"{counted(len(handles), 'job')} queued as array {array}; scancel {array} takes them back", flush=True)
    return ids


def _id_file(job: Job, trial: Trial) -> Path:
    """Return where the id of the job that does a run is written down."""
    return job.sweep / ".submitit" / f"{trial.key}.job"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _executor(config: SweepConfig, spec: Spec, sweep: Path) -> Any:
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)  # a Slurm without accounting is one that works
    asked = None if config.slurm.cluster == "auto" else config.slurm.cluster
    try:
        executor = submitit.AutoExecutor(
            folder=sweep.absolute() / ".submitit" / "%j", cluster=asked, slurm_max_num_timeout=_TIMEOUTS
        )
    except RuntimeError as error:
        raise InputError(f"slurm.cluster: {asked!r} is not on this machine ({error}); give auto or local") from error
    gpus = 0 if config.gpus == "auto" and spec.base.run.device == "cpu" else config.gpus
    if gpus == "auto":
        gpus = 1 if executor.cluster == "slurm" else 0
    if gpus != int(gpus) or config.cpus != max(1, int(config.cpus)):
        raise InputError("cpus, gpus: Slurm gives whole ones only; give whole numbers with --launcher submitit")
    executor.update_parameters(
        name=_NAME,
        timeout_min=config.slurm.minutes,
        cpus_per_task=int(config.cpus),
        gpus_per_node=int(gpus) or None,
        slurm_array_parallelism=config.workers or 256,
        slurm_signal_delay_s=_SECONDS_TO_CHECKPOINT,
        slurm_partition=config.slurm.partition,
        slurm_account=config.slurm.account,
        slurm_additional_parameters={"requeue": True},
    )
    return executor


def _run_here(
    executor: Any, work: RunTrial, trials: Sequence[Trial], most: int, tell: Callable[[Trial], object]
) -> None:
    """Run jobs on this machine, as many at once as it may have."""
    waiting, running = list(trials), dict[str, tuple[Trial, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                trial = waiting.pop(0)
                running[trial.key] = trial, executor.submit(work, trial)
            for trial, handle in list(running.values()):
                if handle.done():
                    del running[trial.key]
                    if _settle(work.job, trial, handle.exception()):
                        tell(trial)
            time.sleep(_POLL)
    finally:
        for _, handle in running.values():
            handle.cancel(check=False)


def _wait(job: Job, left: dict[str, Trial], ids: dict[str, str], tell: Callable[[Trial], object]) -> None:
    """Wait until each run has ended by its files, or has been out of Slurm's queue for some time."""
    seen = dict.fromkeys(left, time.monotonic())  # when each was last in the queue
    asked, still = -float("inf"), set[str]()
    while left:
        now = time.monotonic()
        if now - asked >= _ASK_EVERY:
            asked, still = now, queued()
        for key, trial in list(left.items()):
            if ids[key] in still:
                seen[key] = now
            ended = read_state(folder_of(job.sweep, trial), job.spec).status in ENDED
            if not ended and now - seen[key] < _LOST_AFTER:
                continue
            del left[key]
            if ended or _settle(job, trial, _error_of(job, ids[key])):
                tell(trial)
            else:
                print(f"{key}: its job {ids[key]} left Slurm's queue without a word", flush=True)
        time.sleep(_POLL)


def _error_of(job: Job, job_id: str) -> Exception | None:
    """Read what a job that is over raised; None where it left no word, as one that was cancelled."""
    import submitit

    handle: Any = submitit.SlurmJob(job.sweep / ".submitit" / "%j", job_id, tasks=[0])
    return handle.exception() if handle.paths.result_pickle.exists() else None


def _settle(job: Job, trial: Trial, error: Exception | None) -> bool:
    """Note a run whose job raised something as failed; return False if its job just went: a later start goes on."""
    folder = folder_of(job.sweep, trial)
    if error is not None and read_state(folder, job.spec).status not in ENDED:
        note(folder, trial, FAILED, str(error).strip().splitlines()[-1].strip())
    return read_state(folder, job.spec).status in ENDED
