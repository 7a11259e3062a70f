"""Job arrays, through submitit's executor for one machine."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from arelu_meta.config import SlurmConfig, SweepConfig, SweepRunConfig
from arelu_meta.errors import InputError, MissingExtraError, RunError
from arelu_meta.sweep import slurm as slurm_module
from arelu_meta.sweep import sweep as sweep_module
from arelu_meta.sweep.sweep import sweep_task

SPEC = (
    "set: {model: {name: mnist_linear, pretrained: false}, run.device: cpu, train.epochs: EPOCHS, "
    "data: {image_size: 8, per_class: 4, batch_size: 10, augmentation: none}}\nparameters: {optim.lr: [1e-2]}\n"
)


def _config(tmp_path: Path, epochs: int = 1, more: str = "") -> SweepConfig:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("EPOCHS", str(epochs)) + more)
    return SweepConfig(
        str(tmp_path / "spec.yaml"),
        SweepRunConfig(str(tmp_path / "sweep")),
        launcher="submitit",
        slurm=SlurmConfig(cluster="local"),
    )


def test_a_search_that_learns_from_runs_is_refused_where_all_are_queued_at_once(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    with pytest.raises(InputError, match="early_stopping needs --launcher ray"):
        sweep_task(_config(tmp_path, more="early_stopping: true\n"))
    with pytest.raises(InputError, match="search: optuna needs --launcher ray"):
        sweep_task(_config(tmp_path, more="search: optuna\n"))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("submitit", "submitit")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, package: str
) -> None:
    monkeypatch.setattr(sweep_module, "_is_installed", lambda module: False)
    config = _config(tmp_path)
    config.launcher = launcher  # type: ignore[assignment]
    extra = "sweep" if launcher == "ray" else "slurm"
    with pytest.raises(MissingExtraError, match=rf"{package}: pip install 'arelu-meta\[{extra}\]'"):
        sweep_task(config)


def test_dry_run_prints_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    config = _config(tmp_path)
    config.dry_run = True
    assert sweep_task(config) == {"runs": 1, "done": 0}
    assert "1 run, 0 of them done; nothing was started" in capsys.readouterr().out
    assert not (tmp_path / "sweep").exists()


def test_a_job_does_its_run_and_a_second_sweep_none(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    results = sweep_task(_config(tmp_path))
    assert (results["task"], results["finished"]) == ("sweep", 1)
    assert sweep_task(_config(tmp_path))["finished"] == 1
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())["runs"] == 1
    assert len(list((tmp_path / "sweep" / ".submitit").glob("[0-9]*"))) == 1


@pytest.mark.slow
def test_a_job_whose_time_is_up_checkpoints_its_run_and_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    from arelu_meta.sweep.run import Job, folder_of, read_state
    from arelu_meta.sweep.slurm import RunTrial
    from arelu_meta.sweep.spec import listed_trials, read_spec

    config = _config(tmp_path, epochs=300)
    spec = read_spec(config.spec)
    trial = listed_trials(spec)[0]
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=3)
    executor.update_parameters(timeout_min=10)
    handle = executor.submit(RunTrial(Job(spec, tmp_path / "sweep", 1, str(Path.cwd()), {}), 0), trial)
    folder = folder_of(tmp_path / "sweep", trial)
    deadline = time.monotonic() + 240
    while len(read_state(folder, spec).scores) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    for pid in [pid for pid, parent in pairs if parent == handle.job_id]:
        os.kill(int(pid), signal.SIGUSR2)  # as Slurm does ahead of the end, told so by submitit
    assert handle.result() == "finished"
    log = (folder / "output.log").read_text()
    assert "interrupted; " in log
    numbers = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert numbers == list(range(1, 301))


SLURM = {  # what the programs of a Slurm without accounting answer; `queue` is squeue's list
    "srun": "exit 1",
    "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    "scancel": "exit 0",
    "sbatch": 'echo "$@" >> "$HERE/asked"; n=$(wc -l < "$HERE/asked"); echo "Submitted batch job $n"',
    "squeue": 'cat "$HERE/queue"',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("submitit", reason="submitit is not installed")
    here = tmp_path / "slurm"
    here.mkdir()
    (here / "queue").write_text("")
    for name, text in SLURM.items():
        (here / name).write_text(f"#!/bin/sh\n{text}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("HERE", str(here))
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_module, "_ASK_EVERY", 0.0)
    monkeypatch.setattr(slurm_module, "_LOST_AFTER", 0.0)
    return here


def _slurm_config(tmp_path: Path, wait: bool) -> SweepConfig:
    config = _config(tmp_path)
    config.slurm, config.gpus = SlurmConfig(cluster="slurm", wait=wait), 0
    return config


def test_what_is_still_queued_is_not_queued_again(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for queue, asked, said in (
        ("", 1, "1 job queued as array 1; scancel 1 takes them back"),
        ("1", 1, "1 job of an earlier start still queued"),
        ("1\n9_0", 1, "1 job of an earlier start still queued"),
        ("9_0", 2, "1 job queued as array 2"),  # job 1 is over, and left no results
    ):
        (slurm / "queue").write_text(queue)
        assert sweep_task(_slurm_config(tmp_path, wait=False))["finished"] == 0
        out = capsys.readouterr().out
        assert said in out
        assert "1 run not done yet; the same command goes on with the rest" in out
        assert len((slurm / "asked").read_text().splitlines()) == asked


def test_a_job_that_leaves_the_queue_without_a_word_is_gone_on_with_by_the_next_start(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        assert sweep_task(_slurm_config(tmp_path, wait=True))["failed"] == 0
        out = capsys.readouterr().out
        assert f"its job {number} left Slurm's queue without a word" in out
        assert "1 run not done yet; the same command goes on with the rest" in out


def test_a_job_that_raised_something_has_failed_with_its_words(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_module, "_error_of", lambda *_: RuntimeError("trace:\n no such node"))
    with pytest.raises(RunError, match=r"^the only run failed; .*: no such node"):
        sweep_task(_slurm_config(tmp_path, wait=True))


def test_a_slurm_that_does_not_answer_is_one_sentence(tmp_path: Path, slurm: Path) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(RunError, match=r"^slurm: squeue does not answer .*; the same command later goes on"):
        sweep_task(_slurm_config(tmp_path, wait=True))


def test_an_interrupted_sweep_leaves_its_jobs_to_slurm(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (slurm / "queue").write_text("1\n")
    monkeypatch.setattr(slurm_module, "_wait", interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"^0 runs done; Slurm goes on with the rest, and the same command waits"
    ):
        sweep_task(_slurm_config(tmp_path, wait=True))


def test_a_slurm_without_gpus_is_answered_with_the_flag_that_asks_for_none(tmp_path: Path, slurm: Path) -> None:
    (slurm / "sbatch").write_text(
        "#!/bin/sh\necho 'error: Invalid generic resource (gres) specification' >&2\nexit 1\n"
    )
    config = _slurm_config(tmp_path, wait=True)
    config.gpus = 1
    refused = r"^launcher: Slurm refused the jobs \(.*gres.*\); .*: --gpus 0 asks for none$"
    with pytest.raises(InputError, match=refused):
        sweep_task(config)
