"""Shapes found without torch are those that torch finds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arelu_meta.backbones.shapes import without_computing

SIZES = {"map": (2, 6, 9, 7), "tokens": (2, 5, 6), "row": (6,), "column": (6, 1, 1), "heads": (2, 3, 5, 4)}
CASES: list[tuple[Callable[..., Any], tuple[object, ...], dict[str, object]]] = [
    (F.conv2d, ("map", (8, 6, 3, 3)), {}),
    (F.conv2d, ("map", (8, 6, 3, 2), (8,), 2, (1, 0), (1, 2)), {}),
    (F.conv2d, ("map", (6, 1, 5, 5), None, (2, 1), 2, 1, 6), {}),
    (F.conv2d, ("map", (8, 3, 1, 1)), {"groups": 2, "padding": [1]}),
    (F.linear, ("tokens", (4, 6), (4,)), {}),
    (F.linear, ("map", (3, 7)), {}),
    (torch.matmul, ("heads", (2, 3, 4, 7)), {}),
    (Tensor.matmul, ("tokens", (6, 9)), {}),
    (F.scaled_dot_product_attention, ("heads", (2, 3, 7, 4), (2, 3, 7, 6)), {"attn_mask": (1, 3, 5, 7)}),
    (Tensor.mean, ("map", [2, 3]), {"keepdim": True}),
    (Tensor.mean, ("tokens",), {"dim": 1}),
    (torch.mean, ("map", -1, True), {}),
    (F.adaptive_avg_pool2d, ("map", 1), {}),
    (F.adaptive_avg_pool2d, ("map", (None, 3)), {}),
    (F.interpolate, ("map", (4, 20)), {"mode": "bilinear"}),
    (F.interpolate, ("map",), {"scale_factor": 2.0}),
    (F.interpolate, ("map",), {"scale_factor": (0.3, 1.7), "mode": "bicubic"}),
    (torch.cat, (["map", (2, 1, 9, 7), "map"], 1), {}),
    (torch.cat, (["tokens", "tokens"],), {"dim": -1}),
    (Tensor.__add__, ("map", "map"), {}),
    (Tensor.__mul__, ("map", "column"), {}),
    (Tensor.__radd__, ("tokens", 3), {}),
    (Tensor.__truediv__, ("row", "tokens"), {}),
    (torch.sub, ("tokens", 0.5), {}),
    (F.softmax, ("heads",), {"dim": -1}),
    (Tensor.softmax, ("heads", 2), {}),
    (F.dropout, ("map", 0.1, False), {}),
    (F.dropout, ("map", 0.1, True), {}),
    (F.normalize, ("tokens",), {"dim": -1}),
    (F.layer_norm, ("tokens", (6,)), {}),
    (torch.sigmoid, ("map",), {}),
    (Tensor.clamp, ("map", 0, 6), {}),
]
"""A function, what it is called with (a string or a size stands for a tensor), and what by name."""


def filled(value: object) -> object:
    if isinstance(value, str) and value in SIZES:
        return torch.randn(SIZES[value], device="meta")
    if isinstance(value, list) and isinstance(value[0], str):
        return [torch.randn(one, device="meta") if isinstance(one, tuple) else filled(one) for one in value]
    return value


def call_of(case: tuple[Callable[..., Any], tuple[object, ...], dict[str, object]]) -> tuple[Any, Any, Any]:
    function, args, kwargs = case
    takes_tensors = function in (F.conv2d, F.linear, torch.matmul, Tensor.matmul, F.scaled_dot_product_attention)
    made = [
        torch.randn(value, device="meta") if takes_tensors and at < 3 and isinstance(value, tuple) else filled(value)
        for at, value in enumerate(args)
    ]
    named = {
        name: torch.randn(value, device="meta") if name == "attn_mask" and isinstance(value, tuple) else value
        for name, value in kwargs.items()
    }
    return function, made, named


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}{case[1][1:]}")
def test_a_result_has_the_shape_dtype_and_layout_that_torch_gives_it(case: Any) -> None:
    function, args, kwargs = call_of(case)
    found, wanted = without_computing(function, args, kwargs), function(*args, **kwargs)
    assert found is not None
    assert (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.conv2d, ((2, 6, 9, 7), (8, 3, 3, 3))),
        (F.conv2d, ((2, 6, 2, 2), (8, 6, 3, 3))),
        (F.linear, ((2, 5), (4, 6))),
        (torch.matmul, ((2, 3), (4, 2))),
        (torch.add, ((2, 3), (2, 4))),
        (Tensor.__iadd__, ((1, 3), (2, 3))),
        (F.scaled_dot_product_attention, ((2, 5, 4), (2, 5, 4), (2, 6, 4))),
    ],
)
def test_what_torch_refuses_is_left_to_torch(function: Callable[..., Any], args: tuple[tuple[int, ...], ...]) -> None:
    tensors = tuple(torch.randn(size, device="meta") for size in args)
    assert without_computing(function, tensors, {}) is None
    with pytest.raises((RuntimeError, ValueError)):
        function(*tensors)


def test_tensors_with_data_integers_and_other_dtypes_are_left_to_torch() -> None:
    x = torch.randn(2, 3, device="meta")
    assert without_computing(torch.sigmoid, (torch.randn(2),), {}) is None
    assert without_computing(torch.sigmoid, (torch.ones(2, dtype=torch.long, device="meta"),), {}) is None
    assert without_computing(torch.add, (x, x.double()), {}) is None
    assert without_computing(Tensor.softmax, (x, -1, torch.float64), {}) is None


def test_channels_that_lie_last_stay_last_as_they_do_with_data() -> None:
    x, weight = torch.randn(2, 6, 9, 7).contiguous(memory_format=torch.channels_last), torch.randn(8, 6, 3, 3)
    empty = x.to("meta")
    wanted = [F.conv2d(x, weight), torch.sigmoid(x), torch.add(x, 1), torch.cat([x, x], 1)]
    found = [
        without_computing(F.conv2d, (empty, weight.to("meta")), {}),
        without_computing(torch.sigmoid, (empty,), {}),
        without_computing(torch.add, (empty, 1), {}),
        without_computing(torch.cat, ([empty, empty], 1), {}),
    ]
    assert [(one.shape, one.stride()) for one in found] == [(one.shape, one.stride()) for one in wanted]


def test_a_sequence_through_an_lstm_has_its_shapes() -> None:
    lstm = torch.nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True, device="meta")
    x = torch.randn(3, 7, 4, device="meta")
    states = (torch.zeros(4, 3, 5, device="meta"), torch.zeros(4, 3, 5, device="meta"))
    args = (x, states, lstm._flat_weights, True, 2, 0.0, False, True, True)
    found = without_computing(torch._VF.lstm, args, {})
    wanted, (hidden, cell) = lstm(x, states)
    assert [one.shape for one in found] == [wanted.shape, hidden.shape, cell.shape]
