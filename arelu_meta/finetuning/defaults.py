"""What fine-tuning chooses where the config leaves it open: gentle where pretrained features are worth keeping."""

from dataclasses import replace
from typing import Literal

from arelu_meta.activations.controls import FROZEN, HEAD_RATE, is_control
from arelu_meta.backbones.networks import is_given
from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.freezing import keeps_features

_LARGEST_GRADIENT = 1.0  # without a limit, still statistics let the first steps throw the features away
_SCALARS_SHARE = 0.01  # of the learning rate: each collects the gradient of a whole layer
_SCALARS_ALONE_SHARE = 0.3  # under `activations`: they open, and a ten times higher rate is one that ruins
_RATE_KEPT = 0.03  # of SGD, where gradients are clipped and the head has learned already
_FEW_IMAGES = 600  # with fewer, less of what was pretrained is to be given up for them
_RATE_RANDOM = 0.01
_RATE_CHANGED = 0.003  # the paper's start is lost at higher ones
_LESS_IF_ADAPTIVE = 30  # optimisers that divide gradients by their size


def settle(config: FinetuneConfig) -> FinetuneConfig:
    """Replace what is left open by what suits the model, but for what hangs on the images or the device.

    Where the backbone starts as the function that was pretrained, the head starts as logistic regression on its
    features, batch normalisation stays as it is, gradients are clipped and the activations' scalars learn at a
    hundredth of the rate: the first epoch can then lose little of what is there, at a rate from which much is learned.
    Elsewhere (random weights, a start that changes the function) statistics have to move, and nothing is held.

    Args:
        config: validated; left as it is.

    Returns:
        The config with model.head_init, train.freeze_bn and optim.clip_grad settled; of a run that is sharded also
        train.channels_last.

    Source: Kumar et al. 2022 (LP-FT) for the order, head first.
    """
    kept = keeps_function(config)
    model, optim, train = config.model, config.optim, config.train
    if train.mode == "probe":
        model = replace(model, head_init="probe")
    elif model.head_init == "auto" and not _own_head(config):
        model = replace(model, head_init=new_head_init(config))
    if train.freeze_bn == "auto":
        train = replace(train, freeze_bn=kept)
    if train.shard and train.channels_last == "auto":
        train = replace(train, channels_last=False)
    if optim.clip_grad is None and kept and not keeps_features(train.mode):
        optim = replace(optim, clip_grad=_LARGEST_GRADIENT)
    return replace(config, model=model, optim=optim, train=train)


def new_head_init(config: FinetuneConfig) -> Literal["probe", "zero", "random"]:
    """Choose how a new head starts where model.head_init leaves it open.

    Args:
        config: its model.
    """
    return "probe" if keeps_function(config) else "zero" if config.model.pretrained else "random"


def settle_rates(config: FinetuneConfig, images: int) -> FinetuneConfig:
    """Replace the learning rates that are left open by what suits the model and its images.

    Args:
        config: left as it is.
        images: how many are trained on.

    Returns:
        The config with optim.lr and optim.act_lr settled, so that config.yaml says what was done; act_lr stays open
        where the rate is still to be looked for (`scalars_share` says what becomes of it then).
    """
    optim = config.optim
    if optim.lr == "default":
        optim = replace(optim, lr=default_rate(config, images))
    if config.model.activation == "control:head10" and optim.head_lr is None:
        if isinstance(optim.lr, str):
            raise InputError(
                f"optim.lr: {optim.lr!r} does not go with control:head10, whose head has a rate of its own"
            )
        optim = replace(optim, head_lr=HEAD_RATE * optim.lr)
    if optim.act_lr is None and not isinstance(optim.lr, str) and (share := scalars_share(config)) is not None:
        optim = replace(optim, act_lr=share * optim.lr)
    return replace(config, optim=optim)


def default_rate(config: FinetuneConfig, images: int) -> float:
    """Choose the learning rate where optim.lr is left open.

    Args:
        config: its model and optimiser.
        images: how many are trained on.

    Returns:
        For SGD and its variants 0.03 where the pretrained function is kept (with less than 600 images less, in
        proportion), 0.003 where a swap changes it, 0.01 from random weights; a thirtieth of that for others.

    Source: `experiments/default_sweep` (0.03 against rates around it, few images), `experiments/init_study` (starts
    that change the function, AdamW).
    """
    if keeps_function(config):
        rate = _RATE_KEPT * min(1.0, images / _FEW_IMAGES)
    else:
        rate = _RATE_CHANGED if config.model.pretrained else _RATE_RANDOM
    plain = any(part in config.optim.name.lower() for part in ("sgd", "momentum", "nesterov"))
    # Three digits are what a person reads in config.yaml.
    return float(f"{rate if plain else rate / _LESS_IF_ADAPTIVE:.3g}")


def scalars_share(config: FinetuneConfig) -> float | None:
    """Choose at which share of the learning rate the activations' scalars learn where optim.act_lr is left open.

    Args:
        config: its model and what is trained.

    Returns:
        A share below 1; None where they learn as the rest does (the function is not kept) or not at all.
    """
    own = config.model.activation is None or is_control(config.model.activation)
    learned = not own or isinstance(config.model.pretrained, str)
    mode = config.train.mode
    if not (keeps_function(config) and learned) or keeps_features(mode):
        return None
    return _SCALARS_ALONE_SHARE if mode == "activations" else _SCALARS_SHARE


def keeps_function(config: FinetuneConfig) -> bool:
    """Say whether the backbone starts as the function that was pretrained.

    Args:
        config: its model; any activation but a gated AReLU is taken to change the function.
    """
    model = config.model
    kept = model.activation in (None, "control:gain", "control:head10")
    kept = kept or (model.activation in ("arelu", FROZEN) and model.init in (None, "preserve"))
    return bool(model.pretrained) and kept


def _own_head(config: FinetuneConfig) -> bool:
    """Return True if the head may come with the checkpoint, whose classes decide, or does with a network given."""
    from_checkpoint = isinstance(config.model.pretrained, str) and not config.model.reset_head
    return from_checkpoint or is_given(config.model.name)
