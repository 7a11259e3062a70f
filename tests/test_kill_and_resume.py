"""The command beside this file: small runs three times in each run of the tests, whole ones where slow tests run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _kill_and_resume(*options: str) -> str:
    script = Path(__file__).parent / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--times", "3", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_small_run_that_is_killed_and_resumed_ends_to_the_last_bit_as_one_that_was_not() -> None:
    said = _kill_and_resume("--quick")
    assert said.endswith("6 killed runs, 0 differ from the uninterrupted one\n")
    assert said.count("never") < 6  # runs that had ended before they were to be killed


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_to_the_last_bit_as_one_that_was_not() -> None:
    assert _kill_and_resume().endswith("6 killed runs, 0 differ from the uninterrupted one\n")
