"""Accuracy on tasks of unseen classes. A test task never changes the model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from arelu_meta.data.fewshot import Sampler, TaskBatch
from arelu_meta.errors import RunError
from arelu_meta.meta.baselines import baseline_probabilities
from arelu_meta.meta.blame import first_nonfinite_step
from arelu_meta.meta.engine import VmappedModel, tasks_at_once, why_not_vectorized
from arelu_meta.meta.feature_pool import with_features
from arelu_meta.meta.inner_loop import InnerLoop, head_that_adapts_alone, saved_loop
from arelu_meta.runs.progress import ProgressBar
from arelu_meta.runs.reproducibility import autocast, naming_anomaly

_MOST_TASKS = 32  # at once: memory does not grow with the number of tasks, and the bar moves


def adapted_probabilities(
    model: nn.Module, tasks: TaskBatch, inner_lr: float, inner_steps: int, vectorized: bool = True
) -> Tensor:
    """Adapt to each task's support set and classify its queries; the model itself does not change.

    Args:
        model: in eval mode, which keeps running averages as they are; it adapts as the inner loop says that it
            carries, at learned rates where there are some.
        tasks: on the model's device.
        inner_lr: learning rate of the inner loop, for a model that carries none.
        inner_steps: inner gradient steps.
        vectorized: all tasks at once; otherwise one after the other, for a model that vmap cannot do.

    Returns:
        Shape (tasks, queries, outputs): probabilities.

    Raises:
        InputError: if a label is outside the model's outputs.
    """
    return adaptation(model, tasks, saved_loop(model, inner_lr, inner_steps), inner_steps, vectorized)[-1]


@torch.no_grad()
def adaptation(
    model: nn.Module, tasks: TaskBatch, loop: InnerLoop, steps: int, vectorized: bool = True, every: bool = False
) -> Tensor:
    """Classify the queries of each task after the last inner step, or before the first and after each.

    Args:
        model: as in `adapted_probabilities`.
        tasks: on the model's device.
        loop: what adapts, and at which rates.
        steps: inner gradient steps.
        vectorized: all tasks at once; otherwise one after the other.
        every: after 0, 1, …, `steps` steps; what takes none gives the same each time.

    Returns:
        Shape (steps + 1 or 1, tasks, queries, outputs): probabilities.
    """
    if not vectorized and len(tasks) > 1:
        return torch.cat([adaptation(model, one, loop, steps, every=every) for one in tasks.split(1)], 1)
    if loop.inner.algorithm in {"centroid", "logistic"}:
        return torch.stack([baseline_probabilities(model, tasks, loop.inner)] * (steps + 1 if every else 1))
    vmapped = VmappedModel(model, loop, len(tasks))
    found: list[Tensor] = []
    if loop.inner.algorithm == "protonet":
        return torch.stack([vmapped.prototype_logits(tasks).softmax(2)] * (steps + 1 if every else 1))
    if steps and (head := head_that_adapts_alone(model, loop, tasks.support_images[0])):
        vmapped, tasks = vmapped.on_features(head, tasks, through_support=False)
    weights = vmapped.start()
    for step in range(steps + 1):
        if every or step == steps:
            found.append(vmapped.query_logits(weights, tasks).softmax(2))
        if step < steps:
            weights = vmapped.step(weights, tasks.support_images, tasks.support_labels, step, second_order=False)
    return torch.stack(found)


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
        inner_lr: learning rate of the inner loop, for a model that carries none.
        inner_steps: inner gradient steps.
        device: where to compute.
        precision: float32, bf16 or fp16.
        bar: advanced by one a task, if given.
        task_chunk: how many tasks at once; None for what `tasks_at_once` finds, as in training, and at most 32.

    Returns:
        One query accuracy a task.

    Raises:
        RunError: if a prediction is NaN or infinite.
    """
    found = adaptation_curves(
        model, sampler, tasks, inner_lr, inner_steps, device, precision, bar, task_chunk, every=False
    )
    return [row[-1] for row in found]


