import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arelu_meta.errors import InputError
from arelu_meta.sweep.run import FAILED, FINISHED, MISSING, STOPPED, Child, Job, folder_of, note, read_state
from arelu_meta.sweep.spec import Spec, Trial, listed_trials, read_spec
from arelu_meta.sweep.sweep import check_place, read_rows, write_results, write_table

SPEC = (
    "set: {model: {name: mnist_linear, pretrained: false}, data: {image_size: 8, per_class: 2, batch_size: 10}, "
    "train.epochs: 1, run.device: cpu}\nparameters:\n  optim.lr: [1e-3, 1e-2]\n  model.activation: [null, arelu]\n"
)


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "spec.yaml").write_text(SPEC)
    return read_spec(str(tmp_path / "spec.yaml"))


def _finish(sweep: Path, trial: Trial, scores: list[float], test: float) -> None:
    folder = folder_of(sweep, trial)
    note(folder, trial, "begun")
    rows = "".join(f"{number},{score}\n" for number, score in enumerate(scores, 1))
    (folder / "metrics.csv").write_text("epoch,validation_accuracy\n" + rows)
    results = {"task": "finetune", "seed": 0, "test_accuracy": test, "test_low": 0.1, "test_high": 0.9, "test_n": 10}
    (folder / "results.json").write_text(json.dumps({**results, "seconds": 1.0}))


def test_a_score_is_the_best_so_far_and_a_row_that_is_being_written_does_not_count(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,validation_accuracy,seconds\n1,0.5,1\n2,0.25,2\n3,nan,3\n4,0.75,4\n5,0.9"
    )
    assert read_state(tmp_path, spec).scores == [0.5, 0.5, 0.75]


def test_the_state_of_a_run_is_what_lies_in_its_folder(tmp_path: Path, spec: Spec) -> None:
    trial = listed_trials(spec)[0]
    folder = folder_of(tmp_path, trial)
    assert read_state(folder, spec).status == MISSING
    note(folder, trial, FAILED, "it diverged")
    assert (read_state(folder, spec).status, read_state(folder, spec).error) == (FAILED, "it diverged")
    _finish(tmp_path, trial, [0.5], 0.5)
    assert read_state(folder, spec).status == FINISHED


def test_the_table_has_the_best_run_by_validation_first_and_says_why_others_failed(tmp_path: Path, spec: Spec) -> None:
    trials = listed_trials(spec)
    _finish(tmp_path, trials[0], [0.5], 0.9)
    _finish(tmp_path, trials[2], [0.7, 0.6], 0.4)
    note(folder_of(tmp_path, trials[1]), trials[1], FAILED, "the loss became nan")
    rows = read_rows(tmp_path, spec, trials)
    assert [row.trial.key for row in rows[:2]] == [trials[2].key, trials[0].key]
    write_table(tmp_path, spec, rows)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].startswith("run,optim.lr,model.activation,status,validation_accuracy,rows,seed,test_accuracy,")
    assert lines[1].startswith(f"{trials[2].key},0.01,,finished,0.7,2,0,0.4,")
    assert sum("the loss became nan" in line for line in lines) == 1
    results = write_results(tmp_path, spec, rows, 3.0)
    assert (results["runs"], results["finished"], results["failed"]) == (4, 2, 1)
    # By validation: the other has the better test.
    assert (results["best_run"], results["test_accuracy"], results["task"]) == (trials[2].key, 0.4, "sweep")


def test_runs_of_another_sweep_in_the_folder_are_not_this_sweeps(tmp_path: Path, spec: Spec) -> None:
    trials = listed_trials(spec)
    for trial in trials[:2]:
        note(folder_of(tmp_path, trial), trial, STOPPED)
    (tmp_path / "runs" / "feedbeef0000").mkdir()
    (tmp_path / "runs" / "feedbeef0000" / "trial.json").write_text('{"parameters": {"optim.lr": 1}}')
    (tmp_path / "runs" / "feedbeef0001").mkdir()
    (tmp_path / "runs" / "feedbeef0001" / "trial.json").write_text("[")
    assert {row.trial.key for row in read_rows(tmp_path, spec)} == {one.key for one in trials[:2]}


def _do(spec: Spec, trial: Trial, sweep: Path) -> Child:
    child = Child(Job(spec, sweep, 1, str(sweep), {}), trial)
    child.start()
    while not child.ended():
        time.sleep(0.05)
    return child


def test_a_run_is_done_once(tmp_path: Path, spec: Spec) -> None:
    child = _do(spec, listed_trials(spec)[0], tmp_path)
    assert child.state().status == FINISHED
    before = (child.folder / "results.json").stat().st_mtime_ns
    again = Child(child.job, child.trial)
    again.start()
    assert again.ended()  # at once: it has started nothing
    assert (child.folder / "results.json").stat().st_mtime_ns == before


def test_a_run_that_fails_is_noted_with_its_message(tmp_path: Path, spec: Spec) -> None:
    trial = listed_trials(spec)[0]
    trial.config.data.root = "nowhere"  # told before torch is imported
    state = _do(spec, trial, tmp_path).state()
    assert (state.status, state.error.split(";")[0]) == (FAILED, "data.root: 'nowhere' does not exist")


def test_a_runs_process_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from arelu_meta.sweep.run import end_with_parent\\n'"
        "'end_with_parent()\\nimport time, sys\\nprint(1, flush=True)\\ntime.sleep(300)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\nchild.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path("/proc").is_dir() else "R"
    return state != "Z"  # whoever took it over may not have looked yet


def test_a_folder_that_holds_a_run_is_no_place_for_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match="holds a run, not a sweep"):
        check_place(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        check_place(tmp_path / "config.yaml")
    with pytest.raises(InputError, match=r"lies below '.*config\.yaml', which is no folder"):
        check_place(tmp_path / "config.yaml" / "sweep")
