"""Where a task goes wrong: the inner step, and the layer, at which numbers stop being finite."""

import contextlib

from arelu_meta.data.episodes import TaskBatch
from arelu_meta.meta.engines import Engine
from arelu_meta.meta.stack import Stack
from arelu_meta.runs.compute import autocast
from arelu_meta.runs.nonfinite import watching


def first_nonfinite_step(engine: Engine, task: TaskBatch) -> str | None:
    """Adapt to one task again, watching every layer; called once, when a run has diverged already.

    Args:
        engine: its model stands as it did when the task's loss was computed.
        task: one, on the model's device.

    Returns:
        As in `layer 'fc' (Linear: its weight is not finite) after 2 of 5 inner steps`; None where every layer is
        finite.
    """
    for name, images in (("support", task.support_images), ("query", task.query_images)):
        if not images.isfinite().all():
            return f"the {name} images themselves"
    inner = engine.inner
    stack = Stack(engine.model, engine.loop, 1)
    steps = inner.steps if engine.loop.names else 0
    weights, step = stack.start(), 0
    where = task.support_images.device
    # What cannot run again has said enough.
    with watching(engine.model) as found, autocast(engine.precision, where), contextlib.suppress(RuntimeError):
        while step < steps and not found:
            weights = [weight.detach().requires_grad_() for weight in weights]
            weights = stack.step(weights, task.support_images, task.support_labels, step, False)
            step += not found
        if not found:
            stack.query_logits(weights, task)
    return f"{found[0]} after {step} of {steps} inner steps" if found else None
