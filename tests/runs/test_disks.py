"""Disks that are full, read-only or gone in the middle of a run: real ones, mounted for the test."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta.backbones.networks import read_tensors
from arelu_meta.cli import main
from arelu_meta.runs.checkpoints import load_last
from arelu_meta.runs.run_folder import RunFolder

RUN = (
    "metatrain --model.name mnist_linear --data.image_size 8 --task.queries 2 --meta.steps 4 --meta.batch_tasks 2 "
    "--eval.every 1 --eval.tasks 4 --eval.validation_tasks 2 --run.device cpu --run.pictures false --run.resume auto"
)

FINETUNE = (
    "finetune --model.name mnist_linear --model.pretrained false --data.image_size 12 --data.per_class 20 "
    "--train.epochs 4 --train.ema 0.9 --run.device cpu --run.pictures false --run.resume auto"
)


def _mount(*arguments: str) -> str:
    """Call mount; return what it complains of."""
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, text=True).stderr
    except FileNotFoundError:
        return "there is no mount"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if complaint := _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)):
        pytest.skip(f"no disk can be mounted here: {complaint.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)


def _fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"0")


def _run(folder: Path) -> int:
    return main([*RUN.split(), "--run.folder", str(folder)])


def _run_until(step: int, then: Callable[[], object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run, and let something happen to the disk when a step's metrics are about to be written."""
    append = RunFolder.append_metrics

    def happens(self: RunFolder, row: dict[str, Any]) -> None:
        if row["step"] == step:
            then()
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", happens)
        return _run(folder)


def _one_line(capsys: pytest.CaptureFixture[str], reason: str) -> None:
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err


def _results(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in content.items() if key not in {"seconds", "folder"}}


def _last_step(folder: Path) -> int:
    state, _, damaged = load_last(folder / "checkpoints")
    assert state is not None
    assert not damaged
    step: int = state["step"]
    return step


def test_a_full_and_then_a_read_only_disk_are_one_line_each_and_the_run_goes_on_when_they_are_mended(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path / "whole") == 0
    run = disk / "run"
    assert _run_until(3, lambda: _fill(disk), run, monkeypatch) == 3
    _one_line(capsys, os.strerror(errno.ENOSPC))
    assert _last_step(run) == 2
    (disk / "filler").unlink()
    assert not _mount("-o", "remount,ro", str(disk))
    assert _run(run) == 2
    _one_line(capsys, "is read-only); give another")
    assert _last_step(run) == 2
    assert not _mount("-o", "remount,rw", str(disk))
    assert _run(run) == 0
    assert _results(run) == _results(tmp_path / "whole")
    assert (run / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_a_disk_that_is_read_only_from_the_start_is_one_line(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not _mount("-o", "remount,ro", str(disk))
    assert _run(disk / "run") == 2
    _one_line(capsys, "is read-only); give another")


def test_a_disk_that_vanishes_is_one_line_and_the_run_goes_on_when_it_is_back(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"  # the same disk under another name, as one that is unplugged and comes back
    kept.mkdir()
    assert not _mount("--bind", str(disk), str(kept))
    try:
        gone = lambda: subprocess.run(["umount", "-l", str(disk)], check=True)  # noqa: E731
        assert _run_until(3, gone, disk / "run", monkeypatch) == 3
        _one_line(capsys, "is gone")
        assert _last_step(kept / "run") == 2
        assert list(disk.iterdir()) == []
        assert not _mount("--bind", str(kept), str(disk))
        assert _run(disk / "run") == 0
        assert _results(disk / "run")["steps"] == 4
    finally:
        subprocess.run(["umount", "-l", str(kept)], capture_output=True)


@pytest.mark.parametrize("method", ["append_metrics", "save_checkpoint"])
def test_fine_tuning_that_stopped_on_a_full_disk_goes_on_to_the_same_bits_once_there_is_space(
    method: str, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finetune(folder: Path) -> int:
        return main([*FINETUNE.split(), "--run.folder", str(folder)])

    assert finetune(tmp_path / "whole") == 0
    run, calls = disk / "run", []
    write = getattr(RunFolder, method)

    def on_a_full_disk(self: RunFolder, *arguments: Any) -> Any:
        calls.append(method)
        if len(calls) == 3:
            _fill(disk)
        return write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, method, on_a_full_disk)
        assert finetune(run) == 3
    _one_line(capsys, os.strerror(errno.ENOSPC))
    (disk / "filler").unlink()
    assert finetune(run) == 0
    assert _results(run) == _results(tmp_path / "whole")
    assert (run / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    weights = [read_tensors(folder / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    # Of what it could not write whole, nothing is left.
    left = {path.relative_to(run) for path in run.rglob("*")}
    assert left == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")}
