"""From images that are read one batch at a time to the class that a model takes each for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arelu_meta.data.prediction_inputs import Source
from arelu_meta.errors import RunError
from arelu_meta.runs.progress import progress

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Guess:
    """What a model takes an image for.

    Args:
        name: of the class.
        probability: how sure it is, in (0, 1].
        place: of the image among those given, from 0.
        ranked: the likeliest classes with their probabilities, as many as were asked for, the likeliest first.
    """

    name: str
    probability: float
    place: int
    ranked: tuple[tuple[str, float], ...] = ()


def scored_batches(
    source: Source, score: Score, device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Classify images as they are read; no more than a batch is in memory.

    Args:
        source: the images.
        score: maps prepared images on the device to probabilities, shape (images, classes).
        device: where to compute.
        batch_size: images at a time.

    Yields:
        The images' places, and their probabilities, float32, on the CPU.

    Raises:
        RunError: naming an image whose probabilities are NaN or infinite.
    """
    with progress("predicting", len(source), "images") as bar:
        for places, images in source.batches(batch_size, bar.advance):
            with torch.no_grad():
                found = score(images.to(device)).float().cpu()
            finite = found.isfinite().all(1)
            if not finite.all():
                place = places[int(finite.int().argmin())]
                item = source.items[place]
                shown = repr(str(item)) if isinstance(item, str | Path) else f"image {place}"
                raise RunError(f"the prediction for {shown} is NaN or infinite: check the model's weights")
            yield places, found


def guesses(batches: Iterator[tuple[list[int], Tensor]], classes: Sequence[str], top_k: int = 1) -> Iterator[Guess]:
    """Take each image for its most likely class.

    Args:
        batches: what `scored_batches` yields.
        classes: their names.
        top_k: how many of the likeliest classes to rank, at most as many as there are.
    """
    for places, probabilities in batches:
        best = probabilities.topk(top_k, dim=1)
        for place, labels, values in zip(places, best.indices.tolist(), best.values.tolist(), strict=True):
            ranked = tuple((classes[label], value) for label, value in zip(labels, values, strict=True))
            yield Guess(*ranked[0], place, ranked)
