"""A sweep as Slurm's job arrays, without Ray: through submitit, whose local executor does the same on one machine."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arelu_meta.config import SweepConfig
from arelu_meta.errors import InputError, RunError, counted
from arelu_meta.runs.atomic_io import write_text
from arelu_meta.sweeping.quiet import stderr_to
from arelu_meta.sweeping.runs import ENDED, FAILED, Child, folder_of, note, read_state
from arelu_meta.sweeping.slurm_queue import NAME, OVER, LeftQueued, SlurmQueue
from arelu_meta.sweeping.spec import Spec, Trial

_POLL = 0.5  # seconds
_TIMEOUTS = 1000  # how often a job may be put back into the queue
_SECONDS_TO_CHECKPOINT = 120  # that Slurm's signal comes ahead of the end
_LOST_AFTER = 30.0  # seconds from a job's end, until its files must be seen
_ASK_EVERY = 30.0  # seconds between two questions about a job
_children: list[Child] = []  # of this job: what its signal handler must reach


@dataclass
class Job:
    """One run as a job; submitit pickles it, calls it, and calls `checkpoint` when the job's time is up.

    Args:
        spec: the sweep.
        trial: the run.
        sweep: the sweep's folder, absolute.
        threads: of the run.
        where: the working directory.
        retries: how often a run whose process was killed is gone on with.
    """

    spec: Spec
    trial: Trial
    sweep: Path
    threads: int
    where: str
    retries: int

    def __call__(self) -> str:
        """Do the run, or go on with it.

        Returns:
            How it ended.
        """
        for left in range(self.retries, -1, -1):
            child = Child(self.spec, self.trial, self.sweep, self.threads, self.where)
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

    def checkpoint(self) -> Any:
        """End the run's process, which writes a checkpoint, and put the job back into the queue."""
        import submitit

        for child in _children:
            child.stop()
        return submitit.helpers.DelayedSubmission(self)


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
    executor, cluster = _executor(config, spec, sweep)
    threads = max(1, int(config.cpus))
    jobs = [Job(spec, trial, sweep.absolute(), threads, str(Path.cwd()), config.retries) for trial in pending]
    if cluster == "local":
        _one_after_the_other(executor, jobs, config.workers or os.cpu_count() or 1, spec, tell)
        return
    queue = SlurmQueue(_ASK_EVERY)
    queued = _queued_before(executor, jobs, queue)
    if queued:
        print(f"{counted(len(queued), 'job')} of an earlier start still queued", flush=True)
    keys = {one.job.trial.key for one in queued}
    if new := [job for job in jobs if job.trial.key not in keys]:
        queued += _submit(executor, new, queue)
    if config.slurm.wait:
        try:
            _wait(queued, spec, tell)
        except KeyboardInterrupt:
            raise LeftQueued from None


def _queued_before(executor: Any, jobs: Sequence[Job], queue: SlurmQueue) -> list["_Queued"]:
    """Find the jobs of an earlier start of this sweep that Slurm still has."""
    import submitit

    found = []
    for job in jobs:
        file = _id_file(job)
        name = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if name and queue.state_of(name) not in OVER | {"UNKNOWN"}:
            found.append(_Queued(job, submitit.SlurmJob(executor.folder, name, tasks=[0]), queue, _ASK_EVERY))
    return found


