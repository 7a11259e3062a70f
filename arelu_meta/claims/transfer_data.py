"""The pairs of sets that the study `transfer` goes from and to, in memory."""

from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor

from arelu_meta.claims.recipes import names
from arelu_meta.claims.tensors import Tensors, as_tensors, load_tensors
from arelu_meta.config import ClaimsConfig, DataConfig
from arelu_meta.data.images import load_images
from arelu_meta.data.named import NAMED_SETS
from arelu_meta.errors import InputError, nearest_names

PRETRAINED = "imagenet"
_SIDE = 28
_SVHN_SIDE = 32  # the authors cut the 28 pixels in the middle out of it


@dataclass(frozen=True)
class PairData:
    """What a pair of sets trains on and is judged on.

    Args:
        source: to begin with.
        target: its training images, with the validation images in the test's place.
        test: the target's test images; the training images are not used.
    """

    source: Tensors
    target: Tensors
    test: Tensors


def read_pairs(text: str | None) -> dict[str, tuple[str, str]]:
    """Read which sets are learned one after the other.

    Args:
        text: as `mnist-to-mnist-m,imagenet-to-flowers17`.

    Returns:
        Source and target by pair.

    Raises:
        InputError: if a source or target is unknown.
    """
    found = {}
    for pair in names("pairs", text):
        source, to, target = pair.partition("-to-")
        if not (source and to and target):
            raise InputError(f"pairs: {pair!r} is not allowed; give SOURCE-to-TARGET, as mnist-to-mnist-m")
        known = [PRETRAINED, *_small_sets()]
        if source not in known:
            raise InputError(f"pairs: the source {source!r} of {pair!r} is not known; {nearest_names(source, known)}")
        if source != PRETRAINED and target not in _small_sets():
            raise InputError(
                f"pairs: the target {target!r} of {pair!r} is not known; {nearest_names(target, _small_sets())}"
            )
        found[pair] = (source, target)
    return found


def _small_sets() -> list[str]:
    return ["digits", "mnist-m", *NAMED_SETS]


def backbone_config(config: ClaimsConfig, target: str) -> ClaimsConfig:
    """Say where a target's images lie: a set that goes by its name, or a folder."""
    found = deepcopy(config)
    if target.lower() in _small_sets():
        found.data.name = target
    else:
        found.data.name, found.data.root = None, target
    return found


def load_pair(config: ClaimsConfig, source: str, target: str) -> PairData:
    """Load both sets of a pair at one size and with the same channels; grey digits are repeated to three.

    Args:
        config: its data.root, per_class and download; the split is the first seed's.
        source: name of a set.
        target: name of a set.

    Raises:
        InputError: if a set is missing, or the two have not as many classes.
    """
    of_target = replace(deepcopy(config.data), name=target)
    of_source = replace(deepcopy(config.data), name=source, per_class=None)
    splits = load_images(of_target, config.run.seed)
    channels = max(splits.train.channels, load_images(of_source, config.run.seed).train.channels)
    side = _SVHN_SIDE if target == "svhn" else _SIDE
    train, validation, test = (
        _centre(*as_tensors(part, side, channels)) for part in (splits.train, splits.validation, splits.test)
    )
    classes = len(splits.train.classes)
    learned = _load_source(of_source, config.run.seed, channels)
    if learned.classes != classes:
        raise InputError(
            f"pairs: {source!r} has {learned.classes} classes and {target!r} {classes}; the head is kept, give sets "
            "with as many"
        )
    return PairData(learned, Tensors(*train, *validation, classes), Tensors(train[0][:1], train[1][:1], *test, classes))


def _load_source(config: DataConfig, seed: int, channels: int) -> Tensors:
    found = load_tensors(config, seed, _SVHN_SIDE if config.name == "svhn" else _SIDE, channels)
    train = _centre(found.train_images, found.train_labels)
    test = _centre(found.test_images, found.test_labels)
    return Tensors(*train, *test, found.classes)


def _centre(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    edge = (images.shape[-1] - _SIDE) // 2
    return images[..., edge : edge + _SIDE, edge : edge + _SIDE].contiguous(), labels
