import inspect
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import NAMED_SETS, load_digits, load_images, load_named, load_part
from arelu_meta.errors import InputError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# -- digits -----------------------------------------------------------------------------------------------------------


def test_the_digits_are_grey_8_by_8_images_of_ten_classes() -> None:
    digits = load_digits()
    assert (len(digits), digits.classes, digits.channels) == (1797, tuple("0123456789"), 1)
    image, label = digits[0]
    assert (image.mode, image.size, label) == ("L", (8, 8), 0)
    # All of black to white is used, as an image viewer would show it.
    brightest = [digits[index][0].getextrema()[1] for index in range(20)]
    assert max(int(str(value)) for value in brightest) == 255


def test_the_digits_are_split_by_the_seed_and_have_no_mirror_images() -> None:
    splits = load_images(DataConfig(name="digits"), seed=0)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(len(part) for part in parts) == 1797
    assert len(splits.test) == pytest.approx(0.25 * 1797, abs=5)
    assert not splits.mirrored
    assert splits.test.names != load_images(DataConfig(name="digits"), seed=1).test.names


@pytest.mark.parametrize("name", ["DIGITS", "Digits"])
def test_names_of_sets_are_read_in_any_case(name: str) -> None:
    assert len(load_images(DataConfig(name=name, per_class=2), seed=0).train) == 20


# -- torchvision's ----------------------------------------------------------------------------------------------------


def _write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def _small_mnist(root: Path) -> Path:
    """MNIST's files with 40 training and 20 test images; image i is filled with i."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        numbers = np.arange(count, dtype=np.uint8)
        _write_idx(raw / f"{part}-labels-idx1-ubyte", (numbers % 10).astype(np.uint8))
        _write_idx(raw / f"{part}-images-idx3-ubyte", np.tile(numbers[:, None, None], (1, 28, 28)).astype(np.uint8))
    return root


def test_a_set_s_own_test_part_is_kept_and_validation_images_are_cut_from_training(tmp_path: Path) -> None:
    splits = load_images(DataConfig(name="mnist", root=str(_small_mnist(tmp_path)), download=False), seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 20)
    assert not set(splits.train.names) & set(splits.validation.names)
    image, label = splits.test[13]
    assert (image.mode, image.getpixel((0, 0)), label) == ("L", 13, 3)
    assert splits.train.channels == 1
    assert not splits.mirrored
    assert len(splits.train.classes) == 10


def test_a_relative_root_of_a_named_set_is_looked_for_in_the_data_home_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small_mnist(tmp_path / "home" / "sets")
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert len(load_images(DataConfig(name="mnist", root="sets", download=False), seed=0).test) == 20
    _small_mnist(tmp_path / "home")
    assert len(load_images(DataConfig(name="mnist", download=False), seed=0).test) == 20


def test_mnist_as_it_is(data_root: Path) -> None:
    splits = load_images(DataConfig(name="mnist", root=str(data_root), download=False, per_class=20), seed=0)
    assert (len(splits.train), len(splits.test)) == (200, 10_000)
    assert len(splits.validation) == pytest.approx(6_000, abs=10)
    assert splits.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    image, label = splits.test[0]
    assert (image.size, image.mode, label) == ((28, 28), "L", 7)
    assert splits.train.classes[0].startswith("0")


class _Fake:
    """A data set of 12 images with labels that count from 1, as some do."""

    def __init__(self, root: Path, **arguments: Any) -> None:
        self.arguments = arguments
        self.labels = [1 + index % 3 for index in range(12)]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("CMYK", (4, 4)), self.labels[index]


def test_labels_that_count_from_one_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", _Fake)
    images = load_part("eurosat", {}, DataConfig())
    assert images.labels.tolist() == [1, 2, 3] * 4
    assert len(images.classes) == 4
    assert images[0][0].mode == "RGB"


def test_a_set_that_brings_all_three_parts_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Flowers(_Fake):
        def __init__(self, root: Path, **arguments: Any) -> None:
            super().__init__(root, **arguments)
            self.labels = [label - 1 for label in self.labels]
            opened.append(arguments)

    monkeypatch.setattr(torchvision.datasets, "Flowers102", Flowers)
    splits = load_named("flowers102", DataConfig(), seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 12, 12]
    assert [arguments["split"] for arguments in opened] == ["train", "val", "test"]


def test_every_named_set_is_one_of_torchvision_s_and_takes_what_it_is_given() -> None:
    for name, spec in NAMED_SETS.items():
        parameters = inspect.signature(getattr(torchvision.datasets, spec.kind)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for arguments in (spec.train, spec.test, spec.validation):
            assert takes_any or set(arguments or {}) <= parameters.keys(), name


def test_no_set_is_downloaded_unasked() -> None:
    for name, spec in NAMED_SETS.items():
        parameters = inspect.signature(getattr(torchvision.datasets, spec.kind)).parameters
        unasked = parameters["download"].default if "download" in parameters else False
        assert not unasked or spec.train["download"] is False, name


@pytest.mark.parametrize("name", sorted(NAMED_SETS))
def test_a_set_that_is_not_there_is_named_and_nothing_is_made(tmp_path: Path, name: str, no_network: None) -> None:
    root = tmp_path / "sets"
    config = DataConfig(name=name, root=str(root), download=False)
    with pytest.raises(InputError, match=rf"^data\.name: '{name}' is missing or damaged in .*sets'.*--data.download"):
        load_images(config, seed=0)
    config.download = True
    with pytest.raises(InputError, match=rf"^data\.name: '{name}' is missing or damaged in .*sets' and could not be"):
        load_images(config, seed=0)
    assert not root.exists()


def test_a_failed_download_leaves_what_was_there_before(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "flowers").mkdir()
    with pytest.raises(InputError, match="could not be downloaded"):
        load_images(DataConfig(name="mnist", root=str(tmp_path)), seed=0)
    assert (tmp_path / "MNIST" / "raw").is_dir()
    assert (tmp_path / "flowers").is_dir()


def test_a_damaged_file_of_a_set_is_told_in_one_sentence(tmp_path: Path, no_network: None) -> None:
    _small_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    for download in (False, True):
        with pytest.raises(InputError, match="'mnist' is missing or damaged"):
            load_images(DataConfig(name="mnist", root=str(tmp_path), download=download), seed=0)


@pytest.mark.parametrize(
    ("wrong", "near"), [("mnst", "'mnist'"), ("cifar-10", "'cifar10'"), ("flower102", "'flowers102'")]
)
def test_an_unknown_set_is_told_with_the_nearest_names(wrong: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.name: '{wrong}' is not known; nearest: .*{near}"):
        load_images(DataConfig(name=wrong), seed=0)


def test_a_set_for_few_shot_tasks_names_the_task_that_takes_it() -> None:
    with pytest.raises(InputError, match=r"^data\.name: 'omniglot-small' .* only arelu-meta metatrain takes it"):
        load_images(DataConfig(name="omniglot-small"), seed=0)


def test_loading_draws_nothing_from_torch_s_generator() -> None:
    before = torch.get_rng_state()
    load_images(DataConfig(name="digits", per_class=3), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
