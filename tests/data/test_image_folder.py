import itertools
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.image_folder import data_home, find_candidates, find_root, load_folder, part_folders, read_folder
from arelu_meta.data.image_io import Reading
from arelu_meta.data.named_datasets import load_digits, load_images
from arelu_meta.data.splits import ImageSet, Splits, concatenate, fill_splits, split_whole, take_fold
from arelu_meta.errors import InputError

Names = Sequence[str]


def _fill(folder: Path, count: int, first: int = 0) -> None:
    """Write small images, each of its own colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 99)).save(folder / f"{number:03}.png")


def _tree(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        _fill(root / name, count)
    return root


def _counts(images: ImageSet) -> dict[str, int]:
    return {name: int((images.labels == label).sum()) for label, name in enumerate(images.classes)}


def _all_names(splits: Splits) -> list[str]:
    return [*splits.train.names, *splits.validation.names, *splits.test.names]


# -- folders without a split ------------------------------------------------------------------------------------------


def test_a_folder_without_a_split_is_cut_into_three_disjoint_parts_of_every_class(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, rose=40, tulip=20), seed=0)
    assert splits.train.classes == splits.validation.classes == splits.test.classes == ("rose", "tulip")
    assert _counts(splits.test) == {"rose": 10, "tulip": 5}
    assert _counts(splits.validation) == {"rose": 4, "tulip": 2}
    assert _counts(splits.train) == {"rose": 26, "tulip": 13}
    assert len(set(_all_names(splits))) == 60


def test_names_labels_and_pixels_belong_together(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, rose=12, tulip=8), seed=0)
    for part in (splits.train, splits.validation, splits.test):
        for index in range(len(part)):
            image, label = part[index]
            folder, file = part.names[index].split("/")
            assert part.classes[label] == folder
            assert image.getpixel((0, 0)) == (int(file[:3]), 0, 99)


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    _tree(tmp_path, rose=40, tulip=20)
    first, again, other = (load_folder(tmp_path, seed) for seed in (0, 0, 1))
    assert first.describe() == again.describe()
    assert set(first.test.names) != set(other.test.names)


def test_the_split_leaves_the_global_random_states_alone(tmp_path: Path) -> None:
    _tree(tmp_path, rose=12, tulip=8)
    drawn = []
    for load in (False, True):
        np.random.seed(0)
        random.seed(0)
        if load:
            load_images(DataConfig(root=str(tmp_path), per_class=2), seed=0)
        drawn.append((np.random.random(), random.random()))
    assert drawn[0] == drawn[1]


def test_small_classes_keep_an_image_in_every_part(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, rare=3, common=40), seed=0)
    assert [_counts(part)["rare"] for part in (splits.train, splits.validation, splits.test)] == [1, 1, 1]


def test_a_class_too_small_to_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 'rare' has 2 images; at least 3 are needed"):
        load_folder(_tree(tmp_path, rare=2, common=40), seed=0)


def test_images_may_lie_deeper_in_a_class(tmp_path: Path) -> None:
    _tree(tmp_path, tulip=6)
    _fill(tmp_path / "rose" / "garden" / "2024", 5)
    _fill(tmp_path / "rose", 4, first=10)
    assert _counts(load_folder(tmp_path, seed=0).train)["rose"] > 0
    assert len([name for name in _all_names(load_folder(tmp_path, seed=0)) if name.startswith("rose/")]) == 9


def test_a_link_that_leads_back_up_is_no_class_and_one_to_another_folder_is(tmp_path: Path) -> None:
    root = _tree(tmp_path / "root", cat=6, dog=6)
    _tree(tmp_path / "elsewhere", bird=6)
    (root / "itself").symlink_to(".")
    (root / "above").symlink_to("..")
    (root / "cat" / "up").symlink_to("../..")
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    splits = load_folder(root, 0)
    assert splits.train.classes == ("bird", "cat", "dog")
    assert len(_all_names(splits)) == 18


def test_links_to_folders_within_a_class_are_followed_and_never_in_a_circle(tmp_path: Path) -> None:
    root = _tree(tmp_path / "root", cat=6, dog=6)
    _tree(tmp_path / "elsewhere", tabby=5, tiger=4)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "tabby" / "friends").symlink_to("../tiger")
    (tmp_path / "elsewhere" / "tiger" / "friends").symlink_to("../tabby")
    (tmp_path / "elsewhere" / "tiger" / "home").symlink_to(root)
    names = _all_names(load_folder(root, 0))
    assert len([name for name in names if name.startswith("cat/")]) == 6 + 5 + 4
    assert len(names) == 21


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    _fill(tmp_path / ".cache", 3)
    _fill(tmp_path / "rose" / ".ipynb_checkpoints", 3)  # copies of images: in training and test alike, were they read
    (tmp_path / "rose" / "._000.png").write_text("a Mac was here")
    (tmp_path / "rose" / "Thumbs.db").write_text("and Windows")
    (tmp_path / "README.txt").write_text("what is in here")
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == ("rose", "tulip")
    assert len(_all_names(splits)) == 12
    assert len(find_candidates(tmp_path / "rose")) == 6


def test_names_with_spaces_and_letters_of_all_languages_work(tmp_path: Path) -> None:
    root = tmp_path / "Bilder von früher"
    classes = ["Gänse blümchen", "тюльпан", "牡丹 花", "a'b\"c", "100% [x] #1"]
    for name in classes:
        _fill(root / name, 4)
    splits = load_folder(root, seed=0)
    assert set(splits.train.classes) == set(classes)
    image, _ = splits.train[0]
    assert image.size == (8, 8)


def test_a_name_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    _tree(tmp_path, rose=4, tulip=4)
    try:
        (tmp_path / "rose" / "000.png").rename(os.fsdecode(os.fsencode(tmp_path / "rose") + b"/bl\xfcte.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match=r"bl\\udcfcte\.png' is not UTF-8; rename it"):
        load_folder(tmp_path, seed=0)


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    (tmp_path / "weed").mkdir()
    with pytest.raises(InputError, match=r"class 'weed' in .* has no image; every class needs at least one"):
        load_folder(tmp_path, seed=0)


@pytest.mark.parametrize("classes", [{}, {"rose": 6}])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, classes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"has {len(classes)} sub-folders; at least 2 classes are needed"):
        load_folder(_tree(tmp_path, **classes), seed=0)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"data\.root: .* cannot be read \(Permission denied\)"):
        load_folder(tmp_path, seed=0)


@pytest.fixture
def shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be listed, by root neither."""
    root = _tree(tmp_path, rose=6, tulip=6)
    _fill(root / "tulip" / "deep", 3)
    real = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name in ("deep", ".deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return root


def test_a_folder_within_a_class_that_cannot_be_read_is_named_not_left_out(shut: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root: '.*tulip/deep' cannot be read \(Permission denied\)"):
        load_folder(shut, seed=0)


def test_a_hidden_folder_that_cannot_be_read_is_no_matter(shut: Path) -> None:
    (shut / "tulip" / "deep").rename(shut / "tulip" / ".deep")
    assert len(_all_names(load_folder(shut, seed=0))) == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_root_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    root = _tree(tmp_path / "root", rose=6, tulip=6)
    root.chmod(0)
    try:
        with pytest.raises(InputError, match=r"data\.root: '.*root' cannot be read \(Permission denied\)"):
            find_root(str(root))
    finally:
        root.chmod(0o700)


# -- broken files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    _tree(tmp_path, rose=8, tulip=8)
    (tmp_path / "rose" / "broken.jpg").write_text("a note")
    (tmp_path / "tulip" / "empty.png").write_bytes(b"")
    return tmp_path


def test_a_file_that_this_user_may_not_read_is_not_called_broken(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "broken.jpg")  # root may read all
    with pytest.raises(InputError, match=r"rose/broken\.jpg' \(and 1 more\) may not be read by this user"):
        load_folder(spoilt, seed=0)


def test_a_file_that_is_no_image_is_named_with_the_number_of_others(spoilt: Path) -> None:
    with pytest.raises(InputError, match=r"rose/broken\.jpg' \(and 1 more\) is not a whole image; .*skip_broken"):
        load_folder(spoilt, seed=0)


def test_skip_broken_leaves_broken_files_out_and_lists_them(spoilt: Path) -> None:
    splits = load_folder(spoilt, seed=0, reading=Reading(skip_broken=True))
    assert splits.skipped == ("rose/broken.jpg", "tulip/empty.png")
    assert splits.describe()["skipped"] == ["rose/broken.jpg", "tulip/empty.png"]
    assert len(_all_names(splits)) == 16
    assert not set(splits.skipped) & set(_all_names(splits))


def test_skip_broken_counts_the_parts_of_a_split_folder_together(spoilt: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    for part in ("train", "test"):
        _tree(root / part, rose=6, tulip=6)
        (root / part / "rose" / "broken.jpg").write_text("a note")
    assert load_folder(root, 0, reading=Reading(skip_broken=True)).skipped == (
        "train/rose/broken.jpg",
        "test/rose/broken.jpg",
    )


def test_a_class_whose_every_image_is_broken_is_a_class_without_an_image(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    (tmp_path / "weed").mkdir()
    (tmp_path / "weed" / "note.jpg").write_text("a note")
    with pytest.raises(InputError, match=r"class 'weed' .* has no image"):
        load_folder(tmp_path, seed=0, reading=Reading(skip_broken=True))


def test_an_image_that_vanishes_after_it_was_found_is_named(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, rose=6, tulip=6), seed=0)
    (tmp_path / splits.train.names[0]).unlink()
    with pytest.raises(InputError, match=r"could not be read any more"):
        splits.train[0]


# -- folders with a split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("training", "valid", "testing"),
        ("train", "validation", "test"),
        ("Training", "Val", "TEST"),
    ],
)
def test_a_folder_s_own_split_is_kept(tmp_path: Path, names: Names) -> None:
    for part, count in zip(names, (5, 3, 4), strict=True):
        _tree(tmp_path / part, rose=count, tulip=count)
    splits = load_folder(tmp_path, seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [10, 6, 8]
    for images, name in ((splits.train, names[0]), (splits.validation, names[1]), (splits.test, names[2])):
        assert all(file.startswith(f"{name}/") for file in images.names)
    assert splits.notes == (f"read from {names[0]}/ (training), {names[1]}/ (validation), {names[2]}/ (test)",)


def test_val_without_test_is_the_test_set_and_the_notes_say_so(tmp_path: Path) -> None:
    _tree(tmp_path / "train", rose=20, tulip=20)
    _tree(tmp_path / "val", rose=5, tulip=5)
    splits = load_folder(tmp_path, seed=0)
    assert _counts(splits.test) == {"rose": 5, "tulip": 5}
    assert all(name.startswith("val/") for name in splits.test.names)
    assert all(name.startswith("train/") for name in [*splits.validation.names, *splits.train.names])
    assert _counts(splits.validation) == {"rose": 2, "tulip": 2}
    assert splits.notes == (
        "read from train/ (training), val/ (test)",
        "val/ is the test set; validation images are cut from the training images",
    )


def test_test_without_val_gets_validation_images_from_train(tmp_path: Path) -> None:
    _tree(tmp_path / "train", rose=20, tulip=20)
    _tree(tmp_path / "test", rose=5, tulip=5)
    splits = load_folder(tmp_path, seed=0)
    assert len(splits.test) == 10
    assert _counts(splits.validation) == {"rose": 2, "tulip": 2}
    assert _counts(splits.train) == {"rose": 18, "tulip": 18}


def test_train_alone_is_cut_in_three(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path / "train", rose=20, tulip=20).parent, seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [26, 4, 10]


def test_a_class_called_train_with_images_directly_in_it_is_a_class(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, train=8, plane=8, test=8), seed=0)
    assert splits.train.classes == ("plane", "test", "train")
    # An editor's hidden folder does not make it a part.
    _fill(tmp_path / "train" / ".thumbnails", 2)
    assert part_folders(tmp_path) == {}


@pytest.mark.parametrize(("one", "other", "part"), [("Train", "train", "train"), ("val", "valid", "validation")])
def test_two_folders_that_are_the_same_part_are_refused(tmp_path: Path, one: str, other: str, part: str) -> None:
    for name in {"train", one, other}:
        _tree(tmp_path / name, rose=5, tulip=5)
    with pytest.raises(InputError, match=rf"has {one}/ and {other}/, which are both the {part} images; keep one"):
        load_folder(tmp_path, seed=0)
    (tmp_path / other).rename(tmp_path / "spare")
    (tmp_path / other).symlink_to(tmp_path / one)  # one folder with two names
    assert part_folders(tmp_path)[part].name == one


def test_test_images_without_training_images_are_refused_not_taken_for_classes(tmp_path: Path) -> None:
    _tree(tmp_path / "val", rose=5, tulip=5)
    _tree(tmp_path / "test", rose=5, tulip=5)
    with pytest.raises(InputError, match=r"has val/ and test/ but no train/"):
        load_folder(tmp_path, seed=0)


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        _tree(tmp_path / part, rose=5, tulip=5)
    _tree(tmp_path / "test", weed=5)
    with pytest.raises(InputError, match=r"class 'weed' is in test/ and not in train/; give it training images"):
        load_folder(tmp_path, seed=0)


@pytest.mark.parametrize("empty_folder", [True, False])
def test_a_class_absent_from_val_or_test_is_no_error_and_is_said(tmp_path: Path, empty_folder: bool) -> None:
    _tree(tmp_path / "train", ash=5, rose=5, tulip=5)
    _tree(tmp_path / "val", tulip=2)
    _tree(tmp_path / "test", ash=2, tulip=3)
    if empty_folder:
        (tmp_path / "test" / "rose").mkdir()
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == splits.validation.classes == splits.test.classes == ("ash", "rose", "tulip")
    assert _counts(splits.validation) == {"ash": 0, "rose": 0, "tulip": 2}
    assert _counts(splits.test) == {"ash": 2, "rose": 0, "tulip": 3}
    assert "no validation image of 2 of 3 classes (ash, rose)" in splits.notes
    assert "no test image of 1 of 3 classes (rose)" in splits.notes


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("training_set", None, "test_set"),
        ("seg_train", None, "seg_test"),
        ("train_images", "dev_images", "test_images"),
        ("trainData", "valData", "evalData"),
        ("Train2017", "Val2017", "Test2017"),
        ("train", "dev", "eval"),
        ("01-train", "02-valid", "03-test"),
        ("flowers train", "flowers val", "flowers test"),
        ("trainingset", None, "testingset"),
        ("trainval", None, "tests"),
        ("learn", "valid_split", "hold-out"),
        ("train", "val", "unseen"),
    ],
)
def test_folders_of_the_same_classes_are_parts_whatever_they_are_called(
    tmp_path: Path, train: str, validation: str | None, test: str
) -> None:
    _tree(tmp_path / train, rose=12, tulip=12)
    _tree(tmp_path / test, rose=3, tulip=3)
    if validation is not None:
        _tree(tmp_path / validation, rose=2, tulip=2)
    _tree(tmp_path / "pictures", other=3)
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == ("rose", "tulip")
    assert all(name.startswith(f"{test}/") for name in splits.test.names)
    assert all(name.startswith(f"{validation or train}/") for name in splits.validation.names)
    assert f"{train}/ (training)" in splits.notes[0]
    assert f"{test}/ (test)" in splits.notes[0]
    assert splits.notes[1] == "not read: pictures/"


