import csv
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import SafetensorError

from arelu_meta.config import FinetuneConfig, RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.atomic_io import write_atomically, write_text
from arelu_meta.runs.checkpoints import load_checkpoint
from arelu_meta.runs.run_folder import (
    LOCK_NAME,
    FolderLock,
    check_free,
    default_folder,
    open_fresh,
    open_run,
    resumable,
)


def _fail(path: Path) -> None:
    path.write_text("half")
    raise OSError("no space left")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "kept.txt"
    write_text(file, "old")
    with pytest.raises(RunError, match=r"kept\.txt.*no space left.*intact"):
        write_atomically(file, _fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "raised", [SafetensorError("I/O error: No space left on device"), RuntimeError("unexpected pos 5760 vs 5654")]
)
def test_a_full_disk_is_named_whatever_the_writer_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def write(path: Path) -> None:
        raise raised

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(RunError, match=r"x\.bin: could not be written \(No space left on device\)"):
        write_atomically(tmp_path / "x.bin", write)
    assert list(tmp_path.iterdir()) == []


def test_open_run_writes_nothing(tmp_path: Path) -> None:
    open_run(RunConfig(folder=str(tmp_path / "new")), "finetune")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", ["config.yaml", "metrics.csv", "results.json", "model.safetensors"])
def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).write_text("{}")
    with pytest.raises(InputError, match=r"run\.folder.*already holds a run.*--run\.resume auto"):
        open_run(RunConfig(folder=str(tmp_path)), "finetune")


def test_a_folder_with_other_files_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert open_run(RunConfig(folder=str(tmp_path)), "finetune").path == tmp_path


def test_resume_auto_starts_where_there_is_no_checkpoint_and_says_finished_where_there_are_results(
    tmp_path: Path,
) -> None:
    config = RunConfig(folder=str(tmp_path / "run"), resume="auto")
    fresh = open_run(config, "finetune")
    assert fresh.resumed is None
    assert not fresh.finished
    fresh.start(FinetuneConfig(), {})
    (fresh.path / "results.json").write_text("{}")
    assert open_run(config, "finetune").finished


def test_checkpoints_round_trip_keep_two_and_carry_the_metrics(tmp_path: Path) -> None:
    folder = open_run(RunConfig(folder=str(tmp_path / "run")), "finetune")
    folder.start(FinetuneConfig(), {"train": ["a"]})
    for epoch in range(1, 4):
        folder.append_metrics({"epoch": epoch, "loss": 0.1 * epoch})
        folder.save_checkpoint(f"epoch-{epoch:04d}", {"weights": torch.full((2,), float(epoch))})
    assert sorted(path.name for path in folder.checkpoints.glob("*.pt")) == ["epoch-0002.pt", "epoch-0003.pt"]
    resumed = open_run(RunConfig(folder=str(folder.path), resume="auto"), "finetune").resumed
    assert resumed is not None
    assert torch.equal(resumed["weights"], torch.full((2,), 3.0))
    assert [row["epoch"] for row in resumed["metrics"]] == [1, 2, 3]


def test_a_run_that_goes_on_after_it_had_ended_is_unfinished_until_it_ends_again(tmp_path: Path) -> None:
    with open_run(RunConfig(folder=str(tmp_path / "run")), "finetune") as folder:
        folder.start(FinetuneConfig(), {})
        checkpoint = folder.save_checkpoint("epoch-0001", {})
        folder.finish({"test_accuracy": 0.5})
    with open_run(RunConfig(folder=str(folder.path), resume=str(checkpoint)), "finetune") as again:
        again.start(FinetuneConfig(), {})
    # Killed here, it must not pass for finished, with the results of before.
    assert not open_run(RunConfig(folder=str(folder.path), resume="auto"), "finetune").finished


def test_a_task_that_does_not_train_writes_over_no_run(tmp_path: Path) -> None:
    config = RunConfig(folder=str(tmp_path))
    assert open_fresh(config, "evaluate").path == tmp_path
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds a run \(results\.json\); give another folder$"):
        open_fresh(config, "evaluate")
    for resume in ("auto", "checkpoints/epoch-0001.pt"):
        with pytest.raises(InputError, match=r"run\.resume: '.*' is read by tasks that train"):
            open_fresh(RunConfig(folder=str(tmp_path), resume=resume), "evaluate")


def test_metrics_after_the_checkpoint_are_dropped_on_resume_so_that_each_row_stands_once(tmp_path: Path) -> None:
    folder = open_run(RunConfig(folder=str(tmp_path / "run")), "finetune")
    folder.start(FinetuneConfig(), {})
    folder.append_metrics({"epoch": 1, "loss": 0.5})
    folder.save_checkpoint("epoch-0001", {})
    folder.append_metrics({"epoch": 2, "loss": 0.4})
    again = open_run(RunConfig(folder=str(folder.path), resume="auto"), "finetune")
    again.start(FinetuneConfig(), {})
    again.append_metrics({"epoch": 2, "loss": 0.4})
    with (folder.path / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_config_yaml_is_read_back_as_it_was(tmp_path: Path) -> None:
    folder = open_run(RunConfig(folder=str(tmp_path / "run")), "finetune")
    config = FinetuneConfig()
    config.data.root = "Blüten mit Leerzeichen"
    config.optim.lr = 3e-4
    folder.start(config, {})
    content = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    assert content["data"]["root"] == "Blüten mit Leerzeichen"
    assert content["optim"]["lr"] == 3e-4


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"metrics": [], "model": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"run\.resume.*evil\.pt.*not a checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")


def test_a_missing_checkpoint_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pt' does not exist"):
        load_checkpoint(tmp_path / "nothing.pt")
    (tmp_path / "damaged.pt").write_bytes(b"not a zip file")
    with pytest.raises(InputError, match=r"damaged\.pt' is not a checkpoint"):
        load_checkpoint(tmp_path / "damaged.pt")


def test_default_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_folder("finetune")
    first.mkdir(parents=True)
    assert default_folder("finetune") != first


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("none", r"^no checkpoint was written yet; --run\.resume auto starts over$"),
        ("epoch-0001.pt", r"^epoch-0001\.pt is written; --run\.resume auto goes on from it$"),
    ],
)
def test_who_interrupts_a_run_before_its_first_checkpoint_is_not_sent_to_one(checkpoint: str, said: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=said), resumable(lambda: checkpoint):
        raise KeyboardInterrupt


_HOLD = (
    "import sys, time; from pathlib import Path; from arelu_meta.runs.run_folder import FolderLock\n"
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
