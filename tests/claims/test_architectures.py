from pathlib import Path
from typing import Any

import pytest

from arelu_meta.claims.architectures import conclude, list_trials
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.cli import main, parse


def _trials(*words: str) -> list[Any]:
    return list_trials(resolve(parse("claims", ["architectures", "--data.name", "digits", *words])))


def test_every_network_is_trained_with_either_activation_on_the_same_budget() -> None:
    trials = _trials("--model.name", "resnet18,vgg11", "--optim.lr", "1e-2,1e-3", "--train.repeats", "2")
    assert sum(trial.contender == "probe" for trial in trials) == 2 * 2  # one a network and seed
    assert {trial.contender for trial in trials} == {"original", "arelu", "probe"}
    assert len(trials) == 2 * 2 * 2 * 2 + 2 * 2
    assert not any(trial.pretrained for trial in trials)
    assert len({(trial.length, trial.optimizer, trial.batch_size, trial.per_class) for trial in trials}) == 1
    assert {trial.seed for trial in trials[:8]} == {0}, "the first seed of everything comes first"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.name", "resnet18,resnot"], "resnot"),
        (["--model.activation", "arelu"], "leaves nothing to compare; give two, as original,arelu"),
        (["--model.activation", "original,arelu:here"], "arelu:here"),
        (["--optim.name", "sgd,adamw"], "one optimiser"),
        (
            ["--model.pretrained", "true"],
            "model.pretrained: true is not read by claims architectures; claims small-lr, claims focus, claims tuning",
        ),
        (["--model.name", "vit_tiny_patch16_224", "--data.image_size", "8"], "image_size"),
        (["--data.root", "nowhere"], "data.root: 'nowhere' does not exist"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data.root" in words else ["--data.name", "digits"]
    folder = tmp_path / "study"
    assert main(["claims", "architectures", *data, *words, "--run.folder", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert says in line
    assert not folder.exists()


def _run(model: str, contender: str, lr: float, tests: list[float], validation: float) -> list[dict[str, Any]]:
    ends = {"validation_accuracy": validation, "rate": lr}
    return [
        {"model": model, "contender": contender, "lr": lr, "seed": seed, "step": step, "accuracy": test, **ends}
        | {"test_accuracy": test}
        for seed, test in enumerate(tests)
        for step in (1, 2)
    ]


def test_each_network_is_judged_at_its_own_best_rate_and_all_of_them_together() -> None:
    rows = [
        *_run("a", "original", 1e-3, [0.50, 0.52, 0.51], 0.5),
        *_run("a", "original", 1e-2, [0.90, 0.90, 0.90], 0.2),  # better on the test, not on validation
        *_run("a", "arelu", 1e-3, [0.10, 0.10, 0.10], 0.1),
        *_run("a", "arelu", 1e-2, [0.60, 0.63, 0.61], 0.6),
        *_run("b", "original", 1e-3, [0.50, 0.52, 0.51], 0.5),
        *_run("b", "original", 1e-2, [0.40, 0.40, 0.40], 0.4),
        *_run("b", "arelu", 1e-3, [0.30, 0.33, 0.31], 0.6),
        *_run("b", "arelu", 1e-2, [0.20, 0.20, 0.20], 0.2),
    ]
    outcome = conclude(rows, margin=1.0)
    found = {one.claim: one for one in outcome.comparisons}
    assert found["arelu against original in a"].difference == pytest.approx(100 * (1.84 - 1.53) / 3)
    assert found["arelu against original in b"].high < -1
    together = found["arelu against original over 2 networks"]
    assert outcome.claims == [together]  # the networks by themselves are described
    assert together.difference == pytest.approx(100 * ((1.84 + 0.94) / 2 - 1.53) / 3)
    assert together.n == 3
    assert [table.columns for table in outcome.tables] == [["network", "original", "arelu", "arelu − original"]]
    assert outcome.tables[0].rows[0][1:] == ["51.0 ± 1.0 (at 0.001)", "61.3 ± 1.5 (at 0.01)", "+10.3"]
    assert [curves.title for curves in outcome.curves] == ["Accuracy by step, a", "Accuracy by step, b"]


def test_a_small_study_runs_to_its_page_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["architectures", "--data.name", "digits", "--data.image_size", "32", "--data.per_class", "4"]
    words += ["--model.name", "test_resnet", "--train.epochs", "1", "--train.repeats", "2", "--processes", "1"]
    words += ["--run.folder", str(tmp_path / "study")]
    first = claims_task(parse("claims", words))
    assert [one["n"] for one in first["verdicts"]] == [2]
    assert (tmp_path / "study" / "report.html").stat().st_size > 0
    capsys.readouterr()
    again = claims_task(parse("claims", [*words, "--run.resume", "auto", "--train.repeats", "3"]))
    assert "3 of 9 runs to do" in capsys.readouterr().out
    assert again["seeds"] == [0, 1, 2]
