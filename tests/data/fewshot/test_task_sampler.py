import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import (
    ClassSplits,
    Pool,
    TensorSampler,
    check_class_sizes,
    class_counts,
    load_class_splits,
    load_pool,
    load_whole,
    to_pixels,
)
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError

Counts = np.ndarray[Any, np.dtype[np.int64]]

GREY = InputSpec(8, 1, (0.0,), (1.0,))
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


def _classes(images: ImageSet) -> set[str]:
    return {images.classes[label] for label in images.labels}


def _load(root: Path | None, task: TaskConfig, seed: int = 0, name: str | None = None) -> ClassSplits:
    return load_class_splits(DataConfig(name=name, root=None if root is None else str(root)), task, seed)


# -- how classes are divided ------------------------------------------------------------------------------------------


def test_test_classes_are_never_trained_on() -> None:
    for seed in range(5):
        splits = _load(None, TaskConfig(), seed, "digits")
        assert not _classes(splits.train) & _classes(splits.test)
        assert _classes(splits.train) | _classes(splits.test) == set("0123456789")


def test_ten_classes_and_five_ways_give_five_and_five_validated_on_other_images_of_the_training_classes() -> None:
    splits = _load(None, TaskConfig(ways=5, shots=1, queries=15), 0, "digits")
    assert (len(_classes(splits.train)), len(_classes(splits.test))) == (5, 5)
    assert splits.validation is not None
    assert _classes(splits.validation) == _classes(splits.train)
    assert not set(splits.validation.names) & set(splits.train.names)
    assert splits.notes == (SEEN,)
    for part in (splits.train, splits.validation, splits.test):
        assert min(np.bincount(part.labels)[np.unique(part.labels)]) >= 16


