"""`data.labels`: a CSV of files and labels, as Hugging Face's metadata.csv."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arelu_meta.cli import main
from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import Splits
from arelu_meta.errors import InputError

TINY = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8", "--train.epochs", "1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path / "home"))


def _images(folder: Path, count: int = 24) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return [f"{number:02}.png" for number in range(count)]


def _table(path: Path, rows: Sequence[tuple[str, ...]], head: str = "file,label") -> str:
    path.write_text("\n".join([head, *map(",".join, rows)]) + "\n", encoding="utf-8")
    return str(path)


def _load(**fields: Any) -> Splits:
    return load_images(DataConfig(**fields), 0)


def test_files_are_relative_to_the_csv_or_to_the_root_and_split_as_a_folder_is(tmp_path: Path) -> None:
    names = _images(tmp_path / "photos")
    rows = [(name, "ab"[number % 2]) for number, name in enumerate(names)]
    beside = _load(labels=_table(tmp_path / "photos" / "labels.csv", rows))
    apart = _load(labels=_table(tmp_path / "labels.csv", rows), root="photos")
    below = _load(labels="labels.csv", root="photos")
    for splits in (beside, apart, below):
        assert splits.train.classes == ("a", "b")
        assert splits.describe() == beside.describe() | {"notes": splits.describe()["notes"]}
        assert sorted((*splits.train.names, *splits.validation.names, *splits.test.names)) == names
    for number, name in enumerate(names):  # the same images in a folder a class: the same cut
        place = tmp_path / "tree" / "ab"[number % 2] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((tmp_path / "photos" / name).read_bytes())
    tree = _load(root="tree")
    assert [Path(name).name for name in tree.test.names] == list(beside.test.names)


def test_hugging_faces_metadata_with_a_split_column_keeps_its_parts(tmp_path: Path) -> None:
    names = _images(tmp_path / "photos")
    parts = ["train"] * 14 + ["validation"] * 4 + ["test"] * 6
    rows = [
        (part, name, "a text; not read", "ab"[number % 2])
        for number, (name, part) in enumerate(zip(names, parts, strict=True))
    ]
    splits = _load(labels=_table(tmp_path / "photos" / "metadata.csv", rows, "split,file_name,text,label"))
    assert (splits.train.names, splits.test.names) == (
        tuple(names[0:14:2] + names[1:14:2]),
        tuple(names[18::2] + names[19::2]),
    )
    assert len(splits.validation) == 4
    assert splits.own_test


def test_val_without_test_is_the_test_set_and_semicolons_and_quotes_are_read(tmp_path: Path) -> None:
    names = _images(tmp_path)
    rows = [f'"{name}";"say ""{"ab"[n % 2]}"", twice";{"train" if n < 16 else "val"}' for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\ufeffFile;Label;Split\r\n" + "\r\n".join(rows), encoding="utf-8")
    splits = _load(labels="labels.csv")
    assert splits.train.classes == ('say "a", twice', 'say "b", twice')
    assert len(splits.test) == 8
    assert "split val is the test set" in " ".join(splits.notes)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is empty; give file (or file_name) and label, and split or not"),
        ("name,label\n00.png,a\n", "has the columns 'name', 'label'; give file"),
        ("file,label\n", "has no row below its columns"),
        ("file,label\n00.png,a\nnope.png,b\ngone.png,a\n", "row 3: file 'nope.png' (and 1 more) is not in"),
        (
            "file,label\n00.png,a\n01.png,b\n./00.png,a\n",
            "row 4: file '00.png' is in row 2 already; give each file once",
        ),
        ("file,label\n00.png,a\n../secret.png,b\n", "row 3: file '../secret.png' lies outside"),
        ("file,label\n00.png,a\n/etc/hostname,b\n", "row 3: file '/etc/hostname' lies outside"),
        ("file,label\n00.png,a\nsub/../../x.png,b\n", "lies outside"),
        ("file,label\n00.png,a\n01.png,\n", "row 3 has no label; give both in every row"),
        ("file,label\n00.png,a\n,b\n", "row 3 has no file; give both in every row"),
        ("file,label\n00.png,a,b\n", "row 2 has 3 values for 2 columns; quote a text that holds a ','"),
        ("file,label,split\n00.png,a,train\n01.png,b,tran\n", "row 3: file '01.png': split 'tran' is not allowed"),
        ("file,label,split\n00.png,a,train\n01.png,b,\n", "split '' is not allowed; give train, val or test"),
        ("file,label,split\n00.png,a,test\n01.png,b,test\n", "has the splits test and no train"),
        ("file,label\n00.png,a\n01.png,a\n", "all its labels are 'a'; at least 2 classes are needed"),
        ("file,label\n00.png,a\n01.png,b\n", "data.labels: class 'a' has 1 images; at least 3 are needed"),
        ("file,label\n00.png,a\nlabels.csv,b\n", "is not a whole image"),
        ("file,label\n00.png,a\nsub,b\n", "row 3: file 'sub' is not in"),
        ('file,label\n"00.png,a\n', "cannot be read"),
        ("file,label\n\udcff.png,a\n", "cannot be read"),
    ],
)
def test_what_a_csv_lacks_is_one_sentence_that_names_row_and_file(
    text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _images(tmp_path / "photos", 4)
    (tmp_path / "photos" / "sub").mkdir()
    (tmp_path / "secret.png").write_bytes((tmp_path / "photos" / "00.png").read_bytes())
    (tmp_path / "photos" / "labels.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert main(["finetune", "--data.labels", "photos/labels.csv"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: data.labels: ")
    assert error in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"labels": "nope.csv"}, r"^data.labels: 'nope.csv' does not exist; give a CSV with the columns file,label$"),
        ({"labels": "photos"}, r"^data.labels: 'photos' is a folder; give a CSV"),
        ({"labels": "photos/labels.csv", "root": "nope"}, r"^data.root: 'nope' does not exist"),
        ({"labels": "photos/labels.csv", "name": "mnist"}, r"^data.name: 'mnist' has labels of its own"),
    ],
)
def test_labels_that_are_not_there_or_do_not_go_together_are_refused(
    fields: dict[str, str], error: str, tmp_path: Path
) -> None:
    names = _images(tmp_path / "photos", 4)
    _table(tmp_path / "photos" / "labels.csv", [(name, "ab"[number % 2]) for number, name in enumerate(names)])
    with pytest.raises(InputError, match=error):
        _load(**fields)


def test_finetune_and_evaluate_read_labels_and_a_changed_label_is_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _images(tmp_path / "photos")
    rows = [(name, "ab"[number % 2]) for number, name in enumerate(names)]
    labels = _table(tmp_path / "photos" / "labels.csv", rows)
    words = ["finetune", "--data.labels", "photos/labels.csv", *TINY, "--run.folder", "run"]
    assert main(words) == 0
    assert "on photos/labels.csv" in capsys.readouterr().out
    own = json.loads((tmp_path / "run" / "results.json").read_text())
    assert own["test_n"] == 6
    assert main(["evaluate", "run", "--run.folder", "again"]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert (again["test_accuracy"], again["test_n"]) == (own["test_accuracy"], 6)
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    label = dict(rows)
    judged = _table(tmp_path / "photos" / "test.csv", [(name, label[name]) for name in split["test"]])
    assert main(["evaluate", "run", "--data.labels", judged, "--run.folder", "other"]) == 0
    other = json.loads((tmp_path / "other" / "results.json").read_text())
    assert (other["test_accuracy"], other["test_n"], other["test_seen"]) == (own["test_accuracy"], 6, 0)
    trained = split["train"][0]
    _table(Path(labels), [(name, {"a": "b", "b": "a"}[one] if name == trained else one) for name, one in rows])
    capsys.readouterr()
    assert main([*words, "--run.resume", "auto"]) == 2
    assert "is of a run on other images, or on another split of them" in capsys.readouterr().err


def test_metatrain_says_who_reads_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metatrain", "--data.labels", "labels.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: data.labels: 'labels.csv' is not read by metatrain")


def test_a_folder_without_classes_points_to_the_csv_that_lies_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _images(tmp_path / "photos", 4)
    _table(tmp_path / "photos" / "metadata.csv", [("00.png", "a")])
    assert main(["finetune", "photos"]) == 2
    assert capsys.readouterr().err.endswith("if metadata.csv has its labels, give --data.labels photos/metadata.csv\n")
