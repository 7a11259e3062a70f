"""The same meta-step twice: task after task through learn2learn, and all tasks of a meta-batch at once.

Same initial weights and tasks, same losses and meta-gradient (to 1e-8 in float64; tests/meta/test_engines.py).
"""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.data.episodes import TaskBatch
from arelu_meta.errors import InputError
from arelu_meta.extras import import_learn2learn
from arelu_meta.meta.algorithms import build_maml, check_labels, query_loss
from arelu_meta.meta.stacked import StackedOperators, twin
from arelu_meta.runs.compute import autocast

ENGINES = ("auto", "learn2learn", "vectorized")
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class Inner:
    """The inner loop.

    Args:
        lr: learning rate.
        steps: gradient steps on a task's support set.
        first_order: leave second derivatives out.
    """

    lr: float
    steps: int
    first_order: bool = False


class Engine(Protocol):
    """Computes meta-steps."""

    name: str

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
    """learn2learn's MAML, task after task.

    Args:
        model: its parameters are the initial weights that are meta-learned.
        inner: the inner loop.
        precision: float32, bf16 or fp16.

    Raises:
        MissingExtraError: if learn2learn is not installed.
    """

    name = "learn2learn"

    def __init__(self, model: nn.Module, inner: Inner, precision: str = "float32") -> None:
        self.maml = build_maml(model, inner.lr, inner.first_order)
        self.inner, self.precision = inner, precision

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        return _accumulate(self, tasks, 1)

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        found = []
        for number in range(len(tasks)):
            with autocast(self.precision, tasks.support_images.device):
                found.append(query_loss(self.maml.clone(), tasks[number], self.inner.steps))
        losses, accuracies = zip(*found, strict=True)
        return torch.stack(losses), torch.tensor(accuracies, dtype=torch.float64)


class VectorizedEngine:
    """All tasks of a meta-batch at once: one forward pass for all, and one backward.

    The forward pass is `torch.vmap` of the model over tasks, each with its own weights. Since no task's loss depends on
    another's weights, the gradient of the losses' sum is every task's own gradient.

    Args:
        model: its parameters are the initial weights that are meta-learned; those that need no gradient stay as they
            are.
        inner: the inner loop.
        task_chunk: how many tasks at once; None for as many as fit half of the free memory.
        precision: float32, bf16 or fp16.
    """

    name = "vectorized"

    def __init__(
        self, model: nn.Module, inner: Inner, task_chunk: int | None = None, precision: str = "float32"
    ) -> None:
        self.model, self.inner, self.task_chunk, self.precision = model, inner, task_chunk, precision
        self.twin = twin(model)

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        if self.task_chunk is None:
            self.task_chunk = self._fitting_chunk(tasks)
        return _accumulate(self, tasks, self.task_chunk)

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        stack = _Stack(self.model, len(tasks), self.twin)
        inner = self.inner
        weights = stack.start()
        with autocast(self.precision, tasks.support_images.device), stack.operators:
            weights = stack.adapt(weights, tasks, inner.lr, inner.steps, second_order=not inner.first_order)
            logits = stack.logits(weights, tasks.query_images)
            loss = _task_losses(logits, tasks.query_labels)
        return loss, (logits.argmax(2) == tasks.query_labels).double().mean(1)

    def _fitting_chunk(self, tasks: TaskBatch) -> int:
        """Say how many tasks fit, by what one of them keeps for its backward."""
        if len(tasks) == 1:
            return 1
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = self.query_losses(next(tasks.split(1)))
        del loss
        return fitting_tasks(sum(kept.values()), tasks.support_images.device)


def _accumulate(engine: Engine, tasks: TaskBatch, chunk: int) -> tuple[Tensor, Tensor]:
    losses, accuracies = [], []
    for part in tasks.split(chunk):
        loss, accuracy = engine.query_losses(part)
        (loss.sum() / len(tasks)).backward()
        losses.append(loss.detach())
        accuracies.append(accuracy)
    return torch.cat(losses), torch.cat(accuracies)


