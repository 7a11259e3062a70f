"""AReLU and its gated residual as single operators, forward and backward, and the choice of who computes them.

AReLU is invertible, since both its slopes are positive, so its backward needs only the output, which the next layer
keeps anyway; and it may run in place. Where a finite product leaves the range of normal numbers, the output hides its
input. On a CPU and out of place the input is then kept instead; the kernel's one pass over memory notices, which costs
nothing. On CUDA the host would have to wait for the answer, and in place the input is gone: there alpha's and beta's
gradients take such an output as it is, infinite or without the digits it lost. A nan counts as negative everywhere.
The gated residual is not invertible and keeps its input, as GELU does.

numba computes on a CPU (float32, float64, bfloat16), Triton on CUDA, torch's own operators everywhere else and wherever
one of the two is missing. Where the backward is itself differentiated, torch's operators compute it. `applies` says
where none of this holds: under a tracer, a compiler or a function transform, which want to see the plain formula.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from arelu_meta.activations import kernels_torch

_SERVED_BY_NUMBA = (torch.float32, torch.float64, torch.bfloat16)
_KERNELS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}


def applies(x: Tensor, *scalars: Tensor) -> bool:
    """Return True if the fused operators may be used here.

    Args:
        x: the activation's input.
        scalars: alpha, beta and, for the gated residual, t.

    Returns:
        False under torch.compile, torch.export, tracing (both ONNX exporters do one of the three), torch.func's
        transforms, forward-mode differentiation and dispatch modes, and for tensor subclasses, sparse and batched
        tensors and scalars that lie on another device: there the plain formula is right.
    """
    return (
        # First of all, since Dynamo reads this function, too, and stops here.
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and x.layout == torch.strided
        # A batch of gradients (`is_grads_batched`) is an ordinary tensor to look at, but has no memory of its own.
        and torch._C._has_storage(x)
        and all(scalar.device == x.device for scalar in scalars)
    )


def kernel_of(base: nn.Module) -> str:
    """Name the kernel that computes a gated residual over `base`.

    Args:
        base: an activation module.

    Returns:
        A key of `kernels_torch.BASES`, or "given" where there is none: another class (a subclass may compute something
        else), or hooks on the module, which expect to be called.
    """
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "given"
    if type(base) is nn.GELU:
        return "gelu" if base.approximate == "none" else "gelu_tanh"
    return _KERNELS.get(type(base), "given")


def arelu(x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool = False) -> Tensor:
    """Compute AReLU as one operator that keeps its output and nothing else.

    Args:
        x: any shape, any floating dtype, for which `applies` holds.
        alpha: one element.
        beta: one element.
        inplace: whether to overwrite x, as `torch.relu_` does and within the same limits.

    Returns:
        Shape and dtype of x; x itself if in place.

    Raises:
        RuntimeError: if a leaf that requires a gradient would be overwritten.

    Source: Chen et al. 2020, equations 3 to 5; the inverse is this project's.
    """
    if torch.is_grad_enabled() and (x.requires_grad or alpha.requires_grad or beta.requires_grad):
        if inplace and x.requires_grad and x.is_leaf:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
        y: Tensor = _AReLU.apply(x, alpha, beta, inplace)
        return y
    y, _ = _arelu_forward(x, alpha, beta, inplace)
    if inplace and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return y


def gated_arelu(kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor) -> Tensor:
    """Compute `base(x) + t * elsa(x)` as one operator that keeps its input and nothing else.

    Args:
        kind: what `kernel_of` said of the base.
        x: any shape, any floating dtype, for which `applies` holds.
        activated: the base's output, of x's shape and dtype, if the kind is "given"; else None.
        alpha: one element.
        beta: one element.
        t: one element, the gate.

    Returns:
        Shape and dtype of x; at `t = 0` the base's output, bit for bit.
    """
    if torch.is_grad_enabled():
        y: Tensor = _GatedAReLU.apply(kind, x, activated, alpha, beta, t)
        return y
    return _gated_forward(kind, x, activated, alpha, beta, t)


@cache
def _module(name: str) -> Any:
    # Imported at the first use: numba takes 0.3 s, Triton more, and who trains on the one never needs the other.
    try:
        return importlib.import_module(f"arelu_meta.activations.{name}")
    except ImportError:
        return kernels_torch


def _kernels_for(x: Tensor) -> Any:
    if x.is_cpu and x.dtype in _SERVED_BY_NUMBA:
        return _module("kernels_cpu")
    if x.is_cuda:
        return _module("kernels_cuda")
    return kernels_torch


def _dense(x: Tensor) -> Tensor:
    """Return x, or a copy that fills its memory without gaps, in x's order of dimensions."""
    if x.is_neg():
        x = x.resolve_neg()
    if x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x):
        return x
    return torch.empty_like(x).copy_(x)


