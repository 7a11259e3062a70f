"""A model with as many sets of weights as there are tasks, through `torch.vmap`; what adapts is per task."""

import contextlib
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.data.episodes import TaskBatch
from arelu_meta.meta.algorithms import check_labels, features
from arelu_meta.meta.averages import RunningAverages
from arelu_meta.meta.baselines import baseline_probabilities
from arelu_meta.meta.head_alone import HeadAlone, head_inputs, head_that_adapts_alone, tasks_as_features
from arelu_meta.meta.inner_loop import COMPARING, InnerLoop, saved_loop, support_losses
from arelu_meta.meta.normalization import support_statistics, uses_support_statistics
from arelu_meta.meta.vmap_ops import StackedOperators, twin


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's mean cross-entropy of logits (tasks, images, outputs)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


class Stack:
    """The tasks of a meta-batch at once.

    Args:
        model: its parameters are the initial weights; those that do not adapt are shared by all tasks.
        loop: which parameters adapt, and at which rates.
        tasks: how many.
        stacked: the model's `twin`, where there is one already.
    """

    def __init__(self, model: nn.Module, loop: InnerLoop, tasks: int, stacked: nn.Module | None = None) -> None:
        self.tasks, self.loop, self.original = tasks, loop, model
        named = dict(model.named_parameters())
        self.parameters = {name: named[name] for name in loop.names}
        # One task needs no vmap, and has the faster operators of single tensors.
        self.model = model if tasks == 1 else stacked or twin(model)
        for mine, original in zip(self.model.modules(), model.modules(), strict=True):
            mine.training = original.training
        self.operators: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if tasks == 1 else StackedOperators()
        )
        self.averages = None if tasks == 1 else RunningAverages(model, self.model)
        self.from_support = uses_support_statistics(model)

    def start(self) -> list[Tensor]:
        """Return the initial weights of what adapts, the same for every task."""
        return [value.expand(self.tasks, *value.shape) for value in self.parameters.values()]

    def _map(self, function: Callable[[list[Tensor], Tensor], Tensor], weights: list[Tensor], images: Tensor) -> Tensor:
        if self.averages is None:
            # Not weight[0], whose gradient is a tensor of zeros with one slice written.
            return function([weight.squeeze(0) for weight in weights], images[0]).unsqueeze(0)
        # Fused attention has no rule for vmap; where another operator has none, it is slow, which is no news to a user.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            return self.averages.map(function, weights, images)

    def logits(self, weights: list[Tensor], images: Tensor) -> Tensor:
        """Return logits (tasks, images, outputs)."""
        return self._map(self._one, weights, images)

    def _one(self, weights: list[Tensor], images: Tensor) -> Tensor:
        found: Tensor = functional_call(self.model, dict(zip(self.parameters, weights, strict=True)), (images,))
        return found

    def query_logits(self, weights: list[Tensor], tasks: TaskBatch) -> Tensor:
        """Return the queries' logits (tasks, queries, outputs), normalised as the model's normalisation says."""
        return self._beside_support(lambda images: self.logits(weights, images), tasks)

    def _beside_support(self, compute: Callable[[Tensor], Tensor], tasks: TaskBatch) -> Tensor:
        if not self.from_support:
            return compute(tasks.query_images)
        count = tasks.support_images.shape[1]
        with support_statistics(count):
            return compute(torch.cat([tasks.support_images, tasks.query_images], 1))[:, count:]

    def before(self, head: HeadAlone, tasks: TaskBatch, through_support: bool) -> tuple["Stack", TaskBatch]:
        """Let all images pass the body once; what is left adapts on their features.

        Args:
            head: of the model, when it adapts alone.
            tasks: images.
            through_support: whether the meta-gradient goes through the support set's features.

        Returns:
            The tasks of the head, and the features in the place of images.
        """

        def body(_: list[Tensor], images: Tensor) -> Tensor:
            found = head_inputs(self.model, head.path, images)
            assert found is not None
            return found

        found = tasks_as_features(self.original, lambda images: self._map(body, [], images), tasks, through_support)
        return Stack(head, self.loop, self.tasks), found

    def update_averages(self) -> None:
        """Update the model's running averages by all passes so far; one task alone has done so itself."""
        if self.averages is not None:
            self.averages.update()

    def step(
        self, weights: list[Tensor], images: Tensor, labels: Tensor, step: int, second_order: bool
    ) -> list[Tensor]:
        """Take one gradient step in every task, each class of which weighs the same.

        Args:
            weights: what adapts, each (tasks, …).
            images: shape (tasks, images, channels, height, width).
            labels: shape (tasks, images), int64.
            step: its number, from 0.
            second_order: keep the graph of the gradients.

        Returns:
            The new weights; one that the loss does not depend on is as before.
        """
        logits = self.logits(weights, images)
        if step == 0:  # the labels are the same in every step, and to look at them is to wait for a GPU
            check_labels(labels, logits.shape[2])
        loss = support_losses(logits, labels).sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=second_order, allow_unused=True)
        return [
            weight if gradient is None else weight - self.loop.rate(name, step) * gradient
            for name, weight, gradient in zip(self.parameters, weights, gradients, strict=True)
        ]

    def prototype_logits(self, tasks: TaskBatch) -> Tensor:
        """Compare features: minus the squared distance of every query to the mean of each class's support.

        Source: Snell et al. 2017, equations 1 and 2.
        """

        def compute(images: Tensor) -> Tensor:
            return self._map(lambda _, one: features(self.model, one), [], images)

        known, asked = compute(tasks.support_images), self._beside_support(compute, tasks)
        members = F.one_hot(tasks.support_labels).to(known.dtype).mT  # (tasks, ways, support)
        centres = members @ known / members.sum(2, keepdim=True)
        return -(asked.square().sum(2, keepdim=True) - 2 * asked @ centres.mT + centres.square().sum(2)[:, None])