def test_a_folder_of_the_same_classes_whose_name_says_nothing_is_named_as_not_read(tmp_path: Path) -> None:
    for name in ("train", "masks"):
        _tree(tmp_path / name, rose=12, tulip=12)
    notes = load_folder(tmp_path, seed=0).notes
    assert notes[1].startswith("not read: masks/ (the same classes are in there: a name with train, val or test")


def test_parts_that_hold_a_folder_of_their_own_name_are_read_below_it(tmp_path: Path) -> None:
    _tree(tmp_path / "seg_train" / "seg_train", rose=12, tulip=12)
    _tree(tmp_path / "seg_test" / "seg_test", rose=3, tulip=3)
    _fill(tmp_path / "seg_pred" / "seg_pred", 3)
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == ("rose", "tulip")
    assert splits.notes[:2] == (
        "read from seg_train/seg_train/ (training), seg_test/seg_test/ (test)",
        "not read: seg_pred/",
    )


def test_classes_whose_images_lie_deeper_are_no_parts(tmp_path: Path) -> None:
    for name in ("test_tube", "test_paper", "beaker"):
        _tree(tmp_path / name, left=4, right=4)
    said = "every class holds left/, right/, read as one"
    assert load_folder(tmp_path, seed=0).notes[0].startswith(said)
    _tree(tmp_path / "dev_board", front=8)
    assert said not in load_folder(tmp_path, seed=0).notes[0]
    assert load_folder(tmp_path, seed=0).train.classes == ("beaker", "dev_board", "test_paper", "test_tube")


