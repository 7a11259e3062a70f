from pathlib import Path
from typing import Any

import pytest

from arelu_meta.arguments import parse
from arelu_meta.claims.meta_study import list_trials, metatrain_config
from arelu_meta.claims.meta_tables import conclude
from arelu_meta.claims.recipes import resolve
from arelu_meta.claims.task import claims_task
from arelu_meta.cli import main

_WORDS = ["meta", "--data.name", "digits", "--model.name", "mnist_conv", "--meta.steps", "2", "--meta.tasks", "8"]


def test_runs_are_the_authors_set_up_over_sets_shots_and_activations() -> None:
    config = resolve(parse("claims", ["meta", "--size", "full", "--train.repeats", "2"]))
    trials = list_trials(config)
    assert len(trials) == 2 * 2 * 2 * 19  # seeds, sets, shots, activations
    assert {trial.seed for trial in trials[: 2 * 2 * 19]} == {0}
    made = metatrain_config(config, trials[-1], Path("run"))
    assert (made.data.name, made.model.activation, made.run.seed) == ("omniglot-small", "tanh", 1)
    assert (made.task.ways, made.task.shots, made.task.queries) == (5, 5, 5)
    assert (made.meta.inner_lr, made.meta.inner_steps, made.meta.batch_tasks) == (0.005, 5, 32)
    assert (made.meta.order, made.meta.steps, made.optim.lr, made.eval.tasks) == (2, 100, 0.005, 1000)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--meta.shots", "1.5"], "meta.shots: 1.5 is not allowed; give whole numbers from 1 to 100"),
        (["--meta.shots", "1,x"], "meta.shots: 'x' is not allowed"),
        (["--meta.shots", "0"], "meta.shots: 0 is not allowed"),
        (["--model.name", "resnet18"], "model.name: 'resnet18' is not known to meta"),
        (["--model.name", "conv4,mnist_conv"], "meta takes one network a study"),
        (["--model.activation", "rellu"], "rellu"),
        (["--optim.name", "lion,adam"], "lion,adam"),
        (["--data.name", "digits,nothing"], "nothing"),
        (["--train.epochs", "2"], "train.epochs: the study meta does not read it"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", *_WORDS, *words, "--run.folder", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _made_up(batches: dict[str, list[float]], unseen: dict[str, list[float]]) -> list[dict[str, Any]]:
    place = {"data": "mnist", "shots": 1, "lr": 0.005, "tasks": 1000}
    return [
        {**place, "activation": name, "seed": seed, "step": step, "accuracy": best / 100 / step, "curve": [0.2, 0.5]}
        | {"best_batch": best / 100, "test_accuracy": unseen[name][seed] / 100}
        | {"test_low": unseen[name][seed] / 100 - 0.02, "test_high": unseen[name][seed] / 100 + 0.02}
        for name, values in batches.items()
        for seed, best in enumerate(values)
        for step in (1, 2)
    ]


def test_the_two_readings_are_judged_apart_and_stand_side_by_side() -> None:
    outcome = conclude(
        _made_up(
            {"relu": [80.0, 81.0, 82.0], "elu": [85.0, 86.0, 87.0], "arelu": [95.0, 96.1, 97.0]},
            {"relu": [50.0, 51.0, 52.0], "elu": [40.0, 41.0, 42.0], "arelu": [48.0, 49.1, 50.0]},
        ),
        margin=1.0,
    )
    assert [(one.claim.split(" (")[0], one.verdict) for one in outcome.comparisons] == [
        ("AReLU is ahead of relu by the best training batch", "holds"),
        ("AReLU is ahead of elu by the best training batch", "holds"),
        ("AReLU is ahead of relu on unseen classes", "does not hold"),
    ]
    row = next(row for row in outcome.tables[0].rows if row[3] == "relu")
    assert row[4:] == ["81.0 ± 1.0", "51.0 ± 1.0", "49.8 to 52.2", "+30.0", 0]  # 2 / sqrt(3) = 1.15
    assert "1,000 tasks a seed" in outcome.tables[0].note
    assert [series.y for series in outcome.curves[0].series] == [[20.0, 50.0]] * 3


def test_a_run_that_diverged_counts_as_nothing_and_is_said() -> None:
    rows = _made_up({"relu": [80.0, 81.0], "arelu": [95.0, 96.0]}, {"relu": [50.0, 51.0], "arelu": [48.0, 49.0]})
    lost = {"best_batch": 0.0, "test_accuracy": 0.0, "test_low": 0.0, "test_high": 0.0, "curve": [], "diverged": "NaN"}
    outcome = conclude([{**row, **lost} if row["activation"] == "arelu" else row for row in rows], margin=1.0)
    assert {one.verdict for one in outcome.comparisons} == {"does not hold"}
    assert "2 runs became NaN" in outcome.notes[-1]
    assert [one.name for one in outcome.curves[0].series] == ["relu"]


@pytest.mark.slow
def test_a_small_study_runs_to_its_page_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*_WORDS, "--train.repeats", "2", "--processes", "1", "--run.folder", str(tmp_path / "study")]
    first = claims_task(parse("claims", words))
    assert [one["n"] for one in first["verdicts"]] == [2, 2]
    assert (tmp_path / "study" / "report.html").stat().st_size > 0
    assert "Seeds: 0, 1." in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    again = claims_task(parse("claims", [*words, "--run.resume", "auto", "--train.repeats", "3"]))
    assert "2 of 6 runs to do" in capsys.readouterr().out
    assert again["seeds"] == [0, 1, 2]
