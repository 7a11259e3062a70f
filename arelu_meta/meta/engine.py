"""The meta-step: all tasks of a meta-batch at once through `torch.func`, or task after task through learn2learn.

Same initial weights and tasks, same losses and meta-gradient (to 1e-8 in float64; tests/meta/test_engine.py).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.data.fewshot import Episode, TaskBatch
from arelu_meta.data.fewshot.given_tasks import as_task, iterate_tasks, sizes_of, stack
from arelu_meta.errors import InputError, import_learn2learn, shown
from arelu_meta.meta.algorithms import (
    build_maml,
    check_labels,
    features,
    prototype_loss,
    query_loss,
    reptile_loss,
    with_gradient_of,
)
from arelu_meta.meta.baselines import class_means, prototype_logits
from arelu_meta.meta.inner_loop import (
    HeadAlone,
    Inner,
    InnerLoop,
    head_inputs,
    head_that_adapts_alone,
    loop_of,
    support_losses,
)
from arelu_meta.meta.normalization import support_statistics, updates_averages, uses_support_statistics
from arelu_meta.meta.vmap_ops import VmappedCopy
from arelu_meta.runs.reproducibility import autocast

__all__ = ["ENGINES", "Engine", "Inner", "Learn2learnEngine", "VectorizedEngine", "build_engine", "meta_gradient"]

ENGINES = ("auto", "learn2learn", "vectorized")

Weights = dict[str, Tensor]


def meta_gradient(
    model: nn.Module, tasks: TaskBatch | Iterable[object], inner_lr: float, inner_steps: int = 1, order: int = 2
) -> tuple[Tensor, Tensor]:
    """Add MAML's gradient of the mean query loss to the `.grad` of a model's parameters.

    For an outer loop of one's own: `optimizer.zero_grad()`, this, `optimizer.step()`. Tasks of one size are computed
    at once where `torch.vmap` can run the model, as many as are fastest and fit the memory. Batch normalisation counts
    as it is set: in training mode its running averages are updated task after task.

    Example:
        >>> import torch
        >>> from arelu_meta import meta_gradient
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
        >>> labels = torch.arange(5)
        >>> tasks = [(torch.rand(5, 1, 8, 8), labels, torch.rand(5, 1, 8, 8), labels) for _ in range(4)]
        >>> losses, accuracies = meta_gradient(net, tasks, inner_lr=0.1, inner_steps=2)
        >>> losses.shape, net[1].weight.grad.shape
        (torch.Size([4]), torch.Size([5, 64]))

    Args:
        model: maps images to logits; its parameters are the initial weights, those that need no gradient stay fixed.
        tasks: a `TaskBatch`, or for each task its support images and labels and its query images and labels (as four
            tensors, as two pairs, or by the names `support` and `query`), or images with their labels as a learn2learn
            task set draws them, of which the first half of each class is support. Labels are whole numbers from 0,
            all on the model's device; tasks may differ in size. Each class of a support set weighs the same.
        inner_lr: learning rate of the inner loop.
        inner_steps: gradient steps on a task's support set.
        order: 2, or 1 to leave second derivatives out.

    Returns:
        Each task's query loss and query accuracy, shape (tasks,), without a graph.

    Raises:
        InputError: if there are no tasks, one is of another form, or a label is outside the model's outputs.

    Source: Finn et al. 2017, algorithm 2, lines 4 to 10.
    """
    if order not in (1, 2):
        raise InputError(f"order: {order!r} is not allowed; give 1 or 2")
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {shown(model)} is no torch.nn.Module; give one that maps images to logits")
    if not isinstance(inner_steps, int) or inner_steps < 1:
        raise InputError(f"inner_steps: {inner_steps!r} is not allowed; give at least 1")
    batches = [tasks] if isinstance(tasks, TaskBatch) else list(_batches(tasks))
    count = sum(map(len, batches))
    if not count:
        raise InputError("tasks: none given; give at least one")
    inner, found = Inner(inner_lr, inner_steps, order == 1), []
    chunk = None
    for batch in batches:
        if chunk is None and len(batch) > 1 and why_not_vectorized(model, batch.support_images[:2]) is not None:
            chunk = 1
        engine = VectorizedEngine(model, inner, chunk)
        found.append(engine.meta_gradient(batch, count))
    losses, accuracies = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(accuracies)


def _batches(tasks: Iterable[object]) -> Iterator[TaskBatch]:
    """Stack tasks that follow each other and are of one size."""
    found = [as_task(one, number) for number, one in enumerate(iterate_tasks(tasks))]
    for _, alike in groupby(found, key=sizes_of):
        yield stack(list(alike))


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


def _accumulate(engine: Engine, tasks: TaskBatch, chunk: int, count: int) -> tuple[Tensor, Tensor]:
    """Compute chunk after chunk; each task's loss is divided by `count`."""
    losses, accuracies = [], []
    for part in tasks.split(chunk):
        loss, accuracy = engine.query_losses(part)
        mean = loss.sum() / count
        (mean if engine.scaler is None else engine.scaler.scale(mean)).backward()
        losses.append(loss.detach())
        accuracies.append(accuracy)
    return torch.cat(losses), torch.cat(accuracies)


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
        return _accumulate(self, tasks, 1, len(tasks))

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


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's mean cross-entropy of logits (tasks, images, outputs)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


