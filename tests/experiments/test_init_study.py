"""The runs of the study, each once, and the tables of those that have ended."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from arelu_meta.errors import InputError
from experiments.init_study.study import Rows, StudyConfig, chosen_rate, read_results, run_missing, study_task, trials

ROOT = Path(__file__).parents[2]
STAGES = "experiments/init_study"
SEEDS = 5


def _rows(config: StudyConfig, accuracy: dict[tuple[str, float], float]) -> Rows:
    """Make up first-seed runs whose validation accuracy is as given."""
    return {
        trial.key: {
            "trial": vars(trial),
            "test_accuracy": accuracy[trial.start, trial.lr] + 0.01 * trial.seed,
            "validation_accuracy": accuracy[trial.start, trial.lr],
            "validation_loss": 1.0,
        }
        for trial in trials(config, {})
        if trial.seed == 0
    }


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return StudyConfig(
        results=str(tmp_path / "results.jsonl"),
        rates=[[1e-3, 1e-2, 1e-1]],
        starts=["original", "paper"],
        seeds=3,
        small_rates=[1e-3],
    )


ACCURACY = {
    **{("original", 1e-3): 0.3, ("original", 1e-2): 0.9, ("original", 1e-1): 0.1},
    **{("paper", 1e-3): 0.6, ("paper", 1e-2): 0.5, ("paper", 1e-1): 0.2},
}


def test_the_rate_is_chosen_on_validation_images_once_all_are_there(config: StudyConfig) -> None:
    rows = _rows(config, ACCURACY)
    assert chosen_rate(config, rows, "flowers17", 20, "sgd", "original") == 1e-2
    assert chosen_rate(config, rows, "flowers17", 20, "sgd", "paper") == 1e-3
    rows.popitem()
    assert chosen_rate(config, rows, "flowers17", 20, "sgd", "paper") is None


def test_later_seeds_take_the_small_rate_and_the_chosen_one(config: StudyConfig) -> None:
    listed = trials(config, _rows(config, ACCURACY))
    assert len(set(listed)) == len(listed)
    later = {(trial.start, trial.lr, trial.seed) for trial in listed if trial.seed}
    assert later == {
        *(("original", lr, seed) for lr in (1e-3, 1e-2) for seed in (1, 2)),
        *(("paper", 1e-3, seed) for seed in (1, 2)),
    }


def test_a_line_that_was_cut_off_is_left_out(config: StudyConfig) -> None:
    row = next(iter(_rows(config, ACCURACY).values()))
    Path(config.results).write_text(json.dumps(row) + "\n" + json.dumps(row)[:40])
    assert list(read_results(Path(config.results)).values()) == [row]


def test_the_table_pairs_the_seeds(config: StudyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.seeds, config.markdown, config.table = SEEDS, True, True
    rows = _rows(config, ACCURACY)
    random = np.random.default_rng(0)
    values: dict[str, list[float]] = {"original": [], "paper": []}
    for seed in range(SEEDS):
        for start, own in values.items():
            own.append(round(float(random.uniform(0.3, 0.6)), 4))
            trial = next(t for t in trials(config, rows) if (t.start, t.lr, t.seed) == (start, 1e-3, seed))
            rows[trial.key] = {**next(iter(rows.values())), "trial": vars(trial), "test_accuracy": own[-1]}
    Path(config.results).write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    study_task(config)
    expected = ttest_rel(np.array(values["paper"]) * 100, np.array(values["original"]) * 100)
    low, high = expected.confidence_interval(0.95)
    mean = np.mean(values["paper"]) * 100
    line = f"| paper | {mean:.1f} | 5 | {(low + high) / 2:+.1f} ({low:+.1f} to {high:+.1f}) |"
    assert line in capsys.readouterr().out


def test_a_finished_run_is_never_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    config = StudyConfig(
        results=str(tmp_path / "results.jsonl"),
        data=[str(tmp_path / "images")],
        per_class=[2],
        image_size=32,
        rates=[[1e-3]],
        starts=["head-like-paper", "open-0.2-10"],
        epochs=1,
        batch_size=4,
    )
    run_missing(config)
    written = Path(config.results).read_bytes()
    rows = read_results(Path(config.results))
    assert [row["trial"]["start"] for row in rows.values()] == config.starts
    assert [row["head"] for row in rows.values()][1] == 10
    assert next(iter(rows.values()))["head"] > 1
    assert "0/2 runs done" in capsys.readouterr().out
    run_missing(config)
    assert Path(config.results).read_bytes() == written
    assert capsys.readouterr().out == ""


def test_a_study_that_cannot_be_run_is_refused(config: StudyConfig) -> None:
    config.starts = ["papr"]
    with pytest.raises(InputError, match=r"starts: 'papr' is not known; .*paper"):
        study_task(config)
    config.starts, config.per_class = ["paper"], [1, 2]
    with pytest.raises(InputError, match="per_class: 2 values are not allowed; give 1"):
        study_task(config)


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / STAGES).glob("*.yaml")))
def test_the_launcher_prints_the_tables_of_every_stage(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(ROOT / STAGES / file), "--table", "true"]
    monkeypatch.setattr(sys, "argv", ["study_init.py", *words, "--results", str(tmp_path / "none.jsonl")])
    assert runpy.run_path(str(ROOT / STAGES / "__main__.py"))["main"]() == 0
    said = capsys.readouterr()
    assert "test accuracy" in said.out
    assert said.err == ""


def test_the_launcher_is_a_program_with_a_status_whose_reader_may_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.init_study", "--config", f"{STAGES}/finals.yaml", "--table", "true"]
    bad = subprocess.run([*command, "--starts", '["x"]'], cwd=ROOT, capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: starts: 'x' is not known")
    read_by_half = f"{shlex.join(command)} --results {shlex.quote(str(tmp_path / 'none.jsonl'))} | head -1"
    piped = subprocess.run(read_by_half, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (piped.stdout.count("\n"), piped.stderr) == (1, "")