def adaptation_curves(
    model: nn.Module,
    sampler: Sampler,
    tasks: Sequence[int],
    inner_lr: float,
    inner_steps: int,
    device: torch.device,
    precision: str = "float32",
    bar: ProgressBar | None = None,
    task_chunk: int | None = None,
    every: bool = True,
    between: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Score each task's query set after every inner step.

    Args:
        model: on the device; left in eval mode, every weight and statistic as it was.
        sampler: draws the tasks.
        tasks: which tasks.
        inner_lr: learning rate of the inner loop, for a model that carries none.
        inner_steps: inner gradient steps.
        device: where to compute.
        precision: float32, bf16 or fp16.
        bar: advanced by one a task, if given.
        task_chunk: how many tasks at once; None for what `tasks_at_once` finds, as in training, and at most 32.
        every: False scores after the last step alone.
        between: called after each task, or each group of them that is evaluated at once.

    Returns:
        One list a task: the query accuracy after 0, 1, …, `inner_steps` steps.

    Raises:
        RunError: if a prediction is NaN or infinite.
    """
    # Running averages stay as they are in eval mode.
    model.eval()
    accuracies: list[list[float]] = []
    if not tasks:
        return accuracies
    loop = saved_loop(model, inner_lr, inner_steps)
    cached = with_features(model, sampler, len(tasks), loop, device, precision)
    model, sampler = cached or (model, sampler)
    size = task_chunk or _at_once(model, sampler.batch(tasks[:2]).to(device), len(tasks), loop, precision)
    for start in range(0, len(tasks), size):
        batch = sampler.batch(tasks[start : start + size]).to(device)
        with autocast(precision, device), naming_anomaly(lambda what: RunError(f"{what} in an inner step")):
            probabilities = adaptation(model, batch, loop, inner_steps, every=every)
        finite = probabilities[-1].isfinite().flatten(1).all(1)
        if not finite.all():
            place = int(finite.int().argmin())
            one = sampler.batch([tasks[start + place]]).to(device)
            where = first_nonfinite_step(model, loop, one, inner_steps, precision)
            raise RunError(
                f"the predictions for task {tasks[start + place]} became NaN or infinite"
                + (f" after {inner_steps} inner steps" if where is None else f", first in {where}")
            )
        accuracies += (probabilities.argmax(3) == batch.query_labels).double().mean(2).T.tolist()
        if bar is not None:
            bar.advance(len(batch), accuracy=sum(row[-1] for row in accuracies) / len(accuracies))
        between()
    return accuracies


def _at_once(model: nn.Module, tasks: TaskBatch, count: int, loop: InnerLoop, precision: str) -> int:
    """Return how many of `count` tasks are evaluated at once, as training's engine would; two of them are given."""
    if len(tasks) == 1 or why_not_vectorized(model, tasks.support_images) is not None:
        return 1

    def compute(one: TaskBatch) -> object:
        with autocast(precision, one.support_images.device):
            return adaptation(model, one, loop, steps=1)  # each step's graph goes before the next

    return min(_MOST_TASKS, tasks_at_once(compute, tasks, count))


def describe_curve(curves: Sequence[Sequence[float]], normalization: str) -> str:
    """Say in a line how accuracy grows with inner steps, and under which normalisation.

    Args:
        curves: what `adaptation_curves` returned, of at least 2 tasks.
        normalization: one of `NORMALIZATIONS`.
    """
    shown = ", ".join(f"{mean:.1%}" for mean in curve_results(curves).values())
    return f"{normalization} normalisation; accuracy after 0, 1, … inner steps: {shown}"


def curve_results(curves: Sequence[Sequence[float]]) -> dict[str, float]:
    """Summarise the adaptation curve for results.json.

    Args:
        curves: what `adaptation_curves` returned, of at least 2 tasks.

    Returns:
        `accuracy_after_0`, `accuracy_after_1`, …: means over tasks.
    """
    means = np.asarray(curves, dtype=np.float64).mean(0)
    return {f"accuracy_after_{step}": float(mean) for step, mean in enumerate(means)}