class VmappedModel:
    """A model with as many sets of weights as there are tasks.

    Its forward alone is under `torch.vmap`, and autograd differentiates what it sees. `torch.func.grad` under vmap
    loses terms of the second derivative of batch and layer normalisation, without a word (torch 2.14).

    Args:
        model: its parameters are the initial weights; those that do not adapt are shared by all tasks.
        loop: which parameters adapt, and at which rates.
        tasks: how many; one needs no vmap, and has the faster operators of single tensors.
        copy: of the model, where there is one already.
    """

    def __init__(self, model: nn.Module, loop: InnerLoop, tasks: int, copy: VmappedCopy | None = None) -> None:
        self.original, self.loop, self.tasks = model, loop, tasks
        named = dict(model.named_parameters())
        self._start = {name: named[name] for name in loop.names}
        self._copy = None if tasks == 1 else copy or VmappedCopy(model)
        self.module = model if self._copy is None else self._copy.module
        self._from_support = uses_support_statistics(model)

    def start(self) -> Weights:
        """Return the initial weights of what adapts, the same for every task."""
        return {name: value.expand(self.tasks, *value.shape) for name, value in self._start.items()}

    def map(self, function: Callable[[Weights, Tensor], Tensor], weights: Weights, images: Tensor) -> Tensor:
        """Compute something of each task's images.

        Args:
            function: of one task; runs `module`.
            weights: what adapts, each (tasks, …).
            images: shape (tasks, images, …).
        """
        if self._copy is None:
            # Not weight[0], whose gradient is a tensor of zeros with one slice written.
            return function({name: weight.squeeze(0) for name, weight in weights.items()}, images[0]).unsqueeze(0)
        self._copy.follow_mode()
        # Fused attention has no rule for vmap; where another operator has none, it is slow, which is no news to a user.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            found: Tensor = torch.vmap(function, randomness="error")(weights, images)
        return found

    def logits(self, weights: Weights, images: Tensor) -> Tensor:
        """Return logits (tasks, images, outputs)."""
        return self.map(self._one, weights, images)

    def _one(self, weights: Weights, images: Tensor) -> Tensor:
        found: Tensor = functional_call(self.module, weights, (images,))
        return found

    def query_logits(self, weights: Weights, tasks: TaskBatch) -> Tensor:
        """Return the queries' logits (tasks, queries, outputs), normalised as the model's normalisation says."""
        return self._beside_support(partial(self.logits, weights), tasks)

    def _beside_support(self, compute: Callable[[Tensor], Tensor], tasks: TaskBatch) -> Tensor:
        if not self._from_support:
            return compute(tasks.query_images)
        count = tasks.support_images.shape[1]
        with support_statistics(count):
            return compute(torch.cat([tasks.support_images, tasks.query_images], 1))[:, count:]

    def prototype_logits(self, tasks: TaskBatch) -> Tensor:
        """Return minus the squared distance of every query's features to the mean of each class's support.

        Source: Snell et al. 2017, equations 1 and 2.
        """

        def compute(images: Tensor) -> Tensor:
            return self.map(lambda _, one: features(self.module, one), {}, images)

        known, asked = compute(tasks.support_images), self._beside_support(compute, tasks)
        return prototype_logits(class_means(known, tasks.support_labels), asked)

    def step(self, weights: Weights, images: Tensor, labels: Tensor, number: int, second_order: bool) -> Weights:
        """Take one gradient step in every task, in which each class weighs the same.

        Args:
            weights: what adapts, each (tasks, …).
            images: shape (tasks, images, channels, height, width).
            labels: shape (tasks, images), int64.
            number: of the step, from 0.
            second_order: keep the graph of the gradients.

        Returns:
            The new weights; one that the loss does not depend on is as before.
        """
        if not weights:
            return weights
        with torch.enable_grad():
            inputs = weights if second_order else {name: w.detach().requires_grad_() for name, w in weights.items()}
            logits = self.logits(inputs, images)
            if number == 0:  # the labels are the same in every step, and to look at them is to wait for a GPU
                check_labels(labels, logits.shape[2])
            loss = support_losses(logits, labels).sum()
            found = torch.autograd.grad(loss, list(inputs.values()), create_graph=second_order, allow_unused=True)
        return {
            name: weight if gradient is None else weight - self.loop.rate(name, number) * gradient
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }

    def on_features(self, head: HeadAlone, tasks: TaskBatch, through_support: bool) -> tuple["VmappedModel", TaskBatch]:
        """Let every image pass the body once, normalised as in the whole model; what is left adapts on its features.

        Args:
            head: of the model, when it adapts alone.
            tasks: images.
            through_support: whether the meta-gradient goes through the support set's features, as in second order.

        Returns:
            The model of the head, and the tasks, features in the place of images.
        """

        def body(_: Weights, images: Tensor) -> Tensor:
            found = head_inputs(self.module, head.path, images)
            assert found is not None
            return found

        compute, count = partial(self.map, body, {}), tasks.support_images.shape[1]
        if self._from_support:
            with support_statistics(count):
                both = compute(torch.cat([tasks.support_images, tasks.query_images], 1))
            known, asked = both.tensor_split([count], 1)
        else:
            with torch.set_grad_enabled(through_support and torch.is_grad_enabled()):
                known = compute(tasks.support_images)
            asked = compute(tasks.query_images)
        known = known if through_support else known.detach()
        found = TaskBatch(known, tasks.support_labels, asked, tasks.query_labels)
        return VmappedModel(head, self.loop, self.tasks), found


