"""Classes divided by a file, through the command line where a person meets it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from arelu_meta.cli import main
from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import ClassSplits, load_class_splits
from arelu_meta.data.fewshot.class_splits import read_split_file
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight classes a to h of four images."""
    for number, name in enumerate("abcdefgh"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (8, 8), (20 * number, index, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def _divide(photos: Path, file: Path) -> ClassSplits:
    task = TaskConfig(ways=2, shots=1, queries=2, split_file=str(file))
    return load_class_splits(DataConfig(root=str(photos)), task, 0)


def _classes(images: ImageSet | None) -> list[str]:
    return [] if images is None else sorted({images.classes[label] for label in images.labels})


def test_a_json_file_divides_the_classes_and_the_note_counts_those_it_leaves_out(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"train": ["a", "h", "c"], "validation": ["b", "d"], "test": ["g", "e"]}))
    splits = _divide(photos, file)
    parts = [_classes(part) for part in (splits.train, splits.validation, splits.test)]
    assert parts == [["a", "c", "h"], ["b", "d"], ["e", "g"]]
    assert splits.notes == (f"classes divided by {file}", "1 classes that it does not name are left out")


def test_a_csv_file_does_so_too_and_validation_may_be_missing(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.CSV"
    file.write_text("part,class\ntrain,a\nTraining, b\ntest,c\ntest,d\n".replace(", b", ",b"))
    splits = _divide(photos, file)
    assert (_classes(splits.train), splits.validation, _classes(splits.test)) == (["a", "b"], None, ["c", "d"])
    assert "last checkpoint is kept" in splits.notes[-1]


def test_an_own_division_in_folders_gives_way_to_the_file(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    photos.rename(tmp_path / "parts" / "train")
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"train": ["a", "b"], "test": ["c", "d"]}))
    assert _classes(_divide(tmp_path / "parts", file).test) == ["c", "d"]


def test_an_alphabet_stands_for_its_characters(tmp_path: Path) -> None:
    for alphabet in ("Greek", "Latin"):
        for character in ("one", "two"):
            (tmp_path / "w" / alphabet / character).mkdir(parents=True)
            for index in range(3):
                Image.new("L", (8, 8), 250 - index).save(tmp_path / "w" / alphabet / character / f"{index}.png")
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"train": ["Greek"], "test": ["Latin/two", "Latin/one"]}))
    task = TaskConfig(ways=2, shots=1, queries=1, split_file=str(file))
    splits = load_class_splits(DataConfig(name="alphabets", root=str(tmp_path / "w")), task, 0)
    assert _classes(splits.train) == ["Greek/one", "Greek/two"]
    assert _classes(splits.test) == ["Latin/one", "Latin/two"]
    assert splits.inverted  # dark strokes on white become bright ones, as without a file


def test_too_few_classes_in_a_part_of_the_file_name_the_part(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    for content, says in (
        ({"train": ["a"], "test": ["b", "c"]}, "the 1 classes here to train on; at least 2 are needed"),
        ({"train": ["a", "b"], "validation": ["d"], "test": ["c", "e"]}, "the 1 classes here to validate on; "),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"^task\.ways: 2 is more than {says}"):
            _divide(photos, file)


BAD = {
    "overlap": (
        '{"train": ["a", "b"], "test": ["c", "b"]}',
        r"class 'b' is in train and in test of .*; give it to one",
    ),
    "part twice": ('{"train": ["a"], "test": ["c", "d"], "val": ["c"]}', r"class 'c' is in test and in validation"),
    "unknown class": ('{"train": ["a", "b"], "test": ["c", "Daisy"]}', r"class 'Daisy' .* is not there; "),
    "unknown part": (
        '{"train": ["a", "b"], "tset": ["c", "d"]}',
        r"has a part 'tset'; give train, validation and test",
    ),
    "no test": ('{"train": ["a", "b"]}', r"names no class for test"),
    "empty test": ('{"train": ["a", "b"], "test": []}', r"names no class for test"),
    "no lists": ('{"train": "ab", "test": "cd"}', r"is of another form than"),
    "numbers": ('{"train": [1, 2], "test": [3, 4]}', r"is of another form than"),
    "a list": ('["a", "b"]', r"is of another form than"),
    "no JSON": ('{"train": [', r"cannot be read \("),
    "endless number": ('{"train": [' + "1" * 5000 + "]}", r"cannot be read \("),
    "few ways": ('{"train": ["a", "b"], "test": ["c"]}', None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_do_is_bad_input_in_one_line_and_nothing_is_written(
    case: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = BAD[case]
    file = tmp_path / "s.json"
    file.write_text(content)
    words = ["metatrain", "--data.root", str(photos), "--task.split_file", str(file), "--task.ways", "2"]
    words += ["--task.queries", "2", "--run.folder", str(tmp_path / "run"), "--model.name", "mnist_linear"]
    assert main([*words, "--data.image_size", "8"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "error: task.ways: 2 is more than the 1 classes" if says is None else "error: task.split_file: "
    )
    assert err.count("\n") == 1
    with pytest.raises(InputError, match=says):
        _divide(photos, file)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^task\.split_file: .*none\.json' does not exist"):
        read_split_file(str(tmp_path / "none.json"))
    (tmp_path / "s.txt").write_text("a")
    with pytest.raises(InputError, match=r"ends in '\.txt'; give a \.json or \.csv file"):
        read_split_file(str(tmp_path / "s.txt"))
    for content in ("class,split\na,train\n", "class,part\na\n", ""):
        (tmp_path / "s.csv").write_text(content)
        with pytest.raises(InputError, match=r"needs a first line `class,part`"):
            read_split_file(str(tmp_path / "s.csv"))


def test_parts_of_a_folder_that_share_some_classes_and_not_others_are_refused(photos: Path, tmp_path: Path) -> None:
    for part, names in (("train", "abcd"), ("test", "defg")):
        (tmp_path / "parts" / part).mkdir(parents=True)
        for name in names:
            if (photos / name).exists():
                (photos / name).rename(tmp_path / "parts" / part / name)
    (tmp_path / "parts" / "test" / "d").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "parts" / "test" / "d" / "0.png")
    with pytest.raises(InputError, match=r"^data\.root: class 'd' is in train/ and in test/ of .*; give each class to"):
        load_class_splits(DataConfig(root=str(tmp_path / "parts")), TaskConfig(ways=2, shots=1, queries=1), 0)
