"""What Slurm's queue says of a sweep's jobs: one question for all of them, answered where accounting is off, too."""

import subprocess
import time

NAME = "arelu-meta-sweep"  # of each job
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_QUESTION = ["squeue", "--me", f"--name={NAME}", "--noheader", "--array", "--states=all", "--format=%i %T"]
_SECONDS = 30.0  # that an answer may take


class LeftQueued(KeyboardInterrupt):
    """The command was interrupted, and Slurm goes on with the jobs."""


class SlurmQueue:
    """The user's jobs of sweeps that Slurm knows.

    Args:
        every: seconds between two questions.
    """

    def __init__(self, every: float) -> None:
        self._every, self._asked = every, -float("inf")
        self._states: dict[str, str] | None = None

    def state_of(self, job: str) -> str:
        """Say how a job stands.

        Args:
            job: its id, as in `7_0`.

        Returns:
            Slurm's word; COMPLETED for one that Slurm has forgotten, UNKNOWN where it does not answer.
        """
        states = self._look()
        return "UNKNOWN" if states is None else states.get(job, "COMPLETED")

    def _look(self) -> dict[str, str] | None:
        if time.monotonic() - self._asked >= self._every:
            self._asked = time.monotonic()
            try:
                answer = subprocess.run(_QUESTION, capture_output=True, text=True, check=True, timeout=_SECONDS)
                pairs = [line.split() for line in answer.stdout.splitlines()]
                self._states = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
            except (OSError, subprocess.SubprocessError):
                self._states = None
        return self._states