class VectorizedEngine:
    """All tasks of a meta-batch at once: one forward pass for all, and one backward.

    Since no task's loss depends on another's weights, the gradient of the losses' sum is every task's own gradient.

    Args:
        model: its parameters are the initial weights that are meta-learned; those that need no gradient stay as they
            are.
        inner: the inner loop.
        task_chunk: how many tasks at once; None for as many as are fastest and fit half of the free memory. Running
            averages are updated task after task, one at a time.
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
        self._copy: VmappedCopy | None = None
        self._head: HeadAlone | None = None
        self._tried_head = False

    def meta_gradient(self, tasks: TaskBatch, count: int | None = None) -> tuple[Tensor, Tensor]:
        """See `Engine`.

        Args:
            tasks: likewise.
            count: by which the sum of the query losses is divided; default: the number of tasks.
        """
        self.settle_chunk(tasks)
        assert self.task_chunk is not None
        return _accumulate(self, tasks, self.task_chunk, count or len(tasks))

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        return self._solve(tasks, self.inner.steps)

    def _solve(self, tasks: TaskBatch, steps: int) -> tuple[Tensor, Tensor]:
        if len(tasks) > 1 and self._copy is None:
            self._copy = VmappedCopy(self.model)
        model = VmappedModel(self.model, self.loop, len(tasks), self._copy)
        with autocast(self.precision, tasks.support_images.device):
            if self.inner.algorithm == "protonet":
                logits = model.prototype_logits(tasks)
                losses = task_losses(logits, tasks.query_labels)
            elif self.inner.algorithm == "reptile":
                losses, logits = _reptile(model, tasks, steps)
            else:
                losses, logits = self._adapt(model, tasks, steps)
        if self._copy is not None:
            self._copy.forget_images()
        return losses, (logits.argmax(2) == tasks.query_labels).double().mean(1)

    def _adapt(self, model: VmappedModel, tasks: TaskBatch, steps: int) -> tuple[Tensor, Tensor]:
        """Adapt; return the query losses, weighted over steps, and the last logits."""
        twice = self.inner.differentiates_twice
        if not self._tried_head and not updates_averages(self.model):
            self._head = head_that_adapts_alone(self.model, self.loop, tasks.support_images[0])
            self._tried_head = True
        if self._head is not None:
            model, tasks = model.on_features(self._head, tasks, twice)
        weights, total = model.start(), None
        for step in range(steps):
            weights = model.step(weights, tasks.support_images, tasks.support_labels, step, twice)
            last = step == steps - 1
            weight = float(last) if self.step_weights is None else self.step_weights[step]
            if weight or last:
                logits = model.query_logits(weights, tasks)
                if last:
                    check_labels(tasks.query_labels, logits.shape[2])
                losses = weight * task_losses(logits, tasks.query_labels)
                total = losses if total is None else total + losses
        assert total is not None
        return total, logits

    def settle_chunk(self, tasks: TaskBatch) -> str:
        """Settle how many tasks are computed at once.

        Args:
            tasks: a meta-batch.

        Returns:
            A phrase for people.
        """
        if updates_averages(self.model):
            self.task_chunk = 1
            return "one task at a time, since running averages are updated task after task"
        given = self.task_chunk is not None
        if self.task_chunk is None:
            # Without second derivatives the graph of an inner step goes before the next.
            steps = self.inner.steps if self.inner.differentiates_twice else 1
            self.task_chunk = tasks_at_once(lambda one: self._solve(one, steps), tasks)
        if self.task_chunk >= len(tasks):
            return "all tasks at once"
        if self.task_chunk > 1:
            return f"{self.task_chunk} of {len(tasks)} tasks at once" + ("" if given else ", which fit the memory")
        return "one task at a time" + ("" if given else ", about as fast on a CPU with tasks like these")


def _reptile(model: VmappedModel, tasks: TaskBatch, steps: int) -> tuple[Tensor, Tensor]:
    """As `reptile_loss` does, for all tasks at once."""
    images = torch.cat([tasks.support_images, tasks.query_images], 1)
    labels = torch.cat([tasks.support_labels, tasks.query_labels], 1)
    start = model.start()
    weights = {name: weight.detach() for name, weight in start.items()}
    with torch.no_grad():
        for step in range(steps):
            weights = model.step(weights, images, labels, step, second_order=False)
        logits = model.query_logits(weights, tasks)
    way = torch.stack([(start[name] - new).square().flatten(1).sum(1) for name, new in weights.items()]).sum(0) / 2
    return with_gradient_of(task_losses(logits, tasks.query_labels), way), logits


_SHARE_OF_MEMORY = 0.5
# Bytes that a task keeps for its backward, above which a CPU is no faster with several tasks at once: memory traffic,
# not the number of calls, is then what a meta-step costs. Smaller ones are fastest with at most so many together.
_LARGE_TASK = 24 << 20
_LARGE_BATCH = 192 << 20
_FEW_TASKS = 2  # what several at once save on a CPU does not pay for their set-up


def tasks_at_once(compute: Callable[[TaskBatch], object], tasks: TaskBatch, count: int | None = None) -> int:
    """Find how many tasks at once are fastest and fit, by what one of them keeps for its backward.

    Args:
        compute: does with one task, whose graph it makes, what is to be done with all.
        tasks: some, on the device; the first is tried.
        count: how many there are in all; default: `tasks`.

    Returns:
        At least 1; it may be more than there are tasks.
    """
    device = tasks.support_images.device
    count = len(tasks) if count is None else count
    if count == 1 or (device.type == "cpu" and count <= _FEW_TASKS):
        return 1
    a_task = max(1, _kept_bytes(compute, tasks))
    most = int(_free_bytes(device) * _SHARE_OF_MEMORY)
    if device.type == "cpu":
        most = min(most, 0 if a_task > _LARGE_TASK else _LARGE_BATCH)
    chunks = -(-count // max(1, most // a_task))
    return -(-count // chunks)  # of one size, if they can be


def _kept_bytes(compute: Callable[[TaskBatch], object], tasks: TaskBatch) -> int:
    """Count a task's images and what is kept for its backward; the other tasks lie in the same storage, uncounted."""
    images = (tasks.support_images, tasks.query_images)
    whole = {part.untyped_storage().data_ptr() for part in images}
    # All are held to the end: an address that is used again would count once, or twice, from run to run otherwise.
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in whole:
            kept.setdefault(place, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute(next(tasks.split(1)))
    own = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return own + sum(part.nbytes for part in images) // len(tasks)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return 1 << 31


def why_not_vectorized(model: nn.Module, images: Tensor) -> str | None:
    """Find why the vectorised engine cannot train a model as learn2learn's does, if it cannot.

    Args:
        model: in training mode as its normalisation asks for.
        images: two tasks' images, shape (2, images, channels, height, width), to try it on.

    Returns:
        A phrase, or None where both are equal: dropout would draw other numbers, and some models do what vmap cannot.
    """
    if updates_averages(model):
        return None  # one task at a time, without vmap
    vmapped = VmappedModel(model, InnerLoop(model, Inner(1.0, 1)), len(images))
    try:
        with torch.no_grad():
            weights = {name: weight.clone() for name, weight in vmapped.start().items()}
            together = vmapped.logits(weights, images)
            apart = torch.stack([model(one) for one in images])
    except (RuntimeError, ValueError, NotImplementedError) as error:
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
