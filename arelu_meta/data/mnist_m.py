"""MNIST-M: MNIST's digits blended over photographs, made from the two sets when it is asked for."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.images import ImageSet, Splits, data_home, fill_splits, part_folders, read_folder
from arelu_meta.data.named import NAMED_SETS, load_part, named_root
from arelu_meta.data.reading import Reading
from arelu_meta.errors import InputError

NAME = "mnist-m"
_SIDE = 28
_PHOTOGRAPHS = "cifar10-subset"


def load_mnist_m(config: DataConfig, seed: int) -> Splits:
    """Blend MNIST's digits over CIFAR-10's photographs: training digits over training ones, test over test ones.

    Which photograph, and which part of it, is decided by the digit's number alone: the set is always the same.

    Args:
        config: root (default: the data home) and download.
        seed: of the validation images, which are cut from the training images.

    Returns:
        60,000 training (some of them for validation) and 10,000 test images, RGB, 28 x 28, where MNIST is whole.

    Raises:
        InputError: if MNIST or the photographs are missing.

    Source: Ganin and Lempitsky 2015, section 4: the absolute difference of a digit and a patch of a photograph.
    """
    parts = []
    for number, arguments in enumerate((NAMED_SETS["mnist"].train, NAMED_SETS["mnist"].test)):
        assert arguments is not None
        digits = load_part("mnist", arguments, config)
        photographs = _photographs(config, "test" if number else "train")
        parts.append(replace(digits, read=_Blended(digits, photographs, number), channels=3))
    return replace(fill_splits(parts[0], None, parts[1], seed), mirrored=False)


def _photographs(config: DataConfig, part: str) -> ImageSet:
    for home in (named_root(config), data_home()):
        folders = part_folders(home / _PHOTOGRAPHS) if (home / _PHOTOGRAPHS).is_dir() else {}
        if part in folders:
            return read_folder(folders[part], home / _PHOTOGRAPHS, Reading(skip_broken=True))
    try:
        return load_part("cifar10", {"train": part == "train"}, config)
    except InputError as error:
        raise InputError(
            f"data.name: {NAME!r} needs photographs, and neither {_PHOTOGRAPHS!r} nor CIFAR-10 lies in "
            f"{str(named_root(config))!r}; put one there, or give --data.download true"
        ) from error


@dataclass(frozen=True)
class _Blended:
    """Reads a digit over its photograph.

    Args:
        digits: of one part, grey.
        photographs: of the same part.
        part: 0 for training, 1 for the test, so that the same number has another photograph in each.
    """

    digits: ImageSet
    photographs: ImageSet
    part: int

    def __call__(self, name: str) -> Image.Image:
        draw = np.random.default_rng([self.part, int(name)])
        photograph = self.photographs[int(draw.integers(len(self.photographs)))][0].convert("RGB")
        if min(photograph.size) < _SIDE:
            photograph = photograph.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        left, top = (int(draw.integers(side - _SIDE + 1)) for side in photograph.size)
        patch = np.asarray(photograph.crop((left, top, left + _SIDE, top + _SIDE)), dtype=np.int16)
        digit = np.asarray(self.digits.read(name), dtype=np.int16)[..., None]
        return Image.fromarray(np.abs(patch - digit).astype(np.uint8))
