"""How many training images of each class a study takes."""

from copy import deepcopy
from dataclasses import replace

import numpy as np

from arelu_meta.claims.recipes import RECIPES
from arelu_meta.config import ClaimsConfig, DataConfig
from arelu_meta.data.images import load_images
from arelu_meta.errors import counted

_FEWEST = 5  # training images a class that the quick size may leave


def thinned(config: ClaimsConfig) -> ClaimsConfig:
    """Keep the quick size quick on a person's own images: as many of each class as the recipe takes, or as there are.

    Args:
        config: resolved.

    Returns:
        It, or a copy with `data.per_class`; a class of fewer than 5 training images asks for all there are.

    Raises:
        InputError: if the images cannot be read.
    """
    trained = config.study in ("architectures", "focus", "small-lr") and config.focus.runs is None
    if config.size != "quick" or not trained or config.pipeline == "maml" or config.data.per_class is not None:
        return config
    images = load_images(config.data, config.run.seed).train  # how many there are of a class is the same in every split
    smallest = int(np.bincount(images.labels, minlength=len(images.classes)).min())
    if smallest < _FEWEST:
        return config
    filled = deepcopy(config)
    filled.data.per_class = min(smallest, RECIPES[config.study]["quick"]["data.per_class"])
    return filled


def resplit(config: DataConfig, seed: int) -> float:
    """Return how many test images there are a training image where every seed splits the data anew.

    Args:
        config: of the study; how much of the training images it takes does not count, for seeds share those they
            might have taken as well.
        seed: the study's first.

    Returns:
        0 where the test set is the same for all seeds.
    """
    one, other = (load_images(replace(config, per_class=None), number) for number in (seed, seed + 1))
    return 0.0 if set(one.test.names) == set(other.test.names) else len(one.test) / len(one.train)


def amount(config: ClaimsConfig) -> str:
    """Say how many training images there are of each class."""
    return f"{'all' if config.data.per_class is None else config.data.per_class} training images a class"


def epochs(config: ClaimsConfig) -> str:
    """Say how long a study trains."""
    return counted(config.train.epochs or 0, "epoch")  # a resolved config has a number
