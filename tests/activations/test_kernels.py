"""The fused operators: against a float64 reference on what hypothesis thinks of, and wherever autograd takes them.

`test_arelu.py` asks the same of the layers; here is what only a fused operator can get wrong.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba.core.ccallback import CFunc
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from arelu_meta.activations import kernels, kernels_cpu, kernels_torch
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.kernels_cpu import LOOPS
from arelu_meta.activations.kernels_torch import BASES
from arelu_meta.backbones.create import create_backbone

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
every_base = pytest.mark.parametrize("kind", BASES)
every_kernels = pytest.mark.parametrize("module", [kernels_cpu, kernels_torch], ids=["numba", "aten"])


def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value], dtype=dtype, requires_grad=True)


# The reference: the paper's formulas and their derivatives in float64, term by term, so that a test can say how large
# the terms of a sum were.


class Exact:
    """AReLU, or the gated residual over a base, of float64 values."""

    def __init__(
        self, x: Tensor, grad: Tensor, alpha: float, beta: float, t: float = 1.0, kind: str | None = None
    ) -> None:
        x, grad = x.detach().double(), grad.double()
        e = math.exp(-abs(beta))
        sigmoid, d_sigmoid = (1 if beta >= 0 else e) / (1 + e), e / (1 + e) ** 2
        slope = min(max(alpha, 0.01), 0.99)
        positive, terms = x >= 0, x * grad
        attention = torch.where(positive, sigmoid * x, slope * x)
        base, d_base = self._base(x, kind)
        self.y = base + t * attention
        self.x = grad * (d_base + t * torch.where(positive, sigmoid, torch.full_like(x, slope)))
        zero = torch.zeros_like(terms)
        inside = 0.01 - 1e-9 <= alpha <= 0.99 + 1e-7  # as float32 rounds the bounds
        self.alpha = t * inside * torch.where(positive, zero, terms)
        self.beta = t * d_sigmoid * torch.where(positive, terms, zero)
        self.t = grad * attention

    @staticmethod
    def _base(x: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        if kind is None:
            return torch.where(x >= 0, x, 0), (x >= 0).double()
        x = x.clone().requires_grad_()
        y = BASES[kind](x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def assert_near(actual: Tensor, exact: Tensor, roundings: float) -> None:
    """Every element is within so many roundings of its dtype, and one more of a subnormal."""
    info = torch.finfo(actual.dtype)
    bound = roundings * roundoff(actual.dtype) * exact.abs() + 1.001 * info.smallest_normal * info.eps
    error = (actual.detach().double() - exact).abs()
    assert (error <= bound).all(), f"off by {(error - bound).max()} beyond the bound"


def assert_sum_near(actual: Tensor | None, terms: Tensor, relative: float) -> None:
    """A sum is right relative to its terms' sizes, whatever cancelled."""
    assert actual is not None
    assert abs(actual.item() - terms.sum().item()) <= relative * terms.abs().sum().item() + 1e-30


# What hypothesis draws


