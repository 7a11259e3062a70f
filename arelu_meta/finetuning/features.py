"""Frozen features in the place of images, where nothing but the head learns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.config import FinetuneConfig
from arelu_meta.data.loading import Batches, BatchOrder
from arelu_meta.errors import InputError
from arelu_meta.finetuning.heads import Features, fit_probe, head_inputs, linear_head, write_head
from arelu_meta.finetuning.loop import Trainer


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
    trainer: Trainer, train: Images, validation: Images, config: FinetuneConfig
) -> tuple[FeatureBatches, FeatureBatches, Tail] | str:
    """Compute what the head gets of every image, once.

    Args:
        trainer: its model.
        train: the training images, the same in every epoch.
        validation: the validation images.
        config: of the run.

    Returns:
        The same batches with features for images, and what takes the head out of a model; or the reason why features
        cannot stand for images, as a phrase.
    """
    why = "the head is not a linear layer on one vector an image"
    if linear_head(trainer.model) is None or not (isinstance(train, Batches) and isinstance(validation, Batches)):
        return why
    parts: list[FeatureBatches] = []
    for batches in (train, validation):
        whole = Batches(batches.images, batches.transform, config.data.batch_size)
        found = head_inputs(trainer.model, whole.epoch(0), trainer.device, config.run.precision, len(batches.images))
        if found is None:
            return why
        parts.append(FeatureBatches(found, batches.order))
    return parts[0], parts[1], _head


def _head(model: nn.Module) -> nn.Module:
    return model.get_classifier()  # type: ignore[operator,no-any-return]


def fit_once(trainer: Trainer, train: Images, validation: Images, config: FinetuneConfig) -> None:
    """Fit the head by logistic regression on the training features: train.mode probe.

    Args:
        trainer: its model's head is changed in place.
        train: features to fit on.
        validation: features to choose the strength of the regularisation by.
        config: of the run.

    Raises:
        InputError: if the head is not a linear layer on one vector an image.
    """
    head = linear_head(trainer.model)
    if head is None or not (isinstance(train, FeatureBatches) and isinstance(validation, FeatureBatches)):
        raise InputError(
            f"train.mode: 'probe' needs a head that acts last, on one vector an image, and {config.model.name!r} has "
            "another; give head"
        )
    balanced = config.train.class_weights == "balanced"
    weight, bias, _ = fit_probe(train.features, validation.features, head.out_features, balanced)
    write_head(head, weight, bias)
