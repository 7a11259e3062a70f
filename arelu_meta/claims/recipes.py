"""Each study's recipe: what its flags are by its size where a person leaves them out."""

import math
from copy import deepcopy
from typing import Any

from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError
from arelu_meta.validation import flatten

_PAPER = (
    "apl,arelu,celu,elu,gelu,leaky_relu,maxout,mixture,pau,prelu,relu,relu6,rrelu,selu,sigmoid,slaf,softplus,swish,tanh"
)
_DEEPEST = 200
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        "quick": {
            "data.name": "mnist",
            "model.name": "mnist_conv",
            "model.activation": "relu,selu,arelu",
            "optim.name": "sgd",
            "optim.lr": "1e-3",
            "train.epochs": 1,
            "train.repeats": 3,
        },
        "full": {
            "data.name": "mnist",
            "model.name": "mnist_conv,mnist_linear",
            "model.activation": _PAPER,
            "optim.name": "sgd,adam",
            "optim.lr": "1e-2,1e-3,1e-4,1e-5",
            "train.epochs": 20,
            "train.repeats": 5,
        },
    },
    "small-lr": {
        "quick": {
            "data.per_class": 16,
            "data.image_size": 64,
            "model.name": "tf_efficientnet_lite0",
            "model.pretrained": True,
            "model.activation": "original,arelu:paper,arelu:preserve",
            "optim.name": "sgd",
            "optim.lr": "3e-2,1e-2,3e-3,1e-3",
            "train.epochs": 3,
            "train.repeats": 3,
        },
        "full": {
            "model.name": "tf_efficientnet_lite0",
            "model.pretrained": True,
            "model.activation": "original,gelu,arelu:paper,arelu:preserve,arelu:leak",
            "optim.name": "sgd",
            "optim.lr": "1e-1,3e-2,1e-2,3e-3,1e-3,3e-4,1e-4",
            "train.epochs": 20,
            "train.repeats": 5,
        },
    },
    "transfer": {
        "quick": {
            "pairs": "mnist-to-mnist-m,mnist-to-digits,imagenet-to-flowers17",
            "data.per_class": 20,
            "data.image_size": 64,
            "model.name": "mnist_conv,tf_efficientnet_lite0",
            "model.activation": "original,arelu:paper,arelu:preserve",
            "optim.name": "sgd",
            "optim.lr": "1e-2,1e-3",
            "train.epochs": 3,
            "train.repeats": 3,
        },
        "full": {
            "pairs": "mnist-to-mnist-m,mnist-to-digits,imagenet-to-flowers17,imagenet-to-cifar10-subset",
            "model.name": "mnist_conv,tf_efficientnet_lite0",
            "model.activation": "original,selu,arelu:paper,arelu:preserve,arelu:leak,arelu:nearest,arelu:fit",
            "optim.name": "sgd",
            "optim.lr": "1e-2,1e-3,1e-4,1e-5",
            "train.epochs": 20,
            "train.repeats": 5,
        },
    },
    "architectures": {
        "quick": {
            "data.root": "cifar10-subset",
            "data.per_class": 100,
            "data.image_size": 32,
            "model.name": "resnet10t,mobilenetv3_small_100,convnext_atto,vit_tiny_patch16_224",
            "model.activation": "original,arelu",
            "optim.name": "adamw",
            "optim.lr": "1e-3",
            "train.epochs": 3,
            "train.repeats": 3,
        },
        "full": {
            "data.root": "cifar10-subset",
            "data.image_size": 32,
            "model.name": "resnet18,vgg11_bn,densenet121,mobilenetv2_100,mobilenetv3_small_100,efficientnet_b0,"
            "convnext_atto,vit_tiny_patch16_224",
            "model.activation": "original,arelu",
            "optim.name": "adamw",
            "optim.lr": "3e-3,1e-3,3e-4",
            "train.epochs": 20,
            "train.repeats": 5,
        },
    },
    "gradients": {
        "quick": {
            "data.name": "mnist",
            "model.name": "plain,plain_even",
            "model.activation": "relu,elu,selu,arelu",
            "optim.name": "sgd",
            "optim.lr": "1e-2",
            "train.epochs": 1,
            "train.repeats": 3,
            "depth": "5,20",
        },
        "full": {
            "data.name": "mnist",
            "model.name": "plain,plain_even",
            "model.activation": _PAPER,
            "optim.name": "sgd",
            "optim.lr": "1e-2",
            "train.epochs": 5,
            "train.repeats": 5,
            "depth": "5,10,20,30,40,50",
        },
    },
    "meta": {
        "quick": {
            "data.name": "mnist,omniglot-small",
            "model.name": "mnist_conv",
            "model.activation": "relu,arelu",
            "optim.name": "adam",
            "optim.lr": "5e-3",
            "train.repeats": 3,
            "meta.shots": "1",
            "meta.steps": 40,
            "meta.tasks": 300,
        },
        "full": {
            "data.name": "mnist,omniglot-small",
            "model.name": "mnist_conv",
            "model.activation": _PAPER,
            "optim.name": "adam",
            "optim.lr": "5e-3",
            "train.repeats": 5,
            "meta.shots": "1,5",
            "meta.steps": 100,
            "meta.tasks": 1000,
        },
    },
    "focus": {
        "quick": {
            "data.root": "flowers17",
            "data.per_class": 10,
            "data.image_size": 128,
            "model.name": "tf_efficientnet_lite0",
            "model.pretrained": True,
            "model.activation": "original,arelu:paper,arelu:preserve",
            "optim.name": "sgd",
            "optim.lr": "3e-3",
            "train.epochs": 3,
            "train.repeats": 3,
            "focus.count": 68,
        },
        "full": {
            "data.root": "flowers17",
            "model.name": "tf_efficientnet_lite0",
            "model.pretrained": True,
            "model.activation": "original,arelu:paper,arelu:preserve,arelu:leak,arelu:nearest",
            "optim.name": "sgd",
            "optim.lr": "3e-3",
            "train.epochs": 20,
            "train.repeats": 5,
            "focus.count": 340,
        },
    },
    "small-lr/maml": {
        "quick": {
            "data.image_size": 20,
            "model.name": "conv4_32",
            "model.pretrained": False,
            "model.activation": "original,arelu:paper",
            "optim.name": "adam",
            "optim.lr": "1,1e-1,1e-2",
            "train.repeats": 3,
            "meta.steps": 30,
            "meta.tasks": 100,
        },
        "full": {
            "data.name": "omniglot-small",
            "model.name": "conv4",
            "model.pretrained": False,
            "model.activation": "original,gelu,arelu:paper,arelu:preserve",
            "optim.name": "adam",
            "optim.lr": "1e-1,3e-2,1e-2,3e-3,1e-3,1e-4",
            "train.repeats": 5,
            "meta.steps": 1000,
            "meta.tasks": 600,
        },
    },
}


