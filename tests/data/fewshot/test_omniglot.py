"""Characters of several alphabets, and tasks that stay within one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import ClassSplits, Pool, TensorSampler, load_class_splits, load_pool
from arelu_meta.data.fewshot.class_splits import AlphabetSet, alphabet_of, within_alphabets
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError

GREY = InputSpec(8, 1, (0.0,), (1.0,))


def _write(root: Path, alphabets: dict[str, int], images: int = 3, paper: int = 250) -> Path:
    for alphabet, characters in alphabets.items():
        for number in range(characters):
            folder = root / alphabet / f"character{number:02}"
            folder.mkdir(parents=True)
            for index in range(images):
                image = Image.new("L", (8, 8), paper)
                image.putpixel((number % 8, index), 255 - paper)
                image.save(folder / f"{index}.png")
    return root


def _load(root: Path, task: TaskConfig, seed: int = 0, name: str = "alphabets") -> ClassSplits:
    return load_class_splits(DataConfig(name=name, root=str(root)), task, seed)


def _alphabets(images: ImageSet) -> set[str]:
    return {alphabet_of(images.classes[label]) for label in images.labels}


def test_a_folder_of_alphabets_keeps_some_of_them_unseen_and_the_seed_decides_which(tmp_path: Path) -> None:
    root = _write(tmp_path, dict.fromkeys(("A", "B", "C", "D", "E", "F", "G"), 4))
    task = TaskConfig(ways=3, shots=1, queries=2)
    tested = set()
    for seed in range(6):
        splits = _load(root, task, seed)
        assert splits.validation is not None
        known = _alphabets(splits.train) | _alphabets(splits.validation)
        assert not known & _alphabets(splits.test)
        assert known | _alphabets(splits.test) == set("ABCDEFG")
        assert len(_alphabets(splits.test)) == 2
        assert splits.inverted
        tested.add(tuple(sorted(_alphabets(splits.test))))
    assert len(tested) > 1


def test_bright_strokes_on_black_stay_as_they_are(tmp_path: Path) -> None:
    root = _write(tmp_path, {"A": 8, "B": 4}, paper=5)
    assert not _load(root, TaskConfig(ways=2, shots=1, queries=1)).inverted


def test_omniglots_own_two_sets_are_found_by_their_names(tmp_path: Path) -> None:
    _write(tmp_path / "images_background", {"A": 6, "B": 6})
    _write(tmp_path / "images_evaluation", {"C": 4, "D": 4})
    splits = _load(tmp_path, TaskConfig(ways=2, shots=1, queries=1))
    assert _alphabets(splits.train) == {"A", "B"}
    assert _alphabets(splits.test) == {"C", "D"}


def test_an_image_beside_the_characters_is_named(tmp_path: Path) -> None:
    root = _write(tmp_path, {"A": 3, "B": 3})
    Image.new("L", (8, 8)).save(root / "B" / "stray.png")
    with pytest.raises(InputError, match=r"data\.root: .*B/stray\.png' lies in no character's folder; give ALPHABET/"):
        _load(root, TaskConfig(ways=2, shots=1, queries=1))


def test_test_tasks_keep_to_one_alphabet_and_say_which_are_too_small(tmp_path: Path) -> None:
    _write(tmp_path / "images_background", {"A": 8, "B": 8})
    _write(tmp_path / "images_evaluation", {"C": 6, "D": 3, "E": 5})
    splits = _load(tmp_path, TaskConfig(ways=5, shots=1, queries=1, alphabets="one-in-test"))
    assert isinstance(splits.test, AlphabetSet)
    assert not isinstance(splits.train, AlphabetSet)
    assert _alphabets(splits.test) == {"C", "E"}
    assert splits.notes == ("no test tasks of D: fewer than 5 characters",)
    with pytest.raises(InputError, match=r"task\.ways: 7 is more than the characters of any alphabet here \('C' has"):
        _load(tmp_path, TaskConfig(ways=7, shots=1, queries=1, alphabets="one-in-test"))


def test_training_tasks_keep_to_one_alphabet_too_and_are_validated_on_an_alphabet_of_its_own(tmp_path: Path) -> None:
    _write(tmp_path / "images_background", {"A": 5, "B": 5, "F": 5})
    _write(tmp_path / "images_evaluation", {"C": 5})
    splits = _load(tmp_path, TaskConfig(ways=5, shots=1, queries=1, alphabets="one"))
    assert splits.validation is not None
    assert len(_alphabets(splits.validation)) == 1
    assert not _alphabets(splits.validation) & _alphabets(splits.train)
    assert all(isinstance(part, AlphabetSet) for part in (splits.train, splits.validation, splits.test))


def test_data_without_alphabets_cannot_keep_to_one() -> None:
    task = TaskConfig(ways=2, shots=1, queries=1, alphabets="one")
    with pytest.raises(InputError, match=r"task\.alphabets: 'one' needs characters of several alphabets; give --data"):
        load_class_splits(DataConfig(name="digits"), task, 0)


def _pool_of_alphabets(rotations: bool = False) -> tuple[Pool, list[int]]:
    """Alphabets of 3, 5 and 4 characters; image i is filled with i, and its turns alike."""
    names = [f"{alphabet}/{number}" for alphabet, count in (("A", 3), ("B", 5), ("C", 4)) for number in range(count)]
    labels = np.repeat(np.arange(12), 4)
    images = ImageSet(tuple(names), labels, tuple(map(str, range(48))), lambda n: Image.new("L", (4, 4), int(n)), 1)
    pool = load_pool(within_alphabets(images), GREY, rotations=rotations)
    assert pool.groups is not None
    return pool, pool.groups.tolist()


@pytest.mark.parametrize("rotations", [False, True])
def test_tasks_within_an_alphabet_take_all_alphabets_that_are_large_enough_and_no_other(rotations: bool) -> None:
    pool, groups = _pool_of_alphabets(rotations)
    positions = TensorSampler(pool, TaskConfig(4, 1, 2), "a").positions(range(2000))
    found = torch.tensor(groups)[torch.from_numpy(positions[:, :, 0])]
    assert (found == found[:, :1]).all()
    assert set(found[:, 0].tolist()) == ({1, 2, 4, 5, 7, 8, 10, 11} if rotations else {1, 2})
    labels = pool.labels[torch.from_numpy(positions)]
    assert (labels == labels[:, :, :1]).all()
    assert all(len(set(row.tolist())) == 4 for row in labels[:, :, 0])
    pairs = {(int(row[0, 0]), int(row[1, 0])) for row in labels if groups[int(row[0, 0]) * 4] == 1}
    assert len(pairs) == 20  # every ordered pair of B's five characters


def test_lakes_tasks_on_omniglot_small_are_of_katakana_and_sanskrit(data_root: Path) -> None:
    task = TaskConfig(ways=20, shots=1, queries=1, alphabets="one-in-test")
    splits = _load(data_root / "omniglot-small", task, name="omniglot-small")
    assert _alphabets(splits.test) == {"Japanese_(katakana)", "Sanskrit"}
    assert "no test tasks of Tagalog: fewer than 20 characters" in splits.notes
