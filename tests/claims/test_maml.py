from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta.claims import maml
from arelu_meta.claims.maml import ALL, DIVIDED, MetaTrial, conclude, list_trials, run
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.cli import main, parse
from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import load_class_splits

_WORDS = ["meta", "--data.name", "digits", "--model.name", "mnist_conv", "--meta.steps", "2", "--meta.tasks", "8"]


_ONE = MetaTrial("digits", "mnist_conv", 1, "relu", "authors", "adam", 0.005, 0, steps=3, classes=DIVIDED, tasks=8)
_DIGITS = DataConfig(name="digits")
_CPU = torch.device("cpu")


def test_runs_are_the_authors_set_up_over_sets_shots_and_activations_each_on_all_and_on_some_classes() -> None:
    config = resolve(parse("claims", ["meta", "--size", "full", "--train.repeats", "2"]))
    trials = list_trials(config)
    assert len(trials) == 2 * 2 * 2 * (19 + 4) * 2  # seeds, sets, shots, activations and controls, divisions
    assert {trial.seed for trial in trials[: 2 * 2 * 23 * 2]} == {0}
    theirs, honest = trials[-2:]
    assert (theirs.classes, theirs.tasks, honest.classes, honest.tasks) == (ALL, 0, DIVIDED, 1000)
    assert replace(theirs, classes=DIVIDED, tasks=1000) == honest
    assert (honest.data, honest.activation, honest.seed) == ("omniglot-small", "tanh", 1)
    assert (honest.variant, honest.lr, honest.steps) == ("authors", 0.005, 100)
    assert honest.task == TaskConfig(ways=5, shots=5, queries=5)
    assert (maml.INNER_STEPS, maml.BATCH_TASKS) == (5, 32)


def test_the_authors_run_trains_on_all_ten_digits_and_the_honest_one_never_on_those_it_is_judged_on() -> None:
    splits = load_class_splits(_DIGITS, _ONE.task, _ONE.seed)
    (everything,) = maml._pools(replace(_ONE, classes=ALL), _DIGITS)
    trained, unseen = maml._pools(_ONE, _DIGITS)
    assert everything.labels.unique().tolist() == list(range(10))
    assert not set(trained.labels.tolist()) & set(unseen.labels.tolist())
    assert len(unseen.labels.unique()) == 5
    assert len(unseen.labels) == len(splits.test)
    assert everything.mean == (0.1307,)


def test_every_meta_batch_is_read_out_and_nothing_else_is_computed_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maml, "adaptation_curves", None)
    rows = run(replace(_ONE, classes=ALL, tasks=0), _DIGITS, _CPU)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_the_honest_run_gives_its_interval_and_how_it_adapts() -> None:
    (row,) = run(_ONE, _DIGITS, _CPU)
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert len(row["curve"]) == 6
    assert row["curve"][-1] == pytest.approx(row["accuracy"])
    assert run(_ONE, _DIGITS, _CPU) == [row]


def test_meta_training_learns_to_adapt() -> None:
    rows = run(replace(_ONE, activation="arelu", steps=30, tasks=64, classes=ALL), _DIGITS, _CPU)
    accuracies = [row["accuracy"] for row in rows]
    assert sum(accuracies[-10:]) / 10 > accuracies[0] + 0.1


@pytest.mark.parametrize("classes", [ALL, DIVIDED])
def test_a_rate_that_is_far_too_large_ends_the_run_and_not_the_study(classes: str) -> None:
    (row,) = run(replace(_ONE, classes=classes, lr=1e30), _DIGITS, _CPU)
    assert row["accuracy"] == 0.0
    assert "NaN or infinite" in row["diverged"]


