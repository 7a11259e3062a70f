"""`arelu-meta data [NAME]`."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from arelu_meta.cli import main
from arelu_meta.config import DataTaskConfig, LookupConfig
from arelu_meta.data.catalogue import CATALOGUE
from arelu_meta.data.commands import data_task
from arelu_meta.data.fewshot.benchmarks import BENCHMARKS
from arelu_meta.data.fewshot.omniglot import ALPHABETS
from arelu_meta.data.named_datasets import NAMED_SETS
from arelu_meta.recipes import packaged


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_every_set_that_a_config_or_a_recipe_can_name_is_in_the_catalogue() -> None:
    needed = {name for recipe in packaged().values() for name in recipe.needs.split(", ")}
    by_hand = {"digits (embedded)", "a run", "nothing"}
    assert {*NAMED_SETS, *BENCHMARKS, ALPHABETS[0], "mnist-m", "digits", *(needed - by_hand)} <= CATALOGUE.keys()


def test_without_a_name_every_set_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in CATALOGUE)


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - BENCHMARKS.keys()))
def test_every_set_says_its_source_its_terms_where_it_was_looked_for_and_that_it_is_not_here(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_task(DataTaskConfig(name, LookupConfig(str(tmp_path / "nowhere"))))
    lines = capsys.readouterr().out
    assert CATALOGUE[name].source in lines
    assert "terms:" in lines
    if name == "digits":
        assert "here:    1,797 images" in lines
        return
    assert f"looked:  in {tmp_path / 'nowhere'}" in lines
    assert "here:    no (" in lines
    assert "get it:" in lines
    assert not (tmp_path / "nowhere").exists()


def test_a_set_that_is_laid_out_is_found_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, place in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        path = tmp_path / "home" / "flowers17" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(path)
    assert main(["data", "flowers17"]) == 0
    told = capsys.readouterr().out
    assert f"here:    3 images in {path.parent.parent}" in told
    assert "use:     arelu-meta finetune --data.root flowers17" in told


def test_a_root_of_another_layout_is_not_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "images_background_small1").mkdir(parents=True)
    assert main(["data", "omniglot-small", "--data.root", "photos"]) == 0
    assert "here:    no (photos has no images_background_small2/)" in capsys.readouterr().out


def test_a_set_that_torchvision_can_fetch_is_fetched_once_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class KMNIST:
        def __init__(self, root: Path, train: bool, download: bool = False) -> None:
            self.file, self.images = root / "KMNIST" / str(train), 7 if train else 3
            if download:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch()
            if not self.file.is_file():
                raise RuntimeError("Dataset not found")

        def __len__(self) -> int:
            return self.images

    monkeypatch.setattr("torchvision.datasets.KMNIST", KMNIST)
    assert main(["data", "kmnist"]) == 0
    assert "get it:  arelu-meta data kmnist --data.fetch true" in capsys.readouterr().out
    for told in ("fetching kmnist (21 MB)", "kmnist: cursive kana"):
        assert main(["data", "kmnist", "--fetch", "--data.root", "here"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(told)
        assert "here:    7 training, 3 test images" in out
        assert "use:     arelu-meta finetune --data.name kmnist --data.root here" in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["mnsit"], "error: name: 'mnsit' is no named set; nearest: 'mnist'"),
        (["flowers17", "--data.fetch", "true"], "error: data.fetch: 'flowers17' is not fetched by torchvision"),
        (["--data.fetch"], "error: data.fetch: true needs a name"),
        (["mnist", "--data.fetch", "true"], "could not be downloaded"),
        (["mnist-m", "--data.fetch", "true"], "could not be downloaded"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["data", *words]) == 2
    line = capsys.readouterr().err
    assert error in line
    assert line.count("\n") == 1
    assert not (tmp_path / "home").exists()  # nothing is left of what was tried


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["finetune", "--data.name", "mnist", "--data.download", "false"], "mnist"),
        (["finetune", "--data.name", "mnist"], "mnist"),
        (["finetune", "--data.root", "flowers17"], "flowers17"),
        (["metatrain", "--data.name", "omniglot-small"], "omniglot-small"),
        (["finetune", "--data.name", "mnist-m", "--data.download", "false"], "mnist"),
    ],
)
def test_the_error_on_a_missing_set_names_the_command_that_says_where_it_comes_from(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"`arelu-meta data {name}`" in capsys.readouterr().err
