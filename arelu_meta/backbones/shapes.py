"""What torch's functions give on tensors without data: a shape, found faster than torch finds it.

On the meta device most functions are torch's own decompositions in Python, a hundred times slower than the arithmetic
on a small map. Each rule here answers for the plain case only; for any other, wrong input too, it leaves the answer to
torch.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rule = Callable[..., Any]
_PLAIN = (Tensor, nn.Parameter)


def without_computing(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], keeps_shape: bool = False
) -> Any:
    """Say what a function of torch gives on the meta device, without calling it.

    Args:
        function: any.
        args: what it is called with; a rule looks only where the first is a floating-point tensor on the meta device.
        kwargs: the same, by name.
        keeps_shape: whether it is an activation, whose result has its input's shape.

    Returns:
        Tensors of the shape, dtype and memory format that torch would give; None where torch is to be asked.
    """
    rule = _rules().get(function, _same if keeps_shape else None)
    if rule is None or not args:
        return None
    first = args[0]
    if rule is not _cat and not _is_known(first):
        return None
    try:
        return rule(*args, **kwargs)
    except (TypeError, ValueError, IndexError, AttributeError):  # called in a way that no rule is written for
        return None


def _is_known(x: object) -> bool:
    return type(x) in _PLAIN and x.is_meta and x.is_floating_point()  # type: ignore[attr-defined]


def _same(x: Tensor, *_: object, **__: object) -> Tensor:
    return _like(x)


def _like(x: Tensor) -> Tensor:
    # There is nothing in it to share, and torch.empty_like takes five times as long.
    return x.detach() if x.is_contiguous() else torch.empty_like(x)


def _softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Tensor | None:
    return _like(x) if dtype is None and isinstance(dim, int) and -x.ndim <= dim < x.ndim else None


def _softmax_method(x: Tensor, dim: int, dtype: object = None) -> Tensor | None:
    return _softmax(x, dim, dtype=dtype)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _like(x) if training and not inplace else x


def _clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor | None:
    return _like(x) if not isinstance(min, Tensor) and not isinstance(max, Tensor) else None


def _elementwise(x: Tensor, other: object) -> Tensor | None:
    if type(other) in (int, float):
        return _like(x)
    if not isinstance(other, Tensor) or not _is_known(other) or other.dtype != x.dtype:
        return None
    if x.shape == other.shape or _broadcasts(other.shape, x.shape):
        return _like(x)
    return _like(other) if _broadcasts(x.shape, other.shape) else None


def _in_place(x: Tensor, other: object) -> Tensor | None:
    fits = type(other) in (int, float) or (
        isinstance(other, Tensor) and _is_known(other) and (x.shape == other.shape or _broadcasts(other.shape, x.shape))
    )
    return x if fits else None


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    gap = len(large) - len(small)
    return gap >= 0 and all(one in (1, full) for one, full in zip(small, large[gap:], strict=True))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if weight.ndim != 2 or input.ndim < 2 or input.shape[-1] != weight.shape[1] or input.dtype != weight.dtype:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return _empty(input, (*input.shape[:-1], weight.shape[0]))


def _matmul(x: Tensor, other: Tensor) -> Tensor | None:
    if x.ndim < 2 or other.ndim < 2 or x.shape[-1] != other.shape[-2] or x.dtype != other.dtype:
        return None
    if x.shape[:-2] != other.shape[:-2] and other.ndim > 2:
        return None
    return _empty(x, (*x.shape[:-1], other.shape[-1]))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor | None:
    fits = input.ndim == weight.ndim == 4 and input.shape[1] == weight.shape[1] * groups and input.dtype == weight.dtype
    if not fits or isinstance(padding, str) or weight.shape[0] % groups:
        return None
    size = [
        (length + 2 * pad - dilate * (kernel - 1) - 1) // step + 1
        for length, kernel, step, pad, dilate in zip(
            input.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True
        )
    ]
    if min(size) < 1:
        return None
    return _made(input, (input.shape[0], weight.shape[0], *size))


def _made(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Make a result whose channels lie last in memory where those of the input do."""
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return torch.empty(shape, dtype=like.dtype, device="meta", memory_format=torch.channels_last)
    return _empty(like, shape)


