"""`arelu-meta recipes [NAME]`: in the repository, and from a wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import arelu_meta
from arelu_meta.cli import TASKS, main, parse
from arelu_meta.data.catalogue import CATALOGUE
from arelu_meta.recipes import packaged

ROOT = Path(arelu_meta.__file__).parents[1]


def test_every_recipe_is_listed_with_what_it_does_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert "finetune/flowers17" in told
    for name, recipe in packaged().items():
        assert name in told
        assert recipe.task in TASKS
        assert 20 < len(recipe.said) < 250, recipe.said
        assert recipe.needs


def test_a_recipe_says_which_data_it_needs() -> None:
    needs = {name: recipe.needs for name, recipe in packaged().items()}
    assert needs["finetune/flowers17"] == "flowers17"
    assert needs["finetune/mnist-to-digits"] == "digits, mnist"
    assert needs["metatrain/omniglot-small-5w1s"] == "omniglot-small"
    assert needs["claims/transfer-svhn"] == "mnist, svhn"
    assert needs["sweep/rates"] == "digits (embedded)"
    assert needs["predict/tolerant"] == "a run"


def test_a_recipe_of_a_set_that_is_not_embedded_says_how_to_get_it() -> None:
    for recipe in packaged().values():
        named = {name for name in recipe.needs.split(", ") if name in CATALOGUE and CATALOGUE[name].had != "embedded"}
        assert named == {name for name in CATALOGUE if f"`arelu-meta data {name}`" in recipe.text}


def test_a_copied_recipe_is_read_by_its_task_and_is_never_written_over_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "flowers17"]) == 0
    assert "next: arelu-meta finetune --config flowers17.yaml" in capsys.readouterr().out
    assert parse("finetune", ["--config", "flowers17.yaml"]).data.root == "flowers17"
    assert (tmp_path / "flowers17.yaml").read_text().startswith("# arelu-meta finetune --config flowers17.yaml ")
    (tmp_path / "flowers17.yaml").write_text("mine")
    for words in (["flowers17"], ["flowers17", "--out", "flowers17.yaml"], ["finetune/flowers17.yaml", "--out", "."]):
        assert main(["recipes", *words]) == 2
        assert "is there already; give another file with --out FILE\n" in capsys.readouterr().err
    assert (tmp_path / "flowers17.yaml").read_text() == "mine"
    assert main(["recipes", "sweep/rates", "--out", "other.yaml"]) == 0
    assert yaml.safe_load((tmp_path / "other.yaml").read_text())["task"] == "finetune"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["flower17"], "name: 'flower17' is no recipe; nearest: 'flowers17'"),
        (["--out", "a.yaml"], "out: 'a.yaml' needs a name"),
        (["flowers17", "--out", "no/a.yaml"], "out: 'no' is no folder"),
    ],
)
def test_what_cannot_be_copied_is_one_sentence(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {error}")
    assert line.count("\n") == 1


@pytest.mark.slow
def test_from_a_wheel_data_and_recipes_work_without_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for words, told in (
        (["recipes"], "finetune/flowers17"),
        (["recipes", "rates"], "rates.yaml"),
        (["data", "digits"], "1,797"),
    ):
        command = [sys.executable, "-m", "arelu_meta", *words]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert told in ended.stdout
    text = (ROOT / "configs/sweep/rates.yaml").read_text()
    assert (tmp_path / "rates.yaml").read_text() == text.replace("configs/sweep/rates.yaml", "rates.yaml")
