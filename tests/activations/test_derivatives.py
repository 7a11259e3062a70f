"""Derivatives: those of the paper's formula in float64, to any order and by every way that torch takes to one.

The formula is written in torch's operators here once more, and autograd differentiates it. The orders are checked to
the fourth, with every mixed derivative of x, alpha, beta and t weighed into what is differentiated next.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, jacfwd, jacrev, jvp, vmap

from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu, elsa, gated_arelu

Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of x, alpha, beta and t; AReLU and ELSA leave out t."""

BASES: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "hard_swish": nn.Hardswish(),
    "tanh": nn.Tanh(),  # has no kernel
    "softplus": nn.Softplus(),
}


def formula(x: Tensor, alpha: Tensor, beta: Tensor, t: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
    """`base(x) + t * elsa(x)`; alpha's gradient is 1 from 0.01 to 0.99, both included, and 0 beyond."""
    outside = (alpha < 0.01) | (alpha > 0.99)
    slope = torch.where(outside, alpha.detach().clamp(0.01, 0.99), alpha)
    return base(x) + t * torch.where(x >= 0, torch.sigmoid(beta), slope) * x


def at_one(base: Callable[[Tensor], Tensor]) -> Function:
    return lambda x, alpha, beta, t: formula(x, alpha, beta, torch.ones_like(t), base)


def layer(module: nn.Module, *names: str) -> Function:
    def call(x: Tensor, *scalars: Tensor) -> Tensor:
        # A copy, since the layer may work in place.
        y: Tensor = functional_call(module, dict(zip(names, scalars, strict=False)), (x * 1,))
        return y

    return call


# What is right beside what it is right for.
PAIRS: dict[str, tuple[Function, Function]] = {
    "arelu": (lambda x, alpha, beta, t: arelu(x, alpha, beta), at_one(torch.relu)),
    "in place": (layer(AReLU(inplace=True), "alpha", "beta"), at_one(torch.relu)),
    "elsa": (lambda x, alpha, beta, t: elsa(x, alpha, beta), at_one(torch.zeros_like)),
    "activated": (
        lambda x, alpha, beta, t: gated_arelu(x, torch.sin(x), alpha, beta, t),
        partial(formula, base=torch.sin),
    ),
    **{
        f"over {name}": (layer(GatedAReLU(base), "alpha", "beta", "t"), partial(formula, base=base))
        for name, base in BASES.items()
    },
}
every_pair = pytest.mark.parametrize(("ours", "exact"), PAIRS.values(), ids=PAIRS)

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "strided": lambda x: x.flatten()[::3],
    "0-d": lambda x: x[0, 0, 0, 1],
    "empty": lambda x: x[:0],
}


