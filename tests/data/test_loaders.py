import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_meta.data import loaders
from arelu_meta.data.loaders import Batches, InputSpec, build_transform, decoded_bytes, keep_decoded, note_crop
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError

COLOUR = InputSpec(32, 3, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bilinear")
GREY = InputSpec(32, 1, (0.5,), (0.25,), "bilinear")


def _images(count: int) -> ImageSet:
    """Grey images; image i is filled with i and has label i % 3."""
    names = tuple(str(number) for number in range(count))
    labels = np.arange(count) % 3
    return ImageSet(("a", "b", "c"), labels, names, lambda name: Image.new("L", (8, 8), int(name)), channels=1)


def _order(batches: Batches, epoch: int) -> list[int]:
    """Image numbers in the order in which an epoch brings them."""
    return [round(float(image.mean()) * 255) for images, _ in batches.epoch(epoch) for image in images]


def _plain(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float()[None] / 255


# -- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(100, 40), (40, 100), (8, 8), (1, 300)])
def test_any_image_becomes_the_models_square(training: bool, size: tuple[int, int]) -> None:
    for spec in (COLOUR, GREY):
        for mode in ("RGB", "L"):
            found = build_transform(spec, training)(Image.new(mode, size))
            assert found.shape == (spec.channels, 32, 32)
            assert found.dtype == torch.float32


def test_pixels_are_normalised_by_mean_and_std_of_each_channel() -> None:
    white, black = (build_transform(COLOUR, training=False)(Image.new("RGB", (32, 32), c)) for c in ("white", "black"))
    assert white.amax((1, 2)).tolist() == white.amin((1, 2)).tolist() == pytest.approx([1, 3, 1])
    assert black.amax((1, 2)).tolist() == black.amin((1, 2)).tolist() == pytest.approx([-1, -1, 0])
    assert build_transform(GREY, training=False)(Image.new("L", (32, 32), 255)).unique().tolist() == [2]


def test_a_grey_image_is_repeated_for_a_colour_model_and_a_colour_image_made_grey_for_a_grey_one() -> None:
    same = InputSpec(32, 3, (0.0,) * 3, (1.0,) * 3, "bilinear")
    found = build_transform(same, training=False)(Image.new("L", (32, 32), 51))
    assert found.unique().tolist() == pytest.approx([0.2])
    green = build_transform(InputSpec(32, 1, (0.0,), (1.0,)), training=False)(Image.new("RGB", (32, 32), "white"))
    assert green.unique().tolist() == [1]


def _stripe(left: int, right: int, width: int = 64) -> Image.Image:
    """White between two columns, black elsewhere."""
    image = Image.new("L", (width, 64))
    image.paste(255, (left, 0, right, 64))
    return image


def test_evaluation_keeps_the_centre_and_is_always_the_same() -> None:
    plain = InputSpec(32, 1, (0.0,), (1.0,), "bilinear")
    transform = build_transform(plain, training=False)
    image = _stripe(96, 160, width=192)
    assert torch.equal(transform(image), transform(image))
    columns = transform(image)[0].mean(0)
    # Of 192 x 64, the middle 64 x 64 remain; the stripe begins in their middle.
    assert columns[:14].max() == 0
    assert columns[18:].min() == 1


def test_crop_pct_cuts_the_border_in_evaluation() -> None:
    columns = build_transform(InputSpec(32, 1, (0.0,), (1.0,), "bilinear", 0.5), training=False)(_stripe(16, 48))
    assert columns.min() > 0.9


def test_training_crops_and_mirrors_at_random() -> None:
    transform = build_transform(InputSpec(32, 1, (0.0,), (1.0,), "bilinear"), training=True)
    image = _stripe(0, 32)  # white on the left
    found = [transform(image)[0].mean(0) for _ in range(40)]
    assert len({tuple(columns.tolist()) for columns in found}) > 10
    left = sum(bool(columns[0] > columns[-1]) for columns in found)
    right = sum(bool(columns[0] < columns[-1]) for columns in found)
    assert min(left, right) > 5


def test_what_is_not_mirrored_in_meaning_is_never_mirrored_and_loses_little_of_its_border() -> None:
    transform = build_transform(InputSpec(32, 1, (0.0,), (1.0,), "bilinear"), training=True, mirrored=False)
    for _ in range(40):
        columns = transform(_stripe(0, 32))[0].mean(0)
        assert columns[0] > columns[-1]
        assert 0.25 < float(columns.mean()) < 0.75


# -- order ------------------------------------------------------------------------------------------------------------


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    first, second = Batches(_images(50), _plain, 8, seed=1), Batches(_images(50), _plain, 8, seed=1)
    expected = [_order(first, epoch) for epoch in (1, 2, 3)]
    # Another course through the epochs, and every global generator elsewhere.
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    torch.rand(7)
    next(iter(second.epoch(1)))
    assert _order(second, 3) == expected[2]
    assert _order(second, 1) == expected[0]
    assert expected[0] != expected[1] != expected[2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_any_more_is_one_sentence_from_a_worker_too(workers: int) -> None:
    def gone(name: str) -> Image.Image:
        raise InputError(f"data.root: {name!r} could not be read any more (it is gone)")

    batches = Batches(ImageSet(("a", "b"), np.array([0, 1]), ("0", "1"), gone), _plain, 2, workers=workers)
    with pytest.raises(InputError, match=r"^data\.root: '0' could not be read any more \(it is gone\)$"):
        list(batches.epoch(1))


def test_another_seed_gives_another_order() -> None:
    orders = [_order(Batches(_images(50), _plain, 8, seed=seed), 1) for seed in (0, 1, 2)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_every_image_comes_once_an_epoch_with_its_own_label() -> None:
    batches = Batches(_images(50), _plain, 8, seed=0)
    assert sorted(_order(batches, 1)) == list(range(50))
    for images, labels in batches.epoch(2):
        assert labels.dtype == torch.int64
        assert [round(float(image.mean()) * 255) % 3 for image in images] == labels.tolist()


def test_without_a_seed_the_order_is_as_given_and_no_image_is_left_out() -> None:
    batches = Batches(_images(17), _plain, 8)
    assert _order(batches, 0) == _order(batches, 5) == list(range(17))
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(17, 8, [8, 8]), (18, 8, [8, 8, 2]), (16, 8, [8, 8]), (1, 8, [1]), (7, 8, [7]), (3, 1, [1, 1, 1])],
)
def test_no_batch_of_a_single_image_ends_a_training_epoch(images: int, batch_size: int, sizes: list[int]) -> None:
    batches = Batches(_images(images), _plain, batch_size, seed=0)
    assert [len(labels) for _, labels in batches.epoch(1)] == sizes
    assert len(batches) == len(sizes)


def test_the_image_left_out_is_another_one_in_another_epoch() -> None:
    batches = Batches(_images(9), _plain, 8, seed=0)
    left_out = {(set(range(9)) - set(_order(batches, epoch))).pop() for epoch in range(1, 12)}
    assert len(left_out) > 1


def test_an_images_augmentation_does_not_depend_on_its_batch_and_leaves_the_generators_alone() -> None:
    def noise(image: Image.Image) -> torch.Tensor:
        return torch.tensor(
            [float(np.asarray(image)[0, 0]), random.random(), np.random.random(), torch.rand(()).item()]
        )

    def by_image(batch_size: int) -> dict[float, list[float]]:
        batches = Batches(_images(12), noise, batch_size, seed=3)
        return {row[0].item(): row[1:].tolist() for rows, _ in batches.epoch(2) for row in rows}

    def states() -> tuple[str, ...]:
        return repr(random.getstate()), repr(np.random.get_state()), repr(torch.get_rng_state().tolist())

    before = states()
    found = by_image(4)
    assert states() == before
    assert len({tuple(row) for row in found.values()}) == 12
    assert by_image(12) == by_image(2) == found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("fit", "sees"), [("crop", False), ("pad", True), ("squash", True)])
@pytest.mark.parametrize("training", [True, False])
def test_pad_and_squash_keep_what_stands_at_the_edge_of_a_wide_image(
    fit: str, sees: bool, training: bool, channels: int
) -> None:
    spec = InputSpec(32, channels, (0.5,) * channels, (0.5,) * channels, "bilinear", 0.9, fit=fit)
    image = Image.new("L" if channels == 1 else "RGB", (96, 32), "black")
    image.paste("white", (0, 0, 12, 32))
    transform = build_transform(spec, training, mirrored=False)
    found = torch.stack([transform(image) for _ in range(8)]).amax()
    assert (float(found) > 0.8) == sees
    assert transform(image).shape == (channels, 32, 32)


def test_a_very_thin_image_is_padded_and_squashed_too() -> None:
    for fit in ("pad", "squash"):
        for training in (True, False):
            spec = InputSpec(32, 3, (0.5,) * 3, (0.5,) * 3, "bilinear", fit=fit)
            assert build_transform(spec, training)(Image.new("RGB", (3000, 10))).shape == (3, 32, 32)


def test_what_the_crop_leaves_out_is_said_where_it_is_more_than_a_third_of_many_images() -> None:
    sizes = np.array([(160, 90)] * 5 + [(40, 30)] * 5)
    images = ImageSet(("a", "b"), np.zeros(10, dtype=np.int64), tuple("0123456789"), _read_nothing, known_sizes=sizes)
    assert "more than a third of 5 of 10 training images; --data.fit pad" in note_crop(images, COLOUR)[0]
    assert note_crop(images, replace(COLOUR, fit="pad")) == ()
    assert note_crop(images.subset([0, *range(5, 10)]), COLOUR) != ()
    assert note_crop(images.subset(range(5, 10)), COLOUR) == ()


def _read_nothing(name: str) -> Image.Image:
    raise AssertionError(name)


def _counted_images(reads: list[str]) -> ImageSet:
    def read(name: str) -> Image.Image:
        reads.append(name)
        return Image.new("RGB", (8, 4), (int(name), 0, 0))

    return ImageSet(("a", "b"), np.arange(20) % 2, tuple(str(number) for number in range(20)), read)


def test_cached_images_are_the_same_and_read_once() -> None:
    reads: list[str] = []
    cached = keep_decoded(_counted_images(reads), True)
    assert sorted(reads) == sorted(str(number) for number in range(20))
    for _ in range(2):
        assert [cached[index][0].getpixel((0, 0))[0] for index in range(20)] == list(range(20))  # type: ignore[index]
    assert len(reads) == 20
    assert cached[0][0].size == (8, 4)


def test_a_subset_of_cached_images_is_read_from_memory_too() -> None:
    reads: list[str] = []
    part = keep_decoded(_counted_images(reads), True).subset([3, 5])
    assert part[1][0].getpixel((0, 0)) == (5, 0, 0)
    assert len(reads) == 20


def test_auto_leaves_a_set_alone_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _counted_images([])
    assert decoded_bytes(images) == 20 * 8 * 4 * 3
    monkeypatch.setattr(loaders, "_MOST_BYTES", 20 * 8 * 4 * 3 - 1)
    assert keep_decoded(images, "auto") is images
    assert keep_decoded(images, True) is not images
    monkeypatch.setattr(loaders, "_MOST_BYTES", 20 * 8 * 4 * 3)
    assert keep_decoded(images, "auto") is not images
    assert keep_decoded(images, False) is images


def test_auto_counts_pixels_before_it_decodes_and_both_sets_together(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    images = replace(_counted_images(reads), known_sizes=np.array([(10_000, 12_000)] * 20))
    assert decoded_bytes(images) == 20 * 10_000 * 12_000 * 3
    assert keep_decoded(images) is images
    small = replace(_counted_images(reads), known_sizes=np.array([(8, 4)] * 20))
    assert keep_decoded(small, "auto", beside=images) is small
    assert reads == []
    assert keep_decoded(small, "auto", beside=small) is not small
