"""How much of a gain is a larger effective learning rate: the rate at which another model's first steps go as far."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.backbones.networks import zero_head
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.data.fewshot import ClassSplits, TaskBatch, load_class_splits
from arelu_meta.data.loaders import unlabelled_batches
from arelu_meta.data.named_datasets import load_images
from arelu_meta.finetuning.finetune import make_batches
from arelu_meta.finetuning.freezing import set_learning, set_training
from arelu_meta.finetuning.linear_probe import start_with_probe
from arelu_meta.finetuning.optimizer import build_optimizer, peak_rate
from arelu_meta.meta.engine import VmappedModel
from arelu_meta.meta.inner_loop import Inner, InnerLoop, inner_of
from arelu_meta.meta.meta_trainer import make_sampler
from arelu_meta.meta.metatrain import make_model
from arelu_meta.runs.distributed import Ranks

STEPS = 3
_TRIES, _NEAR, _REFUSED = 14, 0.05, 0.2
_SLOWEST, _FASTEST = 1e-3, 100.0  # times the original rate
_HEADS_SIZE = 64
Labelled = Sequence[tuple[Tensor, Tensor]]


class NoMatchError(Exception):
    """There is no rate at which the steps go as far and training goes on; the message says why."""


def matched_rate(ours: FinetuneConfig, theirs: FinetuneConfig) -> float:
    """Find the rate of our head at which our first steps change the logits as much as theirs do.

    The head alone: at a multiple of every rate, what is matched is soon lost in the backbone.

    Args:
        ours: the run whose head's rate is sought; the rest keeps its own.
        theirs: the run to be matched, on the same images in the same order.

    Returns:
        optim.head_lr.

    Raises:
        NoMatchError: if no rate up to 100 times as large gets there, or the loss grows at the one that does.
    """
    model, batches = _begin_finetuning(ours)
    wanted, _ = first_steps(*_begin_finetuning(theirs), theirs)
    rate = peak_rate(ours.optim)
    return matched(lambda lr: first_steps(model, batches, _at(ours, lr)), rate, wanted)


def matched(steps: Callable[[float], tuple[float, float]], rate: float, wanted: float) -> float:
    """Find the rate at which the first steps go as far as is wanted, and refuse one at which nothing is learned.

    Args:
        steps: how far they move the logits at a rate, and by how much they change the loss.
        rate: to begin with.
        wanted: how far.

    Raises:
        NoMatchError: as `matched_rate`.
    """
    found = rate * solve(lambda factor: steps(rate * factor)[0], wanted)
    change, loss = steps(found)
    if not abs(change - wanted) <= _REFUSED * wanted:
        raise NoMatchError(f"no rate up to {_FASTEST:g} times as large moves the logits as far")
    if not loss <= 0:
        raise NoMatchError(f"at {found:.2g}, where they do, the first steps raise the loss: training is lost there")
    return found


def _at(config: FinetuneConfig, lr: float) -> FinetuneConfig:
    return replace(config, optim=replace(config.optim, head_lr=lr))


def solve(change: Callable[[float], float], wanted: float) -> float:
    """Find the factor at which a change has the wanted size, by halving in logarithms; the change need only grow.

    Args:
        change: its size at a factor of the rate.
        wanted: at least 0: a rate can be so small that no logit moves.

    Returns:
        The factor, between a thousandth and a hundred; within 5 % in the change where it is continuous.
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


def first_steps(model: nn.Module, batches: Labelled, config: FinetuneConfig) -> tuple[float, float]:
    """Take the first steps of a run, as it takes them, and say what they do to the images that they are taken on.

    Args:
        model: left as it was; batch normalisation is held or takes each batch's own statistics, as in training.
        batches: images of shape (batch, channels, height, width) and labels of shape (batch,), one pair a step.
        config: optimiser, rates, clipping, and what is held.

    Returns:
        The root mean square of the change of the first batch's logits, and the change of its loss; infinite where they
        overflow.
    """
    moved = deepcopy(model)
    set_training(moved, config.train)
    optimizer = build_optimizer(moved, config.optim)
    with torch.no_grad():
        before = moved(batches[0][0])
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(moved(images), labels).backward()
        if config.optim.clip_grad is not None:
            nn.utils.clip_grad_norm_(moved.parameters(), config.optim.clip_grad)
        optimizer.step()
    with torch.no_grad():
        return changed(before, moved(batches[0][0]), batches[0][1])


