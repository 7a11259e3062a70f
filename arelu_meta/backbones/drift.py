"""What a layer gets and gives on real inputs: for a start that is fitted, and for what a start changes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from arelu_meta.backbones.inits import Moments, moments_of, out_of_place_copy
from arelu_meta.errors import InputError

_MOST_BATCHES = 16
_MOST_VALUES = 4096


class Collector(nn.Module):
    """The activation as it was, which sums up what it gets and gives.

    Args:
        original: copied; it is not changed.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.base = out_of_place_copy(original)
        self.moments: Moments | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the original."""
        y: Tensor = self.base(x)
        if y.shape == x.shape:
            new = moments_of(x, y)
            self.moments = new if self.moments is None else _sum(self.moments, new)
        return y


def batches_of(data: Tensor | Iterable[object] | None, model: nn.Module) -> list[Tensor]:
    """Take a few batches of images, on the model's device and of its dtype.

    Args:
        data: one batch, or some of them, each a tensor or a tuple that begins with one (its labels are not used).
        model: says where to.

    Raises:
        InputError: if there is nothing in it, or something else.
    """
    if data is None:
        return []
    parameter = next((item for item in model.parameters() if item.is_floating_point()), None)
    batches: list[Tensor] = []
    for item in [data] if isinstance(data, Tensor) else data:
        images = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(images, Tensor):
            raise InputError(f"data: expected batches of images, got {type(images).__name__}; give tensors")
        if parameter is not None and images.is_floating_point():
            images = images.to(parameter.device, parameter.dtype)
        batches.append(images)
        if len(batches) == _MOST_BATCHES:
            break
    if not batches:
        raise InputError("data: it holds no batch; give at least one")
    return batches


def run(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run a model in evaluation mode, without gradients; its modes are left as they were."""
    with _evaluating(model), torch.no_grad():
        for batch in batches:
            model(batch)


def outputs_of(model: nn.Module, batch: Tensor, modules: dict[nn.Module, str]) -> dict[str, Tensor]:
    """Run a model once and keep some values of each module's output, and of the model's own under "".

    Args:
        model: run in evaluation mode, without gradients; left as it was.
        batch: its input.
        modules: which ones, each with the name that its values get.
    """
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, _: object, output: object) -> None:
        name = modules.get(module)
        if name is not None and isinstance(output, Tensor):
            kept[name] = _some(output)

    handle = register_module_forward_hook(keep)
    try:
        with _evaluating(model), torch.no_grad():
            logits = model(batch)
    finally:
        handle.remove()
    if isinstance(logits, Tensor):
        kept[""] = _some(logits)
    return kept


def drift_between(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Say how far outputs have moved, relative to their size.

    Args:
        before: what `outputs_of` gave.
        after: the same of the changed model.

    Returns:
        By name, the norm of the difference divided by the norm of the output before; 0 is unchanged.
    """
    drift = {}
    for name, old in before.items():
        new = after.get(name)
        if new is not None and new.shape == old.shape:
            size = old.norm().item()
            moved = (new - old).norm().item()
            drift[name] = moved / size if size else (0.0 if moved == 0 else float("inf"))
    return drift


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Average the batch statistics anew, for what a start has changed upstream; no label is needed.

    Args:
        model: its running means and variances change, nothing else.
        batches: of images.

    Returns:
        How many layers were re-estimated.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    try:
        with _evaluating(model), torch.no_grad():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over all batches
                layer.train()
            for batch in batches:
                model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _some(output: Tensor) -> Tensor:
    flat = output.detach().flatten()
    return flat[:: max(flat.numel() // _MOST_VALUES, 1)].double().cpu()


def _sum(one: Moments, other: Moments) -> Moments:
    def add(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        return a[0] + b[0], a[1] + b[1]

    return Moments(add(one.positive, other.positive), add(one.negative, other.negative))
