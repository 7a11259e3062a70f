"""Classes divided by the seed, and by a file, through the command line where a person meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta.cli import main
from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import (
    ClassSplits,
    check_class_sizes,
    class_counts,
    load_class_splits,
    load_whole,
)
from arelu_meta.data.fewshot.class_splits import read_split_file
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError

SEEN = "too few classes to validate on unseen ones: validated on other images of the training classes"


def _tree(root: Path, classes: int, images: int, first: int = 0) -> Path:
    """Classes c00, c01 …; every image of a class is filled with the class's number, but for one pixel of its own."""
    for number in range(first, first + classes):
        folder = root / f"c{number:02}"
        folder.mkdir(parents=True)
        for index in range(images):
            image = Image.new("L", (4, 4), number)
            image.putpixel((0, 0), index)
            image.save(folder / f"{index}.png")
    return root


def _set(classes: int, images: int) -> ImageSet:
    """Image i of class c is filled with 10 c + i."""
    names = tuple(str(10 * label + index) for label in range(classes) for index in range(images))
    return ImageSet(
        tuple(f"c{label}" for label in range(classes)),
        np.repeat(np.arange(classes), images),
        names,
        lambda name: Image.new("L", (4, 4), int(name)),
        channels=1,
    )


def _present(images: ImageSet) -> set[str]:
    return {images.classes[label] for label in images.labels}


def _divided(root: Path | None, task: TaskConfig, seed: int = 0, name: str | None = None) -> ClassSplits:
    return load_class_splits(DataConfig(name=name, root=None if root is None else str(root)), task, seed)


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


# -- how classes are divided ------------------------------------------------------------------------------------------


def test_test_classes_are_never_trained_on() -> None:
    for seed in range(5):
        splits = _divided(None, TaskConfig(), seed, "digits")
        assert not _present(splits.train) & _present(splits.test)
        assert _present(splits.train) | _present(splits.test) == set("0123456789")


def test_ten_classes_and_five_ways_give_five_and_five_validated_on_other_images_of_the_training_present() -> None:
    splits = _divided(None, TaskConfig(ways=5, shots=1, queries=15), 0, "digits")
    assert (len(_present(splits.train)), len(_present(splits.test))) == (5, 5)
    assert splits.validation is not None
    assert _present(splits.validation) == _present(splits.train)
    assert not set(splits.validation.names) & set(splits.train.names)
    assert splits.notes == (SEEN,)
    for part in (splits.train, splits.validation, splits.test):
        assert min(np.bincount(part.labels)[np.unique(part.labels)]) >= 16