def changed(before: Tensor, after: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the root mean square of the change of logits, and the change of the loss; infinite where they overflow.

    Args:
        before: shape (images, classes).
        after: the same.
        labels: shape (images,).
    """
    size = float((after - before).square().mean().sqrt())
    loss = float(F.cross_entropy(after, labels) - F.cross_entropy(before, labels))
    return size if math.isfinite(size) else math.inf, loss if math.isfinite(loss) else math.inf


def _begin_finetuning(config: FinetuneConfig) -> tuple[nn.Module, Labelled]:
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
        zero_head(model)
    if config.model.head_init == "probe":
        start_with_probe(model, spec.inputs, splits.train, splits.validation, torch.device("cpu"))
    set_learning(model, config.train)
    batches = make_batches(config, splits, spec.inputs, Ranks(torch.device("cpu")))[0].epoch(1)
    return model, [(images, labels) for (images, labels), _ in zip(batches, range(STEPS), strict=False)]


_TASKS = 4


def matched_inner_rate(ours: MetatrainConfig, theirs: MetatrainConfig) -> float:
    """Find the inner learning rate at which our first inner steps change the logits as much as theirs do.

    Args:
        ours: the run whose rate is sought, before its first meta-step.
        theirs: the run to be matched, on the same tasks.

    Returns:
        An inner learning rate.

    Raises:
        NoMatchError: if no rate up to 100 times as large gets there, or the loss grows at the one that does.
    """
    splits = load_class_splits(ours.data, ours.task, ours.run.seed)
    model, spec = _begin_metatraining(ours, splits)
    tasks = make_sampler(ours, spec, splits, "train", torch.device("cpu")).batch(range(_TASKS))
    wanted, _ = first_inner_steps(_begin_metatraining(theirs, splits)[0], tasks, inner_of(theirs.meta))
    inner = inner_of(ours.meta)
    return matched(lambda lr: first_inner_steps(model, tasks, replace(inner, lr=lr)), inner.lr, wanted)


@torch.no_grad()
def first_inner_steps(model: nn.Module, tasks: TaskBatch, inner: Inner) -> tuple[float, float]:
    """Take the first inner steps, and say what they do to the images that they are taken on.

    Args:
        model: left as it was; in the mode that its normalisation asks for.
        tasks: each adapts from the model's weights.
        inner: the inner loop; of its steps the first three count.

    Returns:
        The root mean square of the change of the logits over all tasks' support images, and the mean change of their
        loss; infinite where they overflow.
    """
    moved = deepcopy(model)
    vmapped = VmappedModel(moved, InnerLoop(moved, inner), 1)
    found = []
    for number in range(len(tasks)):
        images, labels = tasks.support_images[number, None], tasks.support_labels[number, None]
        weights = vmapped.start()
        before = vmapped.logits(weights, images)
        for step in range(min(STEPS, inner.steps)):
            weights = vmapped.step(weights, images, labels, step, second_order=False)
        found.append(changed(before[0], vmapped.logits(weights, images)[0], labels[0]))
    sizes, losses = zip(*found, strict=True)
    return math.hypot(*sizes) / math.sqrt(len(found)), sum(losses) / len(found)


def _begin_metatraining(config: MetatrainConfig, splits: ClassSplits) -> tuple[nn.Module, ModelSpec]:
    """Build a run's model as `metatrain` does."""
    torch.manual_seed(config.run.seed)
    return make_model(config, splits)[:2]
