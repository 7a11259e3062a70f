"""The study `architectures`: does an activation help mainstream networks, trained from scratch on the same budget?"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from arelu_meta.backbones.from_config import build_backbone, check_forward, check_model_config
from arelu_meta.claims.amounts import amount, epochs, resplit
from arelu_meta.claims.architectures_tables import conclude
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import side_by_side
from arelu_meta.claims.small_lr import contenders_of
from arelu_meta.claims.small_lr_runs import Trial, estimate, model_config, work
from arelu_meta.config import ClaimsConfig
from arelu_meta.data.images import load_images
from arelu_meta.errors import InputError
from arelu_meta.finetuning.optimizer import check_optimizer_name


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, the data is missing, or a network does not take its images.
    """
    trials = list_trials(config)
    _check_networks(config)
    ratio = resplit(config.data, config.run.seed)
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=lambda missing: _seconds(config, missing),
        conclude=lambda ledger, folder: conclude(ledger.of_all(trials), config.margin, ratio),
        headline=(
            f"{config.model.name} from scratch on {config.data.root or config.data.name or 'digits'}, "
            f"{config.data.image_size} px: {config.model.activation}, {config.optim.name}, learning rates "
            f"{config.optim.lr}, {amount(config)}, {epochs(config)}, {config.train.repeats} seeds"
        ),
    )


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of every network first.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    contenders = contenders_of(config, pretrained=False)
    if len(contenders) < 2:
        raise InputError(
            f"model.activation: {config.model.activation!r} leaves nothing to compare; give two, as original,arelu"
        )
    optimizers, models = names("optim.name", config.optim.name), names("model.name", config.model.name)
    if len(optimizers) > 1:
        raise InputError("optim.name: architectures takes one optimiser a study; give one")
    check_optimizer_name(optimizers[0])
    for name, contender in itertools.product(models, contenders):
        check_model_config(model_config(name, False, contender))
    return [
        Trial(
            pipeline="finetune",
            data=config.data.root or config.data.name or "digits",
            image_size=config.data.image_size,
            batch_size=config.data.batch_size,
            per_class=config.data.per_class,
            model=model,
            pretrained=False,
            contender=contender,
            optimizer=optimizers[0],
            lr=lr,
            seed=seed,
            length=config.train.epochs or 1,
        )
        for seed, model, lr, contender in itertools.product(
            seeds(config), models, numbers("optim.lr", config.optim.lr), contenders
        )
    ]


def _check_networks(config: ClaimsConfig) -> None:
    """Refuse a network that cannot train on such images, before the first run."""
    images = load_images(config.data, config.run.seed).train
    for name in names("model.name", config.model.name):
        model, spec = build_backbone(
            model_config(name, False, "original"), images.classes, images.channels, config.data.image_size, "finetune"
        )
        check_forward(model, spec, min(config.data.batch_size, len(images)))


def _seconds(config: ClaimsConfig, trials: Any) -> float:
    """Measure a run of one epoch a network: they differ many times over."""
    by_model: dict[str, list[Trial]] = {}
    for trial in trials:
        by_model.setdefault(trial.model, []).append(trial)
    return sum(estimate(config, some) for some in by_model.values())
