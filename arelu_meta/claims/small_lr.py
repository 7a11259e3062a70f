"""The study `small-lr`: is an activation ahead at a small learning rate, and still when each has its best one?"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.claims.amounts import amount, epochs, resplit
from arelu_meta.claims.fixed_tasks import divide_for, resplit_classes
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import side_by_side
from arelu_meta.claims.small_lr_runs import Trial, estimate, model_config, work
from arelu_meta.claims.small_lr_tables import MATCHED, ORIGINAL, conclude, keeps_function
from arelu_meta.config import ClaimsConfig, MetatrainConfig
from arelu_meta.data.images import load_images
from arelu_meta.errors import InputError, counted, nearest_names
from arelu_meta.finetuning.optimizer import check_optimizer_name

_STARTS = ("paper", "preserve", "leak", "open", "nearest", "fit")


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, the data is missing, the small rate is not among the rates, or there is
            nothing to choose the best one by.
    """
    trials = list_trials(config)
    small = small_rate(config)
    notes = _notes_on_data(config)
    maml = config.pipeline == "maml"
    ratio = (
        resplit_classes(config.data, MetatrainConfig().task, config.run.seed)
        if maml
        else resplit(config.data, config.run.seed)
    )
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda ledger, folder: conclude(
            ledger.of_all(trials), small, config.margin, config.target, notes, ratio
        ),
        headline=_headline(config, small),
    )


def _notes_on_data(config: ClaimsConfig) -> tuple[str, ...]:
    """Read the data before the first run; return what is to be known of how it was divided."""
    if config.pipeline != "maml":
        return load_images(config.data, config.run.seed).notes
    divided = [divide_for(config.data, MetatrainConfig().task, seed) for seed in seeds(config)]
    if len(numbers("optim.lr", config.optim.lr)) > 1 and any(splits.validation is None for splits in divided):
        raise InputError(
            f"optim.lr: the best of {config.optim.lr} is chosen on validation tasks, and this data has too few classes "
            "and images for any; give one rate, or more data"
        )
    return tuple(dict.fromkeys(note for splits in divided for note in splits.notes))


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of everything first; matched ones at the small rate alone.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    pretrained = bool(config.model.pretrained)
    contenders = contenders_of(config, pretrained)
    optimizers, models = names("optim.name", config.optim.name), names("model.name", config.model.name)
    for name in optimizers:
        check_optimizer_name(name)
    if len(optimizers) > 1 or len(models) > 1:
        raise InputError("model.name, optim.name: small-lr takes one backbone and one optimiser a study; give one each")
    for name in contenders:
        check_model_config(model_config(models[0], config.model.pretrained or False, name))
    maml = config.pipeline == "maml"
    first = Trial(
        pipeline=config.pipeline,
        data=config.data.root or config.data.name or "digits",
        image_size=config.data.image_size,
        batch_size=config.data.batch_size,
        per_class=config.data.per_class,
        model=models[0],
        pretrained=config.model.pretrained or False,
        contender=ORIGINAL,
        optimizer=optimizers[0],
        lr=small_rate(config),
        seed=config.run.seed,
        length=(config.meta.steps if maml else config.train.epochs) or 1,
        tasks=(config.meta.tasks or 0) if maml else 0,
    )
    trials = []
    for seed in seeds(config):
        for lr, contender in itertools.product(numbers("optim.lr", config.optim.lr), contenders):
            trials.append(replace(first, contender=contender, lr=lr, seed=seed))
        # What begins as the original does would be matched at the original's own rate: the same run again.
        others = [
            name
            for name in contenders
            if name != ORIGINAL and ORIGINAL in contenders and not keeps_function(name, pretrained)
        ]
        trials += [replace(first, contender=f"{MATCHED}{name}", seed=seed) for name in others]
    return trials


def contenders_of(config: ClaimsConfig, pretrained: bool | None = None) -> list[str]:
    """List a resolved config's contenders, each once.

    Args:
        config: of the study.
        pretrained: whether all networks are, which says how an AReLU without a start starts; None where some are.

    Raises:
        InputError: as `check_contender`; and if two contenders are one.
    """
    found = names("model.activation", config.model.activation)
    contenders = list(dict.fromkeys(check_contender(name) for name in found))
    default = f"arelu:{'preserve' if pretrained else 'paper'}"
    if pretrained is not None and {"arelu", default} <= {*contenders}:
        raise InputError(f"model.activation: 'arelu' and {default!r} are the same here; leave one of them out")
    return contenders


def distinct(contenders: list[str], pretrained: bool) -> list[str]:
    """Leave out an AReLU by its start where the one without a start is the same.

    Args:
        contenders: of the study.
        pretrained: whether the networks are.
    """
    same = f"arelu:{'preserve' if pretrained else 'paper'}"
    return [name for name in contenders if name != same or "arelu" not in contenders]


def check_contender(name: str) -> str:
    """Refuse an unknown activation or start.

    Args:
        name: `original`, an activation, or `arelu:START`.

    Returns:
        It, the activation under the name by which it is listed.

    Raises:
        InputError: with what is allowed.
    """
    if name == ORIGINAL:
        return name
    activation, colon, start = name.partition(":")
    if colon and activation.lower() != "arelu":
        raise InputError(f"model.activation: {name!r} has a start, and only arelu has starts; give {activation}")
    if colon and start not in _STARTS:
        raise InputError(f"model.activation: {name!r} is not known; {nearest_names(start, _STARTS)}")
    from arelu_meta.activations.registry import canonical_name

    return canonical_name(activation, "model.activation") + colon + start


def small_rate(config: ClaimsConfig) -> float:
    """Return the small learning rate: the smallest, unless optim.small_lr names it.

    Raises:
        InputError: if that is not among the rates.
    """
    rates = numbers("optim.lr", config.optim.lr)
    small = config.optim.small_lr
    if small is not None and small not in rates:
        raise InputError(f"optim.small_lr: {small:g} is not one of optim.lr, {config.optim.lr}; give one of them")
    return min(rates) if small is None else small


def _headline(config: ClaimsConfig, small: float) -> str:
    data = config.data.root or config.data.name or "digits"
    maml = config.pipeline == "maml"
    length = counted(config.meta.steps or 0, "meta-step") if maml else f"{amount(config)}, {epochs(config)}"
    rates = "inner learning rates" if maml else "learning rates"
    return (
        f"{config.pipeline} of {config.model.name} on {data}: {config.model.activation}, {config.optim.name}, {rates} "
        f"{config.optim.lr} (the small one is {small:g}), {length}, {config.train.repeats} seeds"
    )
