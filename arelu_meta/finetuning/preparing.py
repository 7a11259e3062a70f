"""What a fine-tuning run is put together from, as its config says: batches, learning rate, trainer."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arelu_meta.backbones.inits import gate_schedule
from arelu_meta.backbones.saving import ModelSpec
from arelu_meta.config import FinetuneConfig, OptimConfig
from arelu_meta.data.images import ImageSet, Splits
from arelu_meta.data.loading import Batches, InputSpec, build_transform, choose_workers
from arelu_meta.finetuning.defaults import scalars_share
from arelu_meta.finetuning.freezing import keeps_features, set_training
from arelu_meta.finetuning.loop import Mix, Trainer, mean_loss
from arelu_meta.finetuning.lr_finder import Search, search_rate
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, peak_rate
from arelu_meta.runs.ranks import Ranks


def make_batches(
    config: FinetuneConfig, splits: Splits, inputs: InputSpec, ranks: Ranks
) -> tuple[Batches, Batches, Batches]:
    """Make the batches of training, validation and test images.

    Args:
        config: augmentation, batch size, workers, seed.
        splits: the images.
        inputs: what the model takes.
        ranks: the processes; each gets its share of what is trained on and validated.
    """
    policy = config.data.augmentation
    evaluation = build_transform(inputs, training=False)
    training = build_transform(
        inputs,
        training=not _plain(config),
        mirrored=splits.mirrored,
        policy=None if policy in ("auto", "none", "crop") else policy,
    )
    size, share, pinned = config.data.batch_size, ranks.share, ranks.device.type == "cuda"
    workers = choose_workers(config.data.workers, ranks.device, len(splits.train))
    return (
        Batches(splits.train, training, size, config.run.seed, workers, share, pinned),
        Batches(splits.validation, evaluation, size, None, min(workers, 2), share, pinned),
        Batches(splits.test, evaluation, size),
    )


def _plain(config: FinetuneConfig) -> bool:
    """Say whether an image is the same in every epoch."""
    policy = config.data.augmentation
    return policy == "none" or (policy == "auto" and keeps_features(config.train.mode))


def why_not_cached(config: FinetuneConfig) -> str | None:
    """Say why features cannot stand for images, whatever the model.

    Args:
        config: of a run whose first stages are frozen.

    Returns:
        The reason, as a phrase; None where they can.
    """
    if not _plain(config):
        return f"data.augmentation {config.data.augmentation} changes every image (none does not)"
    if config.train.mixup or config.train.cutmix:
        return "train.mixup or train.cutmix mixes the images"
    if config.train.shard:
        return "train.shard shares the whole model out"
    if config.train.compile:
        return "train.compile takes the whole model"
    return None


def choose_rate(
    config: FinetuneConfig, model: nn.Module, train: Batches, found: float | None, ranks: Ranks
) -> tuple[OptimConfig, Search | None]:
    """Take optim.lr, or the one that the resumed run had found, or look for one.

    Args:
        config: of the run.
        model: on the device; left as it is.
        train: the training images.
        found: what the run that is resumed had found.
        ranks: the processes.

    Returns:
        The optimiser's config with a number for its rate, and the search where there was one.
    """
    optim = config.optim
    if optim.lr != "auto":
        return optim, None
    # What optim.act_lr leaves open waits for the rate, and is searched with as it will be trained with.
    share = scalars_share(config) if optim.act_lr is None else None

    def at(rate: float) -> OptimConfig:
        return replace(optim, lr=rate, act_lr=optim.act_lr if share is None else share * rate)

    if found is not None:
        return at(found), None
    search = search_rate(
        model,
        optim,
        train.epoch(0),
        lambda copied, images, labels: mean_loss(copied, images, labels, ranks.device, config),
        lambda copied: set_training(copied, config.train),
        share or 1.0,
    )
    # Each process saw its own images; they must not train at different rates.
    search = ranks.gather(search)[0]
    return at(search.chosen), search


def make_trainer(
    config: FinetuneConfig, optim: OptimConfig, model: nn.Module, train: ImageSet, batches: int, ranks: Ranks
) -> Trainer:
    """Make what trains a model.

    Args:
        config: of the run.
        optim: likewise, its rate chosen.
        model: on the device; what learns of it in any epoch is set to.
        train: the training images, for their classes.
        batches: of them, an epoch.
        ranks: the processes.
    """
    optimizer = build_optimizer(model, optim)
    steps, epochs = -(-batches // optim.accumulate), config.train.epochs
    trainer = Trainer(
        model,
        optimizer,
        build_schedule(optimizer, optim, epochs, steps),
        ranks.device,
        config.run.precision,
        peak_rate(optim),
        config.train,
        ranks,
        gates=gate_schedule(model, optim.open_gates),
        all_updates=epochs * steps,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        mix=_mix(config, len(train.classes)),
        class_weights=None if config.train.class_weights == "none" else _class_weights(train).to(ranks.device),
    )
    if config.train.ema is not None:
        from timm.utils import ModelEmaV3

        trainer.average = ModelEmaV3(model, decay=config.train.ema, use_warmup=True)
    return trainer


def _class_weights(images: ImageSet) -> Tensor:
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight("balanced", classes=np.arange(len(images.classes)), y=images.labels)
    return torch.tensor(weights, dtype=torch.float32)


def _mix(config: FinetuneConfig, classes: int) -> Mix | None:
    """Make torchvision's mixup, cutmix, or a choice of them for each batch."""
    from torchvision.transforms import v2

    mixes: list[Any] = []
    if config.train.mixup:
        mixes.append(v2.MixUp(alpha=config.train.mixup, num_classes=classes))
    if config.train.cutmix:
        mixes.append(v2.CutMix(alpha=config.train.cutmix, num_classes=classes))
    if not mixes:
        return None
    return mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)  # type: ignore[no-any-return]


def headline(spec: ModelSpec, splits: Splits, ranks: Ranks) -> str:
    """Say in two lines what is trained on what.

    Args:
        spec: of the model.
        splits: the images.
        ranks: the processes.
    """
    parts = f"{len(splits.train)} training, {len(splits.validation)} validation and "
    parts += f"{len(splits.test)} test images of {len(splits.train.classes)} classes"
    notes = "".join(f"; {note}" for note in splits.notes)
    if splits.skipped:
        notes += f"; {len(splits.skipped)} files skipped that are not images"
    name = f"{spec.name} ({spec.activation or 'its own activation'}"
    name += f", {spec.init})" if spec.init else ")"
    where = f"{spec.inputs.image_size} px on {ranks.device}"
    where += f", {ranks.processes} processes" if ranks.processes > 1 else ""
    return f"{name}, {where}\n{parts}{notes}"
