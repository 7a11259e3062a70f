"""What version 0.1 wrote is still read; tests/fixtures/v01/README.md says how it was made."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.cli import main

MADE = Path(__file__).parent / "fixtures" / "v01"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(MADE, tmp_path / "v01"))
    return Path()


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def _predictions(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_evaluate_repeats_the_test_of_a_fine_tuning_run(old: Path) -> None:
    assert main(["evaluate", "finetune", "--run.folder", "again", "--run.device", "cpu"]) == 0
    before, found = _results(old / "finetune"), _results(old / "again")
    assert {key: found[key] for key in ("test_accuracy", "test_n")} == {"test_accuracy": 1.0, "test_n": 6}
    assert found["test_loss"] == pytest.approx(before["test_loss"], rel=1e-4)


def test_evaluate_judges_a_meta_learner_on_its_unseen_classes(old: Path) -> None:
    words = ["evaluate", "metatrain", "--eval.tasks", "40", "--run.folder", "again", "--run.device", "cpu"]
    assert main(words) == 0
    found = _results(old / "again")
    assert (found["test_n"], found["ways"], found["shots"]) == (40, 5, 1)
    assert found["accuracy_after_0"] == pytest.approx(0.2, abs=0.1)
    assert found["test_accuracy"] > found["accuracy_after_0"]


def test_evaluate_takes_an_early_model_file_with_a_folder_of_images(old: Path) -> None:
    words = ["evaluate", "older.safetensors", "--data.root", "images", "--run.folder", "again", "--run.device", "cpu"]
    assert main(words) == 0
    assert (_results(old / "again")["test_n"], _results(old / "again")["test_accuracy"]) == (24, 1.0)


@pytest.mark.parametrize("name", ["finetune", "older", "metatrain"])
def test_predict_gives_the_probabilities_that_it_gave(name: str, old: Path) -> None:
    checkpoint = f"{name}.safetensors" if name == "older" else name
    words = ["predict", checkpoint, "images", "--probabilities", "--output", "now.csv", "--run.device", "cpu"]
    assert main([*words, "--support", "images"] if name == "metatrain" else words) == 0
    before, found = _predictions(old / f"{name}-predictions.csv"), _predictions(old / "now.csv")
    assert before.keys() == found.keys()
    for image, row in before.items():
        assert found[image]["class"] == row["class"]
        for column in ("p(left)", "p(right)"):
            assert float(found[image][column]) == pytest.approx(float(row[column]), abs=1e-4)


@pytest.mark.parametrize("name", ["finetune", "metatrain"])
def test_report_writes_the_page_of_a_run(name: str, old: Path) -> None:
    assert main(["report", name]) == 0
    page = (old / name / "report.html").read_text()
    assert "mnist_conv" in page
    assert "100.0" in page if name == "finetune" else "33.3" in page


def test_report_puts_two_runs_on_one_page(old: Path) -> None:
    assert main(["report", "finetune", "metatrain", "--output", "both.html"]) == 0
    assert "33.3" in (old / "both.html").read_text()


@pytest.mark.parametrize("checkpoint", ["finetune", "older.safetensors"])
def test_export_writes_a_file_whose_logits_it_has_checked(checkpoint: str, old: Path) -> None:
    assert main(["export", checkpoint, "--output", "out.pt2"]) == 0
    assert json.loads((old / "out.pt2.json").read_text())["classes"] == ["left", "right"]