def test_a_folder_that_could_be_two_parts_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("train_val", "test"):
        _tree(tmp_path / name, rose=5, tulip=5)
    with pytest.raises(InputError, match=r"train_val/ could be the train or the validation images; rename it"):
        load_folder(tmp_path, seed=0)


def test_what_systems_and_network_drives_leave_is_neither_class_nor_image(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    folders = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "System Volume Information")
    for name in (*folders, "#snapshot", "@Recently-Snapshot"):
        _fill(tmp_path / name, 3)
        _fill(tmp_path / "rose" / name / "000.png", 3)
    for name in ("Thumbs.db", "ehthumbs.db", "Desktop.ini"):
        (tmp_path / "rose" / name).write_text("x")
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == ("rose", "tulip")
    assert len(_all_names(splits)) == 12
    assert splits.notes == ()


def test_files_that_are_no_images_by_their_ending_are_passed_over_and_counted_once(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    for name in ("a.txt", "b.txt", "c.WAV", "notes.json", "LICENSE"):
        (tmp_path / "rose" / name).write_text("a note")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "rose" / "without-an-ending", format="png")
    _fill(tmp_path, 2)
    splits = load_folder(tmp_path, seed=0)
    assert len(_all_names(splits)) == 13
    assert splits.skipped == ()
    assert splits.notes == (
        f"not read: 2 images in {tmp_path.name}/ itself, beside its folders",
        "5 files passed over: no images by their ending (.json, .txt, .wav, none)",
    )


