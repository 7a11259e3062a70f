"""What a meta-training run reads of its config, and what it chooses where the config leaves it open."""

from dataclasses import replace

from torch import nn

from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import ClassSplits
from arelu_meta.errors import InputError
from arelu_meta.finetuning.optimizer import activation_parameters, peak_rate
from arelu_meta.meta.inner_loop import BASELINES, COMPARING, Inner, InnerLoop


def check_read(config: MetatrainConfig) -> None:
    """Refuse what meta-training does not read beside its other settings.

    Args:
        config: validated.

    Raises:
        InputError: naming the field, its value, and who reads it.
    """
    peak_rate(config.optim)
    if config.meta.engine == "learn2learn" and config.meta.algorithm in BASELINES:
        raise InputError(
            f"meta.engine: 'learn2learn' cannot do {config.meta.algorithm}, which takes no meta-steps; leave it out"
        )
    if config.meta.algorithm in COMPARING and config.meta.adapt != "all":
        raise InputError(
            f"meta.adapt: {config.meta.adapt!r} would not be read: {config.meta.algorithm} compares features and takes "
            "no inner steps; leave it out"
        )
    model = config.model
    if model.head_init == "probe":
        raise InputError(
            "model.head_init: 'probe' is read by arelu-meta finetune alone (each task has classes of its own); "
            "give zero or random"
        )
    if model.head_init == "random" and isinstance(model.pretrained, str) and not model.reset_head:
        raise InputError(
            f"model.head_init: 'random' is for a new head, and {model.pretrained!r} brings its own; give "
            "--model.reset_head true with it"
        )


def check_patience(config: MetatrainConfig, splits: ClassSplits) -> None:
    """Refuse to stop early by validations that there are none of.

    Args:
        config: validated.
        splits: the classes.

    Raises:
        InputError: naming eval.patience and what would let it be read.
    """
    patience, algorithm = config.eval.patience, config.meta.algorithm
    if patience is None:
        return
    if algorithm in BASELINES:
        raise InputError(f"eval.patience: {patience} would not be read: {algorithm} takes no meta-steps; leave it out")
    if splits.validation is None:
        raise InputError(
            f"eval.patience: {patience} would not be read: there are no classes to validate on; name some in "
            "task.split_file, or leave it out"
        )


def settle_head(config: MetatrainConfig) -> MetatrainConfig:
    """Say how the head starts, where model.head_init leaves it open.

    A new head on pretrained features starts at zero: after one inner step from there it compares with the classes'
    means, while a random one first has to forget its noise in every task. Where it takes no inner steps, zeros would
    leave nothing to adapt to.

    Args:
        config: validated; left as it is.

    Returns:
        The config with model.head_init settled; auto stays where a checkpoint may bring its head.

    Source: Ye and Chao 2022, "How to Train Your MAML to Excel in Few-Shot Learning": heads that start alike.
    """
    model = config.model
    if model.head_init != "auto" or (isinstance(model.pretrained, str) and not model.reset_head):
        return config
    return replace(config, model=replace(model, head_init="zero" if starts_at_zero(config) else "random"))


def starts_at_zero(config: MetatrainConfig) -> bool:
    """Return True if a new head is to start at zero where model.head_init leaves it open.

    Args:
        config: its model, and what adapts.
    """
    return bool(config.model.pretrained) and config.meta.adapt != "activations"


def check_act_lr(model: nn.Module, inner: Inner) -> None:
    """Refuse a rate for scalars that take no inner step.

    Args:
        model: the backbone.
        inner: the inner loop.

    Raises:
        InputError: naming meta.inner_act_lr and what would read it.
    """
    if inner.act_lr is None:
        return
    scalars = {id(parameter) for parameter in activation_parameters(model)}
    adapted = set(InnerLoop(model, inner).names)
    if any(id(parameter) in scalars for name, parameter in model.named_parameters() if name in adapted):
        return
    reason = (
        f"{inner.algorithm} that adapts {inner.adapted_part} takes no inner step with the activations' scalars"
        if scalars
        else "this model has no activation with scalars of its own; give --model.activation arelu"
    )
    raise InputError(f"meta.inner_act_lr: {inner.act_lr} would not be read: {reason}; or leave it out")