def fitting_tasks(bytes_a_task: int, device: torch.device) -> int:
    """Say how many tasks fit half of the memory that is free.

    Args:
        bytes_a_task: what each needs.
        device: whose memory.

    Returns:
        At least 1.
    """
    return max(1, int(_free_bytes(device) * _SHARE_OF_MEMORY) // max(1, bytes_a_task))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return 1 << 31


def _task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's mean cross-entropy of logits (tasks, images, outputs)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


class _Stack:
    """A model with as many sets of weights as there are tasks."""

    def __init__(self, model: nn.Module, tasks: int, stacked: nn.Module | None = None) -> None:
        self.tasks = tasks
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        # One task needs no vmap, and has the faster operators of single tensors.
        self.model = model if tasks == 1 else stacked or twin(model)
        for mine, original in zip(self.model.modules(), model.modules(), strict=True):
            mine.training = original.training
        self.operators: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if tasks == 1 else StackedOperators()
        )

    def start(self) -> list[Tensor]:
        """Return the initial weights, the same for every task."""
        return [value.expand(self.tasks, *value.shape) for value in self.parameters.values()]

    def logits(self, weights: list[Tensor], images: Tensor) -> Tensor:
        """Return logits (tasks, images, outputs)."""
        if self.tasks == 1:
            return self._one([weight[0] for weight in weights], images[0]).unsqueeze(0)
        # Fused attention has no rule for vmap; where another operator has none, it is slow, which is no news to a user.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            found: Tensor = torch.vmap(self._one, randomness="error")(weights, images)
        return found

    def _one(self, weights: list[Tensor], images: Tensor) -> Tensor:
        found: Tensor = functional_call(self.model, dict(zip(self.parameters, weights, strict=True)), (images,))
        return found

    def adapt(
        self, weights: list[Tensor], tasks: TaskBatch, lr: float, steps: int, second_order: bool, detach: bool = False
    ) -> list[Tensor]:
        """Take gradient steps on every task's support set."""
        for _ in range(steps):
            if detach:
                weights = [weight.detach().requires_grad_() for weight in weights]
            logits = self.logits(weights, tasks.support_images)
            check_labels(tasks.support_labels, logits.shape[2])
            losses = _task_losses(logits, tasks.support_labels)
            gradients = torch.autograd.grad(losses.sum(), weights, create_graph=second_order, allow_unused=True)
            weights = [
                weight if gradient is None else weight - lr * gradient
                for weight, gradient in zip(weights, gradients, strict=True)
            ]
        return weights


def adapted_probabilities(
    model: nn.Module, tasks: TaskBatch, inner_lr: float, inner_steps: int, vectorized: bool = True
) -> Tensor:
    """Adapt to each task's support set and classify its queries; the model itself does not change.

    Args:
        model: in eval mode, which keeps running averages as they are.
        tasks: on the model's device.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner gradient steps.
        vectorized: all tasks at once; otherwise one after the other, for a model that vmap cannot do.

    Returns:
        Shape (tasks, queries, outputs): probabilities.

    Raises:
        InputError: if a label is outside the model's outputs.
    """
    if not vectorized and len(tasks) > 1:
        return torch.cat([adapted_probabilities(model, one, inner_lr, inner_steps) for one in tasks.split(1)])
    stack = _Stack(model, len(tasks))
    with stack.operators:
        start = [weight.detach() for weight in stack.start()]
        with torch.enable_grad():
            if not start:
                inner_steps = 0
            weights = stack.adapt(start, tasks, inner_lr, inner_steps, second_order=False, detach=True)
        with torch.no_grad():
            return stack.logits(weights, tasks.query_images).softmax(2)


def why_not_vectorized(model: nn.Module, normalization: str, images: Tensor) -> str | None:
    """Say why the vectorised engine cannot train a model as learn2learn's does, if it cannot.

    Args:
        model: in training mode as its normalisation asks for.
        normalization: one of `NORMALIZATIONS`.
        images: two tasks' images, shape (2, images, channels, height, width), to try it on.

    Returns:
        A phrase, or None where both are equal: running averages would have to be updated task after task, dropout
        would draw other numbers, and some models do what vmap cannot.
    """
    if normalization == "running" and any(_updates_averages(module) for module in model.modules()):
        return "running averages are updated task after task"
    stack = _Stack(model, len(images))
    try:
        with torch.no_grad(), stack.operators:
            together = stack.logits([weight.clone() for weight in stack.start()], images)
            apart = torch.stack([model(one) for one in images])
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"torch.vmap cannot run this model ({str(error).splitlines()[0][:80]})"
    scale = apart.abs().max().clamp_min(1e-6)
    if not float((together - apart).abs().max() / scale) < 1e-3:
        return "its logits differ under torch.vmap"
    return None


def _updates_averages(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and module.track_running_stats


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
        normalization: one of `NORMALIZATIONS`.
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
        return Learn2learnEngine(model, inner, precision), "learn2learn engine"
    reason = why_not_vectorized(model, normalization, images)
    if reason is None:
        return VectorizedEngine(model, inner, task_chunk, precision), "vectorized engine"
    if name == "vectorized":
        raise InputError(f"meta.engine: 'vectorized' cannot do this: {reason}; give learn2learn, which can")
    import_learn2learn(f"this run ({reason})")
    return Learn2learnEngine(model, inner, precision), f"learn2learn engine ({reason})"