def inputs(alpha: float = 0.4, t: float = 0.7, shape: Sequence[int] = (12,)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leaves away from the kinks at 0 and 6, on either side of them, and of -3 and 3."""
    x = (
        torch.rand(*shape, dtype=torch.float64) * 1.8
        + torch.tensor([0.1, -2.0], dtype=torch.float64)[torch.randint(2, tuple(shape))]
    )
    x = torch.where(torch.rand(*shape) < 0.2, 3.5 * x, x)
    scalars = (torch.tensor([value], dtype=torch.float64) for value in (alpha, -0.7, t))
    leaves = (x.requires_grad_(), *(scalar.requires_grad_() for scalar in scalars))
    return leaves  # type: ignore[return-value]


def orders(function: Function, leaves: Sequence[Tensor], highest: int, create_graph: bool = True) -> list[Tensor]:
    """The gradients of a cubic of the output, the gradients of a weighted sum of these, and so on."""
    x, alpha, beta, t = leaves
    total = function(x, alpha, beta, t).pow(3).sum()
    weights, found = torch.Generator().manual_seed(7), []
    for order in range(1, highest + 1):
        again = create_graph or order < highest
        gradients = torch.autograd.grad(total, leaves, create_graph=again, materialize_grads=True)
        found += [gradient.detach() for gradient in gradients]
        total = sum(
            (
                (torch.rand(one.shape, generator=weights, dtype=torch.float64).to(one.dtype) * one).sum()
                for one in gradients
            ),
            start=torch.zeros((), dtype=total.dtype),
        )
    return found


# Orders


@every_pair
@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize(("alpha", "t"), [(0.4, 0.7), (0.01, 0.0), (0.99, 1.0), (-1.0, 0.7), (2.0, -0.3)])
def test_every_derivative_to_the_fourth_order_is_the_formulas(
    ours: Function, exact: Function, alpha: float, t: float, create_graph: bool
) -> None:
    leaves = inputs(alpha, t)
    found, expected = (orders(function, leaves, 4, create_graph) for function in (ours, exact))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["arelu", "in place", "elsa", "activated", "over relu6", "over gelu", "over tanh"])
def test_derivatives_to_the_third_order_are_the_formulas_for_every_layout(
    name: str, layout: Callable[[Tensor], Tensor]
) -> None:
    leaves = inputs(shape=(2, 4, 3, 5))
    found, expected = (
        orders(lambda x, *scalars, function=function: function(layout(x), *scalars), leaves, 3)
        for function in PAIRS[name]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_second_derivatives_in_lower_precision_are_near_the_formulas(
    ours: Function, exact: Function, dtype: torch.dtype
) -> None:
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in inputs()]
    found = orders(ours, leaves, 2)
    assert {one.dtype for one in found} == {dtype}
    weights = [leaf.detach().double().requires_grad_() for leaf in leaves]
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    for one, right in zip(found, orders(exact, weights, 2), strict=True):
        size = 1 + right.abs().max().item()
        torch.testing.assert_close(one.double(), right, rtol=0, atol=3 * tolerance * size)


def test_a_penalty_on_the_gradient_trains_a_network_as_the_formula_does() -> None:
    results = []
    for activation in (arelu, lambda x, alpha, beta: formula(x, alpha, beta, torch.ones_like(beta), torch.relu)):
        torch.manual_seed(3)
        first, last = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 7), (7, 1)))
        _, alpha, beta, _ = inputs()
        x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
        leaves = [first, last, alpha, beta]
        y = activation(activation(x @ first, alpha, beta) @ last, alpha, beta)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        gradients = torch.autograd.grad(penalty, leaves, create_graph=True)
        product = sum((one * one).sum() for one in gradients)
        assert isinstance(product, Tensor)
        results.append([*gradients, *torch.autograd.grad(product, leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-11)


def test_a_meta_gradient_through_inner_steps_equals_the_plain_formulas() -> None:
    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(x >= 0, 1 + torch.sigmoid(b), a.clamp(0.01, 0.99)) * x

    x, target = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    results = []
    for activation in (plain, arelu):
        torch.manual_seed(2)
        meta = [torch.randn(6, 8, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)]
        meta = [*(tensor.requires_grad_() for tensor in meta), *inputs(0.5)[1:3]]
        fast = meta
        for _ in range(3):
            loss = (activation(x @ fast[0], fast[2], fast[3]) @ fast[1] - target).square().mean()
            slopes = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [value - 0.05 * slope for value, slope in zip(fast, slopes, strict=True)]
        loss = (activation(x @ fast[0], fast[2], fast[3]) @ fast[1] - target).square().mean()
        results.append(torch.autograd.grad(loss, meta))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


# Ways to a derivative


def cubed(function: Function) -> Callable[..., Tensor]:
    return lambda *leaves: function(*leaves).pow(3).sum()


def flat(nested: object) -> Tensor:
    if isinstance(nested, Tensor):
        return nested.flatten()
    assert isinstance(nested, (tuple, list))
    return torch.cat([flat(one) for one in nested])


EVERY = (0, 1, 2, 3)
WAYS: dict[str, Callable[[Function, tuple[Tensor, ...]], object]] = {
    "jacobian": lambda f, x: jacobian(f, x, vectorize=True),
    "jacobian, forward mode": lambda f, x: jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "hessian, looped": lambda f, x: hessian(cubed(f), x),
    "hessian": lambda f, x: hessian(cubed(f), x, vectorize=True),
    "hessian, differentiable": lambda f, x: hessian(cubed(f), x, vectorize=True, create_graph=True),
    "hessian, forward over reverse": lambda f, x: hessian(
        cubed(f), x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "third order": lambda f, x: jacobian(
        lambda *y: flat(hessian(cubed(f), y, vectorize=True, create_graph=True)), x, vectorize=True
    ),
    "jvp": lambda f, x: jvp(f, x, tuple(torch.linspace(0, 1, one.numel(), dtype=one.dtype) for one in x)),
    "jacfwd": lambda f, x: jacfwd(f, EVERY)(*x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(cubed(f), EVERY), EVERY)(*x),
    "jacfwd of jacrev": lambda f, x: jacfwd(jacrev(cubed(f), EVERY), EVERY)(*x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(cubed(f), EVERY), EVERY)(*x),
}


@every_pair
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_a_derivative_gives_the_formulas(
    ours: Function, exact: Function, way: Callable[[Function, tuple[Tensor, ...]], object]
) -> None:
    leaves = tuple(leaf.detach() for leaf in inputs(shape=(6,)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")  # torch's own, on its way to forward mode
        found, expected = (flat(way(function, leaves)) for function in (ours, exact))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@every_pair
def test_vmap_over_every_input_gives_what_a_loop_gives(ours: Function, exact: Function) -> None:
    leaves = [torch.stack([inputs(0.3 * i, 0.2 * i)[place].detach() for i in range(4)]) for place in EVERY]
    found = vmap(jacrev(cubed(ours), EVERY))(*leaves)
    looped = [jacrev(cubed(exact), EVERY)(*(leaf[i] for leaf in leaves)) for i in range(4)]
    for place in EVERY:
        torch.testing.assert_close(found[place], torch.stack([one[place] for one in looped]))


def test_a_backward_may_be_taken_in_forward_mode_though_the_forward_was_not() -> None:
    leaves, direction = inputs(), torch.randn(12, dtype=torch.float64)
    results = []
    for function in PAIRS["arelu"]:
        y = function(*leaves)
        with forward_ad.dual_level():
            grad = forward_ad.make_dual(torch.ones_like(y), direction)
            gradients = torch.autograd.grad(y, leaves[:3], grad)
            results.append([forward_ad.unpack_dual(one).tangent for one in gradients])
    torch.testing.assert_close(results[0], results[1])


# Numbers without room in their dtype


def exact_gradients(x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().double().requires_grad_()
    alpha, beta = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.25, 0.0))
    y = formula(x, alpha, beta, torch.ones_like(beta), lambda x: torch.where(x >= 0, x, 0))
    return list(torch.autograd.grad(y, (x, alpha, beta), grad.double()))


def gradients_of(x: Tensor, grad: Tensor, inplace: bool = False) -> list[Tensor]:
    """What AReLU's backward gives; a float64 layer, so that its gradients have room for any sum."""
    module, leaf = AReLU(0.25, 0.0, inplace, dtype=torch.float64), x.clone().requires_grad_()
    return list(torch.autograd.grad(module(leaf * 1), [leaf, module.alpha, module.beta], grad))


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SMALLEST = {dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in FLOATS}
HARD: dict[str, Callable[[torch.dtype], list[float]]] = {
    "nan": lambda _: [torch.nan, 1.0, -2.0],
    "inf": lambda _: [torch.inf, 1.0, -2.0],
    "-inf": lambda _: [-torch.inf, 1.0, -2.0],
    "overflow": lambda dtype: [0.9 * torch.finfo(dtype).max, 1.0, -2.0],
    "underflow": lambda dtype: [-SMALLEST[dtype], 1.0, 2.0],
    "subnormal": lambda dtype: [-5 * SMALLEST[dtype], 1.0, 2.0],
}


@pytest.mark.parametrize("size", [3, 3 * 50_000])
@pytest.mark.parametrize("dtype", SMALLEST, ids=str)
@pytest.mark.parametrize("name", HARD)
def test_the_gradients_of_numbers_without_room_are_the_formulas(name: str, dtype: torch.dtype, size: int) -> None:
    values = torch.tensor(HARD[name](dtype), dtype=torch.float64).to(dtype)
    # The hard one comes last, so that it is not the first block's.
    x = torch.cat([torch.tensor([1.0, 1.0, 2.0], dtype=dtype).repeat(size // 3 - 1), values])
    # So large that no product underflows once more.
    grad = torch.where(x.abs() < torch.finfo(dtype).smallest_normal, 1000.0, 1e-3).to(dtype)
    found, expected = gradients_of(x, grad), exact_gradients(x, grad)
    for one, right in zip(found, expected, strict=True):
        tolerance = 4 * torch.finfo(dtype).eps if one.dtype == dtype else 1e-2 if dtype == torch.bfloat16 else 1e-3
        torch.testing.assert_close(one.double(), right, rtol=tolerance, atol=0, equal_nan=True)


def test_a_float16_that_overflows_leaves_betas_gradient_finite() -> None:
    x = torch.tensor([60000.0], dtype=torch.float16)
    _, _, to_beta = gradients_of(x, torch.full_like(x, 1e-3))
    assert AReLU(beta=0.0)(x).isinf()
    assert to_beta.item() == pytest.approx(15, rel=1e-3)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", SMALLEST, ids=str)
def test_a_nan_counts_as_negative_in_place_too(dtype: torch.dtype, inplace: bool) -> None:
    x = torch.tensor([torch.nan, -torch.nan, 1.0], dtype=dtype)
    to_x, to_alpha, to_beta = gradients_of(x, torch.ones_like(x), inplace)
    assert to_x.tolist() == [0.25, 0.25, 1.5]
    assert to_alpha.isnan()
    assert to_beta.item() == pytest.approx(0.25, rel=1e-2)


def test_where_the_input_is_kept_the_higher_orders_are_right_too() -> None:
    leaves = inputs()
    with torch.no_grad():
        leaves[0][0] = -torch.finfo(torch.float64).smallest_normal
    found, expected = (orders(function, leaves, 4) for function in PAIRS["arelu"])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


# In place by the plain formula


def test_in_place_means_the_same_where_the_plain_formula_is_used() -> None:
    class Twice(nn.Module):
        """Reads again what an in-place activation has overwritten."""

        def __init__(self) -> None:
            super().__init__()
            self.act = AReLU(0.25, 0.0, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 1
            y: Tensor = self.act(h)
            return h + 10 * y

    module, x = Twice(), torch.randn(5, requires_grad=True)
    expected = module(x)
    (right,) = torch.autograd.grad(expected.sum(), x)
    torch.compiler.reset()
    ways: list[Callable[[Tensor], Tensor]] = [
        torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True),
        torch.export.export(module, (x.detach(),)).module(),
        lambda x: functional_call(module, dict(module.named_parameters()), (x,)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        ways.append(torch.jit.script(module))
    for way in ways:
        y = way(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], right)
    torch.testing.assert_close(torch.func.grad(lambda x: module(x).sum())(x.detach()), right)
