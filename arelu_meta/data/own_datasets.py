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

_IMAGE_KEYS = ("pixel_values", "image", "img", "images", "picture", "x")  # the first is what a transform adds
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
            shape ([channels,] height, width). Arrays and tensors of uint8, and arrays of floats from 0 to 1 (kept in 8
            bits), are images; tensors of floats are what the network gets. Labels are whole numbers or texts.
        where: the argument's name, for errors.
        classes: the classes' names where labels are numbers; default: those that the data set knows.
        reading: how files are read.

    Returns:
        The images, of the classes that have one. With tensors of floats the set is `prepared`: they are used as they
        are, whatever their range.

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
        parts = isinstance(data, Mapping) and "train" in data
        way = "; give one of its parts, as data['train']" if parts else ""
        raise InputError(
            f"{where}: a {type(data).__name__} is no data set of (image, label) with a length and data[i]{way}"
        )
    if len(data) == 0:
        raise InputError(f"{where}: the data set is empty; give images of at least two classes")
    rows = _Rows(data, where)
    if isinstance(rows[0][0], str | Path):
        return _of_files(rows, classes, reading)
    names, numbers = _numbered(_labels(rows), classes or _class_names(data), where)
    looked = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(int)).tolist()
    values = [rows[index][0] for index in looked]
    arrays = [_array(value, where, index) for value, index in zip(values, looked, strict=True)]
    prepared = any(map(_is_prepared, values, arrays))
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
    random = not all(_is_steady(images, images.names[index]) for index in looked)
    if random:
        images = replace(images, random=True, remarks=(*images.remarks, _ON_RANDOM.format(where)))
    return replace(images, known_digests=_digests(images, where))


_ON_PREPARED = "the data set's tensors are used as they are: what was done to images before is not known here"
_ON_RANDOM = "{}: its own transforms are random; copies are not looked for, and what is cut from it is changed, too"


def _is_steady(images: ImageSet, name: str) -> bool:
    """Return True if an image is the same each time; a flip alone is seen in 15 of 16 images that are flipped."""
    first, *others = (np.asarray(images.read(name)) for _ in range(3))
    return all(np.array_equal(first, other) for other in others)


@dataclass(frozen=True)
class OwnData:
    """A person's own data sets, read: training images, and validation and test images where they were given.

    Args:
        train: the training images.
        validation: None where they are to be cut from the training images.
        test: likewise.
        mirrored: see `Splits`.
    """

    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None
    mirrored: bool = True

    @classmethod
    def of(cls, train: Any, validation: Any, test: Any, reading: Reading = _PLAINLY) -> "OwnData":
        """Read data sets, whose labels go by the classes of the first.

        Args:
            train: see `as_image_dataset`.
            validation: likewise, or None.
            test: likewise.
            reading: how files are read.

        Raises:
            InputError: naming the argument and the item or the class.
        """
        images = as_image_dataset(train, "train", reading=reading)
        if len(images.classes) < 2:
            raise InputError(f"train: all its labels are {images.classes[0]!r}; at least 2 classes are needed")
        others = {
            name: _with_classes(as_image_dataset(data, name, reading=reading), images, name)
            for name, data in (("validation", validation), ("test", test))
            if data is not None
        }
        return cls(images, others.get("validation"), others.get("test"), _mirrored(train))

    def splits(self, config: DataConfig, seed: int, seen: Provenance | None = None) -> Splits:
        """Cut what is missing from the training images, as `load_images` does.

        Args:
            config: per_class, folds and fold.
            seed: of the cuts.
            seen: what the model was trained on before.

        Raises:
            InputError: if a class has too few images.
        """
        try:
            splits = fill_splits(self.train, self.validation, self.test, seed, seen)
            notes = (*splits.notes, *self.train.remarks)
            return finish_splits(replace(splits, notes=notes, mirrored=self.mirrored), config, seed, seen)
        except InputError as error:
            raise InputError(str(error).replace("data.root: ", "train: ")) from error


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
    return OwnData.of(train, validation, test, Reading.of(config)).splits(config, seed, seen)


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


def _is_prepared(value: Any, array: NDArray[Any]) -> bool:
    """Return True for what is a network's input: tensors of floats, and arrays of floats that are no pixels."""
    if not np.issubdtype(array.dtype, np.floating):
        return False
    return isinstance(value, Tensor) or not (((array >= 0).all() and (array <= 1).all()) or _is_whole(array))


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


def _digests(images: ImageSet, where: str) -> Digests:
    """Tell images apart by their pixels; by their place where there are too many, or each reading gives others."""
    if images.random or len(images) > _MOST_DIGESTED:
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