def _submit(executor: Any, jobs: Sequence[Job], queue: SlurmQueue) -> list["_Queued"]:
    """Queue jobs as one array, and write down which job does which run."""
    import submitit

    try:
        with executor.batch():
            handles = [executor.submit(job) for job in jobs]
    except (submitit.core.utils.FailedJobError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        # A cluster without GPUs does not say that it was asked for one.
        hint = "; it has no GPUs to give: --gpus 0 asks for none" if "gres" in said.lower() else ""
        raise InputError(f"launcher: Slurm refused the jobs ({said}){hint}") from error
    for job, handle in zip(jobs, handles, strict=True):
        write_text(_id_file(job), f"{handle.job_id}\n")
    array = handles[0].job_id.split("_")[0]
    print(f"{counted(len(handles), 'job')} queued as array {array}; scancel {array} takes them back", flush=True)
    return [_Queued(*one, queue, _ASK_EVERY) for one in zip(jobs, handles, strict=True)]


def _id_file(job: Job) -> Path:
    """Say where the id of the job that does a run is written down."""
    return job.sweep / ".submitit" / f"{job.trial.key}.job"


def _executor(config: SweepConfig, spec: Spec, sweep: Path) -> tuple[Any, str]:
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
        name=NAME,
        timeout_min=config.slurm.minutes,
        cpus_per_task=int(config.cpus),
        gpus_per_node=int(gpus) or None,
        slurm_array_parallelism=config.workers or 256,
        slurm_signal_delay_s=_SECONDS_TO_CHECKPOINT,
        slurm_partition=config.slurm.partition,
        slurm_account=config.slurm.account,
        slurm_additional_parameters={"requeue": True},
    )
    return executor, executor.cluster


def _one_after_the_other(
    executor: Any, jobs: Sequence[Job], most: int, spec: Spec, tell: Callable[[Trial], object]
) -> None:
    """Run jobs on this machine, as many at once as it may have."""
    waiting, running, started = list(jobs), list[_Queued](), list[Any]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.pop(0)
                started.append(executor.submit(job))
                running.append(_Queued(job, started[-1], None, 0.0))
            running = [one for one in running if not one.is_over(spec, tell)]
            time.sleep(_POLL)
    finally:
        for one in running:
            one.handle.cancel(check=False)
        until = time.monotonic() + _LOST_AFTER
        while any(handle.state == "RUNNING" for handle in started) and time.monotonic() < until:
            time.sleep(_POLL / 5)  # a job's process ends a moment after its run


def _wait(running: list["_Queued"], spec: Spec, tell: Callable[[Trial], object]) -> None:
    while running:
        running = [one for one in running if not one.is_over(spec, tell)]
        time.sleep(_POLL)


@dataclass
class _Queued:
    """A job, its handle, Slurm's queue where it is Slurm's, and how many seconds lie between two questions about it."""

    job: Job
    handle: Any
    queue: SlurmQueue | None
    every: float
    asked: float = field(default_factory=time.monotonic)
    over_since: float | None = None

    def is_over(self, spec: Spec, tell: Callable[[Trial], object]) -> bool:
        """Say whether the run has ended, by its files; a job that is over and left none has failed.

        One that was cancelled has not: a later start goes on with its run.
        """
        folder = folder_of(self.job.sweep, self.job.trial)
        if read_state(folder, spec).status not in ENDED:
            if not self._is_lost():
                return False
            if self._state().startswith("CANCELLED"):
                return True
            # Of a job that submitit knows nothing of, `exception` waits for ever.
            error = self.handle.exception() if self.handle.done() else None
            reason = str(error or "its job ended without a word").strip().splitlines()[-1]
            note(folder, self.job.trial.parameters, FAILED, reason)
        tell(self.job.trial)
        return True

    def _is_lost(self) -> bool:
        """Ask about the job, but seldom: each question starts a program of Slurm's."""
        now = time.monotonic()
        if now - self.asked < self.every:
            return False
        self.asked = now
        with stderr_to(self.job.sweep / ".submitit" / "driver.log"):
            known = self.handle.done()
            over = known or (self.queue is not None and self._state() in OVER)
        if not over:
            self.over_since = None
            return False
        if known and self.handle.exception() is not None:
            return True
        self.over_since = now if self.over_since is None else self.over_since
        return now - self.over_since > _LOST_AFTER  # a shared file system shows files late

    def _state(self) -> str:
        """Ask submitit, which asks Slurm's accounting; that may be off, and the queue answers."""
        known = str(self.handle.state)
        return known if known != "UNKNOWN" or self.queue is None else self.queue.state_of(self.handle.job_id)
