"""A person's own data sets: torchvision's, Hugging Face's, arrays, tensors, lists of paths."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from arelu_meta.config import DataConfig
from arelu_meta.data.loaders import Batches, InputSpec, build_transform, keep_decoded
from arelu_meta.data.own_datasets import _labels, _Rows, as_image_dataset, own_splits
from arelu_meta.errors import InputError

_RNG = np.random.default_rng(0)
PIXELS = _RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = [index % 3 for index in range(24)]


def _tensors() -> torch.Tensor:
    return torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


KINDS: dict[str, Any] = {
    "pillow": [(Image.fromarray(one), label) for one, label in zip(PIXELS, LABELS, strict=True)],
    "uint8 arrays": list(zip(PIXELS, LABELS, strict=True)),
    "float arrays": list(zip(PIXELS / 255, LABELS, strict=True)),
    "floats to 255": list(zip(PIXELS.astype(np.float32), LABELS, strict=True)),
    "uint8 tensors": TensorDataset(_tensors(), torch.tensor(LABELS)),
    "rows": [{"img": Image.fromarray(one), "label": label} for one, label in zip(PIXELS, LABELS, strict=True)],
    "a subset": Subset(TensorDataset(torch.cat([_tensors()] * 2), torch.tensor(LABELS * 2)), range(24, 48)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same_pixels_and_labels(kind: str) -> None:
    images = as_image_dataset(KINDS[kind])
    assert images.classes == ("0", "1", "2")
    assert images.labels.tolist() == LABELS
    assert images.channels == 3
    assert all(np.array_equal(np.asarray(images[index][0]), PIXELS[index]) for index in range(24))
    assert np.array_equal(images.digests(), as_image_dataset(KINDS["pillow"]).digests())


def test_a_list_of_paths_is_read_from_the_files(tmp_path: Path) -> None:
    items: list[tuple[str, str]] = []
    for index in range(6):
        Image.fromarray(PIXELS[index]).save(tmp_path / f"{index}.png")
        items.append((str(tmp_path / f"{index}.png"), "ab"[index % 2]))
    images = as_image_dataset(items)
    assert images.classes == ("a", "b")
    assert len(images) == 6
    assert images.known_sizes is not None
    assert np.array_equal(np.asarray(images[0][0]), PIXELS[0])
    with pytest.raises(InputError, match=r"^train: item 6: .*gone.png' does not exist; give files of images$"):
        as_image_dataset([*items, (tmp_path / "gone.png", "a")])


def test_hugging_face_rows_come_with_their_class_names_and_through_with_transform() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        rows = {"image": [Image.fromarray(one) for one in PIXELS], "label": [index % 2 for index in range(24)]}
        data = datasets.Dataset.from_dict(rows, features=features)
        plain = as_image_dataset(data)
        assert plain.classes == ("cat", "dog")
        assert np.array_equal(np.asarray(plain[5][0]), PIXELS[5])

        def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
            return {"pixel_values": [np.asarray(one) / 255 for one in batch["image"]], "labels": batch["label"]}

        given = as_image_dataset(data.with_transform(to_tensors))
        assert given.classes == ("cat", "dog")
        assert np.array_equal(np.asarray(given[5][0]), PIXELS[5])


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_tensors_of_floats_reach_the_network_as_they_are_whatever_their_range(mean: float) -> None:
    values = (_tensors() / 255 - mean) / (1 - mean)
    images = as_image_dataset(TensorDataset(values, torch.tensor(LABELS)))
    assert images.prepared
    assert "used as they are" in images.remarks[0]
    assert keep_decoded(images, True) is images
    transform = build_transform(InputSpec(4, 3, (0.5,) * 3, (0.5,) * 3), training=True)
    (batch, labels) = next(iter(Batches(images, transform, 24).epoch(1)))
    assert torch.equal(batch, values)
    assert labels.tolist() == LABELS


def test_torchvision_labels_are_taken_without_decoding_an_image() -> None:
    class Counted:
        def __init__(self) -> None:
            self.targets, self.read = [*LABELS], 0

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            self.read += 1
            return Image.fromarray(PIXELS[index]), self.targets[index]

    data = Counted()
    assert _labels(_Rows(data, "train")) == LABELS
    assert data.read == 3
    data.targets[0] = 2  # not what its items say
    data.__class__ = type("Lying", (Counted,), {"__getitem__": lambda _, index: (PIXELS[index], LABELS[index])})
    assert _labels(_Rows(data, "train")) == LABELS


def test_images_that_change_at_each_reading_are_told_apart_by_their_place() -> None:
    class Random:
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8), LABELS[index]

    assert np.array_equal(as_image_dataset(Random()).digests(), as_image_dataset(Random()).digests())


def test_the_parts_share_the_classes_of_train_and_what_is_missing_is_cut() -> None:
    test = [(one, f"c{label}") for one, label in zip(PIXELS[:9] // 2, [2, 1, 2] * 3, strict=True)]
    train = [(one, f"c{label}") for one, label in zip(PIXELS, LABELS, strict=True)]
    splits = own_splits(train, None, test, DataConfig(), seed=0)
    assert splits.train.classes == splits.test.classes == ("c0", "c1", "c2")
    assert splits.test.labels.tolist() == [2, 1, 2] * 3
    assert splits.own_test
    assert len(splits.train) + len(splits.validation) == 24
    assert len(splits.validation) >= 3
    assert len(own_splits(train, None, None, DataConfig(per_class=2), seed=0).train) == 6


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], "train: the data set is empty"),
        (iter([(PIXELS[0], 0)]), "is no data set"),
        ("photos", "a str is no data set"),
        ([(PIXELS[0], 0, 1)], "item 0 is 3 values; give (image, label)"),
        ([(PIXELS[0], 0.5)], "item 0 has the label 0.5"),
        ([(PIXELS[0], 0), (PIXELS[1], "a")], "item 1 has the label 'a'"),
        ([(PIXELS[0], -1)], "item 0 has the label -1"),
        ([(PIXELS[0], torch.tensor([0, 1]))], "item 0 has the label tensor([0, 1])"),
        ([(PIXELS[0, 0, 0], 0)], "item 0 has the shape (3,)"),
        ([(None, 0)], "item 0 holds a NoneType"),
        ([(np.zeros((8, 8, 5)), 0), (np.zeros((8, 8, 5)), 1)], "item 0 has 8 channels"),
        ([{"photo": PIXELS[0], "label": 0}], "its rows have photo, label and no image"),
        ([(PIXELS[0], 3), (PIXELS[1], 3)], "train: all its labels are '3'"),
        ([(PIXELS[0], 0), (PIXELS[1], 1)], "train: class '0' has 1 images"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(data: Any, error: str) -> None:
    with pytest.raises(InputError) as raised:
        own_splits(data, None, None, DataConfig(), seed=0)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_class_that_only_the_test_set_has_is_named() -> None:
    train = list(zip(PIXELS, LABELS, strict=True))
    with pytest.raises(InputError, match=r"^test: class '9' has no image in train; give it some, or take it out$"):
        own_splits(train, None, [(PIXELS[0], 9)], DataConfig(), seed=0)