def forgetful_step(model: nn.Module, loop: InnerLoop, task: TaskBatch) -> Tensor:
    """Do what one task holds in memory at a time where no gradient goes through inner steps: a step, then the queries.

    Args:
        model: in the mode in which it is to be used.
        loop: what adapts, and at which rates.
        task: one, on the model's device.

    Returns:
        The queries' logits, or features where features are compared, with their graph.
    """
    stack = Stack(model, loop, 1)
    if loop.inner.algorithm in COMPARING:
        return features(model, torch.cat([task.support_images[0], task.query_images[0]]))
    weights = stack.start()
    if weights:
        stack.step(weights, task.support_images, task.support_labels, 0, False)
    return stack.query_logits(weights, task)


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
        every: after 0, 1, …, `steps` steps; prototypical networks take none, so that all are the same.

    Returns:
        Shape (steps + 1 or 1, tasks, queries, outputs): probabilities.
    """
    if not vectorized and len(tasks) > 1:
        return torch.cat([adaptation(model, one, loop, steps, every=every) for one in tasks.split(1)], 1)
    stack = Stack(model, loop, len(tasks))
    found: list[Tensor] = []
    with stack.operators:
        if loop.inner.algorithm in {"centroid", "logistic"}:
            return torch.stack([baseline_probabilities(model, tasks, loop.inner)] * (steps + 1 if every else 1))
        if loop.inner.algorithm == "protonet":
            with torch.no_grad():
                found = [stack.prototype_logits(tasks).softmax(2)] * (steps + 1 if every else 1)
            return torch.stack(found)
        if steps and (head := head_that_adapts_alone(model, loop, tasks.support_images[0])):
            with torch.no_grad():
                stack, tasks = stack.before(head, tasks, through_support=False)
        weights = [weight.detach() for weight in stack.start()]
        for step in range(steps + 1):
            if every or step == steps:
                with torch.no_grad():
                    found.append(stack.query_logits(weights, tasks).softmax(2))
            if step < steps and weights:
                with torch.enable_grad():
                    weights = [weight.detach().requires_grad_() for weight in weights]
                    weights = stack.step(weights, tasks.support_images, tasks.support_labels, step, False)
    return torch.stack(found)
