import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from arelu_meta.config import TaskConfig
from arelu_meta.data.fewshot import (
    Pool,
    TensorSampler,
    load_pool,
    to_pixels,
)
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError

Counts = np.ndarray[Any, np.dtype[np.int64]]

GREY = InputSpec(8, 1, (0.0,), (1.0,))


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
