"""Where numbers stop being finite: the first layer whose weights or outputs are NaN or infinite."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def first_nonfinite_layer(model: nn.Module, images: Tensor) -> str | None:
    """Name the first layer that goes wrong on a batch; called once, when a run has diverged already.

    Args:
        model: run once more as it stands; in training mode its running statistics move.
        images: what it was given.

    Returns:
        As in `'blocks.0.act1' (AReLU)`, with what is wrong; None where every layer is finite.
    """
    found: list[str] = []
    if not images.isfinite().all():
        return "the images themselves"

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
        model(images)
    except RuntimeError:
        return None  # a model that cannot be run again has said enough
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
