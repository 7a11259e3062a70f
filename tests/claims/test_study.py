import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any, get_args

import pytest

from arelu_meta.claims import in_memory_training, mnist
from arelu_meta.claims.mnist import conclude, list_trials, published
from arelu_meta.claims.study import claims_task, read_numbers, recipe, resolve
from arelu_meta.cli import main, parse
from arelu_meta.config import ClaimsConfig, StudyName
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.run_folder import LOCK_NAME
from arelu_meta.validation import flatten, validate

_SMALL = ["mnist", "--data.name", "digits", "--model.name", "mnist_linear", "--optim.lr", "0.1,0.01"]
_SMALL += [
    "--model.activation",
    "relu,selu,arelu",
    "--train.epochs",
    "2",
    "--train.repeats",
    "2",
    "--processes",
    "1",
    "--run.folder",
]

_SPELLED = ["--model.activation", "ReLU,AReLU,PAU,LeakyReLU,leaky_relu"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "study"
    claims_task(parse("claims", [*_SMALL, str(folder)]))
    return folder


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def test_a_study_ends_with_rows_verdicts_tables_and_a_page(study: Path) -> None:
    rows = list(csv.DictReader((study / "runs.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 2 * 2  # activations, rates, seeds, epochs
    assert {"network", "activation", "optimizer", "lr", "seed", "epoch", "accuracy"} <= set(rows[0])
    results = _results(study)
    assert (results["task"], results["study"], results["size"], results["seeds"]) == (
        "claims",
        "mnist",
        "quick",
        [0, 1],
    )
    assert all(one["verdict"] in {"ahead", "level", "behind", "need more seeds"} for one in results["verdicts"])
    assert all(one["n"] == 2 and "learning rate" in one["sentence"] for one in results["verdicts"])
    assert all(len(row) == len(table["columns"]) for table in results["tables"] for row in table["rows"])
    assert [len(one["series"]) for one in results["curves"]] == [3 + 2, 3 + 2]  # contenders; the probe and chance
    assert [one["name"] for one in results["anchors"]] == ["probe", "chance"]
    assert (study / "report.html").stat().st_size > 0
    assert {"config.yaml", "environment.json"} <= {path.name for path in study.iterdir()}


def test_a_finished_study_says_so_and_trains_nothing(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(in_memory_training, "build", None)
    found = claims_task(parse("claims", [*_SMALL, str(study), "--run.resume", "auto"]))
    assert found == _results(study)
    assert "finished already" in capsys.readouterr().out


def test_a_finished_study_s_runs_count_for_a_larger_one(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*_SMALL, str(study), "--run.resume", "auto", "--train.repeats", "3"]
    assert claims_task(parse("claims", words))["seeds"] == [0, 1, 2]
    assert "6 of 18 runs to do" in capsys.readouterr().out


def test_a_finished_study_that_is_widened_and_then_stopped_is_not_taken_for_finished(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(study, tmp_path / "study")
    words = [*_SMALL, str(folder), "--run.resume", "auto", "--train.repeats", "4"]

    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mnist, "estimate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claims_task(parse("claims", words))
    assert claims_task(parse("claims", words))["seeds"] == [0, 1, 2, 3]
    assert "finished already" not in capsys.readouterr().out


def test_activations_in_any_spelling_are_those_of_the_claims_and_of_the_authors() -> None:
    found = {one.activation for one in list_trials(resolve(parse("claims", [*_SMALL, "x", *_SPELLED])))}
    assert found == {"relu", "arelu", "pau", "leaky_relu"}


def test_a_study_without_anything_to_judge_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*_SMALL, str(tmp_path / "study"), "--optim.lr", "0.1", "--train.epochs", "1", "--model.activation", "relu"]
    results = claims_task(parse("claims", words))
    assert results["verdicts"] == []
    assert "No claim is judged: that takes two contenders" in capsys.readouterr().out
    assert "No claim is judged" in (tmp_path / "study/report.md").read_text()


def test_who_interrupts_the_estimate_is_told_how_to_go_on_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt("/tmp/gone/checkpoints/step-000004.pt is written")

    monkeypatch.setattr(mnist, "estimate", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^while the time was being estimated; 0 of 12 runs .* --run.resume"):
        claims_task(parse("claims", [*_SMALL, str(tmp_path / "study")]))


def test_a_folder_that_holds_a_study_is_not_overwritten(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *_SMALL, str(study)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_study_keeps_its_folder_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse("claims", [*_SMALL, str(tmp_path / "study"), "--run.resume", "auto"])
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(InputError) as error:
            claims_task(config)
        refused.append(str(error.value))

    def meanwhile(*_: object) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        raise RunError("that is enough")

    monkeypatch.setattr("arelu_meta.claims.study.run_missing", meanwhile)
    with pytest.raises(RunError, match="that is enough"):
        claims_task(config)
    assert len(refused) == 1
    assert "in use by another run" in refused[0]
    assert not (tmp_path / "study" / LOCK_NAME).exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "study: 'nonsense' is not allowed"),
        (["mnist", "--model.name", "resnet18"], "model.name: 'resnet18' is not known to the study mnist"),
        (["mnist", "--model.activation", "rellu"], "rellu"),
        (["mnist", "--model.activation", "relu,,arelu"], "model.activation: 'relu,,arelu' is not allowed"),
        (["mnist", "--optim.lr", "1e-3,fast"], "optim.lr: 'fast' is not allowed"),
        (["mnist", "--optim.lr", "1e-3,-1"], "optim.lr: '-1' is not allowed"),
        (["mnist", "--optim.name", "lamb"], "optim.name: 'lamb' is not known"),
        (["mnist", "--train.repeats", "1"], "train.repeats: 1 is not allowed; give at least 2"),
        (["mnist", "--train.epochs", "0"], "train.epochs: 0 is not allowed"),
        (["mnist", "--meta.steps", "5"], "meta.steps: 5 is not read by claims mnist"),
        (["mnist", "--run.precision", "bf16"], "run.precision: 'bf16' is not read by claims mnist"),
        (["mnist", "--data.name", "nothing"], "data.name: 'nothing' is not known"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", *words, "--run.folder", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["quick", "full"])
@pytest.mark.parametrize("study", [*get_args(StudyName), "small-lr --pipeline maml"])
def test_every_recipe_sets_only_what_its_study_reads(study: str, size: str) -> None:
    config = parse("claims", [*study.split(), "--size", size])
    assert recipe(config).keys() <= flatten(config).keys()
    filled = resolve(config)
    assert filled.train.repeats is not None
    validate(filled)


def test_a_flag_wins_over_the_recipe() -> None:
    config = ClaimsConfig("mnist")
    config.optim.lr = 0.5
    assert (resolve(config).optim.lr, resolve(config).train.repeats, config.train.repeats) == (0.5, 3, None)


def test_numbers_are_read_once_each_from_large_to_small() -> None:
    assert read_numbers("optim.lr", "1e-3, 0.1,1e-3") == [0.1, 0.001]
    assert read_numbers("optim.lr", 0.01) == [0.01]
    with pytest.raises(InputError, match="'nan' is not allowed"):
        read_numbers("optim.lr", "nan")


def test_the_authors_table_is_read_whole_under_our_names() -> None:
    assert len(published()) == 114
    assert published()["mnist_conv", 0.001, "leaky_relu"]["best"][1] >= 0
    assert published()["mnist_conv", 0.01, "arelu"] == {"first": (97.666, 0.301), "best": (99.018, 0.056)}


def _made_up(accuracies: dict[str, list[float]], data: str = "mnist", variant: str = "authors") -> list[dict[str, Any]]:
    place = {"network": "mnist_conv", "optimizer": "sgd", "lr": 0.001, "data": data, "variant": variant, "epoch": 1}
    return [
        {**place, "activation": name, "seed": seed, "accuracy": value / 100}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_cells_like_the_authors_agree_and_others_do_not() -> None:
    mean, _ = published()["mnist_conv", 0.001, "arelu"]["first"]
    rows = _made_up({"arelu": [mean - 0.2, mean, mean + 0.2], "selu": [99.0, 99.1, 99.2]})
    (table,) = [one for one in conclude(rows, 1.0).tables if "authors" in one.title]
    assert [(row[2], row[-1]) for row in table.rows] == [("arelu", "yes"), ("selu", "no")]


@pytest.mark.parametrize("change", [{"data": "fashionmnist"}, {"variant": "paper"}])
def test_other_data_and_other_variants_are_not_set_beside_the_authors_table(change: dict[str, str]) -> None:
    tables = conclude(_made_up({"arelu": [1.0, 2.0]}, **change), 1.0).tables
    assert not [one for one in tables if "authors" in one.title]


def test_the_claim_is_made_against_relu_and_the_others_are_described() -> None:
    rows = _made_up({"relu": [20.0, 30, 25], "elu": [80.0, 81, 82], "selu": [60.0, 61, 62], "arelu": [92.0, 93, 94.1]})
    found = conclude(rows, 1.0)
    assert [(one.claim.split(" after")[0], one.verdict) for one in found.claims] == [("AReLU against relu", "ahead")]
    everything = next(one for one in found.tables if "every other" in one.title)
    assert [row[0].split(" after")[0] for row in everything.rows] == [
        f"AReLU against {name}" for name in ("relu", "elu", "selu")
    ]
