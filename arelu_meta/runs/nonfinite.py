"""Where numbers stop being finite: the first layer whose weights or outputs are NaN or infinite."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Watch what layers give while the model runs inside the block.

    Args:
        model: its layers are watched, also where `functional_call` gives them other weights.

    Yields:
        A list that takes the first layer that goes wrong, with what is wrong, as in
        `layer 'blocks.0.act1' (AReLU: its output overflows)`.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        if found or not isinstance(output, Tensor) or output.isfinite().all():
            return
        weights = [key for key, value in module.named_parameters(recurse=False) if not value.isfinite().all()]
        what = f"its {weights[0]} is not finite" if weights else "its output overflows"
        found.append(f"layer {name!r} ({type(module).__name__}: {what})")

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def first_nonfinite_layer(model: nn.Module, images: Tensor) -> str | None:
    """Name the first layer that goes wrong on a batch; called once, when a run has diverged already.

    Args:
        model: run once more as it stands; in training mode its running statistics move.
        images: what it was given.

    Returns:
        As `watching` names it; None where every layer is finite.
    """
    if not images.isfinite().all():
        return "the images themselves"
    with watching(model) as found, contextlib.suppress(RuntimeError):  # one that cannot run again has said enough
        model(images)
    return found[0] if found else None