EDGES = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 1e-45, -1e-45, 1e-40, -1e-40, 1e-30, -1e-30, 1e30, -1e30, 100.0, -100.0]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1) if x.dim() else x,
    "reversed": lambda x: x.permute(list(reversed(range(x.dim())))),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
    "expanded": lambda x: x[..., :1].expand(x.shape) if x.dim() else x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
}


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An input and an output's gradient of one shape, each laid out in its own way."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(torch.Size(shape).numel())
    value = st.one_of(st.sampled_from(EDGES), st.floats(-10, 10, width=32))
    values = torch.tensor(draw(st.lists(value, min_size=1, max_size=30)), dtype=torch.float64)
    if dtype == torch.float16:
        values = values.clamp(-2e4, 2e4)  # the largest slope, three at an open gate, stays below the largest float16
    x = values.repeat(size // len(values) + 1)[:size].reshape(shape).to(dtype)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    lay_out_x, lay_out_grad = (LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))] for _ in range(2))
    x = lay_out_x(x)
    grad = lay_out_grad(grad)
    return x, grad if grad.shape == x.shape else grad.reshape(x.shape)


alphas = st.one_of(st.sampled_from([0.01, 0.99, 0.9, -1.0, 2.0]), st.floats(0.01, 0.99))
betas = st.one_of(st.sampled_from([2.0, -6.0, 0.0, 40.0, -40.0]), st.floats(-8, 8))
gates = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-2, 2))
drawn = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_float
@drawn
@given(data=st.data(), alpha=alphas, beta=betas, inplace=st.booleans())
def test_arelu_is_the_float64_formula_for_any_shape_layout_and_value(
    data: st.DataObject, alpha: float, beta: float, inplace: bool, dtype: torch.dtype
) -> None:
    x, grad = data.draw(tensors(dtype))
    leaf, a, b = x.detach().requires_grad_(), scalar(alpha), scalar(beta)
    expected = Exact(x, grad, alpha, beta)
    y = kernels.arelu(leaf.clone() if inplace else leaf, a, b, inplace)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert_near(y, expected.y, roundings=3)
    to_x, to_a, to_b = torch.autograd.grad(y, (leaf, a, b), grad)
    assert_near(to_x, expected.x, roundings=3)
    # The input is recovered from a rounded output: each term is off by a rounding, or by a subnormal over the slope.
    slack = 1e-6 + 4 * roundoff(dtype)
    least = float(grad.double().abs().sum()) * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * 100
    assert abs(to_a.item() - expected.alpha.sum()) <= slack * expected.alpha.abs().sum() + least
    assert abs(to_b.item() - expected.beta.sum()) <= slack * expected.beta.abs().sum() + least


@every_float
@every_base
@settings(drawn, max_examples=25)
@given(data=st.data(), alpha=alphas, beta=betas, t=gates)
def test_the_gated_residual_is_the_float64_formula_for_any_shape_layout_and_value(
    data: st.DataObject, alpha: float, beta: float, t: float, kind: str, dtype: torch.dtype
) -> None:
    x, grad = data.draw(tensors(dtype))
    leaf, a, b, gate = x.detach().requires_grad_(), scalar(alpha), scalar(beta), scalar(t)
    expected = Exact(x, grad, alpha, beta, t, kind)
    y = kernels.gated_arelu(kind, leaf, None, a, b, gate)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    # Base and attention may cancel, so that their sizes count, and the smooth bases are good to float32's own size.
    size = (1 + abs(t)) * (x.detach().double().abs() + 1)
    assert ((y.detach().double() - expected.y).abs() <= 4 * roundoff(dtype) * size + 1e-7 * size).all()
    to_x, to_a, to_b, to_t = torch.autograd.grad(y, (leaf, a, b, gate), grad)
    size = (2 + abs(t)) * grad.double().abs()
    assert ((to_x.double() - expected.x).abs() <= 6 * roundoff(dtype) * size + 1e-6 * size).all()
    assert_sum_near(to_a, expected.alpha, 1e-6)
    assert_sum_near(to_b, expected.beta, 1e-6)
    assert_sum_near(to_t, expected.t, 1e-6)


# Accuracy


@every_kernels
@pytest.mark.parametrize("alpha", [0.9, 0.01])
def test_alphas_gradient_is_as_accurate_at_a_hundredth_as_at_nine_tenths(module: Any, alpha: float) -> None:
    x, grad = torch.randn(2_000_003), torch.randn(2_000_003)
    a, b = scalar(alpha, torch.float32), scalar(0.5, torch.float32)
    y = torch.empty_like(x)
    module.arelu_forward(x, y, a, b)
    _, to_a, to_b = module.arelu_backward(y, grad, a, b)
    expected = Exact(x, grad, a.item(), b.item())
    assert_sum_near(to_a, expected.alpha, 2e-8)
    assert_sum_near(to_b, expected.beta, 2e-7)


def test_a_sum_over_one_side_is_exactly_zero_where_that_side_is_empty() -> None:
    for sign, empty in ((1.0, 0), (-1.0, 1)):
        a, b = scalar(0.01, torch.float32), scalar(0.5, torch.float32)
        y = kernels.arelu(sign * torch.rand(10_000), a, b)
        y.backward(torch.randn(10_000))
        gradient = (a.grad, b.grad)[empty]
        assert gradient is not None
        assert gradient.item() == 0