def test_enough_classes_give_validation_classes_of_their_own(tmp_path: Path) -> None:
    splits = _load(_tree(tmp_path, 15, 4), TaskConfig(ways=3, shots=1, queries=2))
    assert splits.validation is not None
    parts = [_classes(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [8, 3, 4]
    assert len(set.union(*parts)) == 15
    assert splits.notes == ()


def test_too_few_images_to_hold_any_out_means_no_validation_and_the_note_says_so(tmp_path: Path) -> None:
    splits = _load(_tree(tmp_path, 4, 5), TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is None
    assert splits.notes == ("too few classes and images to validate on: the last checkpoint is kept",)
    assert len(splits.train) == 10
    assert "validation" not in splits.describe()


def test_the_seed_decides_the_division(tmp_path: Path) -> None:
    _tree(tmp_path, 12, 4)
    task = TaskConfig(ways=2, shots=1, queries=1)
    assert _load(tmp_path, task).describe() == _load(tmp_path, task).describe()
    assert len({tuple(sorted(_classes(_load(tmp_path, task, seed).test))) for seed in range(5)}) > 1


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
        splits = _load(None, TaskConfig(ways=2, shots=1, queries=1), seed)
        assert (len(_classes(splits.train)), len(_classes(splits.test))) == (2, 2)


# -- folders that bring a division ------------------------------------------------------------------------------------


def test_a_folder_whose_parts_hold_different_classes_keeps_its_own_division(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "val", 3, 4, first=10)
    _tree(tmp_path / "test", 2, 4, first=20)
    splits = _load(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is not None
    found = [sorted(_classes(part)) for part in (splits.train, splits.validation, splits.test)]
    assert found == [["c00", "c01", "c02", "c03"], ["c10", "c11", "c12"], ["c20", "c21"]]
    read = "read from train/ (training), val/ (validation), test/ (test)"
    assert splits.notes == ("classes divided as in the folder", read)


def test_a_part_that_lacks_a_class_of_train_divides_no_classes(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 8, 6)
    _tree(tmp_path / "test", 7, 6)
    splits = _load(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert not set(_classes(splits.train)) & set(_classes(splits.test))


def test_without_val_such_a_folder_has_no_validation_classes(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "test", 2, 4, first=20)
    splits = _load(tmp_path, TaskConfig(ways=2, shots=1, queries=2))
    assert splits.validation is None
    assert sorted(_classes(splits.test)) == ["c20", "c21"]


def test_a_folder_whose_parts_hold_the_same_classes_is_put_together_and_divided_anew(tmp_path: Path) -> None:
    _tree(tmp_path / "train", 4, 4)
    _tree(tmp_path / "test", 4, 3)
    splits = _load(tmp_path, TaskConfig(ways=2, shots=1, queries=1))
    assert not _classes(splits.train) & _classes(splits.test)
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
        _load(tmp_path, TaskConfig(ways=2, shots=1, queries=1))
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
        _load(tmp_path, TaskConfig(ways=2, shots=2, queries=4))
    assert _load(tmp_path, TaskConfig(ways=2, shots=1, queries=4)).validation is None


def test_more_ways_than_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"^task\.ways: 4 is more than the 3 classes here; give at most 3"):
        check_class_sizes(_set(3, 5), TaskConfig(ways=4, shots=1, queries=1))


def test_what_is_just_enough_passes() -> None:
    check_class_sizes(_set(3, 5), TaskConfig(ways=3, shots=2, queries=3))


# -- omniglot-small ---------------------------------------------------------------------------------------------------


def test_omniglot_small_tests_on_the_alphabets_that_it_never_trained_on(data_root: Path) -> None:
    splits = _load(data_root / "omniglot-small", TaskConfig(), 0, "omniglot-small")
    assert splits.validation is not None

    def alphabets(images: ImageSet) -> set[str]:
        return {name.split("/")[0] for name in _classes(images)}

    assert alphabets(splits.test) == {"Japanese_(katakana)", "Sanskrit", "Tagalog"}
    first = {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    assert alphabets(splits.train) | alphabets(splits.validation) == first
    assert not _classes(splits.train) & _classes(splits.validation)
    assert len(_classes(splits.train)) + len(_classes(splits.validation)) == 24 + 22 + 24 + 40 + 26
    assert len(_classes(splits.test)) == 47 + 42 + 17
    assert set(np.bincount(splits.test.labels)) <= {0, 20}
    assert splits.inverted
    assert splits.train.channels == 1


def test_omniglot_small_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omniglot-small").mkdir()
    with pytest.raises(InputError, match=r"data\.root: .* has no images_background_small1/"):
        _load(tmp_path / "omniglot-small", TaskConfig(), 0, "omniglot-small")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"has no images_background_small1/"):
        _load(None, TaskConfig(), 0, "omniglot-small")


def test_omniglot_small_refuses_more_ways_than_it_can_give(tmp_path: Path) -> None:
    for number, alphabet in ((1, "Greek"), (2, "Tagalog")):
        _tree(tmp_path / f"images_background_small{number}" / alphabet, 4, 3)
        _tree(tmp_path / f"images_background_small{number}" / "Latin", 2, 3)
    assert len(_classes(_load(tmp_path, TaskConfig(3, 1, 1), 0, "OMNIGLOT-small").test)) == 4
    with pytest.raises(InputError, match=r"task\.ways: 4 is too many for omniglot-small; give at most 3"):
        _load(tmp_path, TaskConfig(4, 1, 1), 0, "omniglot-small")


# -- pools ------------------------------------------------------------------------------------------------------------


def test_an_image_is_squeezed_whole_to_the_models_square() -> None:
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    pixels = to_pixels(image, InputSpec(8, 3, (0.0,) * 3, (1.0,) * 3))
    assert (pixels.shape, pixels.dtype) == ((3, 8, 8), torch.uint8)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 7, 7].tolist() == [0, 0, 255]
    assert to_pixels(image, GREY).shape == (1, 8, 8)


def test_a_pool_gives_normalised_images() -> None:
    pool = load_pool(_set(2, 3), InputSpec(8, 3, (0.5, 0.0, 0.0), (0.5, 1.0, 2.0)))
    found = pool.images([0, 5])
    assert (found.shape, found.dtype) == ((2, 3, 8, 8), torch.float32)
    value = 12 / 255
    assert found[1, :, 0, 0].tolist() == pytest.approx([(value - 0.5) / 0.5, value, value / 2])
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1, 0, 0])


def test_inverted_turns_dark_strokes_on_white_into_bright_ones_on_black() -> None:
    assert load_pool(_set(2, 2), GREY, inverted=True).pixels.amax((1, 2, 3)).tolist() == [255, 254, 245, 244]


def test_rotations_make_four_times_the_classes_each_a_turn_of_its_own() -> None:
    stripe = np.zeros((8, 8), dtype=np.uint8)
    stripe[0] = 255  # along the top
    images = ImageSet(("a", "b"), np.array([0, 1, 1]), ("0", "1", "2"), lambda _: Image.fromarray(stripe), 1)
    images = replace(images, known_digests=np.arange(3, dtype=np.uint64))
    pool = load_pool(images, GREY, rotations=True)
    assert pool.pixels.shape == (12, 1, 8, 8)
    assert torch.bincount(pool.labels).tolist() == [1, 2] * 4
    edges = {0: (0, slice(None)), 1: (slice(None), 0), 2: (7, slice(None)), 3: (slice(None), 7)}
    for turn, edge in edges.items():
        for pixels in pool.pixels[pool.labels // 2 == turn, 0]:
            assert pixels[edge].min() == 255
            assert int((pixels > 0).sum()) == 8


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load_pool(_set(6, 9), GREY)


def _numbers(images: torch.Tensor) -> list[int]:
    """The images' names in `_set`: 10 times the class and the number in it."""
    return [round(float(image.mean()) * 255) for image in images]


@pytest.mark.parametrize("task", [TaskConfig(5, 1, 3), TaskConfig(2, 4, 5), TaskConfig(6, 2, 1)])
def test_a_task_has_the_shapes_and_labels_that_it_was_asked_for(pool: Pool, task: TaskConfig) -> None:
    sampler = TensorSampler(pool, task, "train 0")
    for index in range(20):
        episode = sampler.sample(index)
        assert episode.support_images.shape == (task.ways * task.shots, 1, 8, 8)
        assert episode.query_images.shape == (task.ways * task.queries, 1, 8, 8)
        assert episode.support_images.dtype == episode.query_images.dtype == torch.float32
        assert episode.support_labels.dtype == episode.query_labels.dtype == torch.int64
        assert torch.bincount(episode.support_labels).tolist() == [task.shots] * task.ways
        assert torch.bincount(episode.query_labels).tolist() == [task.queries] * task.ways


def test_support_and_query_share_classes_and_no_image(pool: Pool) -> None:
    sampler = TensorSampler(pool, TaskConfig(3, 2, 4), "train 0")
    for index in range(20):
        episode = sampler.sample(index)
        support, query = _numbers(episode.support_images), _numbers(episode.query_images)
        assert len(set(support + query)) == 3 * 6
        classes = {
            label: {
                number // 10
                for number, its in zip(support, episode.support_labels.tolist(), strict=True)
                if its == label
            }
            for label in range(3)
        }
        assert all(len(found) == 1 for found in classes.values())
        assert len(set.union(*classes.values())) == 3
        for number, label in zip(query, episode.query_labels.tolist(), strict=True):
            assert classes[label] == {number // 10}


def test_tasks_draw_from_every_class_under_every_label(pool: Pool) -> None:
    sampler = TensorSampler(pool, TaskConfig(2, 1, 1), "train 0")
    found = set()
    for index in range(150):
        episode = sampler.sample(index)
        found |= set(
            zip((n // 10 for n in _numbers(episode.support_images)), episode.support_labels.tolist(), strict=True)
        )
    assert found == {(label, way) for label in range(6) for way in range(2)}


def test_task_i_of_a_seed_is_always_the_same_whatever_was_drawn_before(pool: Pool) -> None:
    task = TaskConfig(3, 1, 2)
    first = TensorSampler(pool, task, "train 0")
    expected = [first.sample(index) for index in range(5)]
    random.seed(99)
    torch.manual_seed(99)
    np.random.seed(99)
    again = TensorSampler(pool, task, "train 0")
    for index in (4, 1, 3, 0, 2, 2):
        episode = again.sample(index)
        assert torch.equal(episode.support_images, expected[index].support_images)
        assert torch.equal(episode.query_images, expected[index].query_images)
        assert torch.equal(episode.query_labels, expected[index].query_labels)


def test_other_seeds_parts_and_numbers_give_other_tasks(pool: Pool) -> None:
    task = TaskConfig(3, 1, 2)
    found = [
        tuple(_numbers(TensorSampler(pool, task, seed).sample(index).query_images))
        for seed in ("train 0", "train 1", "test 0")
        for index in range(4)
    ]
    assert len(set(found)) == 12


def test_drawing_a_task_leaves_every_random_state_alone(pool: Pool) -> None:
    sampler = TensorSampler(pool, TaskConfig(3, 1, 2), "train 0")
    drawn = []
    for draws in (0, 3):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        for index in range(draws):
            sampler.sample(index)
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_tasks_of_rotated_classes_mix_turns_as_classes_of_their_own() -> None:
    stripe = np.zeros((8, 8), dtype=np.uint8)
    stripe[0] = 255
    images = ImageSet(("a",), np.zeros(3, dtype=np.int64), ("0", "1", "2"), lambda _: Image.fromarray(stripe), 1)
    images = replace(images, known_digests=np.arange(3, dtype=np.uint64))
    episode = TensorSampler(load_pool(images, GREY, rotations=True), TaskConfig(4, 1, 2), "train 0").sample(0)
    assert len({tuple(image.flatten().tolist()) for image in episode.support_images}) == 4
    by_label = {int(label): image for image, label in zip(episode.support_images, episode.support_labels, strict=True)}
    for image, label in zip(episode.query_images, episode.query_labels, strict=True):
        assert torch.equal(image, by_label[int(label)])


def test_a_task_moves_to_a_device_whole(pool: Pool) -> None:
    episode = TensorSampler(pool, TaskConfig(2, 1, 1), "train 0").sample(0).to(torch.device("meta"))
    parts = (episode.support_images, episode.support_labels, episode.query_images, episode.query_labels)
    assert {part.device.type for part in parts} == {"meta"}


def _marked_pool(sizes: tuple[int, ...]) -> Pool:
    """Every image is filled with its own number."""
    labels = torch.cat([torch.full((size,), 10 * label) for label, size in enumerate(sizes)])
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Pool(pixels, labels[shuffled], (0.0,), (1 / 255,))


def test_tasks_from_tensors_have_distinct_classes_and_distinct_images_of_them() -> None:
    pool, task = _marked_pool((5, 9, 6, 30, 7)), TaskConfig(ways=3, shots=2, queries=3)
    batch = TensorSampler(pool, task, "a").batch(range(200))
    assert batch.support_images.shape == (200, 6, 1, 2, 2)
    assert batch.query_images.shape == (200, 9, 1, 2, 2)
    assert batch.support_labels[7].tolist() == [0, 0, 1, 1, 2, 2]
    for number in range(200):
        support = batch.support_images[number, :, 0, 0, 0].round().long()
        query = batch.query_images[number, :, 0, 0, 0].round().long()
        assert len({*support.tolist(), *query.tolist()}) == 15
        classes = pool.labels[support].view(3, 2)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == 3
        assert (pool.labels[query].view(3, 3) == classes[:, :1]).all()


def test_task_i_from_tensors_is_the_same_in_any_batch_and_order_and_another_with_another_seed() -> None:
    pool, task = _marked_pool((20, 20, 20, 20)), TaskConfig(ways=2, shots=1, queries=2)
    sampler = TensorSampler(pool, task, "a")
    whole = sampler.positions(range(50))
    assert (TensorSampler(pool, task, "a").positions([30, 7]) == whole[[30, 7]]).all()
    assert torch.equal(sampler.sample(7).query_images, sampler.batch(range(50)).query_images[7])
    same = (TensorSampler(pool, task, "b").positions(range(50)) == whole).all(axis=(1, 2))
    assert same.sum() <= 1
    assert len({row.tobytes() for row in whole}) >= 49


def _counts(positions: Counts, labels: Counts) -> tuple[Counts, Counts]:
    """Count the ordered pairs of classes, and of images within class 0, that tasks begin with."""
    classes = labels[positions[:, :, 0]] // 10
    pairs = np.bincount(classes[:, 0] * 4 + classes[:, 1], minlength=16)
    members = np.flatnonzero(labels == 0)
    places = np.searchsorted(members, positions[classes == 0])
    images = np.bincount(places[:, 0] * len(members) + places[:, 1], minlength=len(members) ** 2)
    return pairs[pairs > 0], images[images > 0]


def test_every_ordered_choice_of_classes_and_of_images_is_equally_likely() -> None:
    pool, task = _marked_pool((6, 8, 9, 40)), TaskConfig(ways=2, shots=1, queries=1)
    positions = TensorSampler(pool, task, "a").positions(range(4000))
    for counts, pairs in zip(_counts(positions, pool.labels.numpy()), (12, 30), strict=True):
        assert len(counts) == pairs  # every ordered pair occurs, none of a thing with itself
        assert chisquare(counts).pvalue > 1e-4


def test_tasks_from_tensors_refuse_too_many_ways_and_too_small_a_class() -> None:
    with pytest.raises(InputError, match=r"task\.ways: 3 is more than the 2 classes"):
        TensorSampler(_marked_pool((9, 9)), TaskConfig(ways=3, shots=1, queries=1), "a")
    with pytest.raises(InputError, match=r"3 \+ 3 is more than the smallest class has \(5 images\)"):
        TensorSampler(_marked_pool((9, 5)), TaskConfig(ways=2, shots=3, queries=3), "a")
