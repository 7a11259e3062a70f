from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import MNIST

from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST of a few digits, and photographs of one colour a part."""
    for number, (part, images) in enumerate((("train", 40), ("t10k", 20))):
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((images, 28, 28), dtype=np.uint8)
        pixels[:, 10:18, 10:18] = 255
        labels = (np.arange(images) % 10).astype(np.uint8)
        header = np.array([2051, images, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([2049, images], dtype=">i4").tobytes() + labels.tobytes()
        )
        for name in ("cat", "ship"):
            folder = tmp_path / "cifar10-subset" / ("train", "test")[number] / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), [(200, 0, 100), (0, 90, 0)][number]).save(folder / "1.png")
    assert len(MNIST(tmp_path, train=True)) == 40
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path))
    return tmp_path


def test_a_digit_is_the_difference_to_its_photograph_and_parts_stay_apart(home: Path) -> None:
    splits = load_images(DataConfig(name="mnist-m"), 0)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (40, 20)
    assert (splits.train.channels, splits.mirrored) == (3, False)
    for part, colour in ((splits.train, (200, 0, 100)), (splits.validation, (200, 0, 100)), (splits.test, (0, 90, 0))):
        pixels = np.asarray(part[0][0])
        assert pixels.shape == (28, 28, 3)
        assert tuple(pixels[0, 0]) == colour, "around the digit there is the photograph"
        assert tuple(pixels[14, 14]) == tuple(255 - value for value in colour), "the digit is its negative"


def test_the_set_is_always_the_same_and_the_seed_cuts_the_validation_images_alone(data_root: Path) -> None:
    config = DataConfig(name="mnist-m", root=str(data_root))
    first, again, other = load_images(config, 0), load_images(config, 0), load_images(config, 1)
    assert first.test.names == other.test.names
    assert first.train.names != other.train.names
    for place in (0, 77):
        assert np.array_equal(np.asarray(first.test[place][0]), np.asarray(again.test[place][0]))
        assert np.array_equal(np.asarray(first.test[place][0]), np.asarray(other.test[place][0]))
    assert not np.array_equal(np.asarray(first.test[0][0]), np.asarray(first.test[1][0]))


def test_photographs_that_are_missing_are_asked_for(home: Path) -> None:
    import shutil

    shutil.rmtree(home / "cifar10-subset")
    with pytest.raises(InputError, match="'mnist-m' needs photographs"):
        load_images(DataConfig(name="mnist-m"), 0)