def test_a_name_whose_letters_a_file_system_took_apart_is_the_same_class(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    _tree(tmp_path / "train", **{composed: 6, "tea": 6})
    _fill(tmp_path / "train" / apart, 6, first=50)
    _tree(tmp_path / "test", **{apart: 3, "tea": 3})
    splits = load_folder(tmp_path, seed=0)
    assert splits.train.classes == (composed, "tea")
    assert _counts(splits.test) == {composed: 3, "tea": 3}
    assert _counts(splits.train)[composed] + _counts(splits.validation)[composed] == 12
    assert [image.size for image, _ in (splits.train[index] for index in range(len(splits.train)))]


@pytest.mark.parametrize(("folds", "images", "needed"), [(2, 3, 4), (3, 2, 3), (5, 4, 5)])
def test_a_class_that_is_too_small_for_the_folds_is_named(tmp_path: Path, folds: int, images: int, needed: int) -> None:
    def pooled(tulips: int) -> Splits:
        whole = read_folder(_tree(tmp_path / str(tulips), rose=20, tulip=tulips), tmp_path, Reading())
        return Splits(whole, whole.subset([]), whole.subset([]))

    with pytest.raises(InputError, match=rf"data\.folds: {folds} is more than class 'tulip' .* at least {needed} im"):
        take_fold(pooled(images), folds, 1, seed=0)
    for fold in range(1, folds + 1):
        parts = take_fold(pooled(needed), folds, fold, seed=0)
        assert all(_counts(part)["tulip"] for part in (parts.train, parts.validation, parts.test))


# -- pixels of more than 8 bits ----------------------------------------------------------------------------------------


def _deep(root: Path, **values: Sequence[float]) -> Path:
    """Write a folder of 4 images a class, of two halves each: black, and one of these values."""
    for name, tops in values.items():
        (root / name).mkdir(parents=True)
        for number in range(4):
            shares = any(isinstance(top, float) for top in tops)
            kind: type[Any] = np.float32 if shares else np.uint16 if min(tops) >= 0 else np.int32
            pixels = np.array([[0, tops[number % len(tops)]]], dtype=kind)
            Image.fromarray(pixels).save(root / name / f"{number}.tif")
    return root


def _whites(splits: Splits) -> set[int]:
    parts = (splits.train, splits.validation, splits.test)
    return {part[index][0].getpixel((1, 0))[0] for part in parts for index in range(len(part))}  # type: ignore[index]


@pytest.mark.parametrize(
    ("values", "range", "whites"),
    [
        ({"dark": [200], "light": [4000]}, "0-4095", {12, 249}),  # 12 bits in 16
        ({"dark": [250], "light": [300]}, "0-1023", {62, 74}),
        ({"dark": [0.5], "light": [1.02]}, "0-1", {127, 255}),
        ({"cold": [-1000, 3000], "warm": [3000]}, "-1000-3000", {0, 255}),
    ],
)
def test_pixels_of_more_than_8_bits_have_one_range_in_all_of_a_data_set(
    tmp_path: Path, values: dict[str, Sequence[float]], range: str, whites: set[int]
) -> None:
    splits = load_folder(_deep(tmp_path, **values), seed=0)
    assert {part.range for part in (splits.train, splits.validation, splits.test)} == {range}
    assert _whites(splits) == whites
    said = rf"8 images of more than 8 bits, whose pixels go from \S+ to \S+: read as {range} \(--data\.range"
    assert any(re.match(said, note) for note in splits.notes)


def test_the_parts_of_a_data_set_have_the_same_range_and_a_declared_one_is_kept(tmp_path: Path) -> None:
    _deep(tmp_path / "train", dark=[200], light=[4000])
    _deep(tmp_path / "test", dark=[60], light=[100])
    assert load_folder(tmp_path, seed=0).test.range == "0-4095"
    declared = load_images(DataConfig(root=str(tmp_path), range="0-200"), 0)
    assert _whites(declared) == {76, 127, 255}
    with pytest.raises(InputError, match=r"data\.range: '9-3' is not allowed; give LOW-HIGH, the lower first"):
        load_images(DataConfig(root=str(tmp_path), range="9-3"), 0)


def test_a_plain_8_bit_set_has_no_range_and_nothing_is_said(tmp_path: Path) -> None:
    splits = load_folder(_tree(tmp_path, rose=6, tulip=6), seed=0)
    assert (splits.train.range, splits.notes) == ("auto", ())


def test_an_image_beyond_the_limit_is_not_left_out_as_if_it_were_none(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    Image.new("RGB", (50, 50)).save(tmp_path / "rose" / "large.png")
    with pytest.raises(InputError, match=r"large\.png' has 50 x 50 pixels; at most .* give --data\.max_pixels 2500"):
        load_folder(tmp_path, 0, Reading(skip_broken=True, max_pixels=2499))
    assert len(_all_names(load_folder(tmp_path, 0, Reading(max_pixels=2500)))) == 13


# -- per_class --------------------------------------------------------------------------------------------------------


@pytest.fixture
def flowers(tmp_path: Path) -> Callable[[int | None], Splits]:
    _tree(tmp_path, rose=40, tulip=32)
    return lambda per_class: load_images(DataConfig(root=str(tmp_path), per_class=per_class), seed=3)


def test_per_class_thins_the_training_images_alone(flowers: Callable[[int | None], Splits]) -> None:
    whole, thin = flowers(None), flowers(5)
    assert _counts(thin.train) == {"rose": 5, "tulip": 5}
    assert thin.test.names == whole.test.names
    assert thin.validation.names == whole.validation.names


def test_fewer_images_a_class_are_a_subset_of_more(flowers: Callable[[int | None], Splits]) -> None:
    sizes: list[int | None] = [1, 2, 5, 10, None]
    names = [set(flowers(per_class).train.names) for per_class in sizes]
    assert all(few < many for few, many in itertools.pairwise(names))


def test_more_images_a_class_than_there_are_is_refused_with_the_most_there_are(
    flowers: Callable[[int | None], Splits],
) -> None:
    most = min(_counts(flowers(None).train).values())
    assert _counts(flowers(most).train) == {"rose": most, "tulip": most}
    with pytest.raises(InputError, match=rf"data\.per_class: {most + 1} is more than class 'tulip'.* at most {most}"):
        flowers(most + 1)


def test_of_classes_that_are_all_too_small_the_smallest_is_named(tmp_path: Path) -> None:
    root = _tree(tmp_path, ash=20, birch=8, cedar=12)
    with pytest.raises(
        InputError, match=r"per_class: 15 is more than class 'birch' leaves for training; give at most 5"
    ):
        load_images(DataConfig(root=str(root), per_class=15), seed=0)


# -- where the folder is looked for -----------------------------------------------------------------------------------


def test_a_relative_root_is_looked_for_here_and_then_in_the_data_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    (home / "flowers").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("ARELU_META_DATA", str(home))
    assert find_root("flowers").resolve() == home / "flowers"
    (here / "flowers").mkdir()
    assert find_root("flowers").resolve() == here / "flowers"
    assert find_root(str(home / "flowers")) == home / "flowers"


def test_the_data_home_is_the_users_cache_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ARELU_META_DATA", raising=False)
    assert data_home() == tmp_path / ".cache" / "arelu-meta" / "data"
    monkeypatch.setenv("ARELU_META_DATA", "")
    assert data_home() == tmp_path / ".cache" / "arelu-meta" / "data"
    monkeypatch.setenv("ARELU_META_DATA", "~/elsewhere")
    assert data_home() == tmp_path / "elsewhere"


def test_a_tilde_is_the_home_and_an_unknown_users_is_a_missing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    assert find_root("~/pictures") == tmp_path / "pictures"
    with pytest.raises(InputError, match=r"'~nobody-of-this-name/x' does not exist"):
        find_root("~nobody-of-this-name/x")


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"data\.root: .*file' is a file; give a folder with one sub-folder a class"):
        find_root(str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"data\.root: .*gone' does not exist; give a folder"):
        find_root(str(tmp_path / "gone"))


def test_a_root_makes_the_name_folder_the_default_and_digits_otherwise(tmp_path: Path) -> None:
    _tree(tmp_path, rose=6, tulip=6)
    assert load_images(DataConfig(root=str(tmp_path)), 0).train.classes == ("rose", "tulip")
    assert load_images(DataConfig(), 0).train.classes == tuple("0123456789")
    with pytest.raises(InputError, match=r"data\.root: missing"):
        load_images(DataConfig(name="folder"), 0)


# -- sets -------------------------------------------------------------------------------------------------------------


def _set(classes: Names, labels: Sequence[int], prefix: str = "", skipped: Names = ()) -> ImageSet:
    names = tuple(f"{prefix}{number}" for number in range(len(labels)))
    colours = {name: number for number, name in enumerate(names)}
    return ImageSet(
        tuple(classes), np.array(labels), names, lambda name: Image.new("L", (1, 1), colours[name]), 1, tuple(skipped)
    )


def test_sets_put_together_share_classes_of_the_same_name() -> None:
    both = concatenate([_set("ab", [0, 1, 1], "x", ["s1"]), _set("bc", [0, 1], "y", ["s2"])])
    assert both.classes == ("a", "b", "c")
    assert both.labels.tolist() == [0, 1, 1, 1, 2]
    assert [both[index][0].getpixel((0, 0)) for index in range(5)] == [0, 1, 2, 0, 1]
    assert (both.channels, both.skipped) == (1, ("s1", "s2"))


def test_a_subset_keeps_classes_labels_and_pixels_in_step() -> None:
    some = _set("abc", [0, 1, 2, 1]).subset([3, 0])
    assert some.classes == ("a", "b", "c")
    assert [(label, image.getpixel((0, 0))) for image, label in (some[0], some[1])] == [(1, 3), (0, 0)]


def test_validation_images_are_a_share_of_all_images_not_of_what_the_test_set_leaves() -> None:
    splits = split_whole(_set("ab", [0, 1] * 100), seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [130, 20, 50]


def test_the_test_set_is_the_same_whether_or_not_validation_images_are_given() -> None:
    images = _set("ab", [0, 1] * 20)
    other = _set("ab", [0, 1] * 3, "v")
    alone, given = fill_splits(images, None, None, seed=5), fill_splits(images, other, None, seed=5)
    assert alone.test.names == given.test.names
    assert given.validation is other


def test_an_image_has_the_same_digest_in_a_part_and_in_a_set_of_parts_as_alone() -> None:
    images = load_digits()
    part, other = images.subset([3, 5]), images.subset([5, 7])
    assert concatenate([part, other]).digests().tolist() == images.digests()[[3, 5, 5, 7]].tolist()
    assert replace(part, known_digests=None).digests().tolist() == part.digests().tolist()
    assert len(set(images.digests().tolist())) == len(images)


def _digests(splits: Splits) -> dict[str, int]:
    parts = (splits.train, splits.validation, splits.test)
    return {name: int(digest) for part in parts for name, digest in zip(part.names, part.digests(), strict=True)}


@pytest.mark.parametrize("digits", [True, False])
def test_a_fold_knows_each_image_s_own_digest(digits: bool, tmp_path: Path) -> None:
    config = DataConfig() if digits else DataConfig(root=str(_tree(tmp_path, a=7, b=6)))
    whole = _digests(load_images(config, 0))
    for fold in (1, 2, 3):
        assert _digests(load_images(replace(config, folds=3, fold=fold), 0)) == whole