def test_enough_classes_give_validation_classes_of_their_own(tmp_path: Path) -> None:
    splits = _divided(_tree(tmp_path, 15, 4), TaskConfig(ways=3, shots=1, queries=2))
    assert splits.validation is not None
    parts = [_present(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [8, 3, 4]
    assert len(set.union(*parts)) == 15
    assert splits.notes == ()


def test_too_few_images_to_hold_any_out_means_no_validation_and_the_note_says_so(tmp_path: Path) -> None:
    splits = _divided(_tree(tmp_path, 4, 5), TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is None
    assert splits.notes == ("too few classes and images to validate on: the last checkpoint is kept",)
    assert len(splits.train) == 10
    assert "validation" not in splits.describe()


def test_the_seed_decides_the_division(tmp_path: Path) -> None:
    _tree(tmp_path, 12, 4)
    task = TaskConfig(ways=2, shots=1, queries=1)
    assert _divided(tmp_path, task).describe() == _divided(tmp_path, task).describe()
    assert len({tuple(sorted(_present(_divided(tmp_path, task, seed).test))) for seed in range(5)}) > 1


def test_class_counts_use_every_class_once_and_leave_enough_for_a_task_in_each_part() -> None:
    for ways in range(2, 21):
        for classes in range(2 * ways, 150):
            train, validation, test = class_counts(classes, ways)
            assert train + validation + test == classes
            assert min(train, test) >= ways
            assert validation >= ways if classes >= 4 * ways else validation == 0
            assert train >= max(validation, test)


@pytest.mark.parametrize(("classes", "ways"), [(9, 5), (2, 2), (3, 2), (1, 2)])
def test_fewer_than_twice_as_many_classes_as_ways_are_refused(classes: int, ways: int) -> None:
    with pytest.raises(
        InputError,
        match=rf"task\.ways: {ways} is too many for {classes} classes.*(at most {classes // 2}|at least 4 classes)",
    ):
        class_counts(classes, ways)


def test_a_class_without_images_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sets that count their labels from 1 bring a class 0 that nothing belongs to.
    images = _set(5, 4)
    gap = ImageSet(images.classes, np.repeat([1, 2, 3, 4], 5), images.names, images.read, 1)
    monkeypatch.setattr("arelu_meta.data.fewshot.benchmarks.load_whole", lambda _: [gap])
    for seed in range(6):
        splits = _divided(None, TaskConfig(ways=2, shots=1, queries=1), seed)
        assert (len(_present(splits.train)), len(_present(splits.test))) == (2, 2)


# -- folders that bring a division ------------------------------------------------------------------------------------


def test_a_folder_whose_parts_hold_different_classes_keeps_its_own_division(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "val", 3, 4, first=10)
    _tree(tmp_path / "test", 2, 4, first=20)
    splits = _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is not None
    found = [sorted(_present(part)) for part in (splits.train, splits.validation, splits.test)]
    assert found == [["c00", "c01", "c02", "c03"], ["c10", "c11", "c12"], ["c20", "c21"]]
    read = "read from train/ (training), val/ (validation), test/ (test)"
    assert splits.notes == ("classes divided as in the folder", read)


def test_a_part_that_lacks_a_class_of_train_divides_no_present(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 8, 6)
    _tree(tmp_path / "test", 7, 6)
    splits = _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert not set(_present(splits.train)) & set(_present(splits.test))


def test_without_val_such_a_folder_has_no_validation_present(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "test", 2, 4, first=20)
    splits = _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is None
    assert sorted(_present(splits.test)) == ["c20", "c21"]


def test_a_folder_whose_parts_hold_the_same_classes_is_put_together_and_divided_anew(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "test", 4, 3)
    splits = _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=1))
    assert not _present(splits.train) & _present(splits.test)
    assert len(splits.test) == 2 * 7
    image, label = splits.test[0]
    assert splits.test.classes[label] == f"c{np.asarray(image)[0, 0, 0]:02}"


def test_test_classes_without_training_classes_are_refused(tmp_path: Path) -> None:
    _tree(tmp_path / "test", 4, 4)
    with pytest.raises(InputError, match="has test/ but no train/"):
        load_whole(DataConfig(root=str(tmp_path)))


def test_skipped_files_are_counted_once(tmp_path: Path) -> None:
    _tree(tmp_path, 4, 5)
    (tmp_path / "c01" / "note.png").write_text("no image")
    with pytest.raises(InputError, match=r"c01/note\.png' is not a whole image"):
        _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=1))
    config = DataConfig(root=str(tmp_path), skip_broken=True)
    splits = load_class_splits(config, TaskConfig(ways=2, shots=1, queries=1), 0)
    assert splits.skipped == ("c01/note.png",)
    assert splits.describe()["skipped"] == ["c01/note.png"]


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_the_smallest_class_is_named_where_it_has_fewer_images_than_shots_plus_queries(tmp_path: Path) -> None:
    _tree(tmp_path, 4, 6)
    (tmp_path / "c02" / "5.png").unlink()
    message = r"^task\.shots \+ task\.queries: 2 \+ 4 is more than class 'c02' has \(5 images here\); give at most"
    with pytest.raises(InputError, match=message):
        _divided(tmp_path, TaskConfig(ways=2, shots=2, queries=4))
    assert _divided(tmp_path, TaskConfig(ways=2, shots=1, queries=4)).validation is None


def test_more_ways_than_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"^task\.ways: 4 is more than the 3 classes here; give at most 3"):
        check_class_sizes(_set(3, 5), TaskConfig(ways=4, shots=1, queries=1))


def test_what_is_just_enough_passes() -> None:
    check_class_sizes(_set(3, 5), TaskConfig(ways=3, shots=2, queries=3))


# -- omniglot-small ---------------------------------------------------------------------------------------------------


def test_omniglot_small_tests_on_the_alphabets_that_it_never_trained_on(data_root: Path) -> None:
    splits = _divided(data_root / "omniglot-small", TaskConfig(), 0, "omniglot-small")
    assert splits.validation is not None

    def alphabets(images: ImageSet) -> set[str]:
        return {name.split("/")[0] for name in _present(images)}

    assert alphabets(splits.test) == {"Japanese_(katakana)", "Sanskrit", "Tagalog"}
    first = {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    assert alphabets(splits.train) | alphabets(splits.validation) == first
    assert not _present(splits.train) & _present(splits.validation)
    assert len(_present(splits.train)) + len(_present(splits.validation)) == 24 + 22 + 24 + 40 + 26
    assert len(_present(splits.test)) == 47 + 42 + 17
    assert set(np.bincount(splits.test.labels)) <= {0, 20}
    assert splits.inverted
    assert splits.train.channels == 1


def test_omniglot_small_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omniglot-small").mkdir()
    with pytest.raises(InputError, match=r"data\.root: .* has no images_background_small1/"):
        _divided(tmp_path / "omniglot-small", TaskConfig(), 0, "omniglot-small")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"has no images_background_small1/"):
        _divided(None, TaskConfig(), 0, "omniglot-small")


def test_omniglot_small_refuses_more_ways_than_it_can_give(tmp_path: Path) -> None:
    for number, alphabet in ((1, "Greek"), (2, "Tagalog")):
        _tree(tmp_path / f"images_background_small{number}" / alphabet, 4, 3)
        _tree(tmp_path / f"images_background_small{number}" / "Latin", 2, 3)
    assert len(_present(_divided(tmp_path, TaskConfig(3, 1, 1), 0, "OMNIGLOT-small").test)) == 4
    with pytest.raises(InputError, match=r"task\.ways: 4 is too many for omniglot-small; give at most 3"):
        _divided(tmp_path, TaskConfig(4, 1, 1), 0, "omniglot-small")
