"""Accuracy on tasks of unseen classes. A test task never changes the model."""

from collections.abc import Sequence

import torch
from torch import nn

from arelu_meta.data.episodes import Sampler
from arelu_meta.errors import RunError
from arelu_meta.meta.engines import adapted_probabilities, why_not_vectorized
from arelu_meta.runs.compute import autocast, naming_anomaly
from arelu_meta.runs.progress import ProgressBar

_MOST_IMAGES = 2048  # at once, of all tasks: memory does not grow with the number of tasks


def task_accuracies(
    model: nn.Module,
    sampler: Sampler,
    tasks: Sequence[int],
    inner_lr: float,
    inner_steps: int,
    device: torch.device,
    precision: str = "float32",
    bar: ProgressBar | None = None,
    task_chunk: int | None = None,
) -> list[float]:
    """Adapt to each task's support set and score its query set.

    Args:
        model: on the device; left in eval mode, every weight and statistic as it was.
        sampler: draws the tasks.
        tasks: which tasks.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner gradient steps.
        device: where to compute.
        precision: float32, bf16 or fp16.
        bar: advanced by one a task, if given.
        task_chunk: how many tasks at once; None for as many as a few thousand images make up.

    Returns:
        One query accuracy a task.

    Raises:
        RunError: if a prediction is NaN or infinite.
    """
    # Running averages stay as they are in eval mode.
    model.eval()
    accuracies: list[float] = []
    if not tasks:
        return accuracies
    first = sampler.batch(tasks[:2])
    images = first.support_images.shape[1] + first.query_images.shape[1]
    vectorized = len(first) == 2 and why_not_vectorized(model, "eval", first.support_images.to(device)) is None
    size = task_chunk or max(1, min(32, _MOST_IMAGES // images)) if vectorized else 1
    for start in range(0, len(tasks), size):
        batch = sampler.batch(tasks[start : start + size]).to(device)
        with autocast(precision, device), naming_anomaly(lambda what: RunError(f"{what} in an inner step")):
            probabilities = adapted_probabilities(model, batch, inner_lr, inner_steps)
        finite = probabilities.isfinite().flatten(1).all(1)
        if not finite.all():
            task = tasks[start + int(finite.int().argmin())]
            raise RunError(f"the predictions for task {task} became NaN or infinite after {inner_steps} inner steps")
        accuracies += (probabilities.argmax(2) == batch.query_labels).double().mean(1).tolist()
        if bar is not None:
            bar.advance(len(batch), accuracy=sum(accuracies) / len(accuracies))
    return accuracies
