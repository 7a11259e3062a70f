import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arelu_meta.config import FinetuneConfig, RunConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.run_folder import LOCK_NAME, FolderLock, check_free, open_run

_HOLD = (
    "import sys, time; from pathlib import Path; from arelu_meta.runs.lock import FolderLock\n"
    "FolderLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(600)"
)


def _holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_by_name_and_free_as_soon_as_its_run_is_killed(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        with pytest.raises(InputError, match=rf"in use by another run \(process {process.pid} on"):
            open_run(RunConfig(folder=str(tmp_path), resume="auto"), "finetune")
        with pytest.raises(InputError, match="in use"):
            FolderLock(tmp_path).acquire()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / LOCK_NAME).exists()
    with open_run(RunConfig(folder=str(tmp_path), resume="auto"), "finetune") as folder:
        folder.start(FinetuneConfig(), {})
    assert not (tmp_path / LOCK_NAME).exists()


def test_another_thread_of_the_same_process_is_refused(tmp_path: Path) -> None:
    lock, found = FolderLock(tmp_path), []
    lock.acquire()

    def try_it() -> None:
        for attempt in (lambda: check_free(tmp_path), FolderLock(tmp_path).acquire):
            try:
                attempt()
            except InputError as error:
                found.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    lock.release()
    assert len(found) == 2
    check_free(tmp_path)


def test_a_lock_left_by_a_dead_run_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text(json.dumps({"process": 7, "host": "elsewhere"}))
    check_free(tmp_path)
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_run_that_started_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    config = RunConfig(folder=str(tmp_path / "run"), resume="auto")
    slow = open_run(config, "finetune")
    with open_run(config, "finetune") as quick:
        quick.start(FinetuneConfig(), {})
        quick.save_checkpoint("epoch-0001", {})
    with slow, pytest.raises(InputError, match="used by another run just now"):
        slow.start(FinetuneConfig(), {})
