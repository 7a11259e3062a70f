"""The head apart from its backbone: features computed once, logistic regression on them, and training on them."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arelu_meta.backbones.networks import GainedLinear, heads_of
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.loaders import Batches, BatchOrder, InputSpec, build_transform
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError
from arelu_meta.finetuning.freezing import keeps_features
from arelu_meta.finetuning.training_step import TrainingState
from arelu_meta.runs.progress import progress
from arelu_meta.runs.reproducibility import autocast

_MOST_IMAGES = 5000
_STRENGTHS = (1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Features:
    """What a head gets, and what it should say.

    Args:
        values: shape (images, features), float32, on the CPU.
        labels: shape (images,), int64.
    """

    values: Tensor
    labels: Tensor


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return a model's head where it is a single linear layer.

    Args:
        model: any module that `heads_of` knows the head of.
    """
    heads = heads_of(model)
    return heads[0] if len(heads) == 1 and isinstance(heads[0], nn.Linear) else None


def check_probe(model: nn.Module, config: FinetuneConfig) -> None:
    """Refuse train.mode probe for a head that logistic regression cannot be written into.

    Args:
        model: any module that `heads_of` knows the head of.
        config: its train.mode, and the model's name for the sentence.

    Raises:
        InputError: if the head is not one linear layer.
    """
    if config.train.mode == "probe" and linear_head(model) is None:
        raise InputError(
            f"train.mode: 'probe' needs a head that is one linear layer, and {config.model.name!r} has another; "
            "give head"
        )


@torch.no_grad()
def head_inputs(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str = "float32",
    total: int = 0,
) -> Features | None:
    """Run a backbone over images, and keep what its head gets.

    Args:
        model: left in evaluation mode.
        batches: images and labels.
        device: where the model is.
        precision: float32, bf16 or fp16.
        total: images in all, for the progress bar.

    Returns:
        The features; None where the head is no linear layer on one vector an image, or is not the last to act.
    """
    head = linear_head(model)
    if head is None:
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.eval()
    values, labels = [], []
    try:
        with progress("computing features", total, "images") as bar:
            for images, targets in batches:
                seen.clear()
                with autocast(precision, device):
                    logits = model(images.to(device))
                    if len(seen) != 1 or seen[0].ndim != 2 or not torch.equal(head(seen[0]), logits):
                        return None
                values.append(seen[0].float().cpu())
                labels.append(targets)
                bar.advance(len(targets))
    finally:
        hook.remove()
    return Features(torch.cat(values), torch.cat(labels))


def fit_probe(
    train: Features, validation: Features, classes: int, balanced: bool = False
) -> tuple[Tensor, Tensor, float]:
    """Fit logistic regression on features; its strength is the one whose validation loss is lowest.

    All features are divided by one number, not each by its own deviation: which of them vary much is part of what
    the backbone knows, and the fewer the images, the more it is worth (flowers17 at 160 px, 5 images a class: 82 % of
    the test images are right instead of 78).

    Args:
        train: features to fit on, every class among them.
        validation: features to choose the strength by.
        classes: how many there are.
        balanced: let all classes count alike.

    Returns:
        Weight of shape (classes, features) and bias of shape (classes,), float32, for the features as they are; and
        the inverse strength C of the regularisation. Softmax over the head's outputs gives its probabilities.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    centre = train.values.mean(0)
    scale = float((train.values - centre).square().mean().sqrt()) or 1.0
    inputs, unseen = (((part.values - centre) / scale).numpy() for part in (train, validation))
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    # From strong to weak, each fit beginning where the last one ended.
    fitted = LogisticRegression(tol=1e-5, max_iter=300, warm_start=True, class_weight="balanced" if balanced else None)
    for strength in _STRENGTHS:
        fitted.C = strength
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: it is a start, or chosen by validation
            fitted.fit(inputs, train.labels.numpy())
        loss = log_loss(validation.labels.numpy(), fitted.predict_proba(unseen), labels=fitted.classes_)
        if best is None or loss < best[0]:
            best = (loss, strength, *_rows(fitted, classes))
    assert best is not None
    weight = torch.from_numpy(best[2] / scale).float()
    bias = torch.from_numpy(best[3]).float() - weight @ centre
    return weight, bias, best[1]


def _rows(fitted: object, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One row a class: of two classes scikit-learn keeps only the difference."""
    weight, bias = fitted.coef_, fitted.intercept_  # type: ignore[attr-defined]
    if classes == 2:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.copy(), bias.copy()


