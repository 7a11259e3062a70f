"""How much of a gain in few-shot tasks is a larger effective inner learning rate, as `matching` asks of fine-tuning."""

import math
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from arelu_meta.backbones.saving import ModelSpec
from arelu_meta.claims.matched_learning_rate import STEPS, changed, matched
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.episodes import ClassSplits, TaskBatch, load_class_splits
from arelu_meta.meta.engine import VmappedModel
from arelu_meta.meta.inner_loop import Inner, InnerLoop, inner_of
from arelu_meta.meta.preparing import make_model, make_sampler

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
    model, spec = _begin(ours, splits)
    tasks = make_sampler(ours, spec, splits, "train", torch.device("cpu")).batch(range(_TASKS))
    wanted, _ = first_inner_steps(_begin(theirs, splits)[0], tasks, inner_of(theirs.meta))
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


def _begin(config: MetatrainConfig, splits: ClassSplits) -> tuple[nn.Module, ModelSpec]:
    """Build a run's model as `metatrain` does."""
    torch.manual_seed(config.run.seed)
    return make_model(config, splits)[:2]
