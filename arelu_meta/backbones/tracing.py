"""See, in one forward pass, which activations a model calls as functions instead of as modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_NAMES: tuple[str, ...] = (
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
)
_NAMES += ("softplus", "prelu", "rrelu", "relu_", "hardtanh_", "leaky_relu_", "elu_", "selu_", "celu_", "rrelu_")
_FUNCTIONS = {
    getattr(home, name): name
    for home in (F, torch, torch.Tensor)
    for name in _NAMES
    if callable(getattr(home, name, None))
}


def example_input(model: nn.Module) -> Tensor | None:
    """Make zeros of the size that a model says it takes.

    Args:
        model: a timm model, or any module with `pretrained_cfg` or `default_cfg`.

    Returns:
        Shape (1, channels, height, width), of the model's dtype, on its device; None if the model does not say.
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = (config or {}).get("input_size")
    parameter = next((item for item in model.parameters() if item.is_floating_point()), None)
    if size is None or parameter is None:
        return None
    return torch.zeros(1, *_with_its_channels(model, size), dtype=parameter.dtype, device=parameter.device)


def _with_its_channels(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    # pretrained_cfg keeps the published channels; a model made with in_chans=1 has others in its first convolution.
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return size if first is None or first.groups > 1 else (first.in_channels, *size[1:])


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.owners: list[str] = [""]
        self.inside = 0
        self.calls: list[tuple[str, str]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside and func in _FUNCTIONS:
            self.calls.append((self.owners[-1], _FUNCTIONS[func]))
        return func(*args, **(kwargs or {}))


def functional_activations(
    model: nn.Module, example: Tensor, is_activation: Callable[[nn.Module], bool]
) -> list[tuple[str, str]] | None:
    """List the activations that one forward pass calls outside any activation module.

    Args:
        model: run once in eval mode, without gradients; left as it was.
        example: its input.
        is_activation: tells activation modules, whose own calls do not count.

    Returns:
        The owner's path and the function's name for each call; None if the forward pass fails.
    """
    recorder = _Recorder()
    handles = []
    for path, module in model.named_modules():
        handles += _watch(recorder, path, module, is_activation(module))
    try:
        with _in_eval_mode(model), torch.no_grad(), recorder:
            model(example)
    except Exception:  # whatever a stranger's forward pass raises on an input that it was not made for
        return None
    finally:
        for handle in handles:
            handle.remove()
    return recorder.calls


def _watch(recorder: _Recorder, path: str, module: nn.Module, activation: bool) -> list[Any]:
    def enter(*_: object) -> None:
        recorder.owners.append(path)
        recorder.inside += activation

    def leave(*_: object) -> None:
        recorder.owners.pop()
        recorder.inside -= activation

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