def start_with_probe(
    model: nn.Module,
    spec: InputSpec,
    train: ImageSet,
    validation: ImageSet,
    device: torch.device,
    precision: str = "float32",
    balanced: bool = False,
) -> float | None:
    """Start a head as logistic regression on the frozen features, and the fine-tuning from there.

    Args:
        model: its head is changed in place.
        spec: what it takes.
        train: images to fit on; of many, 5,000 are taken.
        validation: images to choose the strength by.
        device: where the model is.
        precision: float32, bf16 or fp16.
        balanced: let all classes count alike.

    Returns:
        The inverse strength C that was chosen; None where the head is not a linear layer, and nothing was changed.

    Source: Kumar et al. 2022, who show that a head at random distorts pretrained features (LP-FT).
    """
    head = linear_head(model)
    if head is None:
        return None
    parts = []
    for images in (train, validation):
        some = images.subset(_spread(images))
        batches = Batches(some, build_transform(spec, training=False), 64)
        parts.append(head_inputs(model, batches.epoch(0), device, precision, len(some)))
    if parts[0] is None or parts[1] is None:
        return None
    weight, bias, strength = fit_probe(parts[0], parts[1], len(train.classes), balanced)
    write_head(head, weight, bias)
    return strength


def write_head(head: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Write a fitted head.

    Args:
        head: changed in place; one that multiplies what it gets has its weight divided by as much.
        weight: shape (classes, features).
        bias: shape (classes,); left out where the head has none.
    """
    with torch.no_grad():
        head.weight.copy_(weight / head.gain if isinstance(head, GainedLinear) else weight)
        if head.bias is not None:
            head.bias.copy_(bias)


def _spread(images: ImageSet) -> NDArray[np.int64]:
    """Choose at most 5,000 images, of every class its share and at least one."""
    if len(images) <= _MOST_IMAGES:
        return np.arange(len(images))
    order = np.argsort(images.labels, kind="stable")
    kept = order[np.linspace(0, len(order) - 1, _MOST_IMAGES).round().astype(int)]
    firsts = np.unique(images.labels, return_index=True)[1]
    chosen: NDArray[np.int64] = np.unique(np.concatenate([kept, firsts]))
    return chosen


@dataclass(frozen=True)
class FeatureBatches:
    """Batches of features and labels, in the order in which the images would come.

    Args:
        features: of all images.
        order: of the images' batches.
    """

    features: Features
    order: BatchOrder

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the features once.

        Args:
            number: of the epoch, from 1.
            skip: batches to leave out.
        """
        self.order.epoch, self.order.skip = number, skip
        for batch in self.order:
            chosen = torch.tensor([index for _, index in batch])
            yield self.features.values[chosen], self.features.labels[chosen]


Images = Batches | FeatureBatches
Tail = Callable[[nn.Module], nn.Module]
"""Makes of a model, or of its running average, what takes features."""


def cached_batches(
    training: TrainingState, train: Images, validation: Images, config: FinetuneConfig
) -> tuple[FeatureBatches, FeatureBatches, Tail] | str:
    """Compute what the head gets of every image, once.

    Args:
        training: its model.
        train: the training images, the same in every epoch.
        validation: the validation images.
        config: of the run.

    Returns:
        The same batches with features for images, and what takes the head out of a model; or the reason why features
        cannot stand for images, as a phrase.
    """
    why = "the head is not a linear layer on one vector an image"
    if linear_head(training.model) is None or not (isinstance(train, Batches) and isinstance(validation, Batches)):
        return why
    parts: list[FeatureBatches] = []
    for batches in (train, validation):
        whole = Batches(batches.images, batches.transform, config.data.batch_size)
        found = head_inputs(training.model, whole.epoch(0), training.device, config.run.precision, len(batches.images))
        if found is None:
            return why
        parts.append(FeatureBatches(found, batches.order))
    return parts[0], parts[1], _head


def _head(model: nn.Module) -> nn.Module:
    return heads_of(model)[0]


def fit_once(training: TrainingState, train: Images, validation: Images, config: FinetuneConfig) -> None:
    """Fit the head by logistic regression on the training features: train.mode probe.

    Args:
        training: its model's head is changed in place.
        train: features to fit on.
        validation: features to choose the strength of the regularisation by.
        config: of the run.

    Raises:
        InputError: if the head is not a linear layer on one vector an image.
    """
    head = linear_head(training.model)
    if head is None or not (isinstance(train, FeatureBatches) and isinstance(validation, FeatureBatches)):
        raise InputError(
            f"train.mode: 'probe' needs a head that acts last, on one vector an image, and {config.model.name!r} has "
            "another; give head"
        )
    balanced = config.train.class_weights == "balanced"
    weight, bias, _ = fit_probe(train.features, validation.features, head.out_features, balanced)
    write_head(head, weight, bias)


def is_plain(config: FinetuneConfig) -> bool:
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
    if not is_plain(config):
        return f"data.augmentation {config.data.augmentation} changes every image (none does not)"
    if config.train.mixup or config.train.cutmix:
        return "train.mixup or train.cutmix mixes the images"
    if config.train.shard:
        return "train.shard shares the whole model out"
    if config.train.compile:
        return "train.compile takes the whole model"
    return None
