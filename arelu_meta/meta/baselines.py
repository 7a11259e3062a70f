"""What few-shot results are read against: a backbone's features with no meta-training at all."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.data.fewshot import Sampler, TaskBatch
from arelu_meta.errors import InputError
from arelu_meta.meta.algorithms import features
from arelu_meta.meta.inner_loop import Inner
from arelu_meta.meta.normalization import support_statistics, uses_support_statistics

_COSINE_SCALE = 10.0


class RawPixels(nn.Module):
    """Take an image as its own features: what learned ones have to beat. With one shot it is the nearest neighbour."""

    def forward_features(self, images: Tensor) -> Tensor:
        """Flatten images of shape (images, channels, height, width)."""
        return images.flatten(1)

    def forward_head(self, hidden: Tensor, pre_logits: bool = True) -> Tensor:
        """Return features of shape (images, pixels) as they are."""
        return hidden


@torch.no_grad()
def baseline_probabilities(model: nn.Module, tasks: TaskBatch, inner: Inner) -> Tensor:
    """Classify each task's queries by a backbone's frozen features; the model does not change.

    Args:
        model: with timm's `forward_features` and `forward_head`, in eval mode.
        tasks: on the model's device.
        inner: its algorithm is centroid or logistic.

    Returns:
        Shape (tasks, queries, classes): probabilities.

    Raises:
        InputError: if the model has no features.
    """
    classify = nearest_centroid if inner.algorithm == "centroid" else logistic_regression
    found = []
    for number in range(len(tasks)):
        task = tasks[number]
        count = len(task.support_images)
        if uses_support_statistics(model):
            with support_statistics(count):
                both = features(model, torch.cat([task.support_images, task.query_images]))
            known, asked = both[:count], both[count:]
        else:
            known, asked = features(model, task.support_images), features(model, task.query_images)
        found.append(classify(known, task.support_labels, asked))
    return torch.stack(found)


def class_means(known: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of each class's features, however many images a class has.

    Args:
        known: shape (…, images, features).
        labels: shape (…, images), int64; every class has an image.

    Returns:
        Shape (…, classes, features).
    """
    members = F.one_hot(labels).to(known.dtype).mT
    return members @ known / members.sum(-1, keepdim=True)


def prototype_logits(means: Tensor, asked: Tensor) -> Tensor:
    """Return minus the squared distances of features to each class's mean.

    Args:
        means: shape (…, classes, features).
        asked: shape (…, queries, features).

    Returns:
        Shape (…, queries, classes).

    Source: Snell et al. 2017, equations 1 and 2.
    """
    squares = asked.square().sum(-1, keepdim=True) + means.square().sum(-1)[..., None, :]
    return 2 * asked @ means.mT - squares


def nearest_centroid(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Compare features with each class's mean by their cosine.

    Args:
        support: features, shape (images, features).
        labels: shape (images,), int64; every class has an image.
        queries: features, shape (queries, features).

    Returns:
        Shape (queries, classes): softmax of the cosines times 10.

    Source: Gidaris and Komodakis 2018 for cosines and their scale.
    """
    means = class_means(F.normalize(support, dim=1), labels)
    return (_COSINE_SCALE * F.normalize(queries, dim=1) @ F.normalize(means, dim=1).mT).softmax(1)


def logistic_regression(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Fit scikit-learn's logistic regression to features of length 1.

    Args:
        support: shape (images, features).
        labels: shape (images,), int64; every class has an image.
        queries: shape (queries, features).

    Returns:
        Shape (queries, classes): probabilities.

    Source: Tian et al. 2020, "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?".
    """
    return fit_logistic(support, labels)(queries)


def fit_logistic(support: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit scikit-learn's logistic regression, each class weighing the same, to classify any number of batches with.

    Args:
        support: shape (images, features).
        labels: shape (images,), int64; every class has an image.

    Returns:
        A function from features, shape (queries, features), to probabilities, shape (queries, classes).
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=1000, class_weight="balanced")  # each class weighs the same
    fitted.fit(F.normalize(support, dim=1).double().cpu().numpy(), labels.cpu().numpy())

    def classify(queries: Tensor) -> Tensor:
        found = fitted.predict_proba(F.normalize(queries, dim=1).double().cpu().numpy())
        return torch.from_numpy(found).to(support)

    return classify


FEW_SHOT_ANCHORS = {
    "pixels": "the nearest neighbour of raw pixels, by their cosine, on the same tasks",
    "centroids": "the nearest centroid of the untrained features, on the same tasks",
}
"""What few-shot results are read against: their columns, and what they are."""

_TASKS_AT_ONCE = 32


@torch.no_grad()
def few_shot_anchors(untrained: nn.Module, sampler: Sampler, tasks: int) -> dict[str, float]:
    """Score what needs no meta-training on tasks that a meta-learner is judged on.

    Args:
        untrained: the meta-learner's network as it starts, in the mode that its normalisation asks for; not changed.
        sampler: draws the tasks.
        tasks: how many, from the first on.

    Returns:
        Mean accuracies by `FEW_SHOT_ANCHORS`; without centroids for a network that has no features.
    """
    model, device = deepcopy(untrained), next(untrained.parameters()).device
    right: dict[str, list[Tensor]] = {name: [] for name in FEW_SHOT_ANCHORS}
    for start in range(0, tasks, _TASKS_AT_ONCE):
        batch = sampler.batch(range(start, min(start + _TASKS_AT_ONCE, tasks))).to(device)
        known, asked = (F.normalize(images.flatten(2), dim=2) for images in (batch.support_images, batch.query_images))
        nearest = (asked @ known.mT).argmax(2)
        right["pixels"].append(batch.support_labels.gather(1, nearest) == batch.query_labels)
        if "centroids" in right:
            try:
                found = baseline_probabilities(model, batch, Inner(0.0, 0, algorithm="centroid"))
            except InputError:  # it has none
                del right["centroids"]
            else:
                right["centroids"].append(found.argmax(2) == batch.query_labels)
    return {name: float(torch.cat(found).float().mean()) for name, found in right.items()}