def resolve(config: ClaimsConfig) -> ClaimsConfig:
    """Fill what was left out with the study's recipe.

    Args:
        config: as a person gave it; it is not changed.

    Returns:
        A copy in which all that the study reads is set.

    Raises:
        InputError: naming a flag whose value it cannot have.
    """
    key = f"{config.study}/{config.pipeline}"
    key = key if key in RECIPES else config.study
    recipe = RECIPES[key][config.size]
    filled = deepcopy(config)
    for name, value in flatten(config).items():
        if name in recipe and value is None and not _brings(config, name):
            _set(filled, name, recipe[name])
    repeats = filled.train.repeats
    if repeats is not None and repeats < 2:
        raise InputError(f"train.repeats: {repeats} is not allowed; give at least 2: one run has no interval")
    return filled


def _brings(config: ClaimsConfig, name: str) -> bool:
    """Whether a person names data of their own: the recipe's name, size and number of images are not for it.

    Runs that are looked at bring the images that they were trained on.
    """
    own = config.data.root is not None or config.data.name is not None or config.focus.runs is not None
    return own and name in {"data.name", "data.root", "data.per_class"}


def _set(config: ClaimsConfig, name: str, value: Any) -> None:
    group, _, field_name = name.rpartition(".")
    setattr(getattr(config, group) if group else config, field_name, value)


def names(flag: str, text: str | None) -> list[str]:
    """Read names with commas between.

    Args:
        flag: where they stand, for errors.
        text: as `relu,selu`.

    Returns:
        Each once, in order.

    Raises:
        InputError: if there is none, or an empty one.
    """
    found = [part.strip() for part in (text or "").split(",")]
    if not all(found):
        raise InputError(f"{flag}: {text!r} is not allowed; give names with commas between, as one,two")
    return list(dict.fromkeys(found))


def activation_names(config: ClaimsConfig) -> list[str]:
    """List a resolved config's activations, each once, by the name under which tables and claims know it.

    Raises:
        InputError: naming one that is unknown.
    """
    from arelu_meta.activations.registry import canonical_name

    found = names("model.activation", config.model.activation)
    return list(dict.fromkeys(canonical_name(name, "model.activation") for name in found))


def numbers(flag: str, text: float | str | None) -> list[float]:
    """Read numbers above 0 with commas between.

    Args:
        flag: where they stand, for errors.
        text: as `1e-2,1e-3`, or a single number.

    Returns:
        Each once, from large to small.

    Raises:
        InputError: if one of them is no number, or not above 0.
    """
    found = []
    for part in str(text).split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{flag}: {part.strip()!r} is not allowed; give numbers above 0, with commas between")
        found.append(value)
    return sorted(set(found), reverse=True)


def depths(text: int | str | None) -> list[int]:
    """Read how many hidden layers networks have.

    Args:
        text: as `5,20,50`, or a single number.

    Returns:
        Each once, from few to many.

    Raises:
        InputError: if one of them is no whole number from 2 to 200.
    """
    parts = [part.strip() for part in str(text).split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and 2 <= int(part) <= _DEEPEST):
            raise InputError(f"depth: {part!r} is not allowed; give whole numbers from 2 to {_DEEPEST}, with commas")
    return sorted(set(map(int, parts)))


def seeds(config: ClaimsConfig) -> list[int]:
    """List the seeds of a resolved config."""
    return list(range(config.run.seed, config.run.seed + (config.train.repeats or 0)))
