"""Accuracy on tasks of unseen classes. A test task never changes the model."""

from collections.abc import Iterable

import torch
from torch import nn

from arelu_meta.data.episodes import TaskSampler
from arelu_meta.errors import RunError
from arelu_meta.meta.algorithms import adapted_probabilities
from arelu_meta.runs.compute import autocast
from arelu_meta.runs.progress import ProgressBar


def task_accuracies(
    model: nn.Module,
    sampler: TaskSampler,
    tasks: Iterable[int],
    inner_lr: float,
    inner_steps: int,
    device: torch.device,
    precision: str = "float32",
    bar: ProgressBar | None = None,
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

    Returns:
        One query accuracy a task.

    Raises:
        RunError: if a prediction is NaN or infinite.
    """
    # learn2learn's clones share buffers with the model: eval mode is what keeps running averages as they are.
    model.eval()
    accuracies: list[float] = []
    for index in tasks:
        episode = sampler.sample(index).to(device)
        with autocast(precision, device):
            probabilities = adapted_probabilities(
                model, episode.support_images, episode.support_labels, episode.query_images, inner_lr, inner_steps
            )
        if not probabilities.isfinite().all():
            raise RunError(f"the predictions for task {index} became NaN or infinite after {inner_steps} inner steps")
        accuracies.append((probabilities.argmax(1) == episode.query_labels).double().mean().item())
        if bar is not None:
            bar.advance(1, accuracy=sum(accuracies) / len(accuracies))
    return accuracies
