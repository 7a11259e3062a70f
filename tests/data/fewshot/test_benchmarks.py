"""The literature's benchmarks, read by learn2learn's loaders from small files in the benchmarks' own layouts."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.fewshot import ClassSplits, load_class_splits, load_whole
from arelu_meta.data.fewshot.benchmarks import BENCHMARKS
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, MissingExtraError

MODES = {"train": "train", "validation": "val", "test": "test"}
TASK = TaskConfig(ways=2, shots=1, queries=1)
SHADE = {"train": 40, "validation": 120, "test": 200}


@pytest.fixture
def learn2learn() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")


def _arrays(mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Six images of three classes, of the part's own shade."""
    return np.full((6, 8, 8, 3), SHADE[mode], dtype=np.uint8)


def _png(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_arrays(mode)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def _write(name: str, root: Path) -> None:
    for mode, short in MODES.items():
        if name == "mini-imagenet":
            content = {"image_data": _arrays(mode), "class_dict": {f"n{mode}{c}": [2 * c, 2 * c + 1] for c in range(3)}}
            (root / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(content))
        elif name == "tiered-imagenet":
            folder = root / "tiered-imagenet"
            folder.mkdir(exist_ok=True)
            (folder / f"{short}_images_png.pkl").write_bytes(pickle.dumps([_png(mode)] * 6))
            (folder / f"{short}_labels.pkl").write_bytes(pickle.dumps({"label_specific": [0, 0, 1, 1, 2, 2]}))
        elif name == "fc100":
            content = {"data": _arrays(mode), "labels": [5, 5, 7, 7, 9, 9]}
            (root / f"FC100_{short}.pickle").write_bytes(pickle.dumps(content))
        elif name == "cifar-fs":
            for c in range(3):
                folder = root / "cifarfs" / "processed" / short / f"{mode} {c}"
                folder.mkdir(parents=True)
                for index in range(2):
                    Image.fromarray(_arrays(mode)[0]).save(folder / f"{index}.png")
        elif name == "cub":
            from learn2learn.vision.datasets.cu_birds200 import SPLITS

            for bird in SPLITS[mode]:
                folder = root / "cubirds200" / "CUB_200_2011" / "images" / bird
                folder.mkdir(parents=True)
                for index in range(2):
                    Image.fromarray(_arrays(mode)[0]).save(folder / f"{index}.png")
    if name == "omniglot":
        for part, alphabets in (("background", "AB"), ("evaluation", "CD")):
            for alphabet in alphabets:
                for character in range(8):
                    folder = root / "omniglot-py" / f"images_{part}" / alphabet / f"character{character:02}"
                    folder.mkdir(parents=True)
                    for index in range(2):
                        Image.new("L", (8, 8), 255).save(folder / f"{index}.png")


def _load(name: str, root: Path) -> ClassSplits:
    return load_class_splits(DataConfig(name=name, root=str(root), download=False), TASK, 0)


def _classes(images: ImageSet | None) -> set[str]:
    assert images is not None
    return {images.classes[label] for label in images.labels}


@pytest.mark.usefixtures("learn2learn")
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"omniglot"}))
def test_a_benchmark_keeps_the_literatures_division(name: str, tmp_path: Path) -> None:
    _write(name, tmp_path)
    splits = _load(name, tmp_path)
    for mode, part in {"train": splits.train, "validation": splits.validation, "test": splits.test}.items():
        assert part is not None
        assert len(_classes(part)) == {"cub": {"train": 140}.get(mode, 30)}.get(name, 3)
        assert len(part) == 2 * len(_classes(part))
        image, _ = part[0]
        assert image.mode == "RGB"
        assert np.asarray(image).max() == np.asarray(image).min() == SHADE[mode]
    assert splits.notes == (f"classes divided as in {name}",)
    assert not splits.inverted


@pytest.mark.usefixtures("learn2learn")
def test_omniglot_is_divided_by_character_and_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    monkeypatch.setattr(Omniglot, "_check_integrity", lambda _: True)  # it knows the published archives' sums
    _write("omniglot", tmp_path)
    splits = _load("omniglot", tmp_path)
    names = [_classes(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(found) for found in names] == [4 * 22, 4 * 2, 4 * 8]  # 32 characters in Omniglot's proportions

    def unturned(found: set[str]) -> set[str]:
        return {name for name in found if "turned" not in name}

    characters = [unturned(found) for found in names]
    assert len(set.union(*characters)) == 32
    assert sum(map(len, characters)) == 32
    assert any(name.startswith("C turned by 90/") for name in set.union(*names))
    assert splits.inverted
    assert _classes(_load("omniglot", tmp_path).test) == names[2]


@pytest.mark.usefixtures("learn2learn")
def test_a_turn_of_a_character_is_its_image_turned() -> None:
    from arelu_meta.data.fewshot.benchmarks import turned

    stripe = np.zeros((4, 4), dtype=np.uint8)
    stripe[0] = 255
    whole = turned(ImageSet(("a",), np.zeros(1, dtype=np.int64), ("0",), lambda _: Image.fromarray(stripe), 1))
    assert whole.classes == ("a", "a turned by 90", "a turned by 180", "a turned by 270")
    for number in range(4):
        image, label = whole[number]
        assert label == number
        assert (np.asarray(image) == np.rot90(stripe, number)).all()


@pytest.mark.usefixtures("learn2learn")
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_that_is_not_there_is_one_line_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere" / "data"
    with pytest.raises(
        InputError,
        match=rf"^data\.name: '{name}' is missing or damaged in .*--data\.download true; `arelu-meta data {name}`",
    ) as e:
        _load(name, root)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("learn2learn")
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_download_that_fails_is_one_line_and_leaves_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    from torchvision.datasets import omniglot

    def fail(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("no network\nand more")

    monkeypatch.setattr(requests, "get", fail)
    monkeypatch.setattr(requests.Session, "get", fail)
    monkeypatch.setattr(omniglot, "download_and_extract_archive", fail)
    with pytest.raises(InputError, match=r"could not be downloaded \(no network\); put it there; `arelu-meta data"):
        load_class_splits(DataConfig(name=name, root=str(tmp_path / "d")), TASK, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("learn2learn")
def test_a_damaged_benchmark_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(InputError, match=r"^data\.name: 'mini-imagenet' is missing or damaged"):
        _load("mini-imagenet", tmp_path)


def test_without_learn2learn_a_benchmark_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(MissingExtraError, match=r"data\.name cub needs it: pip install learn2learn==0\.2\.0 --config"):
        load_whole(DataConfig(name="cub"))


def test_omniglot_is_not_turned_twice() -> None:
    with pytest.raises(InputError, match=r"^data\.rotations: omniglot has its quarter turns among its classes already"):
        load_class_splits(DataConfig(name="omniglot", rotations=True, download=False), TaskConfig(), 0)


def test_a_benchmark_takes_no_split_file() -> None:
    with pytest.raises(InputError, match=r"^task\.split_file: cub brings its own division; leave it out"):
        load_class_splits(DataConfig(name="cub"), TaskConfig(split_file="s.json"), 0)


def test_an_unknown_name_lists_the_nearest_of_all_kinds() -> None:
    with pytest.raises(InputError, match=r"^data\.name: 'miniimagenet' is not known; nearest: .*'mini-imagenet'"):
        load_class_splits(DataConfig(name="miniimagenet"), TASK, 0)