def _empty(like: Tensor, shape: Iterable[int]) -> Tensor:
    # On the meta device `like.new_empty(shape)` is one of torch's decompositions, too.
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return first, rest[0] if rest else first


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.dtype == key.dtype == value.dtype
    if not alike or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    if attn_mask is not None and not _broadcasts(attn_mask.shape, torch.Size((*query.shape[:-1], key.shape[-2]))):
        return None
    return _empty(query, (*query.shape[:-1], value.shape[-1]))


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    if dim is None:
        return None
    reduced = {one % x.ndim for one in ((dim,) if isinstance(dim, int) else dim) if -x.ndim <= one < x.ndim}
    if len(reduced) != (1 if isinstance(dim, int) else len(dim)):
        return None
    kept = [1 if at in reduced else length for at, length in enumerate(x.shape) if keepdim or at not in reduced]
    return _empty(x, kept)


def _adaptive_pool(input: Tensor, output_size: Any) -> Tensor | None:
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    if input.ndim != 4 or len(size) != 2:
        return None
    sides = (old if new is None else new for old, new in zip(input.shape[2:], size, strict=True))
    return _made(input, (*input.shape[:2], *sides))


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    if input.ndim != 4:
        return None
    if size is None:
        size = [math.floor(a * b) for a, b in zip(input.shape[2:], _floats(scale_factor), strict=True)]
    return _made(input, (*input.shape[:2], *_pair(size)))


def _floats(scale: Any) -> tuple[float, ...]:
    return (float(scale),) * 2 if isinstance(scale, int | float) else tuple(float(one) for one in scale)


def _cat(tensors: Any, dim: int = 0) -> Tensor | None:
    first = tensors[0]
    rest = tensors[1:]
    if not _is_known(first) or not -first.ndim <= dim < first.ndim:
        return None
    at = dim % first.ndim
    before, after = first.shape[:at], first.shape[at + 1 :]
    for one in rest:
        if not _is_known(one) or one.dtype != first.dtype or one.ndim != first.ndim:
            return None
        if one.shape[:at] != before or one.shape[at + 1 :] != after:
            return None
    alike = len({one.is_contiguous() for one in tensors}) == 1
    shape = (*before, sum(one.shape[at] for one in tensors), *after)
    return _made(first, shape) if alike else None


def _lstm(x: Tensor, states: Any, weights: Any, *_: object) -> tuple[Tensor, Tensor, Tensor] | None:
    """A sequence, not a packed one: `x` of shape (…, …, features), both states (layers * directions, batch, width)."""
    if not isinstance(states, tuple) or x.ndim != 3 or len(_) != 6:
        return None
    hidden, cell = states
    bidirectional = bool(_[4])
    result = _empty(x, (*x.shape[:2], hidden.shape[-1] * (1 + bidirectional)))
    return result, _like(hidden), _like(cell)


@functools.cache
def _rules() -> dict[Callable[..., Any], Rule]:
    method: Any = torch.Tensor
    rules: dict[Any, Rule] = dict.fromkeys(
        (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.hardsigmoid, F.normalize), _same
    )
    for name in ("exp", "neg", "sigmoid", "tanh", "sqrt", "rsqrt", "square", "abs"):
        rules |= dict.fromkeys((getattr(torch, name), getattr(method, name)), _same)
    for name in ("add", "mul", "sub", "div"):
        rules |= dict.fromkeys((getattr(torch, name), getattr(method, name)), _elementwise)
        rules[getattr(method, f"{name}_")] = _in_place
    for name in ("add", "mul", "sub", "truediv"):
        rules |= dict.fromkeys((getattr(method, f"__{name}__"), getattr(method, f"__r{name}__")), _elementwise)
        rules[getattr(method, f"__i{name}__")] = _in_place
    rules |= {F.softmax: _softmax, method.softmax: _softmax_method, torch.softmax: _softmax_method}
    rules |= dict.fromkeys((torch.matmul, method.matmul, method.__matmul__), _matmul)
    rules |= dict.fromkeys((torch.clamp, method.clamp), _clamp)
    rules |= dict.fromkeys((torch.mean, method.mean), _mean)
    rules |= {F.linear: _linear, F.conv2d: _conv2d, F.scaled_dot_product_attention: _attention, F.dropout: _dropout}
    rules |= {F.adaptive_avg_pool2d: _adaptive_pool, F.interpolate: _interpolate, torch.cat: _cat}
    rules[torch._VF.lstm] = _lstm
    return rules
