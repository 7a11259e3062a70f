"""See, in one forward pass, how often each activation is called and which ones are called as functions."""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from arelu_meta.backbones.calls import call_site
from arelu_meta.backbones.roles import Slot, find_slots, is_activation, is_gate_type

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
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Call:
    """One call of an activation module.

    Args:
        place: in the code that calls it.
        caller: the path of the module that holds the activation, if its forward was running, else of the innermost
            one whose forward was.
        entry: which forward of the caller it was, counted over all modules.
    """

    place: str
    caller: str
    entry: int


@dataclass(frozen=True)
class FunctionCall:
    """One activation that was called as a function.

    Args:
        owner: the path of the module whose code calls it.
        function: its name.
        where: file and line.
    """

    owner: str
    function: str
    where: str


@dataclass
class Trace:
    """What one forward pass did.

    Args:
        calls: by the path of an activation module, its calls in order.
        functions: the activations called as functions, in order.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    functions: list[FunctionCall] = field(default_factory=list)


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
    # A model made for another size than its published one says so where it cuts the image into patches.
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(sides, tuple) and len(sides) == 2:
        size = (size[0], *sides)
    return torch.zeros(1, *_with_its_channels(model, size), dtype=parameter.dtype, device=parameter.device)


def _with_its_channels(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    # pretrained_cfg keeps the published channels; a model made with in_chans=1 has others in its first convolution.
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return size if first is None or first.groups > 1 or first.in_channels > 4 else (first.in_channels, *size[1:])


def trace_forward(model: nn.Module, example: Tensor | None = None) -> tuple[Trace, Trace] | None:
    """Run a model once in evaluation mode and see its activations' calls; once more in training where that differs.

    Without an example the forward pass runs on a copy without data (torch's meta device): it costs no arithmetic.

    Args:
        model: left as it was.
        example: an input; default: zeros of the size that the model says it takes.

    Returns:
        What evaluation did, and what training did; None if the forward pass fails or no example is known.
    """
    given, example = example is not None, example_input(model) if example is None else example
    if example is None:
        return None
    if not given:
        try:
            twin = _without_data(model)
            return _both_modes(twin, example.to("meta"))
        except Exception:  # it needs its values, or cannot be copied: a stranger's model may raise anything
            pass
    evaluation = _trace(model, example, training=False)
    if evaluation is None:
        return None
    training = None
    if _tells_training_apart(model):
        try:
            training = _trace(_without_data(model), example.to("meta"), training=True)
        except Exception:
            training = None
    return evaluation, training or evaluation


def functional_activations(
    model: nn.Module, example: Tensor, activation: Callable[[nn.Module], bool] = is_activation
) -> list[tuple[str, str]] | None:
    """List the activations that one forward pass calls outside any activation module.

    Args:
        model: run once in eval mode, without gradients; left as it was.
        example: its input.
        activation: tells activation modules, whose own calls do not count.

    Returns:
        The owner's path and the function's name for each call; None if the forward pass fails.
    """
    trace = _trace(model, example, training=False, activation=activation)
    return None if trace is None else [(call.owner, call.function) for call in trace.functions]


def _both_modes(twin: nn.Module, example: Tensor) -> tuple[Trace, Trace]:
    evaluation = _trace(twin, example, training=False)
    if evaluation is None:
        raise RuntimeError("the forward pass failed")
    training = None
    if _tells_training_apart(twin):
        # Two images: batch normalisation has no variance over one value a channel.
        training = _trace(twin, example.expand(2, *example.shape[1:]), training=True)
    return evaluation, training or evaluation


def _tells_training_apart(model: nn.Module) -> bool:
    """Say whether the code of a module that holds an activation reads `self.training`."""
    kinds = {type(slot.owner) for slot in find_slots(model)} | {type(model)}
    return any(
        "training" in function.__code__.co_names
        for kind in kinds
        if not kind.__module__.startswith("torch.")
        for function in vars(kind).values()
        if hasattr(function, "__code__")
    )


def _without_data(model: nn.Module) -> nn.Module:
    """Copy a model with tensors that have a shape and no values, and without the hooks that look at outputs."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    # A hook may belong to a stranger: on the copy it would report calls that never were.
    if type(model).__name__ != "FeatureHookNet":
        for module in model.modules():
            if module._forward_hooks:
                memo[id(module._forward_hooks)] = type(module._forward_hooks)()
    return copy.deepcopy(model, memo)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, activation: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.activation = activation
        self.stack: list[tuple[nn.Module, str, int]] = [(model, "", 0)]
        self.entries = 0
        self.inside = 0
        self.found = Trace()
        self.slots: dict[nn.Module, tuple[str, nn.Module]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside and func in _FUNCTIONS:
            self.found.functions.append(FunctionCall(self.stack[-1][1], _FUNCTIONS[func], _where()))
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, _: object) -> None:
        if module in self.slots and not self.inside:
            path, owner = self.slots[module]
            holders = [(where, entry) for running, where, entry in self.stack if running is owner]
            caller = holders[-1] if holders else self.stack[-1][1:]
            self.found.calls.setdefault(path, []).append(Call(call_site(2), *caller))
        elif not self.inside and self.activation(module) and not is_gate_type(module):
            # It is held outside the tree of modules, in a list or a closure, where no swap can reach it.
            self.found.functions.append(FunctionCall(self.stack[-1][1], type(module).__name__, _where()))
        self.entries += 1
        self.stack.append((module, self.paths.get(module, self.stack[-1][1]), self.entries))
        self.inside += self.activation(module)

    def leave(self, module: nn.Module, *_: object) -> None:
        self.stack.pop()
        self.inside -= self.activation(module)


def _where() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _trace(
    model: nn.Module, example: Tensor, training: bool, activation: Callable[[nn.Module], bool] = is_activation
) -> Trace | None:
    recorder = _Recorder(model, activation)
    try:
        with _in_mode(model, training), _untied(find_slots(model), recorder), torch.no_grad():
            handles = [
                register_module_forward_pre_hook(recorder.enter),
                register_module_forward_hook(recorder.leave, always_call=True),
            ]
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)  # it hides a transformer layer's activation
            try:
                with recorder:
                    model(example)
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                for handle in handles:
                    handle.remove()
    except Exception:  # whatever a stranger's forward pass raises on an input that it was not made for
        return None
    return recorder.found


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _untied(slots: Iterator[Slot], recorder: _Recorder) -> Iterator[None]:
    """Give each place a stand-in of its own for its activation, so that a shared one's calls can be told apart."""
    places: Sequence[Slot] = list({(id(slot.owner), slot.name): slot for slot in slots}.values())
    for slot in places:
        stand_in = copy.copy(slot.module)  # parameters, hooks and all: only its identity is new
        recorder.slots[stand_in] = (slot.path, slot.owner)
        recorder.paths[stand_in] = slot.path
        slot.owner._modules[slot.name] = stand_in
    try:
        yield
    finally:
        for slot in places:
            slot.owner._modules[slot.name] = slot.module
