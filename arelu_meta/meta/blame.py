"""Where a task goes wrong: the inner step, and the layer, at which numbers stop being finite."""

import contextlib

import torch
from torch import nn

from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.meta.engine import VmappedModel
from arelu_meta.meta.inner_loop import InnerLoop
from arelu_meta.runs.nonfinite import watching
from arelu_meta.runs.reproducibility import autocast


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
