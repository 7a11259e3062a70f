"""Run a copy of a model once: see how often each activation is called, and which ones are called as functions.

The copy stands on torch's meta device where that is enough: it has shapes and no values, and costs no arithmetic.
"""

import copy
import functools
import inspect
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from arelu_meta.backbones.activation_sites import find_sites, works_in_place

Example = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""A tensor, or several inputs by place or by name."""

MODULE_OF_FUNCTION = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "hardswish": "Hardswish",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanhshrink": "Tanhshrink",
    "hardshrink": "Hardshrink",
    "softshrink": "Softshrink",
    "threshold": "Threshold",
    "prelu": "PReLU",
    "rrelu": "RReLU",
}
"""The hidden activations that torch offers as functions, each with the class in torch.nn that computes the same."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_ANY_MODULE = vars(nn.Module()).keys()
_NO_READS = {"__get__", "dim", "size", "stride", "numel", "is_floating_point", "is_contiguous", "untyped_storage"}
_TORCH = str(Path(torch.__file__).parent) + os.sep  # not torchvision
_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm}
_LARGEST_SIZE = 1024


@dataclass(frozen=True)
class Call:
    """One call of an activation site.

    Args:
        place: file, line and position in the bytecode of the code that calls it.
        running: the modules whose forward was running, outermost first, each with the number of its forward.
    """

    place: str
    running: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class FunctionCall:
    """One activation that was called as a function.

    Args:
        owner: the path of the innermost module whose forward was running.
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
        calls: by the path of an activation site, its calls in order.
        functions: the activations called as functions, in order.
        read_again: the sites that work in place and whose input is read afterwards.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    functions: list[FunctionCall] = field(default_factory=list)
    read_again: set[str] = field(default_factory=set)


@dataclass
class Traces:
    """What a model does in its two modes.

    Args:
        evaluation: None if that forward pass failed.
        training: None if that forward pass failed.
        failure: why one of them failed, in a few words.
    """

    evaluation: Trace | None = None
    training: Trace | None = None
    failure: str = ""

    def both(self) -> list[Trace]:
        """List those that there are, evaluation first."""
        return [trace for trace in (self.evaluation, self.training) if trace is not None]


def trace_calls(model: nn.Module, example: Example) -> Traces:
    """Run a copy of a model once in evaluation mode and once in training mode, and see its activations' calls.

    Args:
        model: left as it was.
        example: an input, or several in a tuple or a dict.
    """
    found = Traces()
    copies: dict[bool, nn.Module] = {}
    for training in (False, True):
        for on_meta in (True, False):
            try:
                if on_meta not in copies:
                    copies[on_meta] = copy_for_forward(model, on_meta)
                inputs = _two_of(example) if training else example
                traced = _trace(copies[on_meta], without_data(inputs) if on_meta else inputs, training)
            except Exception as error:  # whatever a stranger's forward raises on an input that it was not made for
                found.failure = in_words(error)
                copies.pop(on_meta, None)
                continue
            if training:
                found.training = traced
            else:
                found.evaluation = traced
            break
        if found.evaluation is None:
            return found
    if found.training is not None:
        found.failure = ""
    return found


def functional_activations(model: nn.Module, example: Example) -> list[FunctionCall] | None:
    """List the activations that a model calls as functions in one forward pass in evaluation mode.

    Args:
        model: left as it was.
        example: its input.

    Returns:
        None if the forward pass fails.
    """
    trace = trace_calls(model, example).evaluation
    return None if trace is None else trace.functions


def copy_for_forward(model: nn.Module, on_meta: bool) -> nn.Module:
    """Copy a model for a look at its forward: what that changes, and what a user's hooks would see, stays away from it.

    Args:
        model: left as it was.
        on_meta: give the copy parameters and buffers without values; else it shares the model's parameters.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = _empty(parameter) if on_meta else parameter
        for name, value in vars(module).items():
            if name in _HOOKS and not all(map(_belongs_to_forward, value.values())):
                memo[id(value)] = OrderedDict()
            elif name == "_buffers" or name not in _OF_ANY_MODULE:
                for tensor in tree_leaves(value):
                    if isinstance(tensor, Tensor) and id(tensor) not in memo and (on_meta or not tensor.is_leaf):
                        memo[id(tensor)] = _empty(tensor) if on_meta else tensor.detach().clone()
    return copy.deepcopy(model, memo)


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put the states of Python's, numpy's and torch's random numbers back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Let torch's transformer layers call their activation, which their fast path computes by itself."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def example_input(model: nn.Module) -> Example | None:
    """Make an image of the size that a model says it takes: timm's `pretrained_cfg`, or Hugging Face's `config`.

    Args:
        model: any module.

    Returns:
        Random values of shape (1, channels, height, width), of the model's dtype, on its device, always the same; by
        the input's name for a model of Hugging Face; None if the model does not say.
    """
    parameter = next((item for item in model.parameters() if item.is_floating_point()), None)
    size, name = _timm_size(model), None
    if size is None:
        size, name = _hugging_face_size(model), getattr(model, "main_input_name", None)
    if size is None or parameter is None:
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        image = torch.rand(1, *size, generator=generator).to(parameter.dtype)
    image = image.to(parameter.device)
    return image if name is None else {name: image}


