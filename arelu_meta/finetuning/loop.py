"""One epoch of training, and one pass of evaluation."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.errors import RunError
from arelu_meta.finetuning.optimizer import head_parameters, restore_optimizer
from arelu_meta.runs.compute import autocast, naming_anomaly
from arelu_meta.runs.progress import ProgressBar


@dataclass
class Trainer:
    """What a training step needs.

    Args:
        model: on the device.
        optimizer: over its parameter groups.
        schedule: timm's, stepped at every update.
        device: where batches go.
        precision: float32, bf16 or fp16.
        peak_rate: optim.lr, for messages.
        head_only: leave everything but the head as it is, batch statistics and dropout too.
        gates: moves the activations' gates to a share of the run's updates, from 0 to 1; None leaves them to learn.
        all_updates: optimiser steps of the whole run.
        updates: optimiser steps so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    device: torch.device
    precision: str
    peak_rate: float
    head_only: bool = False
    gates: Callable[[float], object] | None = None
    all_updates: int = 1
    updates: int = 0

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def learning_rate(self) -> float:
        """Return the backbone's current rate (the head's where nothing else learns)."""
        groups = self.optimizer.param_groups
        backbone = [float(group["lr"]) for group in groups if group["group_name"] == "backbone"]
        return max(backbone, default=float(groups[0]["lr"]))

    def state(self) -> dict[str, Any]:
        """Take all that a checkpoint needs to go on from here."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` took."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
        restore_optimizer(self.optimizer, self.schedule, state["optimizer"], self.updates)
        self.scaler.load_state_dict(state["scaler"])


def freeze_all_but_head(model: nn.Module) -> None:
    """Let only the head's parameters learn.

    Args:
        model: changed in place.
    """
    model.requires_grad_(False)
    for parameter in head_parameters(model):
        parameter.requires_grad_(True)


def train_epoch(
    trainer: Trainer, batches: Iterable[tuple[Tensor, Tensor]], bar: ProgressBar, checkpoint: str
) -> tuple[float, float]:
    """Train on every batch once.

    Args:
        trainer: changed in place.
        batches: images of shape (batch, channels, height, width), float32, and labels of shape (batch,), int64.
        bar: advanced by the images.
        checkpoint: the last good one, named if the loss stops being finite.

    Returns:
        Mean loss and accuracy over the epoch's images, as they were met.

    Raises:
        RunError: if the loss becomes NaN or infinite.
    """
    trainer.model.train(not trainer.head_only)
    loss_sum, right, seen = 0.0, 0, 0
    for images, labels in batches:
        images, labels = images.to(trainer.device), labels.to(trainer.device)
        with autocast(trainer.precision, trainer.device):
            logits = trainer.model(images)
            loss = F.cross_entropy(logits, labels)
        value = loss.item()
        check_finite(value, "training", trainer, checkpoint)
        trainer.optimizer.zero_grad(set_to_none=True)
        with naming_anomaly(lambda what: diverged(what, trainer, checkpoint)):
            trainer.scaler.scale(loss).backward()
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        trainer.updates += 1
        if trainer.gates is not None:
            trainer.gates(trainer.updates / trainer.all_updates)
        trainer.schedule.step_update(trainer.updates)
        loss_sum += value * len(labels)
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        bar.advance(len(labels), loss=loss_sum / seen, accuracy=right / seen)
    return loss_sum / seen, right / seen


def check_finite(loss: float, kind: str, trainer: Trainer, checkpoint: str) -> None:
    """Stop a run that has diverged.

    Args:
        loss: a loss.
        kind: training or validation.
        trainer: for the step and the learning rate.
        checkpoint: the last good one.

    Raises:
        RunError: if the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise diverged(f"the {kind} loss became {loss}", trainer, checkpoint)


def diverged(what: str, trainer: Trainer, checkpoint: str) -> RunError:
    """Make the error of a run that has diverged.

    Args:
        what: became NaN or infinite.
        trainer: for the step and the learning rate.
        checkpoint: the last good one.
    """
    return RunError(
        f"{what} at step {trainer.updates + 1} (optim.lr {trainer.peak_rate:g}, "
        f"learning rate {trainer.learning_rate():.3g} at that step); the last good checkpoint is {checkpoint}; "
        "try a smaller --optim.lr"
    )


@torch.no_grad()
def predict_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Run a model over every batch in eval mode.

    Args:
        model: left in eval mode.
        batches: images and labels.
        device: where to compute.
        precision: float32, bf16 or fp16.

    Returns:
        Logits of shape (images, classes), float32, and labels of shape (images,), int64, both on the CPU.
    """
    model.eval()
    logits, labels = [], []
    for images, targets in batches:
        with autocast(precision, device):
            logits.append(model(images.to(device)).float().cpu())
        labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy.

    Args:
        logits: shape (images, classes).
        labels: shape (images,), int64.
    """
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()
