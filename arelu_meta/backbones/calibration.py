"""What a layer gets and gives: for a fit, for how far a swap moves outputs (`preserve`: not a bit), for statistics."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from arelu_meta.activations.arelu import ALPHA_INIT, ALPHA_MAX, ALPHA_MIN, BETA_INIT
from arelu_meta.backbones.call_tracing import (
    Example,
    call_with,
    copy_for_forward,
    in_words,
    no_fast_path,
    unchanged_random_state,
)
from arelu_meta.errors import InputError

BETA_LIMIT = 6.0
"""How far an initialization may push beta: beyond it, sigmoid's derivative (0.0025) hardly lets it come back."""

_MOST_BATCHES = 16
_MOST_VALUES = 4096


@dataclass(frozen=True)
class Moments:
    """What least squares needs of a layer's inputs x and outputs y, one pair of sums for each side of 0.

    Args:
        positive: sums of x * x and of x * y where `x >= 0`.
        negative: the same where `x < 0`.
    """

    positive: tuple[float, float]
    negative: tuple[float, float]

    def scalars(self) -> tuple[float, float]:
        """Solve for alpha and beta; a side that no input fell on gets the paper's.

        The two sides are two regressions through 0 with one slope each, so each has its solution in closed form;
        the nearest admissible slope is the best one, for the loss is a parabola in it.
        """
        (positive_xx, positive_xy), (negative_xx, negative_xy) = self.positive, self.negative
        alpha, beta = ALPHA_INIT, BETA_INIT
        if negative_xx > 0 and math.isfinite(negative_xy):
            alpha = min(max(negative_xy / negative_xx, ALPHA_MIN), ALPHA_MAX)
        if positive_xx > 0 and math.isfinite(positive_xy):
            limit = 1 / (1 + math.exp(-BETA_LIMIT))
            attention = min(max(positive_xy / positive_xx - 1, 1 - limit), limit)
            beta = math.log(attention / (1 - attention))
        return alpha, beta


def moments_of(x: Tensor, y: Tensor) -> Moments:
    """Sum up a layer's inputs and outputs for least squares.

    Args:
        x: inputs of any shape.
        y: outputs of the same shape.
    """
    wide, products = x.detach().double(), x.detach().double() * y.detach().double()
    above = x >= 0

    def sums(side: Tensor) -> tuple[float, float]:
        return float(wide[side].square().sum()), float(products[side].sum())

    return Moments(sums(above), sums(~above))


class Collector(nn.Module):
    """The activation as it was, which sums up what it gets and gives.

    Args:
        base: the activation; it leaves its input as it is.
        inplace: whether to overwrite the input, as what stood there did.
    """

    def __init__(self, base: nn.Module, inplace: bool = False) -> None:
        super().__init__()
        self.base = base
        self.inplace = inplace
        self.moments: Moments | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the original."""
        y: Tensor = self.base(x)
        if y.shape == x.shape:
            new = moments_of(x, y)
            self.moments = new if self.moments is None else _sum(self.moments, new)
        return x.copy_(y) if self.inplace else y


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
    """Tell how far outputs have moved, relative to their size.

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
    """Average the batch statistics anew, for what a swap has changed upstream; no label is needed.

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


@dataclass
class Outputs:
    """What a model gave before a swap.

    Args:
        model: a copy of it, which shares its parameters.
        example: what it was given.
        tensors: what it returned, in evaluation mode.
    """

    model: nn.Module
    example: Example
    tensors: list[Tensor]


def outputs_to_preserve(model: nn.Module, example: Example) -> Outputs | str:
    """Run a copy of a model in evaluation mode and keep what it returns.

    Args:
        model: left as it is.
        example: its input.

    Returns:
        The outputs; or why there are none, in a few words.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return "it is on the meta device and has no values"
    try:
        copied = copy_for_forward(model, on_meta=False).eval()
        return Outputs(copied, example, _run(copied, example))
    except Exception as error:  # a stranger's forward may raise anything
        return f"it cannot take the example ({in_words(error)})"


def check_preserved(model: nn.Module, before: Outputs) -> str:
    """Compare what a model gives after a swap with what it gave before.

    Args:
        model: after the swap; left as it is.
        before: its outputs before.

    Returns:
        Why that cannot be told, in a few words; "" if every bit is the same.

    Raises:
        InputError: if a bit has moved; it names the first layer whose output has.
    """
    swapped = copy_for_forward(model, on_meta=False).eval()
    if _are_equal(before.tensors, _run(swapped, before.example)):
        return "" if before.tensors else "it returns no tensor"
    if not _are_equal(before.tensors, _run(before.model, before.example)):
        return "it answers otherwise each time"
    first = _first_that_moved(before.model, swapped, before.example)
    raise InputError(
        f"init: 'preserve' would move the output of {first}; the model is as it was: exclude the activation there, "
        "or give init='paper', which keeps no output"
    )


def _run(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), unchanged_random_state(), no_fast_path():
        torch.manual_seed(0)
        return list(_tensors_in(call_with(model, example)))


def _tensors_in(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors_in(value)


def _are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(_is_equal, one, other))


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_bytes_of(one), _bytes_of(other))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _first_that_moved(before: nn.Module, after: nn.Module, example: Example) -> str:
    """Name the first layer, in the order of the calls, whose output is another."""
    outputs: list[list[tuple[str, int]]] = [[], []]
    paths = {path for path, module in before.named_modules() if not module._modules}
    paths &= {path for path, _ in after.named_modules()}
    for model, seen in zip((before, after), outputs, strict=True):
        for path, module in model.named_modules():
            if path in paths:
                module.register_forward_hook(_keeper(path, seen))
        _run(model, example)
    for (path, one), (_, other) in zip(*outputs, strict=False):
        if one != other:
            return repr(path)
    return "its last layers"


def _keeper(path: str, seen: list[tuple[str, int]]) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: object, output: object) -> None:
        seen.append((path, hash(tuple(bytes(_bytes_of(one).cpu().numpy()) for one in _tensors_in(output)))))

    return keep