def test_the_authors_variant_is_what_runs_unless_the_papers_is_asked_for() -> None:
    words = ["meta", "--model.activation", "maxout,relu"]
    assert {one.variant for one in list_trials(resolve(parse("claims", words)))} == {"authors"}
    assert {one.variant for one in list_trials(resolve(parse("claims", [*words, "--variant", "paper"])))} == {"paper"}
    by_variant = [run(replace(_ONE, activation="slaf", variant=name), _DIGITS, _CPU) for name in ("authors", "paper")]
    assert by_variant[0] != by_variant[1]


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
        (["--train.epochs", "2"], "train.epochs: 2 is not read by claims meta"),
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
    rows: list[dict[str, Any]] = []
    for name, values in batches.items():
        for seed, best in enumerate(values):
            place = {"data": "mnist", "shots": 1, "lr": 0.005, "activation": name, "seed": seed}
            rows += [
                {**place, "classes": ALL, "tasks": 0, "step": step, "accuracy": best / 100 / step} for step in (1, 2)
            ]
            mean = unseen[name][seed] / 100
            judged = {"step": 2, "accuracy": mean, "low": mean - 0.02, "high": mean + 0.02, "curve": [0.2, 0.5]}
            rows.append({**place, "classes": DIVIDED, "tasks": 1000, **judged})
    return rows


def test_the_two_readings_are_judged_apart_and_stand_side_by_side() -> None:
    outcome = conclude(
        _made_up(
            {"relu": [80.0, 81.0, 82.0], "elu": [85.0, 86.0, 87.0], "arelu": [95.0, 96.1, 97.0]},
            {"relu": [50.0, 51.0, 52.0], "elu": [40.0, 41.0, 42.0], "arelu": [48.0, 49.1, 50.0]},
        ),
        margin=1.0,
    )
    assert [(one.claim.split(" (")[0], one.verdict) for one in outcome.claims] == [
        ("AReLU against relu on unseen classes", "behind")
    ]
    described = next(table for table in outcome.tables if "every other" in table.title)
    assert [row[1] for row in described.rows] == ["-2.0", "+8.0", "+15.0", "+10.0"]
    row = next(row for row in outcome.tables[0].rows if row[3] == "relu")
    assert row[4:] == ["81.0 ± 1.0", "51.0 ± 1.0", "49.8 to 52.2", "+30.0", 0]  # 2 / sqrt(3) = 1.15
    assert "1,000 tasks a seed" in outcome.tables[0].note
    assert [series.y for series in outcome.curves[0].series] == [[20.0, 50.0]] * 3


def test_a_run_that_diverged_counts_as_nothing_and_is_said() -> None:
    rows = _made_up({"relu": [80.0, 81.0], "arelu": [95.0, 96.0]}, {"relu": [50.0, 51.0], "arelu": [48.0, 49.01]})
    lost = {"step": 0, "accuracy": 0.0, "low": 0.0, "high": 0.0, "curve": [], "diverged": "NaN"}
    kept = [row for row in rows if row["activation"] == "relu" or (row["step"] == 2 and row["classes"] == DIVIDED)]
    gone = [{**row, **lost} for row in rows if row["activation"] == "arelu" and row["step"] == 1]
    outcome = conclude([*kept, *gone], margin=1.0)
    assert [one.difference for one in outcome.claims] == pytest.approx([-1.995])
    row = next(row for row in outcome.tables[0].rows if row[3] == "arelu")
    assert (row[4], row[5], row[-1]) == ("0.0 ± 0.0", "48.5 ± 0.7", 2)
    assert "2 runs became NaN, counted as accuracy 0." in outcome.notes[-1]
    assert [one.name for one in outcome.curves[0].series] == ["relu", "arelu"]
    assert [one.name for one in outcome.curves[1].series] == ["relu"]


@pytest.mark.slow
def test_a_small_study_runs_to_its_page_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*_WORDS, "--train.repeats", "2", "--processes", "1", "--run.folder", str(tmp_path / "study")]
    first = claims_task(parse("claims", words))
    assert [one["n"] for one in first["verdicts"]] == [2]
    assert (tmp_path / "study" / "report.html").stat().st_size > 0
    assert "Seeds: 0, 1." in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    again = claims_task(parse("claims", [*words, "--run.resume", "auto", "--train.repeats", "3"]))
    assert "4 of 12 runs to do" in capsys.readouterr().out
    assert again["seeds"] == [0, 1, 2]
