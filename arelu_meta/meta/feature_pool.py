"""Tasks whose images have become features: where only a head learns, a backbone looks at each image just once."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.data.fewshot import Pool, Sampler, TensorSampler
from arelu_meta.finetuning.linear_probe import linear_head
from arelu_meta.meta.algorithms import features
from arelu_meta.meta.inner_loop import COMPARING, HeadAlone, InnerLoop
from arelu_meta.meta.normalization import uses_batch_statistics
from arelu_meta.runs.progress import progress
from arelu_meta.runs.reproducibility import autocast

_BATCH = 64


@dataclass(frozen=True)
class FeaturePool(Pool):
    """A pool whose `pixels` are features, shape (images, features), float32, taken as they are."""

    def images(self, indices: object) -> Tensor:
        """Return some images' features."""
        return self.pixels[indices]  # type: ignore[index]


def with_features(
    model: nn.Module, sampler: Sampler, tasks: int, loop: InnerLoop, device: torch.device, precision: str = "float32"
) -> tuple[nn.Module, Sampler] | None:
    """Compute the features of a pool once, where nothing below the head changes from task to task.

    Args:
        model: in eval mode, on the device.
        sampler: of the tasks.
        tasks: how many are to be drawn.
        loop: the model's inner loop.
        device: where to compute.
        precision: float32, bf16 or fp16.

    Returns:
        The head alone, and a sampler that draws the same tasks as features. None where more than the head adapts, where
        images are normalised by each other, where the head is not one linear layer that acts last, or where the tasks
        hold fewer images than the pool.
    """
    only_head = loop.inner.algorithm in COMPARING or loop.inner.adapted_part == "head"
    if not only_head or not isinstance(sampler, TensorSampler) or uses_batch_statistics(model):
        return None
    size = sampler.task.ways * (sampler.task.shots + sampler.task.queries)
    if not all(hasattr(model, name) for name in ("get_classifier", "forward_features", "forward_head")):
        return None
    if linear_head(model) is None or tasks * size < len(sampler.pool.labels) or not _acts_last(model, sampler, device):
        return None
    found = _features_of(model, sampler.pool, device, precision)
    changed = copy.copy(sampler)
    own = {field: getattr(sampler.pool, field) for field in ("labels", "mean", "std", "groups")}
    changed.pool = FeaturePool(pixels=found, **own)
    return HeadAlone(model, loop).eval(), changed


@torch.no_grad()
def _acts_last(model: nn.Module, sampler: TensorSampler, device: torch.device) -> bool:
    images = sampler.pool.images([0]).to(device)
    head = linear_head(model)
    assert head is not None
    found = features(model, images)
    return found.dim() == 2 and found.shape[1] == head.in_features and torch.equal(head(found), model(images))


@torch.no_grad()
def _features_of(model: nn.Module, pool: Pool, device: torch.device, precision: str) -> Tensor:
    parts = []
    with progress("computing features", len(pool.labels), "images") as bar, autocast(precision, device):
        for places in torch.arange(len(pool.labels)).split(_BATCH):
            parts.append(features(model, pool.images(places).to(device)).float())
            bar.advance(len(places))
    return torch.cat(parts)