def _laid_out_like(x: Tensor, model: Tensor) -> Tensor:
    """Return x, or a copy, whose elements lie in memory in the same order as those of the dense `model`."""
    same = x.stride() == model.stride() or (x.is_contiguous() and model.is_contiguous())
    return x if same and not x.is_neg() else torch.empty_like(model).copy_(x)


def _arelu_forward(x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool) -> tuple[Tensor, bool]:
    source = _dense(x)
    out = source if inplace or source is not x else torch.empty_like(x)
    shows_input = _kernels_for(x).arelu_forward(source, out, alpha, beta)
    return x.copy_(out) if inplace and out is not x else out, shows_input


def _arelu_backward(
    kept: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, keeps_input: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _dense(kept)
    gradients: tuple[Tensor, Tensor, Tensor] = _kernels_for(kept).arelu_backward(
        kept, _laid_out_like(grad, kept), alpha, beta, keeps_input
    )
    return gradients


def _arelu_double_backward(
    inputs: list[Tensor], first: tuple[Tensor, Tensor], to_first: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, grad, alpha, beta = inputs
    to_x, to_alpha, to_beta = to_first
    # Torch's own where this is differentiated in turn, as in `_GatedAReLU`, or vmap batches any of the three.
    fused = not torch.is_grad_enabled() and applies(to_x) and all(map(torch._C._has_storage, to_first))
    kernels = _kernels_for(y) if fused else kernels_torch
    if kernels is not kernels_torch:
        y = _dense(y)
        grad, to_x = _laid_out_like(grad, y), _laid_out_like(to_x, y)
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = kernels.arelu_double_backward(
        y, grad, alpha, beta, first, (to_x, to_alpha, to_beta)
    )
    return gradients


def _gated_forward(kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor) -> Tensor:
    source, is_ours = _dense(x), activated is None
    if is_ours and kind not in kernels_torch.EXACT:
        # Of x as it lies in memory, whose gaps change the last bits of torch's own functions.
        activated = kernels_torch.BASES[kind](x)
    if activated is not None:
        activated = _laid_out_like(activated, source)
    y: Tensor = _kernels_for(x).gated_forward(kind, source, activated, alpha, beta, t, is_ours)
    return y


class _AReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool) -> Tensor:
        y, shows_input = _arelu_forward(x, alpha, beta, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.keeps_input = not (shows_input or inplace)
        ctx.save_for_backward(x if ctx.keeps_input else y, alpha, beta)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, alpha, beta = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if not applies(grad) or (again and ctx.keeps_input):
            return *kernels_torch.arelu_backward(kept, grad, alpha, beta, ctx.keeps_input), None
        if again:
            return *_AReLUBackward.apply(kept, grad, alpha, beta), None
        return *_arelu_backward(kept, grad, alpha, beta, ctx.keeps_input), None


class _AReLUBackward(torch.autograd.Function):
    """AReLU's backward as an operator of its own, where it is differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_alpha, grad_beta = _arelu_backward(y, grad, alpha, beta)
        ctx.save_for_backward(y, grad, alpha, beta, grad_alpha, grad_beta)
        return grad_x, grad_alpha, grad_beta

    @staticmethod
    def backward(ctx: Any, *to_first: Tensor) -> tuple[Tensor | None, ...]:
        # These depend on each other, so nothing here may ask autograd: it would give total derivatives.
        *inputs, grad_alpha, grad_beta = ctx.saved_tensors
        return _arelu_double_backward(inputs, (grad_alpha, grad_beta), to_first)


class _GatedAReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor
    ) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(x, alpha, beta, t)
        return _gated_forward(kind, x, activated, alpha, beta, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta, t = ctx.saved_tensors
        # Torch's own operators where the gradient is differentiated in turn, or traced, or batched by vmap.
        kernels = kernels_torch if torch.is_grad_enabled() or not applies(grad) else _kernels_for(x)
        to_activated = grad if ctx.kind == "given" else None
        if kernels is not kernels_torch:
            x = _dense(x)
            grad = _laid_out_like(grad, x)
        grad_x, *to_scalars = kernels.gated_backward(ctx.kind, x, grad, alpha, beta, t)
        return None, grad_x, to_activated, *to_scalars
