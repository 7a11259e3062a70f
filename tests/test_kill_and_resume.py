"""The command beside this file, three times: too slow for every run of the tests, quick enough for CI's slow ones."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_to_the_last_bit_as_one_that_was_not() -> None:
    script = Path(__file__).parent / "kill_and_resume.py"
    done = subprocess.run([sys.executable, str(script), "--times", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("6 killed runs, 0 differ from the uninterrupted one\n")
