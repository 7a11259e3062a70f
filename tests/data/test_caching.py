from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from arelu_meta.data import caching
from arelu_meta.data.loaders import decoded_bytes, keep_decoded
from arelu_meta.data.splits import ImageSet


def _images(reads: list[str]) -> ImageSet:
    def read(name: str) -> Image.Image:
        reads.append(name)
        return Image.new("RGB", (8, 4), (int(name), 0, 0))

    return ImageSet(("a", "b"), np.arange(20) % 2, tuple(str(number) for number in range(20)), read)


def test_cached_images_are_the_same_and_read_once() -> None:
    reads: list[str] = []
    cached = keep_decoded(_images(reads), True)
    assert sorted(reads) == sorted(str(number) for number in range(20))
    for _ in range(2):
        assert [cached[index][0].getpixel((0, 0))[0] for index in range(20)] == list(range(20))  # type: ignore[index]
    assert len(reads) == 20
    assert cached[0][0].size == (8, 4)


def test_a_subset_of_cached_images_is_read_from_memory_too() -> None:
    reads: list[str] = []
    part = keep_decoded(_images(reads), True).subset([3, 5])
    assert part[1][0].getpixel((0, 0)) == (5, 0, 0)
    assert len(reads) == 20


def test_auto_leaves_a_set_alone_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images([])
    assert decoded_bytes(images) == 20 * 8 * 4 * 3
    monkeypatch.setattr(caching, "_MOST_BYTES", 20 * 8 * 4 * 3 - 1)
    assert keep_decoded(images, "auto") is images
    assert keep_decoded(images, True) is not images
    monkeypatch.setattr(caching, "_MOST_BYTES", 20 * 8 * 4 * 3)
    assert keep_decoded(images, "auto") is not images
    assert keep_decoded(images, False) is images


def test_auto_counts_pixels_before_it_decodes_and_both_sets_together(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    images = replace(_images(reads), known_sizes=np.array([(10_000, 12_000)] * 20))
    assert decoded_bytes(images) == 20 * 10_000 * 12_000 * 3
    assert keep_decoded(images) is images
    small = replace(_images(reads), known_sizes=np.array([(8, 4)] * 20))
    assert keep_decoded(small, "auto", beside=images) is small
    assert reads == []
    assert keep_decoded(small, "auto", beside=small) is not small