def call_with(model: nn.Module, example: Example) -> object:
    """Call a model with an example: a tuple's parts by place, a dict's by name, if those are its arguments' names.

    Args:
        model: any module.
        example: a tensor, or several inputs.
    """
    if isinstance(example, dict):
        try:
            inspect.signature(model.forward).bind(**example)
        except TypeError:
            return model(example)
        return model(**example)
    return model(example) if isinstance(example, Tensor) else model(*example)


def without_data(example: Example) -> Example:
    """Move an example to the meta device: its tensors' shapes and dtypes stay.

    Args:
        example: any.
    """
    moved: Example = tree_map_only(Tensor, lambda x: x.to("meta"), example)
    return moved


def in_words(error: Exception) -> str:
    """Tell an error in one line, by its class and the first line of its message.

    Args:
        error: any.
    """
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _timm_size(model: nn.Module) -> tuple[int, ...] | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    # A model made for another size than its published one says so where it cuts the image into patches.
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(sides, tuple) and len(sides) == 2:
        size = (size[0], *sides)
    # It keeps the published channels; a model made with in_chans=1 has others in its first convolution.
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    own = first is None or first.groups > 1 or first.in_channels > 4
    return tuple(size) if own or first is None else (first.in_channels, *size[1:])


def _hugging_face_size(model: nn.Module) -> tuple[int, ...] | None:
    config = getattr(model, "config", None)
    channels = getattr(config, "num_channels", None)
    if not isinstance(channels, int) or not isinstance(getattr(model, "main_input_name", None), str):
        return None
    side = getattr(config, "image_size", 224)
    sides = tuple(side) if isinstance(side, tuple | list) else (side, side)
    fits = len(sides) == 2 and all(isinstance(one, int) and 0 < one <= _LARGEST_SIZE for one in sides)
    return (channels, *sides) if fits else None


def _two_of(example: Example) -> Example:
    """Make one image two: batch normalisation has no variance over one value a channel."""
    tensors = [x for x in tree_leaves(example) if isinstance(x, Tensor)]
    if not tensors or any(x.ndim == 0 or len(x) != 1 for x in tensors):
        return example
    doubled: Example = tree_map_only(Tensor, lambda x: x.expand(2, *x.shape[1:]), example)
    return doubled


def _empty(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device="meta")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _belongs_to_forward(hook: Callable[..., Any]) -> bool:
    """Return True if a forward cannot do without a hook: timm collects features, torch normalises weights in them."""
    inner = getattr(hook, "func", hook)
    home = getattr(inner, "__module__", None) or type(inner).__module__
    return home.partition(".")[0] in ("torch", "timm", "arelu_meta")


def _trace(model: nn.Module, example: Example, training: bool) -> Trace:
    recorder = _Recorder(model.train(training))
    with torch.no_grad(), unchanged_random_state(), no_fast_path():
        try:
            with recorder:
                recorder.returned(call_with(model, example))
        finally:
            recorder.let_go()
    return recorder.found


