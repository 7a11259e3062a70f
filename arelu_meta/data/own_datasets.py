"""A person's own data sets, map-style or lists of (path, label), as the labelled images that every task reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from arelu_meta.config import DataConfig
from arelu_meta.data.image_folder import sets_of_files
from arelu_meta.data.image_io import Digests, Reading, compose, digest_pixels, digest_texts, is_deep, to_channels
from arelu_meta.data.named_datasets import NAMED_SETS, finish_splits, labels_held
from arelu_meta.data.splits import ImageSet, Labels, Provenance, Splits, fill_splits
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import progress

_IMAGE_KEYS = ("image", "img", "pixel_values", "images", "picture", "x")
_LABEL_KEYS = ("label", "labels", "target", "class", "fine_label", "y")
_LOOKED_AT = 8  # images, evenly spread, that say of which kind all are
_PLAINLY = Reading()
_MOST_DIGESTED = 100_000  # more are told apart by their place: decoding them once more would take hours


def as_image_dataset(
    data: Any, where: str = "train", classes: Sequence[str] | None = None, reading: Reading = _PLAINLY
) -> ImageSet:
    """Read a map-style data set of (image, label) as labelled images, decoded when they are asked for.

    Args:
        data: anything with a length whose items are (image, label) or rows such as {"image": …, "label": …}:
            torchvision's sets, `torch.utils.data.Subset`, Hugging Face's with or without `with_transform`, a list of
            (path, label). Images are files, Pillow's, NumPy arrays of shape (height, width[, channels]), or tensors of
            shape ([channels,] height, width); uint8, or floats from 0 to 1, which are kept in 8 bits. Labels are whole
            numbers or texts.
        where: the argument's name, for errors.
        classes: the classes' names where labels are numbers; default: those that the data set knows.
        reading: how files are read.

    Returns:
        The images, of the classes that have one. Float tensors beyond [0, 1] are taken for the network's own input:
        the set is `prepared`, and they are used as they are.

    Raises:
        InputError: in one sentence, naming the item that cannot be read.

    Example:
        >>> import numpy as np
        >>> pictures = [(np.full((8, 8), 40 * n, dtype=np.uint8), "dark" if n < 3 else "bright") for n in range(6)]
        >>> as_image_dataset(pictures).classes
        ('bright', 'dark')
    """
    if isinstance(data, ImageSet):
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, str | bytes | Mapping):
        raise InputError(f"{where}: a {type(data).__name__} is no data set of (image, label) with a length and data[i]")
    if len(data) == 0:
        raise InputError(f"{where}: the data set is empty; give images of at least two classes")
    rows = _Rows(data, where)
    if isinstance(rows[0][0], str | Path):
        return _of_files(rows, classes, reading)
    names, numbers = _numbered(_labels(rows), classes or _class_names(data), where)
    looked = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(int)).tolist()
    arrays = [_array(rows[index][0], where, index) for index in looked]
    prepared = any(_is_prepared(array) for array in arrays)
    if prepared:
        read = _ReadRow(rows, arrays[0].shape[0], arrays[0].shape)
    else:
        channels = 1 if all(array.shape[0] == 1 for array in arrays) else 3
        floats = [array for array in arrays if np.issubdtype(array.dtype, np.floating)]
        read = _ReadRow(rows, channels, unit=all(array.max() <= 1 for array in floats))
    images = ImageSet(
        classes=names,
        labels=numbers,
        names=tuple(str(index) for index in range(len(data))),
        read=read,
        channels=read.channels,
        prepared=prepared,
        remarks=(_ON_PREPARED,) if prepared else (),
    )
    return replace(images, known_digests=_digests(images, where, looked))


_ON_PREPARED = (
    "the images came as tensors beyond [0, 1] and are used as they are: nothing augments them, and predict, evaluate "
    "and export do not know what was done to them"
)


def own_splits(
    train: Any, validation: Any, test: Any, config: DataConfig, seed: int, seen: Provenance | None = None
) -> Splits:
    """Read a person's own data sets as training, validation and test images with the same classes.

    Args:
        train: see `as_image_dataset`.
        validation: likewise; None cuts it from the training images, stratified by class, with the seed.
        test: likewise.
        config: per_class, folds and fold, as for any data.
        seed: of the cuts.
        seen: what the model was trained on before.

    Raises:
        InputError: naming the argument and the item or the class.
    """
    reading = Reading.of(config)
    found = {"train": as_image_dataset(train, "train", reading=reading)}
    if len(found["train"].classes) < 2:
        raise InputError(f"train: all its labels are {found['train'].classes[0]!r}; at least 2 classes are needed")
    for name, data in (("validation", validation), ("test", test)):
        if data is not None:
            found[name] = _with_classes(as_image_dataset(data, name, reading=reading), found["train"], name)
    try:
        splits = fill_splits(found["train"], found.get("validation"), found.get("test"), seed, seen)
        notes = (*splits.notes, *found["train"].remarks)
        splits = replace(splits, notes=notes, mirrored=_mirrored(train))
        return finish_splits(splits, config, seed, seen)
    except InputError as error:
        raise InputError(str(error).replace("data.root: ", "train: ")) from error


def _with_classes(images: ImageSet, train: ImageSet, where: str) -> ImageSet:
    """Number a part's classes as the training images' are."""
    number = {name: label for label, name in enumerate(train.classes)}
    unknown = [name for name in images.classes if name not in number]
    if unknown:
        raise InputError(f"{where}: class {unknown[0]!r} has no image in train; give it some, or take it out")
    if (images.channels, images.prepared) != (train.channels, train.prepared):
        raise InputError(f"{where}: its images are of another kind than those of train; give both alike")
    return replace(images, classes=train.classes, labels=np.array([number[n] for n in images.classes])[images.labels])


@dataclass(frozen=True)
class _Rows:
    """Gives a data set's items as (image, label); a row of columns is searched for both."""

    data: Any
    where: str

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self.data[index]
        if isinstance(item, Mapping):
            return item[_column(item, _IMAGE_KEYS, "image", self.where)], item[
                _column(item, _LABEL_KEYS, "label", self.where)
            ]
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        shape = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise InputError(f"{self.where}: item {index} is {shape}; give (image, label)")