@pytest.mark.parametrize("alpha", [0.01, 0.3])
@every_float
def test_a_product_that_underflows_keeps_its_side_in_the_sign_bit(dtype: torch.dtype, alpha: float) -> None:
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([-least, least, -0.0, 0.0], dtype=dtype, requires_grad=True)
    y = kernels.arelu(x, scalar(alpha), scalar(0.0))
    y.backward(torch.ones_like(y))
    assert y[0] == 0
    assert y.signbit().tolist() == [True, False, False, False]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([alpha, 1.5, 1.5, 1.5], dtype=dtype))


def test_sums_are_the_same_to_the_last_bit_for_any_number_of_threads() -> None:
    x, grad = torch.randn(500_000), torch.randn(500_000)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(kernels_cpu.gated_backward("silu", x, grad, scalar(0.3), scalar(1.0), scalar(0.7)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize("gap", [0, 1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loop", [name for name in LOOPS if "backward" in name])
def test_gradients_of_few_elements_do_not_depend_on_where_their_memory_lies(
    loop: str, dtype: torch.dtype, gap: int
) -> None:
    inputs, outputs = (3, 2) if loop == "arelu_double_backward" else (2, 1)
    slopes = (0.7, 0.4, 0.2, 0.3) if inputs == 3 else (0.7, 0.4)
    for elements in range(5, 50):
        values = torch.randn(inputs, elements).to(dtype)
        apart = list(values.unbind()), [torch.empty(elements, dtype=dtype) for _ in range(outputs)]
        rows = torch.empty(inputs + outputs, elements + gap, dtype=dtype)[:, :elements]  # one close behind the other
        rows[:inputs] = values
        close = list(rows[:inputs].unbind()), list(rows[inputs:].unbind())
        sums = [kernels_cpu._run(loop, tuple(given), tuple(out), slopes) for given, out in (apart, close)]
        assert sums[0] == sums[1]
        assert all(torch.equal(one, other) for one, other in zip(apart[1], close[1], strict=True))


def test_a_gradient_beyond_the_scalars_range_is_infinite() -> None:
    x = torch.full((4,), -3e38, requires_grad=True)
    a = scalar(0.5, torch.float32)
    kernels.arelu(x, a, scalar(0.0, torch.float32)).backward(torch.full((4,), 10.0))
    assert a.grad is not None
    assert a.grad.item() == -torch.inf


@every_base
def test_numba_and_torch_agree_on_every_gradient(kind: str) -> None:
    x, grad = 4 * torch.randn(10_000, dtype=torch.float64), torch.randn(10_000, dtype=torch.float64)
    scalars = [torch.tensor([value], dtype=torch.float64) for value in (0.3, -0.5, 0.7)]
    ours = kernels_cpu.gated_backward(kind, x, grad, *scalars)
    torch.testing.assert_close(ours, kernels_torch.gated_backward(kind, x, grad, *scalars))


@every_base
@every_float
def test_a_shut_gate_gives_the_base_to_the_last_bit(kind: str, dtype: torch.dtype) -> None:
    x = torch.cat([5 * torch.randn(1000), torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf])]).to(dtype)
    scalars = scalar(0.9), scalar(2.0), scalar(0.0)
    expected = BASES[kind](x)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    for y in (kernels.gated_arelu(kind, x, None, *scalars), kernels.gated_arelu("given", x, expected, *scalars)):
        assert torch.equal(y.view(bits), expected.view(bits))


def test_an_activated_tensor_is_left_as_it_was_and_gets_the_whole_gradient() -> None:
    x, activated = (torch.randn(50, requires_grad=True) for _ in range(2))
    before, grad = activated.detach().clone(), torch.randn(50)
    kernels.gated_arelu("given", x, activated, scalar(0.9), scalar(2.0), scalar(0.5)).backward(grad)
    assert torch.equal(activated, before)
    assert activated.grad is not None
    assert torch.equal(activated.grad, grad)


# Memory


@contextmanager
def recording() -> Iterator[list[int]]:
    """Note the addresses of what autograd keeps, scalars apart."""
    addresses: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1:
            addresses.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield addresses


def test_arelu_keeps_its_output_and_nothing_else() -> None:
    x = torch.randn(100, requires_grad=True)
    with recording() as kept:
        y = kernels.arelu(x, scalar(0.9), scalar(2.0))
    assert kept == [y.data_ptr()]


@pytest.mark.parametrize("values", [[1.0, -1.0, 0.0, -0.0, -2e-38], [1.0, -1e-40], [3e38]])
def test_the_input_is_kept_instead_only_where_a_product_leaves_the_normal_numbers(values: list[float]) -> None:
    x = torch.tensor(values, requires_grad=True)
    with recording() as kept:
        y = kernels.arelu(torch.cat([x, x]), scalar(0.9), scalar(2.0))
    assert (y.data_ptr() in kept) == (len(values) == 5)
    assert len(kept) == 1


@every_base
def test_the_gated_residual_keeps_its_input_and_nothing_else(kind: str) -> None:
    x = torch.randn(100, requires_grad=True)
    with recording() as kept:
        y = kernels.gated_arelu(kind, x, None, scalar(0.9), scalar(2.0), scalar(0.5))
    assert y.requires_grad
    assert kept == [x.data_ptr()]


# In place


@every_float
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other", "channels last"])
def test_in_place_overwrites_the_input_with_the_same_numbers_and_gradients(layout: str, dtype: torch.dtype) -> None:
    leaf = torch.randn(3, 4, 5, 6).to(dtype).requires_grad_()
    grad, results = None, []
    for inplace in (False, True):
        a, b = scalar(0.3), scalar(0.5)
        x = LAYOUTS[layout](leaf * 1)
        y = kernels.arelu(x, a, b, inplace)
        assert (y is x) == inplace
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        results.append([y.detach(), *torch.autograd.grad(y, (leaf, a, b), grad)])
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0], results[1])