class _Recorder(TorchFunctionMode):
    """Sees the modules and the functions that one forward calls.

    Args:
        model: a copy. Each site gets a stand-in of its own for its activation meanwhile, so that a shared module's
            calls can be told apart; it does not work in place, so that who reads its input again can be seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found = Trace()
        self.running: list[tuple[str, int]] = [("", 0)]
        self.forwards = 0
        self.inside = 0
        self.inputs: dict[int, tuple[str, object]] = {}
        self.in_place: set[str] = set()
        self.sites = {(id(site.owner), site.name): site for site in find_sites(model)}
        stand_ins: dict[nn.Module, str] = {}
        for site in self.sites.values():
            if works_in_place(site.module):
                self.in_place.add(site.path)
            stand_in = copy.copy(site.module)
            vars(stand_in).update({name: copy.copy(vars(stand_in)[name]) for name in _HOOKS})
            stand_in._modules = {name: _out_of_place(part) for name, part in site.module._modules.items()}
            stand_ins[_out_of_place(stand_in, copied=True)] = site.path
            site.owner._modules[site.name] = stand_in
        self.handles = []
        for path, module in model.named_modules():
            activation = module in stand_ins
            path = stand_ins.get(module, path)
            enter, leave = functools.partial(self.enter, path, activation), functools.partial(self.leave, activation)
            self.handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _activation_functions().get(func)
        # Over a parameter it makes a weight or a decay positive; it is no layer's activation.
        if name is not None and not self.inside and not (args and isinstance(args[0], nn.Parameter)):
            self.found.functions.append(FunctionCall(self.running[-1][0], name, _where()))
        if self.inputs and getattr(func, "__name__", "") not in _NO_READS:
            self.reads(args, kwargs)
        if (func in _NORMS or name is not None) and _works_out_of_place_on_meta(func, args, kwargs):
            return torch.empty_like(args[0])  # its own arithmetic on shapes takes milliseconds
        return func(*args, **kwargs)

    def reads(self, *values: object) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                path, _ = self.inputs.pop(_storage_of(value), ("", None))
                if path:
                    self.found.read_again.add(path)

    def returned(self, output: object) -> None:
        self.reads(output)

    def enter(self, path: str, activation: bool, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if activation and not self.inside:
            self.found.calls.setdefault(path, []).append(Call(_where(exactly=True), tuple(self.running)))
        self.forwards += 1
        self.running.append((path, self.forwards))
        self.inside += activation

    def leave(self, activation: bool, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        path, _ = self.running.pop()
        self.inside -= activation
        if path in self.in_place and not self.inside and inputs and isinstance(inputs[0], Tensor):
            storage = inputs[0].untyped_storage()  # kept, so that no other tensor gets its place in memory
            if not isinstance(output, Tensor) or _storage_of(output) != storage._cdata:
                self.inputs[storage._cdata] = path, storage

    def let_go(self) -> None:
        for handle in self.handles:
            handle.remove()
        for site in self.sites.values():
            site.owner._modules[site.name] = site.module


def _out_of_place(module: nn.Module | None, copied: bool = False) -> Any:
    if module is None:
        return None
    if not copied:
        module = copy.copy(module)
        module._modules = {name: _out_of_place(part) for name, part in module._modules.items()}
    if getattr(module, "inplace", False):
        module.inplace = False  # type: ignore[assignment]
    return module


def _works_out_of_place_on_meta(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta or func.__name__.endswith("_"):
        return False
    return func in _NORMS or not (kwargs.get("inplace") or any(one is True for one in args[1:]))


def _storage_of(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return 0


@functools.cache
def _activation_functions() -> Mapping[Callable[..., Any], str]:
    return {
        getattr(home, name): plain
        for home in (F, torch, torch.Tensor, torch._C._nn)
        for plain in MODULE_OF_FUNCTION
        for name in (plain, f"{plain}_")
        if callable(getattr(home, name, None))
    }


def _where(exactly: bool = False) -> str:
    """Name the file and the line of the code that made a call: the first that is neither torch's nor this file's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    if frame is None:
        return ""
    code = frame.f_code
    return (
        f"{code.co_filename}:{code.co_name}@{frame.f_lasti}"
        if exactly
        else f"{Path(code.co_filename).name}:{frame.f_lineno}"
    )
