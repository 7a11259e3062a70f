import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arelu_meta.backbones.networks import read_tensors

# BatchNorm frozen, augmentation off; batches of 30 leave one of 20, which two processes share evenly and a third not.
_ARGUMENTS = [
    *["finetune", "--data.image_size", "16", "--data.per_class", "20", "--data.batch_size", "30"],
    *["--data.augmentation", "none", "--model.name", "conv4_32", "--model.pretrained", "false"],
    *["--model.activation", "arelu", "--model.init", "preserve", "--optim.lr", "0.05", "--train.epochs", "2"],
    *["--train.freeze_bn", "true"],
]

Run = Callable[..., list["subprocess.CompletedProcess[str]"]]


def test_two_processes_give_one_processs_result(run_processes: Run, tmp_path: Path) -> None:
    single = run_processes(1, *_ARGUMENTS, "--run.folder", str(tmp_path / "one"))
    double = run_processes(2, *_ARGUMENTS, "--run.folder", str(tmp_path / "two"))
    assert [one.returncode for one in single + double] == [0, 0, 0], [one.stderr for one in single + double]
    weights = [read_tensors(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert abs(results[0]["test_loss"] - results[1]["test_loss"]) < 1e-4
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 3
    assert double[1].stdout == ""  # the first process speaks for all


# Registered first, this runs last: threads that are left then would end the process by abort(), now and then.
_THREADS_AT_THE_END = """
import atexit, pathlib, sys
from arelu_meta.cli import main

def tell():
    names = [file.read_text().strip() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    print(sorted(name for name in names if "gloo" in name), file=sys.stderr)

atexit.register(tell)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from Linux's /proc")
def test_no_thread_of_the_group_outlives_it(run_processes: Run, tmp_path: Path) -> None:
    found = run_processes(2, *_ARGUMENTS, "--run.folder", str(tmp_path / "run"), program=_THREADS_AT_THE_END)
    assert [(one.returncode, one.stderr.splitlines()[-1]) for one in found] == [(0, "[]"), (0, "[]")]


def test_bad_input_is_said_once_by_all_processes_together(run_processes: Run, tmp_path: Path) -> None:
    found = run_processes(2, *_ARGUMENTS, "--run.folder", str(tmp_path / "run"), "--train.mode", "nonsense")
    assert [one.returncode for one in found] == [2, 2]
    said = "".join(one.stderr for one in found).splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: train.mode: 'nonsense' is not known")
    assert not (tmp_path / "run").exists()


# The first process finds the disk full at its second checkpoint; the other one waits for its gradients.
_FULL_DISK = """
import os, sys
from arelu_meta.errors import RunError
from arelu_meta.runs.run_folder import RunFolder
from arelu_meta.cli import main
saved = []
save = RunFolder.save_checkpoint
def save_or_fail(self, *arguments):
    saved.append(1)
    if os.environ["RANK"] == "0" and len(saved) == 2:
        raise RunError("the disk is full")
    return save(self, *arguments)
RunFolder.save_checkpoint = save_or_fail
sys.exit(main(sys.argv[1:]))
"""

# Only the second process cannot read an image, as on a node of its own.
_UNREADABLE = """
import os, sys
from arelu_meta.errors import InputError
import arelu_meta.finetuning.finetune as recipe
from arelu_meta.cli import main
def fail(*arguments):
    raise InputError("data.root: cannot be read here")
if os.environ["RANK"] == "1":
    recipe.load_images = fail
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_that_fails_while_it_writes_does_not_leave_the_others_waiting(
    run_processes: Run, tmp_path: Path
) -> None:
    found = run_processes(2, *_ARGUMENTS, "--run.folder", str(tmp_path / "run"), program=_FULL_DISK)
    assert [one.returncode for one in found] == [3, 3], [one.stderr for one in found]
    assert "error: the disk is full" in found[0].stderr
    assert "error: process 1 of 2 lost another one" in found[1].stderr


def test_what_one_process_cannot_read_stops_all_with_its_sentence(run_processes: Run, tmp_path: Path) -> None:
    found = run_processes(2, *_ARGUMENTS, "--run.folder", str(tmp_path / "run"), program=_UNREADABLE)
    assert [one.returncode for one in found] == [2, 2], [one.stderr for one in found]
    assert [line for one in found for line in one.stderr.splitlines() if line.startswith("error")] == [
        "error: data.root: cannot be read here"
    ]
    assert not (tmp_path / "run").exists()
