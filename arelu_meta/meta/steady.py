"""Fine-tuning on support sets at a rate that does not diverge: a meta-learner's own inner rate may be far too large."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from arelu_meta.data.fewshot import Sampler, TaskBatch
from arelu_meta.errors import RunError
from arelu_meta.meta.engine import VmappedModel, Weights
from arelu_meta.meta.inner_loop import Inner, InnerLoop, attach_loop, support_losses
from arelu_meta.runs.reproducibility import autocast

T = TypeVar("T")
_PILOT_TASKS = 4
_RATES = 5  # each a tenth of the one before


@dataclass(frozen=True)
class Steady:
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


def at_steady_rate(
    model: nn.Module,
    sampler: Sampler,
    tasks: Sequence[int],
    lr: float,
    steps: int,
    device: torch.device,
    precision: str,
    judge: Callable[[], T],
) -> tuple[T, Steady]:
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
                return judge(), Steady(rate, tuple(refused))
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
