"""Accuracy on tasks of unseen classes. A test task never changes the model."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from arelu_meta.data.fewshot.task_sampler import Pool, TensorSampler
from arelu_meta.data.fewshot.tasks import Sampler, TaskBatch
from arelu_meta.errors import RunError
from arelu_meta.finetuning.linear_probe import linear_head
from arelu_meta.meta.algorithms import features
from arelu_meta.meta.baselines import baseline_probabilities
from arelu_meta.meta.engine import VmappedModel, Weights, tasks_at_once, why_not_vectorized
from arelu_meta.meta.inner_loop import (
    COMPARING,
    HeadAlone,
    Inner,
    InnerLoop,
    attach_loop,
    head_that_adapts_alone,
    saved_loop,
    support_losses,
)
from arelu_meta.meta.normalization import uses_batch_statistics
from arelu_meta.runs.nonfinite import watching
from arelu_meta.runs.progress import ProgressBar, progress
from arelu_meta.runs.reproducibility import autocast, naming_anomaly

T = TypeVar("T")
_BATCH = 64  # images whose features are computed at once
_PILOT_TASKS = 4
_RATES = 5  # each a tenth of the one before
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
    changed.pool = Pool(pixels=found, **own)
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


@dataclass(frozen=True)
class LrBackoff:
    """The rate that was taken.

    Args:
        rate: the first at which no task diverged.
        refused: larger ones that were tried before.
    """

    rate: float
    refused: tuple[float, ...]

    def __str__(self) -> str:
        """Say it to a person, where it is not the rate that was asked for."""
        if not self.refused:
            return ""
        tried = " and ".join(f"{rate:.3g}" for rate in self.refused)
        return f"finetune takes its steps at inner rate {self.rate:.3g}: at {tried} it diverged"


def with_lr_backoff(
    model: nn.Module,
    sampler: Sampler,
    tasks: Sequence[int],
    lr: float,
    steps: int,
    device: torch.device,
    precision: str,
    judge: Callable[[], T],
) -> tuple[T, LrBackoff]:
    """Judge fine-tuning at the rate asked for, or at the first tenth, hundredth … of it that does not diverge.

    A rate has diverged where the support loss of the first few tasks, which fine-tuning is to lower, does not fall, or
    where a prediction of any task is not finite. No query label is looked at to choose.

    Args:
        model: on the device, in eval mode; it gains an inner loop of that rate.
        sampler: draws the tasks.
        tasks: which.
        lr: the rate asked for.
        steps: inner steps.
        device: where to compute.
        precision: float32, bf16 or fp16.
        judge: evaluates the model as it is then.

    Returns:
        What `judge` returned, and the rate.

    Raises:
        RunError: if all rates diverge.
    """
    pilot = sampler.batch(tasks[:_PILOT_TASKS]).to(device)
    refused: list[float] = []
    for rate in [lr / 10**number for number in range(_RATES)]:
        loop = attach_loop(model, Inner(rate, steps, algorithm="finetune"))
        if lowers_support_loss(model, pilot, loop, steps, precision):
            try:
                return judge(), LrBackoff(rate, tuple(refused))
            except RunError:
                pass
        refused.append(rate)
    raise RunError(
        f"fine-tuning on the support sets diverges at each inner rate from {lr:.3g} to {refused[-1]:.3g}; leave "
        "finetune out of eval.against, or compare with a run of --meta.algorithm finetune at a smaller --meta.inner_lr"
    )


@torch.no_grad()
def lowers_support_loss(model: nn.Module, tasks: TaskBatch, loop: InnerLoop, steps: int, precision: str) -> bool:
    """Return True if inner steps lower the mean loss of the support sets that they are taken on.

    Args:
        model: in eval mode; it does not change.
        tasks: on the model's device.
        loop: what adapts, and at which rates.
        steps: inner steps.
        precision: float32, bf16 or fp16.
    """
    before, after = [], []
    for one in tasks.split(1):
        with autocast(precision, one.support_images.device):
            vmapped = VmappedModel(model, loop, 1)
            weights = vmapped.start()
            before.append(_support_loss(vmapped, weights, one))
            for step in range(steps):
                weights = vmapped.step(weights, one.support_images, one.support_labels, step, second_order=False)
            after.append(_support_loss(vmapped, weights, one))
    return sum(after) < sum(before)  # false for NaN, too


def _support_loss(model: VmappedModel, weights: Weights, task: TaskBatch) -> float:
    return support_losses(model.logits(weights, task.support_images).float(), task.support_labels).sum().item()


def first_nonfinite_step(
    model: nn.Module, loop: InnerLoop, task: TaskBatch, steps: int, precision: str = "float32"
) -> str | None:
    """Adapt to one task again, watching every layer; called once, when a run has diverged already.

    Args:
        model: it stands as it did when the task's loss was computed.
        loop: its inner loop.
        task: one, on the model's device.
        steps: inner steps.
        precision: float32, bf16 or fp16.

    Returns:
        As in `layer 'fc' (Linear: its weight is not finite) after 2 of 5 inner steps`; None where every layer is
        finite.
    """
    for name, images in (("support", task.support_images), ("query", task.query_images)):
        if not images.isfinite().all():
            return f"the {name} images themselves"
    vmapped = VmappedModel(model, loop, 1)
    steps = steps if loop.names else 0
    weights, step = vmapped.start(), 0
    where = task.support_images.device
    # What cannot run again has said enough.
    with torch.no_grad(), watching(model) as found, autocast(precision, where), contextlib.suppress(RuntimeError):
        while step < steps and not found:
            weights = vmapped.step(weights, task.support_images, task.support_labels, step, second_order=False)
            step += not found
        if not found:
            vmapped.query_logits(weights, task)
    return f"{found[0]} after {step} of {steps} inner steps" if found else None
