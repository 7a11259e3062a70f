"""A model in two where its head alone adapts: the body, which images pass once, and the head, which takes steps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from arelu_meta.data.episodes import TaskBatch
from arelu_meta.finetuning.linear_probe import linear_head
from arelu_meta.meta.inner_loop import InnerLoop
from arelu_meta.meta.normalization import support_statistics, uses_batch_statistics, uses_support_statistics


class HeadAlone(nn.Module):
    """A model's head under the name that it has in the model; its images are the model's features.

    Args:
        model: with one linear layer as its head.
        loop: its inner loop, which comes with it.
    """

    def __init__(self, model: nn.Module, loop: InnerLoop) -> None:
        super().__init__()
        head = linear_head(model)
        assert head is not None
        self.path = next(name for name, module in model.named_modules() if module is head)
        above: nn.Module = self
        for part in self.path.split(".")[:-1]:
            above.add_module(part, nn.Module())
            above = getattr(above, part)
        above.add_module(self.path.rpartition(".")[2], head)
        self.add_module("inner_loop", loop)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.get_submodule(self.path)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what was given: it is features already."""
        return images

    def forward_head(self, images: Tensor, pre_logits: bool = False) -> Tensor:
        """Return features, or their logits."""
        return images if pre_logits else self.forward(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        found: Tensor = self.get_classifier()(images)
        return found


def head_inputs(model: nn.Module, path: str, images: Tensor) -> Tensor | None:
    """Return what a model's head is given.

    Args:
        model: any.
        path: the head's name in it.
        images: as the model takes them.

    Returns:
        Shape (images, features), with the body's graph; None where the head is not called just once, on one vector an
        image, and last.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    try:
        logits = model(images)
    finally:
        hook.remove()
    return seen[0][0] if len(seen) == 1 and seen[0][1] is logits and seen[0][0].dim() == 2 else None


def head_that_adapts_alone(model: nn.Module, loop: InnerLoop, images: Tensor) -> HeadAlone | None:
    """Take a model's head for itself, where nothing else takes inner steps.

    Args:
        model: in the mode in which it is to be used, no batch normalisation updating averages.
        loop: its inner loop.
        images: one task's, to try it on.

    Returns:
        The head; None where more than it adapts, where it is not one linear layer that acts last, or where the body
        shares a weight with it.

    Source: Raghu et al. 2020 (ANIL): without inner steps of the body, a task's features stay what they are.
    """
    if loop.inner.adapted_part != "head" or not loop.names or not hasattr(model, "get_classifier"):
        return None
    head = linear_head(model)
    if head is None:
        return None
    body = [p for module in model.modules() if module is not head for p in module.parameters(recurse=False)]
    if {id(p) for p in body} & {id(p) for p in head.parameters()}:
        return None
    alone = HeadAlone(model, loop)
    with torch.no_grad():
        return None if head_inputs(model, alone.path, images) is None else alone


def tasks_as_features(
    model: nn.Module, compute: Callable[[Tensor], Tensor], tasks: TaskBatch, through_support: bool
) -> TaskBatch:
    """Let every image of a meta-batch pass the body once, normalised as in the whole model.

    Args:
        model: whose normalisation counts.
        compute: the body: maps images (tasks, images, …) to features (tasks, images, features).
        tasks: images.
        through_support: whether the meta-gradient goes through the support set's features, as in second order.

    Returns:
        The tasks, features in the place of images.
    """
    count = tasks.support_images.shape[1]
    both = torch.cat([tasks.support_images, tasks.query_images], 1) if _pass_together(model, through_support) else None
    if both is None:
        with torch.set_grad_enabled(through_support and torch.is_grad_enabled()):
            known = compute(tasks.support_images)
        asked = compute(tasks.query_images)
    elif uses_support_statistics(model):
        with support_statistics(count):
            known, asked = compute(both).tensor_split([count], 1)
    else:
        known, asked = compute(both).tensor_split([count], 1)
    known = known if through_support else known.detach()
    return TaskBatch(known, tasks.support_labels, asked, tasks.query_labels)


def _pass_together(model: nn.Module, through_support: bool) -> bool:
    """Say whether support and queries are one batch: not where each is normalised by itself, or one needs no graph."""
    return uses_support_statistics(model) or (through_support and not uses_batch_statistics(model))
