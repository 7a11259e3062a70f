"""The algorithms through learn2learn, task after task: its MAML clones, its Meta-SGD update, its prototypes."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.data.fewshot import Episode
from arelu_meta.errors import InputError, import_learn2learn
from arelu_meta.meta.inner_loop import InnerLoop, support_losses
from arelu_meta.meta.normalization import support_statistics, uses_support_statistics


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


def adapt(learner: Any, images: Tensor, labels: Tensor, steps: int, loop: InnerLoop | None = None) -> None:
    """Take gradient steps on one task's support set, each class of which weighs the same.

    Args:
        learner: a clone made for this task; changed in place.
        images: shape (support, channels, height, width), float32.
        labels: shape (support,), int64, each below the model's number of outputs.
        steps: how many gradient steps, at least 1.
        loop: which parameters adapt, and at which rates; default: all, at the learner's.

    Raises:
        InputError: if a label is outside the model's outputs.

    Source: Finn et al. 2017, algorithm 2, lines 5 to 8.
    """
    for step in range(steps):
        adapt_once(learner, images, labels, step, loop)


def adapt_once(learner: Any, images: Tensor, labels: Tensor, step: int, loop: InnerLoop | None) -> None:
    """Take inner step number `step`, from 0; see `adapt`."""
    logits = learner(images)
    check_labels(labels, logits.shape[1])
    loss = support_losses(logits[None], labels[None])[0]
    if loop is None or _is_plain(loop):
        learner.adapt(loss)
    else:
        _update_at_rates(learner, loss, loop, step)


def _is_plain(loop: InnerLoop) -> bool:
    inner = loop.inner
    return inner.adapted_part == "all" and inner.act_lr is None and not inner.learns_rates


def _update_at_rates(learner: Any, loss: Tensor, loop: InnerLoop, step: int) -> None:
    """Update some parameters, each at its own rate, by learn2learn's Meta-SGD update.

    Source: Li et al. 2017, algorithm 1, line 6.
    """
    from learn2learn.algorithms.meta_sgd import meta_sgd_update

    named = dict(learner.module.named_parameters())
    second_order = not learner.first_order
    found = torch.autograd.grad(
        loss, [named[name] for name in loop.names], create_graph=second_order, allow_unused=True
    )
    gradients = dict(zip(loop.names, found, strict=True))
    rates = [loop.rate(name, step) if name in gradients else None for name in named]
    with warnings.catch_warnings():  # it looks at the .grad of every tensor, of those that have none, too
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        learner.module = meta_sgd_update(learner.module, lrs=rates, grads=[gradients.get(name) for name in named])


def check_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels that a model has no output for.

    Args:
        labels: any shape, int64.
        outputs: how many the model has.

    Raises:
        InputError: naming the largest label, or a negative one.
    """
    least, most = int(labels.min()), int(labels.max())
    if most >= outputs or least < 0:
        raise InputError(f"labels: {least if least < 0 else most} is outside the model's {outputs} outputs")


def check_features(model: nn.Module) -> None:
    """Refuse a model whose features cannot be compared.

    Args:
        model: with timm's `forward_features` and `forward_head`, or else refused.

    Raises:
        InputError: naming the algorithms that ask for them.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise InputError(
            f"meta.algorithm: protonet, centroid and logistic compare features, and a {type(model).__name__} "
            "gives none; give another algorithm, or another model, as conv4"
        )


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a model's head is given, shape (images, features).

    Args:
        model: with timm's `forward_features` and `forward_head`.
        images: as it takes them.

    Raises:
        InputError: if the model has no features.
    """
    check_features(model)
    hidden = model.forward_features(images)  # type: ignore[operator]
    found: Tensor = model.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
    return found


def beside_support(model: nn.Module, compute: Callable[[Tensor], Tensor], episode: Episode) -> Tensor:
    """Compute something of a task's queries, normalised as the model's normalisation says.

    Args:
        model: whose normalisation counts.
        compute: maps images to one row an image.
        episode: the task.

    Returns:
        One row a query.
    """
    if not uses_support_statistics(model):
        return compute(episode.query_images)
    count = len(episode.support_images)
    with support_statistics(count):
        return compute(torch.cat([episode.support_images, episode.query_images]))[count:]


def query_loss(
    learner: Any, episode: Episode, steps: int, loop: InnerLoop | None = None, weights: Sequence[float] | None = None
) -> tuple[Tensor, float]:
    """Adapt to a task's support set, and measure on its query set.

    Args:
        learner: a clone made for this task.
        episode: on the learner's device.
        steps: inner gradient steps.
        loop: which parameters adapt, and at which rates; default: all, at the learner's.
        weights: of the query losses after each step; default: the last alone counts.

    Returns:
        The weighted sum of the mean query losses, differentiable with respect to the initial weights, and the query
        accuracy after the last step.
    """
    total: Tensor | None = None
    for step in range(steps):
        adapt_once(learner, episode.support_images, episode.support_labels, step, loop)
        weight = weights[step] if weights is not None else float(step == steps - 1)
        if weight or step == steps - 1:
            logits = beside_support(learner.module, learner, episode)
            loss = F.cross_entropy(logits, episode.query_labels)
            loss = loss if weight == 1 else weight * loss
            total = loss if total is None else total + loss
    assert total is not None
    return total, _accuracy(logits, episode.query_labels)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def prototype_loss(model: nn.Module, episode: Episode) -> tuple[Tensor, float]:
    """Classify queries by the nearest mean of a class's support features, through learn2learn's classifier.

    Args:
        model: with timm's `forward_features` and `forward_head`; its head is not used.
        episode: on the model's device.

    Returns:
        The mean query loss, differentiable, and the query accuracy.

    Source: Snell et al. 2017, equations 1 and 2.
    """
    known = features(model, episode.support_images)
    classifier = import_learn2learn().nn.PrototypicalClassifier(known, episode.support_labels)
    logits = classifier(beside_support(model, lambda images: features(model, images), episode))
    return F.cross_entropy(logits, episode.query_labels), _accuracy(logits, episode.query_labels)


def reptile_loss(model: nn.Module, learner: Any, episode: Episode, steps: int, loop: InnerLoop) -> tuple[Tensor, float]:
    """Move towards the weights that a task's images lead to.

    Args:
        model: the initial weights.
        learner: a first-order clone made for this task.
        episode: its support and query images are both adapted to: Reptile needs no query set.
        steps: inner gradient steps.
        loop: the rates.

    Returns:
        The query loss after adapting; its gradient is the initial weights minus the adapted ones. And the accuracy on
        the queries, which were adapted to.

    Source: Nichol et al. 2018, algorithm 2, with stochastic gradient descent in the inner loop.
    """
    images = torch.cat([episode.support_images, episode.query_images])
    adapt(learner, images, torch.cat([episode.support_labels, episode.query_labels]), steps, loop)
    named, adapted = dict(model.named_parameters()), dict(learner.module.named_parameters())
    way = sum((named[name] - adapted[name].detach()).square().sum() for name in loop.names) / 2
    with torch.no_grad():
        logits = beside_support(learner.module, learner, episode)
        loss = F.cross_entropy(logits, episode.query_labels)
    return with_gradient_of(loss, way), _accuracy(logits, episode.query_labels)


def with_gradient_of(value: Tensor, other: Tensor | float) -> Tensor:
    """Return a tensor's value with another one's gradient."""
    assert isinstance(other, Tensor)
    return value.detach() + (other - other.detach())
