import inspect
import io
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import MNIST
from torchvision.datasets.utils import extract_archive

from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import (
    NAMED_SETS,
    kept_inside,
    load_digits,
    load_images,
    load_named,
    load_part,
    sample_photographs,
)
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


def test_they_are_the_eight_quarters_of_two_photographs() -> None:
    images = sample_photographs()
    assert len(images) == 8
    pixels = [np.asarray(images[index][0]) for index in range(8)]
    assert {part.shape for part in pixels} == {(213, 320, 3)}
    assert len({part.tobytes() for part in pixels}) == 8
    top = np.concatenate(pixels[:2], axis=1)
    assert np.abs(top[:, 319].astype(int) - top[:, 320].astype(int)).mean() < 20  # neighbours in the photograph


def _file(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 4
    archive.addfile(member, io.BytesIO(b"evil"))


def _link_and_file(archive: tarfile.TarFile, name: str) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, str(Path(name).parent)
    archive.addfile(link)
    _file(archive, f"link/{Path(name).name}")


CASES: dict[str, tuple[str, Callable[[tarfile.TarFile, str], None]]] = {
    "dots": ("../evil", _file),
    "dots below": ("a/../../evil", _file),
    "link": ("../evil", _link_and_file),
}


@pytest.mark.parametrize("case", list(CASES))
def test_no_member_of_a_tar_file_leaves_its_folder(tmp_path: Path, case: str) -> None:
    name, put = CASES[case]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        put(archive, name)
    with kept_inside(), pytest.raises(tarfile.FilterError):
        extract_archive(str(tmp_path / "a.tar"), str(tmp_path / "inside" / "deep"))
    assert not list(tmp_path.rglob("evil"))
    assert "extraction_filter" not in vars(tarfile.TarFile)


def test_no_member_of_a_zip_file_leaves_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../evil", "evil")
        archive.writestr("/evil", "evil")
    with kept_inside():
        extract_archive(str(tmp_path / "a.zip"), str(tmp_path / "inside"))
    assert {path.parent for path in tmp_path.rglob("evil")} == {tmp_path / "inside"}


def test_a_set_whose_archive_leaves_its_folder_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        _file(archive, "../evil")

    def fake(root: Path, download: bool = False, **_: Any) -> None:
        if not download:
            raise RuntimeError("Dataset not found")
        extract_archive(str(tmp_path / "a.tar"), str(root))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    config = DataConfig(name="cifar10", root=str(tmp_path / "home"), download=True)
    with pytest.raises(InputError, match=r"'cifar10' is missing or damaged .*'\.\./evil'"):
        load_named("cifar10", config, 0)
    assert not (tmp_path / "evil").exists()
