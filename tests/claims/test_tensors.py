from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from arelu_meta.claims.in_memory_training import as_tensors
from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import load_images, load_part, pixels_in_memory
from arelu_meta.data.splits import ImageSet


class _Held:
    """A set of 6 images that holds its pixels in some layout, and gives them as torchvision's sets do."""

    shape: tuple[int, ...] = (6, 8, 8, 3)

    def __init__(self, root: Path, **_: Any) -> None:
        self.data = np.random.default_rng(0).integers(0, 256, self.shape, dtype=np.uint8)
        self.targets = [index % 3 for index in range(6)]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index]), self.targets[index]


class _Grey(_Held):
    shape = (6, 8, 8)


class _ChannelsFirst(_Held):
    """As SVHN lies."""

    shape = (6, 3, 8, 8)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index].transpose(1, 2, 0)), self.targets[index]


_SETS = {"cifar10": ("CIFAR10", _Held), "mnist": ("MNIST", _Grey), "svhn": ("SVHN", _ChannelsFirst)}


def _one_by_one(images: ImageSet) -> ImageSet:
    read = images.read
    return replace(images, read=lambda name: read(name))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 5])
@pytest.mark.parametrize("name", sorted(_SETS))
def test_pixels_that_are_held_are_those_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str, side: int, channels: int
) -> None:
    monkeypatch.setattr(torchvision.datasets, *_SETS[name])
    images = load_part(name, {}, DataConfig()).subset([4, 0, 5])
    found, labels = as_tensors(images, side, channels)
    expected, _ = as_tensors(_one_by_one(images), side, channels)
    assert found.dtype == torch.uint8
    assert found.shape == (3, channels, side, side)
    assert torch.equal(found, expected)
    assert labels.tolist() == [1, 0, 2]


def test_what_lies_decoded_is_taken_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, held in (("cifar10", True), ("mnist", True), ("svhn", False)):
        monkeypatch.setattr(torchvision.datasets, *_SETS[name])
        assert (pixels_in_memory(load_part(name, {}, DataConfig())) is not None) is held, name


def test_images_in_files_are_read_one_by_one(tmp_path: Path) -> None:
    for number, name in enumerate("ab" * 6):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    images = load_images(DataConfig(root=str(tmp_path)), 0).train
    assert pixels_in_memory(images) is None
    found, _ = as_tensors(images, 9, 3)
    assert [f"{name[0]}/{int(image[0, 0, 0])}.png" for name, image in zip(images.names, found, strict=True)] == list(
        images.names
    )


def test_mnist_as_it_is(data_root: Path) -> None:
    images = load_part("mnist", {"train": False}, DataConfig(root=str(data_root), download=False))
    found, labels = as_tensors(images, 28, 1)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    some = images.subset([0, 17, 9_999])
    assert torch.equal(found[[0, 17, 9_999]], as_tensors(_one_by_one(some), 28, 1)[0])
