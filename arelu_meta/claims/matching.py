"""How much of a gain is a larger effective learning rate: the rate at which another model's first steps go as far."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.images import load_images
from arelu_meta.data.loading import Batches, build_transform, unlabelled_batches
from arelu_meta.finetuning.optimizer import build_optimizer, peak_rate

STEPS = 3
_TRIES, _NEAR = 14, 0.05
_SLOWEST, _FASTEST = 1e-3, 1e4  # times the original rate
_HEADS_SIZE = 64

Labelled = Sequence[tuple[Tensor, Tensor]]


def matched_rate(ours: FinetuneConfig, theirs: FinetuneConfig) -> float:
    """Find the rate at which our first steps change the logits as much as theirs do.

    Args:
        ours: the run whose rate is sought; all its parts learn at one rate.
        theirs: the run to be matched, on the same images in the same order.

    Returns:
        A learning rate.
    """
    model, batches = _begin(ours)
    wanted = logit_change(*_begin(theirs), theirs)
    rate = peak_rate(ours.optim)
    return rate * solve(lambda factor: logit_change(model, batches, _at(ours, rate * factor)), wanted)


def _at(config: FinetuneConfig, lr: float) -> FinetuneConfig:
    return replace(config, optim=replace(config.optim, lr=lr))


def solve(change: Callable[[float], float], wanted: float) -> float:
    """Find the factor at which a change has the wanted size, by halving in logarithms; the change need only grow.

    Args:
        change: its size at a factor of the rate.
        wanted: at least 0: a rate can be so small that no logit moves.

    Returns:
        The factor, between a thousandth and ten thousand; within 5 % in the change where it is continuous.
    """
    low, high, factor = _SLOWEST, _FASTEST, 1.0
    for _ in range(_TRIES):
        found = change(factor)
        if abs(found - wanted) <= _NEAR * wanted:
            break
        if found < wanted:
            low = factor
        else:
            high = factor
        # A step is nearly proportional to its rate: try that first, and halve where it leads outside.
        guess = factor * wanted / found if found > 0 and math.isfinite(found) else 0.0
        factor = guess if low < guess < high else math.sqrt(low * high)
    return factor


def logit_change(model: nn.Module, batches: Labelled, config: FinetuneConfig) -> float:
    """Say how far the first steps move the logits of the images that they are taken on.

    Args:
        model: left as it was; batch normalisation takes each batch's own statistics, as in training.
        batches: images of shape (batch, channels, height, width) and labels of shape (batch,), one pair a step.
        config: optimiser and rate.

    Returns:
        The root mean square of the change of the first batch's logits; infinite where they overflow.
    """
    moved = deepcopy(model).train()
    optimizer = build_optimizer(moved, config.optim)
    with torch.no_grad():
        before = moved(batches[0][0])
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(moved(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        size = float((moved(batches[0][0]) - before).square().mean().sqrt())
    return size if math.isfinite(size) else math.inf


def _begin(config: FinetuneConfig) -> tuple[nn.Module, Labelled]:
    """Build a run's model as `finetune` does, and its first batches."""
    splits = load_images(config.data, config.run.seed)
    torch.manual_seed(config.run.seed)
    digits = config.data.root is None and config.data.name in (None, "digits")
    model, spec = build_backbone(
        config.model,
        splits.train.classes,
        splits.train.channels,
        config.data.image_size or (_HEADS_SIZE if digits else None),
        "finetune",
        partial(unlabelled_batches, splits.train),
    )
    if config.model.head_init == "zero":
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
    training = build_transform(spec.inputs, training=False)
    batches = Batches(splits.train, training, config.data.batch_size, config.run.seed).epoch(1)
    return model, [(images, labels) for (images, labels), _ in zip(batches, range(STEPS), strict=False)]
