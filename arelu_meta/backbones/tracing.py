"""See, in one forward pass, how often each activation is called and which ones are called as functions."""

import copy
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
import torch.overrides
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from arelu_meta.backbones.calls import call_site
from arelu_meta.backbones.examples import Example, call_with, example_input, on_meta, two_of
from arelu_meta.backbones.functions import name_of
from arelu_meta.backbones.modes import tells_training_apart
from arelu_meta.backbones.roles import Slot, find_slots, is_activation, is_gate_type
from arelu_meta.backbones.shapes import without_computing
from arelu_meta.backbones.sources import nested_codes
from arelu_meta.backbones.walking import named_modules, tree_changed
from arelu_meta.backbones.without_data import without_data
from arelu_meta.backbones.written_out import Watch

__all__ = ["Call", "FunctionCall", "Seen", "Trace", "example_input", "functional_activations", "trace_forward"]

_TORCH = str(Path(torch.__file__).parent)
# Between a function and the code that calls it: what torch does for a mode that looks on.
_BETWEEN = (__file__, F.__file__, torch.overrides.__file__, torch._jit_internal.__file__)
_ASKS = {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")} | {Tensor.dim}


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
        seen: what the trace knows of it; None where a module was called that is held out of a swap's reach.
    """

    owner: str
    function: str
    where: str
    seen: "Seen | None" = field(default=None, compare=False)


@dataclass(frozen=True)
class Seen:
    """How an activation was called as a function.

    Args:
        function: which one.
        caller: the code that calls it.
        end: line and column where the call ends in the file.
        method: the name of the owner's method that the code is in; None if it is in no method of a module's class.
        on_parameter: whether it was applied to a parameter.
    """

    function: Callable[..., Any]
    caller: CodeType
    end: tuple[int, int]
    method: str | None
    on_parameter: bool


@dataclass
class Trace:
    """What one forward pass did.

    Args:
        calls: by the path of an activation module, its calls in order.
        functions: the activations called as functions, in order.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    functions: list[FunctionCall] = field(default_factory=list)


def trace_forward(model: nn.Module, example: Example | None = None) -> tuple[Trace, Trace] | None:
    """Run a model once in evaluation mode and see its activations' calls; once more in training where that differs.

    Without an example the forward pass runs on a copy without data (torch's meta device): it costs no arithmetic.

    Args:
        model: left as it was.
        example: an input, or several in a tuple or a dict; default: zeros of the size that the model says it takes.

    Returns:
        What evaluation did, and what training did; None if the forward pass fails or no example is known.
    """
    given, example = example is not None, example_input(model) if example is None else example
    if example is None:
        return None
    if not given:
        try:
            with without_data(model):
                return _both_modes(model, on_meta(example))
        except Exception:  # it needs its values: a stranger's model may raise anything
            pass
    evaluation = _trace(model, example, training=False)
    tree_changed(model)  # a forward with data may make modules
    if evaluation is None:
        return None
    training = None
    if tells_training_apart(model):
        try:
            with without_data(model):
                training = _trace(model, two_of(on_meta(example)), training=True)
            if training is None:  # it may need its values
                with torch.random.fork_rng(devices=_cuda_devices(model)):
                    training = _trace(copy.deepcopy(model), two_of(example), training=True)
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


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({parameter.get_device() for parameter in model.parameters() if parameter.is_cuda})


def _both_modes(model: nn.Module, example: Example) -> tuple[Trace, Trace]:
    evaluation = _trace(model, example, training=False)
    if evaluation is None:
        raise RuntimeError("the forward pass failed")
    training = None
    if tells_training_apart(model):
        training = _trace(model, two_of(example), training=True)
    return evaluation, training or evaluation


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, activation: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.paths = {module: path for path, module in named_modules(model)}
        self.activation = activation
        self.stack: list[tuple[nn.Module, str, int, bool]] = [(model, "", 0, False)]
        self.entries = 0
        self.inside = 0
        self.watch = Watch()
        self.found = Trace()
        self.slots: dict[nn.Module, tuple[str, nn.Module]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ASKS:
            return func(*args)
        name, kwargs = name_of(func), kwargs or {}
        if name is not None and not self.inside:
            self.found.functions.append(self._function_call(func, name, args))
        if name is not None and args and args[0].is_meta and _works_in_place(name, args, kwargs):
            result = args[0]
        else:
            result = without_computing(func, args, kwargs, keeps_shape=name is not None)
        if result is None:
            result = func(*args, **kwargs)
        written = self.watch.sees(func, args, kwargs, result)
        if written is not None and not self.inside:
            self.found.functions.append(FunctionCall(self.stack[-1][1], written, _where()))
        return result

    def _function_call(self, function: Callable[..., Any], name: str, args: tuple[Any, ...]) -> FunctionCall:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename in _BETWEEN:
            frame = frame.f_back
        owner, method = self._method_around(frame)
        on_parameter = bool(args) and isinstance(args[0], nn.Parameter)
        seen = Seen(function, frame.f_code, _end(frame), method, on_parameter)
        return FunctionCall(self.stack[-1][1] if owner is None else owner, name, _where(), seen)

    def _method_around(self, frame: FrameType) -> tuple[str | None, str | None]:
        """Find the module in one of whose methods a frame's code is, or the function or comprehension in one."""
        outer: FrameType | None = frame
        while outer is not None:
            code = outer.f_code
            if outer is frame or frame.f_code in nested_codes(code):
                module = outer.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if isinstance(module, nn.Module) and module in self.paths:
                    method = method_name(module, code)
                    if method is not None:
                        return self.paths[module], method
            outer = outer.f_back
        return None, None

    def enter(self, module: nn.Module, _: object) -> None:
        activation = self.activation(module)
        if module in self.slots and not self.inside:
            path, owner = self.slots[module]
            holders = [(where, entry) for running, where, entry, _ in self.stack if running is owner]
            caller = holders[-1] if holders else self.stack[-1][1:3]
            self.found.calls.setdefault(path, []).append(Call(call_site(2), *caller))
        elif activation and not self.inside and not is_gate_type(module):
            # It is held outside the tree of modules, in a list or a closure, where no swap can reach it.
            self.found.functions.append(FunctionCall(self.stack[-1][1], type(module).__name__, _where()))
        self.entries += 1
        self.stack.append((module, self.paths.get(module, self.stack[-1][1]), self.entries, activation))
        self.inside += activation

    def leave(self, module: nn.Module, *_: object) -> None:
        self.inside -= self.stack.pop()[3]


def _works_in_place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return name.endswith("_") or kwargs.get("inplace") is True or any(one is True for one in args[1:])


def method_name(module: nn.Module, code: CodeType) -> str | None:
    """Say under which name a module's class holds the method that runs a code.

    Args:
        module: any module.
        code: of a function.

    Returns:
        None if it is no plain method of the class, or one that another of that name hides.
    """
    for base in type(module).__mro__:
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and method.__code__ is code:
                hidden = name in vars(module) or inspect.getattr_static(type(module), name) is not method
                return None if hidden else name
    return None


def _end(frame: FrameType) -> tuple[int, int]:
    position = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return position[1] or 0, position[3] or 0


def _where() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _trace(
    model: nn.Module, example: Example, training: bool, activation: Callable[[nn.Module], bool] = is_activation
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
                    call_with(model, example)
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                for handle in handles:
                    handle.remove()
    except Exception:  # whatever a stranger's forward pass raises on an input that it was not made for
        return None
    return recorder.found


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for _, module in named_modules(model)]
    if any(mode != training for _, mode in modes):
        model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
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