def _column(row: Mapping[str, Any], known: Sequence[str], what: str, where: str) -> str:
    found = next((name for name in known if name in row), None)
    if found is None:
        raise InputError(f"{where}: its rows have {', '.join(row)} and no {what}; rename the column to {what!r}")
    return found


def _of_files(rows: _Rows, classes: Sequence[str] | None, reading: Reading) -> ImageSet:
    items = [rows[index] for index in range(len(rows))]
    for index, (path, _) in enumerate(items):
        if not isinstance(path, str | Path):
            raise InputError(f"{rows.where}: item {index} is no path, and item 0 is one; give only paths, or none")
        if not Path(path).is_file():
            raise InputError(f"{rows.where}: item {index}: {str(path)!r} does not exist; give files of images")
    names, numbers = _numbered([_plain(label) for _, label in items], classes, rows.where)
    found: dict[str, list[Path]] = {name: [] for name in names}
    for (path, _), number in zip(items, numbers, strict=True):
        found[names[number]].append(Path(path).absolute())
    return sets_of_files({"": found}, Path.cwd(), reading, rows.where)[""]


def _labels(rows: _Rows) -> list[Any]:
    """List all labels: without decoding an image where the data set holds them apart, and its items say the same."""
    data, held = rows.data, None
    if isinstance(data, torch.utils.data.Subset):
        within = _labels(_Rows(data.dataset, rows.where))
        return [within[index] for index in data.indices]
    if hasattr(data, "with_format") and hasattr(data, "column_names"):  # Hugging Face's, without its transform
        plain = data.with_format(None)
        held = next((list(plain[name]) for name in _LABEL_KEYS if name in data.column_names), None)
    elif getattr(data, "target_transform", None) is None:
        held = labels_held(data)
    if held is not None and all(_plain(held[at]) == _plain(rows[at][1]) for at in (0, len(data) // 2, len(data) - 1)):
        return [_plain(label) for label in held]
    found = []
    with progress("reading labels", len(data), "images") as bar:
        for index in range(len(data)):
            found.append(_plain(rows[index][1]))
            bar.advance(1)
    return found


def _plain(label: Any) -> Any:
    """Take a number out of a tensor or an array that holds one."""
    if isinstance(label, Tensor):
        return label.item() if label.numel() == 1 else label
    return label.item() if isinstance(label, np.ndarray | np.generic) and label.size == 1 else label


def _class_names(data: Any) -> Sequence[str] | None:
    """Find the names that a data set has for its labels."""
    if isinstance(data, torch.utils.data.Subset):
        return _class_names(data.dataset)
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        named = [feature.names for feature in features.values() if hasattr(feature, "names")]
        return named[0] if len(named) == 1 else None
    classes = getattr(data, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        return None
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in classes]


def _numbered(labels: Sequence[Any], classes: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], Labels]:
    """Name the classes that have an image, and number every image's."""
    texts = isinstance(labels[0], str)
    for index, label in enumerate(labels):
        if not (isinstance(label, str) if texts else isinstance(label, int) and label >= 0):
            raise InputError(
                f"{where}: item {index} has the label {label!r}; give whole numbers from 0 to all, or texts to all"
            )
    present = sorted(set(labels))
    number = {label: place for place, label in enumerate(present)}
    names = [str(label) for label in present]
    if classes is not None and not texts and present[-1] < len(classes):
        chosen = [compose(str(classes[label])) for label in present]
        names = (
            chosen if len(set(chosen)) == len(chosen) else [f"{a} ({b})" for a, b in zip(chosen, names, strict=True)]
        )
    return tuple(names), np.array([number[label] for label in labels], dtype=np.int64)


def _array(image: Any, where: str, index: int) -> NDArray[Any]:
    """Return an image's values, channels first.

    Raises:
        InputError: if it is none.
    """
    if isinstance(image, Image.Image):
        grey = is_deep(image) or image.mode in ("1", "L")
        return (
            np.asarray(to_channels(image, 1 if grey else 3)).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        )
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
    elif isinstance(image, np.ndarray):
        array = image
        if array.ndim == 3 and array.shape[2] in (1, 3, 4):
            array = array.transpose(2, 0, 1)
    else:
        raise InputError(f"{where}: item {index} holds a {type(image).__name__}; give images, arrays or tensors")
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise InputError(
            f"{where}: item {index} has the shape {image.shape} of {image.dtype}; give (channels, height, width)"
        )
    return array


def _is_whole(array: NDArray[Any]) -> bool:
    """Return True for the numbers 0 to 255, in whatever type."""
    return bool((array >= 0).all() and (array <= 255).all() and (array == np.rint(array)).all())


def _is_prepared(array: NDArray[Any]) -> bool:
    """Return True for floats that are no pixels: normalised already, they are a network's input."""
    floats = np.issubdtype(array.dtype, np.floating)
    return bool(floats and not ((array >= 0).all() and (array <= 1).all()) and not _is_whole(array))


@dataclass(frozen=True)
class _ReadRow:
    """Reads an item's image; the name is its index.

    Args:
        rows: the items.
        channels: of every image.
        shape: of every tensor where they are prepared; None for images.
        unit: whether floats go from 0 to 1; else to 255.
    """

    rows: _Rows
    channels: int
    shape: tuple[int, ...] | None = None
    unit: bool = True

    def __call__(self, name: str) -> Any:
        index, where = int(name), self.rows.where
        value = self.rows[index][0]
        if isinstance(value, Image.Image) and self.shape is None:
            return to_channels(value, self.channels)
        array = _array(value, where, index)
        if self.shape is not None:
            if array.shape != self.shape or not np.isfinite(array).all():
                raise InputError(
                    f"{where}: item {index} is a tensor of shape {array.shape}, and item 0 of {self.shape}; give "
                    "finite numbers of one shape, or images, which are resized here"
                )
            return torch.from_numpy(np.array(array, dtype=np.float32))
        floats = self.unit and np.issubdtype(array.dtype, np.floating)
        if array.dtype == bool or (floats and (array <= 1).all() and (array >= 0).all()):
            array = np.rint(array.astype(np.float64) * 255)
        if not _is_whole(array) or array.shape[0] not in (1, 3, 4):
            raise InputError(
                f"{where}: item {index} has {array.shape[0]} channels, values from {array.min():.4g} to "
                f"{array.max():.4g}; give 1, 3 or 4 channels of uint8, or of floats from 0 to 1"
            )
        pixels = array.astype(np.uint8).transpose(1, 2, 0)
        return to_channels(Image.fromarray(pixels[..., 0] if len(array) == 1 else pixels), self.channels)


def _digests(images: ImageSet, where: str, looked: Sequence[int]) -> Digests:
    """Tell images apart by their pixels; by their place where there are too many, or each reading gives others."""
    sample = [images.names[index] for index in looked]
    steady = all(np.array_equal(np.asarray(images.read(name)), np.asarray(images.read(name))) for name in sample)
    if not steady or len(images) > _MOST_DIGESTED:
        return digest_texts(f"{where} {len(images)} {index}" for index in range(len(images)))
    found = []
    with progress("reading images", len(images), "images") as bar:
        for name in images.names:
            found.append(digest_pixels([images.read(name)]))
            bar.advance(1)
    return np.concatenate(found)


def _mirrored(data: Any) -> bool:
    """Return True if a mirror image means the same: not so for characters, of the sets that torchvision knows."""
    while isinstance(data, torch.utils.data.Subset):
        data = data.dataset
    return all(spec.mirrored for spec in NAMED_SETS.values() if spec.kind == type(data).__name__)
