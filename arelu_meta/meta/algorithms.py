"""MAML and first-order MAML through learn2learn."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.data.episodes import Episode
from arelu_meta.errors import InputError
from arelu_meta.extras import import_learn2learn


def build_maml(model: nn.Module, inner_lr: float, first_order: bool) -> Any:
    """Wrap a model in learn2learn's MAML; frozen and unused parameters are handled.

    Args:
        model: its parameters are the initial weights that are meta-learned.
        inner_lr: learning rate of the inner loop.
        first_order: leave second derivatives out.

    Returns:
        A `learn2learn.algorithms.MAML`.

    Raises:
        MissingExtraError: if learn2learn is not installed.

    Source: Finn et al. 2017.
    """
    l2l = import_learn2learn()
    return l2l.algorithms.MAML(model, lr=inner_lr, first_order=first_order, allow_nograd=True, allow_unused=True)


def adapt(learner: Any, images: Tensor, labels: Tensor, steps: int) -> None:
    """Take gradient steps on one task's support set.

    Args:
        learner: a clone made for this task; changed in place.
        images: shape (support, channels, height, width), float32.
        labels: shape (support,), int64, each below the model's number of outputs.
        steps: how many gradient steps, at least 1.

    Raises:
        InputError: if a label is outside the model's outputs.

    Source: Finn et al. 2017, algorithm 2, lines 5 to 8.
    """
    for _ in range(steps):
        logits = learner(images)
        check_labels(labels, logits.shape[1])
        learner.adapt(F.cross_entropy(logits, labels))


def check_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels that a model has no output for.

    Args:
        labels: any shape, int64.
        outputs: how many the model has.

    Raises:
        InputError: naming the largest label.
    """
    if int(labels.max()) >= outputs or int(labels.min()) < 0:
        raise InputError(f"labels: {int(labels.max())} is outside the model's {outputs} outputs")


def query_loss(learner: Any, episode: Episode, steps: int) -> tuple[Tensor, float]:
    """Adapt to a task's support set, and measure on its query set.

    Args:
        learner: a clone made for this task.
        episode: on the learner's device.
        steps: inner gradient steps.

    Returns:
        The mean query loss, differentiable with respect to the initial weights, and the query accuracy.
    """
    adapt(learner, episode.support_images, episode.support_labels, steps)
    logits = learner(episode.query_images)
    accuracy = (logits.argmax(1) == episode.query_labels).double().mean().item()
    return F.cross_entropy(logits, episode.query_labels), accuracy
