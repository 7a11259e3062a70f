"""Where a task goes wrong: the inner step, and the layer, at which numbers stop being finite."""

import contextlib

from torch import nn

from arelu_meta.data.episodes import TaskBatch
from arelu_meta.meta.inner_loop import InnerLoop
from arelu_meta.meta.stack import Stack
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
    stack = Stack(model, loop, 1)
    steps = steps if loop.names else 0
    weights, step = stack.start(), 0
    where = task.support_images.device
    # What cannot run again has said enough.
    with watching(model) as found, autocast(precision, where), contextlib.suppress(RuntimeError):
        while step < steps and not found:
            weights = [weight.detach().requires_grad_() for weight in weights]
            weights = stack.step(weights, task.support_images, task.support_labels, step, False)
            step += not found
        if not found:
            stack.query_logits(weights, task)
    return f"{found[0]} after {step} of {steps} inner steps" if found else None