def test_in_place_on_a_slice_changes_the_rest_of_the_tensor_by_nothing() -> None:
    x = torch.tensor([[-1.0, -2.0], [3.0, 4.0]])
    kernels.arelu(x[:, 0], scalar(0.5), scalar(0.0), inplace=True)
    assert x.tolist() == [[-0.5, -2.0], [4.5, 4.0]]


def test_in_place_between_layers_trains_as_out_of_place_does() -> None:
    """A batch norm before, which needs not its output, and a convolution after, which keeps the overwritten tensor."""
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(1)
        first, norm, last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        a, b = scalar(0.25, torch.float32), scalar(1.0, torch.float32)
        last(kernels.arelu(norm(first(torch.randn(2, 3, 9, 9))), a, b, inplace)).square().sum().backward()
        gradients.append([a.grad, b.grad, first.weight.grad, norm.weight.grad, last.weight.grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_in_place_on_what_an_earlier_layer_still_needs_is_an_error() -> None:
    x, weight = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    h = x * 1
    product = h * weight
    y = kernels.arelu(h, scalar(0.5), scalar(0.0), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (product.sum() + y.sum()).backward()


def test_in_place_is_noticed_where_nothing_learns_but_the_graph_before_it_does() -> None:
    x, weight = torch.randn(4), torch.randn(4, requires_grad=True)
    product = x * weight
    with torch.no_grad():
        kernels.arelu(x, scalar(0.5), scalar(0.0), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_an_output_that_is_overwritten_before_its_backward_is_an_error() -> None:
    y = kernels.arelu(torch.randn(4, requires_grad=True), scalar(0.5), scalar(0.0))
    z = y * 1
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_leaf_is_refused_in_place_and_left_as_it_was() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        kernels.arelu(x, scalar(0.5), scalar(0.0), inplace=True)
    assert x.tolist() == [-1.0, 2.0]


def test_in_place_works_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.tensor([-1.0, 2.0])
        y = kernels.arelu(x, scalar(0.5), scalar(0.0), inplace=True)
        assert y is x
        assert x.tolist() == [-0.5, 3.0]


def test_the_in_place_layer_overwrites_its_input_and_the_others_do_not() -> None:
    for module, overwrites in ((AReLU(inplace=True), True), (AReLU(), False), (GatedAReLU(nn.GELU(), t=0.5), False)):
        x = torch.randn(10, requires_grad=True) * 1
        before = x.detach().clone()
        y = module(x)
        assert (y is x) == overwrites
        assert torch.equal(x, before) != overwrites


def test_the_layers_are_one_operator_each() -> None:
    x = torch.randn(10, requires_grad=True)
    for module in (AReLU(), GatedAReLU(nn.GELU(), t=0.5)):
        y = module(x)  # torch 2.7 forgets a node with its output
        assert y.grad_fn is not None
        assert {type(parent).__name__ for parent, _ in y.grad_fn.next_functions if parent} == {"AccumulateGrad"}


# Second order


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other"])
@pytest.mark.parametrize("alpha", [0.3, 0.01, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_double_backward_is_what_autograd_makes_of_the_backward(
    dtype: torch.dtype, alpha: float, layout: str
) -> None:
    y, grad, to_x = (LAYOUTS[layout](torch.randn(40, 50).to(dtype)) for _ in range(3))
    to_scalars = torch.randn(1, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    inputs = [y.double().requires_grad_(), grad.double().requires_grad_(), scalar(alpha), scalar(-0.4)]
    first = kernels_torch.arelu_backward(inputs[0], inputs[1], inputs[2], inputs[3])
    expected = torch.autograd.grad(first, inputs, (to_x.double(), *to_scalars))
    with torch.no_grad():
        for module in (kernels_cpu, kernels_torch):
            dense = [kernels._dense(tensor) for tensor in (y, grad, to_x)]
            actual = module.arelu_double_backward(
                *(dense[0], dense[1], inputs[2], inputs[3], first[1:], (dense[2], *to_scalars))
            )
            assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float64, torch.float64]
            exact = tuple(tensor.double() for tensor in actual)
            torch.testing.assert_close(exact, expected, rtol=2 * roundoff(dtype) + 1e-6, atol=1e-4)


# Where the plain formula is called for


def seen_by(use: Callable[[Callable[[Tensor], Tensor]], object]) -> list[bool]:
    answers: list[bool] = []

    def ask(x: Tensor) -> Tensor:
        answers.append(kernels.applies(x))
        return x * 2

    use(ask)
    return answers


X = torch.randn(3)
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
    "vmap": lambda f: torch.func.vmap(f)(X),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,)),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
    "trace": lambda f: torch.jit.trace(f, X, check_trace=False),
    "make_fx": lambda f: make_fx(f)(X),
    "fake": lambda f: make_fx(f, tracing_mode="fake")(X),
}
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit")  # jvp imports what warns of itself


@deprecated
@pytest.mark.parametrize("use", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_and_tracers_get_the_plain_formula(use: Callable[[Callable[[Tensor], Tensor]], object]) -> None:
    assert set(seen_by(use)) == {False}


def test_dispatch_modes_get_the_plain_formula() -> None:
    with FlopCounterMode(display=False):
        assert not kernels.applies(X)
    assert kernels.applies(X)


@deprecated
def test_forward_mode_gets_the_plain_formula() -> None:
    with forward_ad.dual_level():
        assert not kernels.applies(forward_ad.make_dual(X, X))


class Marked(torch.Tensor):
    """A tensor subclass, which may mean anything by its operators."""


def test_subclasses_sparse_tensors_and_scalars_elsewhere_get_the_plain_formula() -> None:
    assert not kernels.applies(X.as_subclass(Marked))
    assert not kernels.applies(torch.eye(3).to_sparse())
    assert not kernels.applies(X, torch.zeros(1, device="meta"))
    assert kernels.applies(X, torch.zeros(1))
    assert kernels.applies(nn.Parameter(X))


def test_batched_gradients_differentiate_the_fused_operators() -> None:
    x, a, b = torch.randn(4, dtype=torch.float64, requires_grad=True), scalar(0.3), scalar(0.2)
    for y in (
        kernels.arelu(x, a, b),
        kernels.gated_arelu("silu", x, None, a, b, scalar(0.5)),
        kernels.gated_arelu("relu", x, None, a, b, scalar(0.5)),
    ):
        directions = torch.eye(4, dtype=torch.float64)
        batched = torch.autograd.grad(y, (x, a), directions, is_grads_batched=True, retain_graph=True)
        looped = [torch.autograd.grad(y, (x, a), row, retain_graph=True) for row in directions]
        for index in range(2):
            torch.testing.assert_close(batched[index], torch.stack([row[index] for row in looped]))


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Tanh(), "given"),
        (nn.Hardtanh(0.0, 6.0), "given"),
    ],
)
def test_a_base_is_known_by_its_class(base: nn.Module, kind: str) -> None:
    assert kernels.kernel_of(base) == kind


def test_a_subclass_or_a_hooked_base_has_no_kernel() -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert kernels.kernel_of(Doubled()) == "given"
    hooked = nn.ReLU()
    handle = hooked.register_forward_hook(lambda *_: None)
    assert kernels.kernel_of(hooked) == "given"
    handle.remove()
    assert kernels.kernel_of(hooked) == "relu"


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = "arelu_meta.activations.kernels_cpu"
    monkeypatch.setitem(sys.modules, name, None)
    kernels._module.cache_clear()
    yield
    kernels._module.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_torch_computes_the_same() -> None:
    x, grad = torch.randn(100), torch.randn(100)
    assert kernels._kernels_for(x) is kernels_torch
    leaf, a, b = x.clone().requires_grad_(), scalar(0.3), scalar(0.5)
    y = kernels.arelu(leaf, a, b)
    to_x, to_a, to_b = torch.autograd.grad(y, (leaf, a, b), grad)
    expected = Exact(x, grad, 0.3, 0.5)
    assert_near(y, expected.y, roundings=3)
    assert_near(to_x, expected.x, roundings=3)
    assert_sum_near(to_a, expected.alpha, 1e-6)
    assert_sum_near(to_b, expected.beta, 1e-6)


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_without_a_folder_to_cache_in_the_loops_are_compiled_all_the_same(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise error("no locator available")

    monkeypatch.setattr(CFunc, "enable_caching", refuse)
    kernels_cpu._compiled.cache_clear()
    y = kernels.arelu(torch.tensor([-2.0, 2.0]), scalar(0.5), scalar(0.0))
    assert y.tolist() == [-1.0, 3.0]


def test_numba_and_triton_wait_for_the_first_call() -> None:
    code = "import sys, arelu_meta.activations.arelu; assert not {'numba', 'triton'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_devices_and_dtypes_are_torchs_own() -> None:
    assert kernels._kernels_for(X.half()) is kernels_torch
    assert kernels._kernels_for(X.to("meta")) is kernels_torch
    assert kernels._kernels_for(X) is kernels_cpu


def test_the_meta_device_gives_shapes_forwards_and_backwards() -> None:
    x = torch.empty(2, 3, device="meta", requires_grad=True)
    scalars = [torch.empty(1, device="meta", requires_grad=True) for _ in range(3)]
    for y in (kernels.arelu(x, scalars[0], scalars[1]), kernels.gated_arelu("gelu", x, None, *scalars)):
        (to_x,) = torch.autograd.grad(y.sum(), x)
        assert (to_x.shape, to_x.device.type) == (x.shape, "meta")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("init", ["paper", "preserve"])
def test_an_exported_onnx_model_computes_what_the_swapped_model_does(init: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = create_backbone("mnist_conv", num_classes=5, activation="arelu", init=init).eval()  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            nn.init.constant_(module.t, 0.3)
    images, file = torch.randn(2, 3, 28, 28), str(tmp_path / "model.onnx")
    torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-4, atol=1e-4)


# CUDA's kernels, here in Triton's interpreter, and through Triton's compiler


TRITON = """
import torch
from arelu_meta.activations import kernels_torch as aten, kernels_cuda as ours

torch.manual_seed(0)

def near(actual, exact, roundings=4, of=None):
    # Where a slope is next to 0, as SiLU's at -1.28, its terms cancel, and each is rounded in the size of `of`.
    sizes = [values.abs().double().max() for values in (exact, of) if values is not None and values.numel()]
    scale = max(sizes, default=1.0)
    slack = (1e-5 if actual.dtype == torch.float64 else roundings * torch.finfo(actual.dtype).eps) * scale + 1e-5
    if actual.shape == (1,):
        slack += 1e-4  # sums of up to 2,500 terms of either sign, in float32
    assert (actual.double() - exact.double()).abs().le(slack).all(), (actual, exact)

for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for shape in ((3, 5, 7), (), (0, 3), (2500,)):
        x = (3 * torch.randn(shape)).to(dtype)
        grad = torch.randn(shape).to(dtype)
        for values in ((0.01, 0.5, 0.7), (-1.0, -40.0, 0.0)):
            alpha, beta, t = (torch.tensor([value]) for value in values)
            out, reference = torch.empty_like(x), torch.empty_like(x)
            ours.arelu_forward(x, out, alpha, beta)
            aten.arelu_forward(x, reference, alpha, beta)
            near(out, reference)
            pairs = zip(ours.arelu_backward(reference, grad, alpha, beta),
                        aten.arelu_backward(reference, grad, alpha, beta))
            for actual, exact in pairs:
                near(actual, exact)
            for kind in ("given", *aten.BASES):
                activated = torch.randn(shape).to(dtype) if kind == "given" else aten.BASES[kind](x)
                activated = None if kind in aten.EXACT else activated
                arguments = kind, x, activated, alpha, beta, t
                exact = aten.gated_forward(*arguments)
                actual = ours.gated_forward(*arguments, overwrite=dtype != torch.float16)
                near(actual, exact)
                if t == 0:
                    assert torch.equal(actual, exact), kind
                arguments = kind, x, grad, alpha, beta, t
                for actual, exact in zip(ours.gated_backward(*arguments), aten.gated_backward(*arguments)):
                    near(actual, exact, of=grad)

least = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
x = torch.tensor([-least, least, -0.0, 0.0], dtype=torch.float16)
out = torch.empty_like(x)
ours.arelu_forward(x, out, torch.tensor([0.25]), torch.tensor([0.0]))
assert out.signbit().tolist() == [True, False, False, False], out
to_x, _, _ = ours.arelu_backward(out, torch.ones_like(x), torch.tensor([0.25]), torch.tensor([0.0]))
assert to_x.tolist() == [0.25, 1.5, 1.5, 1.5], to_x

nan = torch.tensor([float("nan"), 1.0])
to_x, to_alpha, to_beta = ours.arelu_backward(nan, torch.ones_like(nan), torch.tensor([0.25]), torch.tensor([0.0]))
assert to_x.tolist() == [0.25, 1.5] and to_alpha.isnan() and abs(to_beta - 0.25 / 1.5) < 1e-6, (to_x, to_alpha, to_beta)
"""


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from arelu_meta.activations import kernels_cuda as ours

def compiles(kernel, **constants):
    types = {}
    for name in kernel.arg_names:
        if name in ("x_ptr", "other_ptr", "out_ptr", "v_ptr", "grad_ptr"):
            types[name] = "*bf16"
        elif name.endswith("_ptr"):
            types[name] = "*fp32"
        else:
            types[name] = {"size": "i64", "programs": "i32", "low": "fp32", "high": "fp32"}.get(name, "constexpr")
    constants |= {"wide": tl.float32, "block": 2048}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
    assert "atom" not in binary.asm["ptx"]  # sums in a fixed order

compiles(ours._arelu_forward)
for kind in range(8):
    compiles(ours._backward, kind=kind, tiles=8, word=tl.int16)
for kind in (0, 1):
    compiles(ours._finish, kind=kind)
for kind, in_place in ((0, False), (3, False), (6, True)):
    compiles(ours._gated_forward, kind=kind, in_place=in_place)
"""


@pytest.mark.parametrize("script", [TRITON, COMPILE], ids=["interpreter", "compiler"])
def test_tritons_kernels(script: str, tmp_path: Path) -> None:
    """They agree with torch's in Triton's interpreter, and they compile for a GPU, which takes none to try."""
    triton = pytest.importorskip("triton")
    if script == TRITON and triton.__version__.startswith("3.3."):
        pytest.skip("Triton 3.3's interpreter negates no booleans, and truncates what it should round to bfloat16")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    if script == TRITON:
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
