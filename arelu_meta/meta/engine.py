"""The same meta-step twice: task after task through learn2learn, and all tasks of a meta-batch at once.

Same initial weights and tasks, same losses and meta-gradient (to 1e-8 in float64; tests/meta/test_engine.py).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from arelu_meta.data.episodes import Episode, TaskBatch
from arelu_meta.errors import InputError, import_learn2learn, out_of_memory
from arelu_meta.meta.algorithms import build_maml, prototype_loss, query_loss, reptile_loss, with_gradient_of
from arelu_meta.meta.averages import averages_kept, updates_averages
from arelu_meta.meta.chunking import tasks_at_once
from arelu_meta.meta.head_alone import HeadAlone, head_that_adapts_alone
from arelu_meta.meta.inner_loop import Inner, InnerLoop, loop_of
from arelu_meta.meta.stack import Stack, adapted_probabilities, forgetful_step, task_losses
from arelu_meta.meta.vmap_ops import twin
from arelu_meta.runs.reproducibility import autocast

__all__ = [
    "ENGINES",
    "Engine",
    "Inner",
    "Learn2learnEngine",
    "VectorizedEngine",
    "adapted_probabilities",
    "build_engine",
]

ENGINES = ("auto", "learn2learn", "vectorized")


class Engine(Protocol):
    """Computes meta-steps.

    `step_weights` weighs the query losses after each inner step (MAML++); None counts the last alone. `scaler`, where
    there is one, multiplies the loss that is differentiated: float16 has no room for small gradients.
    """

    name: str
    model: nn.Module
    inner: Inner
    loop: InnerLoop
    precision: str
    scaler: torch.amp.GradScaler | None
    step_weights: Sequence[float] | None

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Add the gradient of the mean query loss to the `.grad` of the model's parameters.

        Args:
            tasks: on the model's device; the model is in the mode that its normalisation asks for.

        Returns:
            Each task's query loss and query accuracy, shape (tasks,), without a graph.

        Source: Finn et al. 2017, algorithm 2, lines 4 to 10.
        """
        ...

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Adapt to each task's support set, and measure on its query set.

        Args:
            tasks: as many as are computed at once.

        Returns:
            Each task's query loss, differentiable with respect to the initial weights, and its query accuracy.
        """
        ...


class Learn2learnEngine:
    """Task after task through learn2learn: its MAML and Meta-SGD, its prototypical classifier.

    Args:
        model: its parameters are the initial weights that are meta-learned.
        inner: the inner loop.
        precision: float32, bf16 or fp16.

    Raises:
        MissingExtraError: if learn2learn is not installed.
    """

    name = "learn2learn"

    def __init__(self, model: nn.Module, inner: Inner, precision: str = "float32") -> None:
        self.model, self.inner, self.precision = model, inner, precision
        self.step_weights: Sequence[float] | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.loop = loop_of(model, inner)
        self.maml = build_maml(model, inner.lr, not inner.differentiates_twice)

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        return _accumulate(self, tasks, 1)

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        found = []
        for number in range(len(tasks)):
            with autocast(self.precision, tasks.support_images.device):
                found.append(self._query_loss(tasks[number]))
        losses, accuracies = zip(*found, strict=True)
        return torch.stack(losses), torch.tensor(accuracies, dtype=torch.float64)

    def _query_loss(self, episode: Episode) -> tuple[Tensor, float]:
        if self.inner.algorithm == "protonet":
            return prototype_loss(self.model, episode)
        if self.inner.algorithm == "reptile":
            return reptile_loss(self.model, self.maml.clone(), episode, self.inner.steps, self.loop)
        return query_loss(self.maml.clone(), episode, self.inner.steps, self.loop, self.step_weights)


class VectorizedEngine:
    """All tasks of a meta-batch at once: one forward pass for all, and one backward.

    The forward pass is `torch.vmap` of the model over tasks, each with its own weights. Since no task's loss depends on
    another's weights, the gradient of the losses' sum is every task's own gradient.

    Args:
        model: its parameters are the initial weights that are meta-learned; those that need no gradient stay as they
            are.
        inner: the inner loop.
        task_chunk: how many tasks at once; None for as many as fit half of the free memory, and for one where a CPU
            is faster so.
        precision: float32, bf16 or fp16.
    """

    name = "vectorized"

    def __init__(
        self, model: nn.Module, inner: Inner, task_chunk: int | None = None, precision: str = "float32"
    ) -> None:
        self.model, self.inner, self.task_chunk, self.precision = model, inner, task_chunk, precision
        self.step_weights: Sequence[float] | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.loop = loop_of(model, inner)
        self.twin = twin(model)
        self._head: HeadAlone | None = None
        self._tried_head = False

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        self.settle_chunk(tasks)
        assert self.task_chunk is not None
        return _accumulate(self, tasks, self.task_chunk)

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        stack = Stack(self.model, self.loop, len(tasks), self.twin)
        with autocast(self.precision, tasks.support_images.device), stack.operators:
            if self.inner.algorithm == "protonet":
                logits = stack.prototype_logits(tasks)
                losses = task_losses(logits, tasks.query_labels)
            elif self.inner.algorithm == "reptile":
                losses, logits = self._reptile(stack, tasks)
            else:
                losses, logits = self._adapted(stack, tasks)
        stack.update_averages()
        return losses, (logits.argmax(2) == tasks.query_labels).double().mean(1)

    def _adapted(self, stack: Stack, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Adapt; return the query losses, weighted over steps, and the last logits."""
        twice = self.inner.differentiates_twice
        if not self._tried_head and not any(map(updates_averages, self.model.modules())):
            self._head = head_that_adapts_alone(self.model, self.loop, tasks.support_images[0])
            self._tried_head = True
        if self._head is not None:
            stack, tasks = stack.before(self._head, tasks, twice)
        weights, total = stack.start(), None
        for step in range(self.inner.steps):
            weights = stack.step(weights, tasks.support_images, tasks.support_labels, step, twice)
            last = step == self.inner.steps - 1
            weight = float(last) if self.step_weights is None else self.step_weights[step]
            if weight or last:
                logits = stack.query_logits(weights, tasks)
                losses = weight * task_losses(logits, tasks.query_labels)
                total = losses if total is None else total + losses
        assert total is not None
        return total, logits

    def _reptile(self, stack: Stack, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """As `reptile_loss` does, for all tasks at once."""
        images = torch.cat([tasks.support_images, tasks.query_images], 1)
        labels = torch.cat([tasks.support_labels, tasks.query_labels], 1)
        start = stack.start()
        weights = start
        for step in range(self.inner.steps):
            weights = [weight.detach().requires_grad_() for weight in weights]
            weights = stack.step(weights, images, labels, step, False)
        pairs = zip(start, weights, strict=True)
        way = torch.stack([(old - new.detach()).square().flatten(1).sum(1) for old, new in pairs]).sum(0) / 2
        with torch.no_grad():
            logits = stack.query_logits(weights, tasks)
        return with_gradient_of(task_losses(logits, tasks.query_labels), way), logits

    def settle_chunk(self, tasks: TaskBatch) -> str:
        """Settle how many tasks are computed at once.

        Args:
            tasks: a meta-batch.

        Returns:
            A phrase for people.
        """
        given = self.task_chunk is not None
        if self.task_chunk is None:
            self.task_chunk = self._fitting_chunk(tasks)
        if self.task_chunk >= len(tasks):
            return "all tasks at once"
        if self.task_chunk > 1:
            return f"{self.task_chunk} of {len(tasks)} tasks at once" + ("" if given else ", which fit the memory")
        return "one task at a time" + ("" if given else ", about as fast on a CPU with tasks like these")

    def _fitting_chunk(self, tasks: TaskBatch) -> int:
        """Say how many tasks at once are fastest and fit."""

        def compute(one: TaskBatch) -> object:
            if self.inner.differentiates_twice:
                return self.query_losses(one)
            with autocast(self.precision, one.support_images.device):
                return forgetful_step(self.model, self.loop, one)

        with averages_kept(self.model):
            return tasks_at_once(compute, tasks)


def _accumulate(engine: Engine, tasks: TaskBatch, chunk: int) -> tuple[Tensor, Tensor]:
    losses, accuracies = [], []
    for part in tasks.split(chunk):
        loss, accuracy = engine.query_losses(part)
        mean = loss.sum() / len(tasks)
        (mean if engine.scaler is None else engine.scaler.scale(mean)).backward()
        losses.append(loss.detach())
        accuracies.append(accuracy)
    return torch.cat(losses), torch.cat(accuracies)


def why_not_vectorized(model: nn.Module, images: Tensor) -> str | None:
    """Say why the vectorised engine cannot train a model as learn2learn's does, if it cannot.

    Args:
        model: in training mode as its normalisation asks for; its running averages are afterwards as before.
        images: two tasks' images, shape (2, images, channels, height, width), to try it on.

    Returns:
        A phrase, or None where both are equal: dropout would draw other numbers, and some models do what vmap cannot.
    """
    stack = Stack(model, InnerLoop(model, Inner(1.0, 1)), len(images))
    try:
        with torch.no_grad(), stack.operators, averages_kept(model):
            together = stack.logits([weight.clone() for weight in stack.start()], images)
            apart = torch.stack([model(one) for one in images])
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        return f"torch.vmap cannot run this model ({str(error).splitlines()[0][:80]})"
    scale = apart.abs().max().clamp_min(1e-6)
    if not float((together - apart).abs().max() / scale) < 1e-3:
        return "its logits differ under torch.vmap"
    return None


def build_engine(
    name: str,
    model: nn.Module,
    inner: Inner,
    normalization: str,
    images: Tensor,
    task_chunk: int | None = None,
    precision: str = "float32",
) -> tuple[Engine, str]:
    """Choose an engine.

    Args:
        name: one of `ENGINES`; auto takes the vectorised one where it is equal to learn2learn's.
        model: on its device, in training mode as its normalisation asks for.
        inner: the inner loop.
        normalization: one of `NORMALIZATIONS`, for the phrase.
        images: two tasks' images, shape (2, images, channels, height, width), on the model's device.
        task_chunk: of the vectorised engine.
        precision: float32, bf16 or fp16.

    Returns:
        The engine, and a phrase for people that says which it is and why.

    Raises:
        InputError: if the vectorised engine is asked for where it cannot do it; the message names the one that can.
        MissingExtraError: if learn2learn is needed and not installed.
    """
    if name == "learn2learn":
        return Learn2learnEngine(model, inner, precision), "learn2learn engine, as asked for"
    reason = why_not_vectorized(model, images)
    if reason is None:
        tested = (
            f"which gives learn2learn's meta-gradient (tested for {inner.algorithm}, {normalization} normalisation)"
        )
        why = "as asked for" if name == "vectorized" else tested
        return VectorizedEngine(model, inner, task_chunk, precision), f"vectorized engine, {why}"
    if name == "vectorized":
        raise InputError(f"meta.engine: 'vectorized' cannot do this: {reason}; give learn2learn, which can")
    import_learn2learn(f"this run ({reason})")
    return Learn2learnEngine(model, inner, precision), f"learn2learn engine, since {reason}"
