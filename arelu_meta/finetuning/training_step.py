"""One epoch of training: steps, their gradients, and what stops a run that diverges."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.config import FinetuneConfig, TrainConfig
from arelu_meta.errors import RunError
from arelu_meta.finetuning.freezing import set_training
from arelu_meta.finetuning.optimizer import restore_optimizer
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.nonfinite import first_nonfinite_layer
from arelu_meta.runs.progress import ProgressBar
from arelu_meta.runs.reproducibility import autocast, naming_anomaly

_STEPS_UNCHECKED = 20  # on an accelerator, which would have to wait for every loss that is looked at

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mixes images of shape (batch, channels, height, width) and labels (batch,) into images and soft labels."""


@dataclass
class TrainingState:
    """What a training step needs.

    Args:
        model: on the device.
        optimizer: over its parameter groups.
        schedule: timm's, stepped at every update.
        device: where batches go.
        precision: float32, bf16 or fp16.
        peak_rate: optim.lr, for messages.
        config: what is trained, label smoothing.
        ranks: the processes of the run; default: this one.
        forward: what batches go through; default: the model (compiled, or wrapped for several processes).
        gates: moves the activations' gates to a share of the run's updates, from 0 to 1; None leaves them to learn.
        all_updates: optimiser steps of the whole run.
        updates: optimiser steps so far.
        last_rate: the rate of the last of them.
        accumulate: batches a step.
        clip_grad: largest norm of all gradients together.
        mix: mixup or cutmix.
        class_weights: what an image of each class counts, shape (classes,), on the device; 1 on average.
        average: timm's running average of the weights.
        before_step: told the model when its gradients are whole.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    device: torch.device
    precision: str
    peak_rate: float
    config: TrainConfig = field(default_factory=TrainConfig)
    ranks: Ranks = None  # type: ignore[assignment]  # set below where they are not given
    forward: nn.Module = None  # type: ignore[assignment]  # set below where it is not given
    gates: Callable[[float], object] | None = None
    all_updates: int = 1
    updates: int = 0
    last_rate: float = 0.0
    accumulate: int = 1
    clip_grad: float | None = None
    mix: Mix | None = None
    class_weights: Tensor | None = None
    average: Any = None
    before_step: Callable[[nn.Module], object] | None = None

    def __post_init__(self) -> None:
        if self.forward is None:
            self.forward = self.model  # type: ignore[unreachable]
        if self.ranks is None:
            self.ranks = Ranks(self.device)  # type: ignore[unreachable]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def judged(self) -> nn.Module:
        """The model that is validated, tested and saved: the running average, where there is one."""
        return self.model if self.average is None else self.average.module

    def learning_rate(self) -> float:
        """Return the backbone's current rate (the head's where nothing else learns)."""
        groups = self.optimizer.param_groups
        backbone = [float(group["lr"]) for group in groups if group["group_name"] == "backbone"]
        return max(backbone, default=float(groups[0]["lr"]))

    def state(self) -> dict[str, Any]:
        """Take all that a checkpoint needs to go on from here."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
        }
        return state if self.average is None else state | {"average": self.average.module.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` took."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.updates = state["updates"]
        restore_optimizer(self.optimizer, self.schedule, state["optimizer"], self.updates)
        self.scaler.load_state_dict(state["scaler"])


@dataclass
class Sums:
    """What an epoch has come to so far: kept on the device until it is looked at.

    Args:
        steps: optimiser steps.
        loss: over the images, summed.
        right: answers.
        seen: images.
        waiting: loss, right answers, images and step of the batches that were not looked at yet.
    """

    steps: int = 0
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    waiting: list[tuple[Tensor, Tensor, int, int]] = field(default_factory=list)

    def settle(self, check: Callable[[float, int], object]) -> None:
        """Look at the batches that wait.

        Args:
            check: is told the mean loss of each, and the step.
        """
        for loss, right, count, step in self.waiting:
            check(value := loss.item() / count, step)
            self.loss += value * count
            self.right += int(right)
            self.seen += count
        self.waiting.clear()


def train_epoch(
    training: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    bar: ProgressBar,
    checkpoint: str,
    sums: Sums | None = None,
    between: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Train on every batch once.

    Args:
        training: changed in place.
        batches: images of shape (batch, channels, height, width), float32, and labels of shape (batch,), int64.
        bar: advanced by the images; told how long batches were waited for.
        checkpoint: the last good one, named if the loss stops being finite.
        sums: of the epoch's earlier batches, where it goes on from a checkpoint; changed in place.
        between: called after each step.

    Returns:
        Mean loss and accuracy over the epoch's images, as they were met.

    Raises:
        RunError: if the loss becomes NaN or infinite.
    """
    set_training(training.model, training.config)
    sums = sums or Sums()
    unchecked = 1 if training.device.type == "cpu" else _STEPS_UNCHECKED
    for step in _grouped(bar.waiting(batches), training.accumulate):
        _accumulate_gradients(training, step, sums, checkpoint)
        if len(sums.waiting) >= unchecked:
            sums.settle(partial(check_step, training, checkpoint, step[-1][0]))
        _update(training)
        count = sum(len(labels) for _, labels in step) * training.ranks.processes
        bar.advance(count, loss=sums.loss / max(1, sums.seen), accuracy=sums.right / max(1, sums.seen))
        sums.steps += 1
        between()
    sums.settle(partial(check_step, training, checkpoint, None))
    return _over_ranks(training, sums)


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _accumulate_gradients(
    training: TrainingState, step: list[tuple[Tensor, Tensor]], sums: Sums, checkpoint: str
) -> None:
    """Add up the gradients of the mean loss over all images of a step, in whatever processes they are."""
    training.optimizer.zero_grad(set_to_none=True)
    images_here = sum(len(labels) for _, labels in step)
    # Filled in there: a number copied over would make the host wait for all that a GPU has still to do.
    everywhere = training.ranks.total(torch.full((), float(images_here), device=training.device))
    scale = training.ranks.processes / everywhere  # gradients are averaged over the processes
    for number, (images, labels) in enumerate(step, 1):
        images = images.to(training.device, non_blocking=True)
        labels = labels.to(training.device, non_blocking=True)
        targets = labels
        if training.mix is not None:
            images, targets = training.mix(images, labels)
        with autocast(training.precision, training.device):
            logits = training.forward(images)
            loss = loss_sum(logits, targets, training.config.label_smoothing, training.class_weights)
        right = (logits.detach().argmax(1) == labels).sum()
        sums.waiting.append((loss.detach(), right, len(labels), training.updates + 1))
        if training.device.type == "cpu":
            check_finite(loss.item(), "training", training, checkpoint, images)
        # What is shared out keeps no whole gradients to add to: they are averaged after each batch.
        alone = training.ranks.without_sync(training.forward, number < len(step) and not training.config.shard)
        with naming_anomaly(lambda what: diverged(what, training, checkpoint)), alone:
            training.scaler.scale(loss * scale).backward()


def loss_sum(logits: Tensor, targets: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, summed over the images.

    Args:
        logits: shape (images, classes).
        targets: labels of shape (images,), int64, or shares of shape (images, classes).
        smoothing: share of each label that is spread over all classes.
        class_weights: what an image of each class counts, shape (classes,).
    """
    return F.cross_entropy(logits.float(), targets, weight=class_weights, label_smoothing=smoothing, reduction="sum")


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device, config: FinetuneConfig) -> Tensor:
    """Run a batch through a model.

    Args:
        model: on the device.
        images: shape (batch, channels, height, width), float32.
        labels: shape (batch,), int64.
        device: where to compute.
        config: precision and label smoothing.

    Returns:
        The mean loss, with its graph.
    """
    with autocast(config.run.precision, device):
        logits = model(images.to(device))
        return loss_sum(logits, labels.to(device), config.train.label_smoothing) / len(labels)


def _update(training: TrainingState) -> None:
    if training.clip_grad is not None or training.before_step is not None:
        training.scaler.unscale_(training.optimizer)
    if training.before_step is not None:
        training.before_step(training.model)
    if training.clip_grad is not None:
        learning = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(learning, training.clip_grad)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.updates += 1
    if training.gates is not None:
        training.gates(training.updates / training.all_updates)
    training.last_rate = training.learning_rate()
    training.schedule.step_update(training.updates)
    if training.average is not None:
        training.average.update(training.model, step=training.updates)


def _over_ranks(training: TrainingState, sums: Sums) -> tuple[float, float]:
    found = torch.tensor([sums.loss, sums.right, sums.seen], dtype=torch.float64)
    loss, right, seen = training.ranks.total(found).tolist()
    return loss / seen, right / seen


def check_step(training: TrainingState, checkpoint: str, images: Tensor | None, loss: float, step: int) -> None:
    """Stop a run whose training loss is no number; see `check_finite`.

    Args:
        training: for the learning rate and the layer.
        checkpoint: the last good one.
        images: of that step, or of a later one where an accelerator's losses are looked at once in a while.
        loss: of the step.
        step: its number, from 1.
    """
    check_finite(loss, "training", training, checkpoint, images, step)


def check_finite(
    loss: float,
    kind: str,
    training: TrainingState,
    checkpoint: str,
    images: Tensor | None = None,
    step: int | None = None,
) -> None:
    """Stop a run that has diverged.

    Args:
        loss: a loss.
        kind: training or validation.
        training: for the step and the learning rate.
        checkpoint: the last good one.
        images: that it was the loss of, to name the layer by.
        step: of the loss, from 1; default: the one under way.

    Raises:
        RunError: if the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        if training.config.shard:
            images = None  # the other processes, which may have found no fault, would have to run the model, too
        layer = None if images is None else first_nonfinite_layer(_bare(training.forward), images.to(training.device))
        what, behind = f"the {kind} loss became {loss}", kind == "validation"
        if behind and training.updates == 0:
            first = "" if layer is None else f", first in {layer}"
            raise RunError(
                f"{what} before the first step{first}: the model gives no finite numbers as it starts; give another "
                "--model.init, --model.activation or --data.image_size"
            )
        raise diverged(what, training, checkpoint, layer, step, behind)


def _bare(forward: nn.Module) -> nn.Module:
    """Take off what a model is wrapped in: the other processes would wait, and a compiled one shows no layers."""
    while isinstance(inner := getattr(forward, "_orig_mod", getattr(forward, "module", None)), nn.Module):
        forward = inner
    return forward


def diverged(
    what: str,
    training: TrainingState,
    checkpoint: str,
    layer: str | None = None,
    step: int | None = None,
    behind: bool = False,
) -> RunError:
    """Make the error of a run that has diverged.

    Args:
        what: became NaN or infinite.
        training: for the step and the learning rate.
        checkpoint: the last good one.
        layer: where it began, if that is known.
        step: when, from 1; default: the step under way.
        behind: whether it was seen behind the last step, when the schedule holds the next one's rate already.
    """
    where = "" if layer is None else f", first in {layer}"
    when = f"after step {training.updates}" if behind else f"at step {step or training.updates + 1}"
    rate = training.last_rate if behind else training.learning_rate()
    return RunError(
        f"{what} {when} (optim.lr {training.peak_rate:g}, learning rate {rate:.3g} at that step){where}; "
        f"the last good checkpoint is {checkpoint}; try a smaller --optim.lr"
    )
