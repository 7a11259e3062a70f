"""What a checkpoint's run was trained and tested on, and whether that is still so."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from arelu_meta.config import DataConfig, ModelConfig, RunConfig, Settings
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import ImageSet, Provenance, concatenate
from arelu_meta.errors import InputError
from arelu_meta.validation import validate

C = TypeVar("C", bound=Settings)


def of_its_run(config: Mapping[str, Any]) -> tuple[DataConfig, int]:
    """Read the data and the seed of the run that wrote a checkpoint.

    Args:
        config: as the checkpoint's header has it.

    Raises:
        InputError: if it does not hold a run's config.
    """
    data, seed = _read(config, "data", DataConfig), _read(config, "run", RunConfig).seed
    # A header may be a stranger's: the folder that it names is read, and nothing is downloaded into it.
    return replace(data, download=data.download and data.root is None), seed


def start_of_its_run(config: Mapping[str, Any]) -> ModelConfig:
    """Read the model that the run of a checkpoint started from.

    Args:
        config: as the checkpoint's header has it.

    Raises:
        InputError: if it does not hold a run's config.
    """
    return _read(config, "model", ModelConfig)


def _read(header: Mapping[str, Any], group: str, kind: type[C]) -> C:
    """Read a group of a run's config from a header; fields that this version does not know were read by another."""
    try:
        known = {item.name for item in fields(kind)}
        config = kind(**{name: value for name, value in header[group].items() if name in known})
        validate(config, kind)
        return config
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(
            f"checkpoint: it does not say what its run was tested on ({error}); it was not written by a run"
        ) from error


def test_images_of(own: DataConfig, seed: int, seen: Provenance, checkpoint: Path) -> ImageSet:
    """Load the images that a checkpoint's run was tested on.

    Args:
        own: the run's data.
        seed: of its split.
        seen: what the model's header says.
        checkpoint: a run folder, or a file in one.

    Raises:
        InputError: if they are not all there any more: the split falls otherwise, into what was trained on.
    """
    splits = load_images(own, seed)
    if not len(seen.tested):
        check_unchanged(checkpoint, splits.test, seen)
    if not len(seen.tested) or _are_tested(splits.test, seen):
        return splits.test
    # A run that came from another one was not tested on what that had seen.
    whole = load_images(replace(own, per_class=None, folds=None, fold=None), seed)
    images = concatenate([whole.train, whole.validation, whole.test])
    images = images.subset(np.flatnonzero(np.isin(images.digests(), seen.tested)))
    if (there := len(np.unique(images.digests()))) < len(seen.tested):
        raise _changed(f"{there} of {len(seen.tested)} to test on are still there")
    return images


def _changed(what: str) -> InputError:
    return InputError(
        f"checkpoint: the images of its run have changed since ({what}); give --data.root FOLDER with images that it "
        "was not trained on"
    )


def _are_tested(images: ImageSet, seen: Provenance) -> bool:
    return np.array_equal(np.unique(images.digests()), seen.tested)


def check_unchanged(checkpoint: Path, images: ImageSet, seen: Provenance) -> None:
    """Refuse a test set that is not the run's any more: the split falls otherwise, into what was trained on.

    Args:
        checkpoint: a run folder, or a file in one.
        images: the test set as it is now.
        seen: what the model's header says; of a model of before 0.2 the names in its folder are compared.

    Raises:
        InputError: if it has changed.
    """
    if len(seen.tested):
        if not _are_tested(images, seen):
            there = int(np.isin(seen.tested, images.digests()).sum())
            raise _changed(f"{there} of {len(seen.tested)} to test on are still there, and {len(images)} are now")
        return
    file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "split.json"
    try:
        then = json.loads(file.read_text(encoding="utf-8"))["test"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # a model file that was taken out of its run's folder
    if not isinstance(then, list):
        return  # nor did a run write this
    if then != list(images.names):
        raise _changed(f"{len(then)} to test on then, {len(images)} now, or other ones")
