"""AReLU and its gated residual: the paper's formula in float64 NumPy, and all that training scripts do to a layer.

Only behaviour is asked for, so that another way of computing it has to pass the same tests.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import timm.layers
import timm.models.metaformer
import timm.models.nfnet
import torch
import torch.fx
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu, elsa, gated_arelu

Array = npt.NDArray[np.float64]

HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float64, torch.float32, *HALVES]
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SLOPES = [(0.9, 2.0), (0.25, 0.0), (0.01, -6.0), (0.99, 8.0), (-3.0, 1.0), (1.7, -1.0)]

slopes = pytest.mark.parametrize(("alpha", "beta"), SLOPES)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

BASES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hard_swish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
    "quick_gelu": timm.layers.activations.QuickGELU,
    "hard_mish": timm.layers.activations.HardMish,
    "star_relu": timm.models.metaformer.StarReLU,
    "gamma_gelu": lambda: timm.models.nfnet.GammaAct("gelu", gamma=1.7),
    "two_layers": lambda: nn.Sequential(nn.Softplus(), nn.Tanh()),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


class AuthorsAReLU(nn.Module):
    """The layer as its authors published it; what their checkpoints were saved from."""

    def __init__(self, alpha: float = 0.90, beta: float = 2.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.beta = nn.Parameter(torch.tensor([beta]))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = torch.clamp(self.alpha, min=0.01, max=0.99), 1 + torch.sigmoid(self.beta)
        return F.relu(x) * beta - F.relu(-x) * alpha


def paper(x: Array, alpha: float, beta: float) -> Array:
    """Equations 3 to 5 of the paper, in float64: scaled by 1 + sigmoid(beta) above 0, by the clamped alpha below."""
    values: Array = np.maximum(x, 0) * (1 + 1 / (1 + np.exp(-beta))) + np.minimum(x, 0) * min(max(alpha, 0.01), 0.99)
    return values


def exact(x: Tensor) -> Array:
    array: Array = x.detach().double().numpy()
    return array


def bits(x: Tensor) -> Tensor:
    """The stored bits, which tell 0.0 from -0.0."""
    return x.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def away_from_zero(*shape: int) -> Tensor:
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    return (x * torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)).requires_grad_()


# What it computes


@slopes
def test_arelu_is_the_papers_formula_in_float64(alpha: float, beta: float) -> None:
    x = 10 * torch.randn(7, 5, 3, dtype=torch.float64)
    for y in (arelu(x, alpha, beta), AReLU(alpha, beta, dtype=torch.float64)(x)):
        np.testing.assert_allclose(exact(y), paper(exact(x), alpha, beta), rtol=1e-15, atol=0)


@slopes
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_lower_precision_is_the_exact_value_rounded_about_once(dtype: torch.dtype, alpha: float, beta: float) -> None:
    x = (10 * torch.randn(2000)).to(dtype)
    reference = paper(exact(x), float(torch.tensor(alpha)), float(torch.tensor(beta)))
    # Scalars in float32: its own roundings come on top of the output's.
    bound = (UNIT_ROUNDOFF[dtype] + 4 * UNIT_ROUNDOFF[torch.float32]) * np.abs(reference)
    for y in (arelu(x, alpha, beta), AReLU(alpha, beta)(x)):
        assert (np.abs(exact(y) - reference) <= bound).all()


@slopes
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scalars_in_half_precision_cost_no_more_than_their_own_rounding(
    dtype: torch.dtype, alpha: float, beta: float
) -> None:
    module = AReLU(alpha, beta, dtype=dtype)
    x = (10 * torch.randn(2000)).to(dtype)
    reference = paper(exact(x), module.alpha.item(), module.beta.item())
    assert (np.abs(exact(module(x)) - reference) <= 3 * UNIT_ROUNDOFF[dtype] * np.abs(reference)).all()


@slopes
def test_arelu_is_relu_plus_elsa(alpha: float, beta: float) -> None:
    x = 10 * torch.randn(1000, dtype=torch.float64)
    torch.testing.assert_close(arelu(x, alpha, beta), x.relu() + elsa(x, alpha, beta), rtol=1e-15, atol=0)


def test_elsa_scales_by_the_sigmoid_above_zero_and_by_alpha_below() -> None:
    y = elsa(torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64), 0.3, 0.0)
    torch.testing.assert_close(y, torch.tensor([-0.6, 0.0, 1.0], dtype=torch.float64))


@slopes
def test_gradients_are_the_papers_derivatives(alpha: float, beta: float) -> None:
    x, a, b = torch.randn(4, 500, dtype=torch.float64, requires_grad=True), float64(alpha), float64(beta)
    weights = torch.randn_like(x)
    arelu(x, a, b).backward(weights)
    xs, ws, sigmoid = exact(x), exact(weights), 1 / (1 + np.exp(-beta))
    slope = min(max(alpha, 0.01), 0.99)
    assert x.grad is not None
    assert a.grad is not None
    assert b.grad is not None
    np.testing.assert_allclose(exact(x.grad), ws * np.where(xs >= 0, 1 + sigmoid, slope), rtol=1e-15)
    inside = 0.01 <= alpha <= 0.99
    np.testing.assert_allclose(float(a.grad), inside * (ws * xs)[xs < 0].sum(), rtol=1e-11)
    np.testing.assert_allclose(float(b.grad), sigmoid * (1 - sigmoid) * (ws * xs)[xs >= 0].sum(), rtol=1e-11)


def test_scalar_gradients_in_float32_lose_no_digits_at_a_small_alpha() -> None:
    module, x = AReLU(alpha=0.01, beta=-6.0), torch.randn(100_000)
    weights = torch.randn_like(x)
    module(x).backward(weights)
    terms, sigmoid = exact(weights) * exact(x), 1 / (1 + np.exp(6.0))
    assert module.alpha.grad is not None
    assert module.beta.grad is not None
    scale = np.abs(terms).sum()
    assert abs(float(module.alpha.grad) - terms[exact(x) < 0].sum()) <= 1e-6 * scale
    expected = sigmoid * (1 - sigmoid) * terms[exact(x) >= 0].sum()
    assert abs(float(module.beta.grad) - expected) <= 1e-6 * sigmoid * scale


def test_second_order_gradients_are_right_too() -> None:
    inputs = (away_from_zero(3, 4), float64(0.4), float64(-0.7))
    assert torch.autograd.gradcheck(arelu, inputs)
    assert torch.autograd.gradgradcheck(arelu, inputs)
    assert torch.autograd.gradcheck(elsa, inputs)
    assert torch.autograd.gradgradcheck(elsa, inputs)


@pytest.mark.parametrize("alpha", [-0.5, 1.5])
def test_second_order_gradients_are_right_outside_the_clamp(alpha: float) -> None:
    inputs = (away_from_zero(3, 4), float64(alpha), float64(0.3))
    assert torch.autograd.gradcheck(arelu, inputs)
    assert torch.autograd.gradgradcheck(arelu, inputs)


def test_a_gradient_step_can_itself_be_differentiated() -> None:
    """MAML's inner step in miniature: d/d beta of the loss after a step on x, alpha and beta, by hand."""
    x, a, b = float64(1.5), float64(0.5), float64(0.2)
    (slope,) = torch.autograd.grad(arelu(x, a, b).square().sum(), x, create_graph=True)
    arelu(x - 0.1 * slope, a, b).sum().backward()
    sigmoid = 1 / (1 + np.exp(-0.2))
    k, dk = 1 + sigmoid, sigmoid * (1 - sigmoid)
    # y = k (x - 0.2 k² x), so dy/dk = x - 0.6 k² x.
    assert b.grad is not None
    np.testing.assert_allclose(float(b.grad), dk * (1.5 - 0.6 * k**2 * 1.5), rtol=1e-12)


@every_float
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_at_zero_of_either_sign_the_slope_is_the_positive_sides(zero: float, dtype: torch.dtype) -> None:
    x = torch.tensor([zero, -1.0, 1.0], dtype=dtype, requires_grad=True)
    y = AReLU(alpha=0.25, beta=0.0)(x)
    y.sum().backward()
    assert y[0] == 0
    assert x.grad is not None
    assert x.grad.tolist() == [1.5, 0.25, 1.5]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_negative_input_that_underflows_still_has_the_negative_sides_slope(dtype: torch.dtype) -> None:
    x = torch.tensor(
        [-5e-324 if dtype == torch.float64 else -torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps]
    )
    x = x.to(dtype).requires_grad_()
    y = AReLU(alpha=0.25, beta=0.0)(x)
    y.backward(torch.ones_like(y))
    assert x.item() < 0
    assert y.item() == 0
    assert x.grad is not None
    assert x.grad.item() == 0.25


# The clamp


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("alpha", "slope"), [(-5.0, 0.01), (0.0, 0.01), (0.009, 0.01), (0.991, 0.99), (7.0, 0.99)])
def test_outside_the_clamp_alpha_acts_as_its_bound_and_gets_no_gradient(
    alpha: float, slope: float, dtype: torch.dtype
) -> None:
    module = AReLU(alpha=alpha, dtype=dtype)
    y = module(torch.tensor([-2.0, 3.0], dtype=dtype))
    y.sum().backward()
    torch.testing.assert_close(y[0], torch.tensor(-2 * slope, dtype=dtype))
    assert module.alpha.grad is not None
    assert module.alpha.grad.tolist() == [0.0]
    assert module.beta.grad is not None
    assert module.beta.grad.item() != 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("alpha", [0.01, 0.0101, 0.5, 0.9899, 0.99])
def test_inside_the_clamp_alphas_gradient_is_the_negative_inputs(alpha: float, dtype: torch.dtype) -> None:
    module = AReLU(alpha=alpha, dtype=dtype)
    module(torch.tensor([-2.0, 3.0, -4.0], dtype=dtype)).sum().backward()
    assert module.alpha.grad is not None
    # Recovered from the output, so up to roundings.
    assert module.alpha.grad.tolist() == pytest.approx([-6.0], rel=4 * torch.finfo(dtype).eps)


def test_alpha_itself_is_never_changed_by_the_clamp() -> None:
    module = AReLU(alpha=3.0)
    module(torch.randn(4))
    assert module.alpha.tolist() == [3.0]


# Shapes, dtypes, memory


@every_float
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5,), (2, 3), (2, 3, 4, 5), (1, 2, 1, 2, 1, 2)])
def test_shape_and_dtype_are_kept_forwards_and_backwards(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for module in (AReLU(), AReLU(dtype=dtype), GatedAReLU(nn.ReLU(), t=0.5), GatedAReLU(nn.Tanh(), dtype=dtype)):
        x = torch.randn(shape).to(dtype).requires_grad_()
        y = module(x)
        y.sum().backward()
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert x.grad is not None
        assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)
        assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_an_empty_input_gives_zero_gradients() -> None:
    module = AReLU()
    module(torch.zeros(0, 3)).sum().backward()
    assert [float(p.grad.item()) for p in module.parameters() if p.grad is not None] == [0.0, 0.0]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 3),
        lambda x: x[:, ::2, 1:, ::3],
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[..., 0],
        lambda x: x.permute(2, 0, 3, 1)[1],
    ],
    ids=["transposed", "strided", "expanded", "channels_last", "column", "permuted"],
)
@pytest.mark.parametrize("gated", [False, True], ids=["arelu", "gated"])
def test_any_layout_in_memory_gives_the_same_numbers(view: Callable[[Tensor], Tensor], gated: bool) -> None:
    module: nn.Module = GatedAReLU(nn.SiLU(), t=0.3) if gated else AReLU()
    results = []
    for lay_out in (lambda x: x, lambda x: x.contiguous(memory_format=torch.contiguous_format)):
        torch.manual_seed(1)
        x = torch.randn(4, 6, 8, 8, requires_grad=True)
        module.zero_grad()
        y = module(lay_out(view(x)))
        y.backward(torch.randn(y.shape))
        results.append([y, x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[0], results[1])


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = AReLU()(x)
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_on_the_meta_device_shapes_go_through_without_data() -> None:
    module = AReLU(device="meta")
    y = module(torch.empty(2, 3, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3), torch.bfloat16, "meta")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["arelu", "gated"])
def test_under_autocast_a_float32_layer_takes_and_gives_half_precision(gated: bool, dtype: torch.dtype) -> None:
    layer: nn.Module = GatedAReLU(nn.GELU(), t=0.5) if gated else AReLU()
    model = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 4))
    x = torch.randn(32, 8)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=dtype):
        loss = model(x).float().square().mean()
    loss.backward()
    handle.remove()
    assert seen == [(dtype, dtype)]
    half = [copy_of_grad(p) for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    for low, parameter in zip(half, model.parameters(), strict=True):
        assert low.dtype == parameter.dtype == torch.float32
        torch.testing.assert_close(low, copy_of_grad(parameter), rtol=0.1, atol=0.02)


def copy_of_grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


# Extreme values


@every_float
def test_huge_inputs_stay_finite_wherever_the_exact_value_can_be_stored(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.49 * largest, -largest, -0.5 * largest, 0.1 * largest], dtype=torch.float64).to(dtype)
    x.requires_grad_()
    y = AReLU(alpha=0.9, beta=4.0)(x)
    y.backward(torch.ones_like(y))
    # NumPy warns of the float64 overflow that would be a failure here.
    reference = paper(exact(x), float(torch.tensor(0.9)), 4.0)
    np.testing.assert_allclose(exact(y), reference, rtol=2 * UNIT_ROUNDOFF[dtype] + 2.0**-22)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_float
def test_gated_attention_stays_finite_on_huge_inputs(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.9 * largest, -largest], dtype=torch.float64).to(dtype)
    y = GatedAReLU(nn.Tanh(), t=0.5)(x)
    assert y.isfinite().all()


@every_float
def test_subnormal_inputs_are_not_flushed(dtype: torch.dtype) -> None:
    information = torch.finfo(dtype)
    smallest = information.smallest_normal * information.eps
    x = torch.tensor([4 * smallest, -64 * smallest, smallest, -smallest], dtype=torch.float64).to(dtype)
    reference = torch.from_numpy(paper(exact(x), 0.75, 0.0))
    assert torch.equal(arelu(x, 0.75, 0.0), reference.to(dtype))


@every_float
def test_infinities_stay_infinite_and_nan_stays_nan(dtype: torch.dtype) -> None:
    y = AReLU()(torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0], dtype=dtype))
    assert y[:2].tolist() == [torch.inf, -torch.inf]
    assert y[2].isnan()
    assert y[3].isfinite()


def test_an_infinite_input_leaves_the_other_branchs_gradient_alone() -> None:
    x, a, b = float64(torch.inf, -2.0), float64(0.5), float64(0.0)
    arelu(x, a, b).sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [-2.0]
    x, a, b = float64(-torch.inf, 2.0), float64(0.5), float64(0.0)
    arelu(x, a, b).sum().backward()
    assert b.grad is not None
    assert b.grad.tolist() == [0.5]


@pytest.mark.parametrize("beta", [-1e4, -100.0, 100.0, 1e4])
def test_an_extreme_beta_saturates_without_nan(beta: float) -> None:
    module = AReLU(beta=beta)
    y = module(torch.tensor([2.0, -1.0]))
    y.sum().backward()
    assert y[0].item() == pytest.approx(2.0 if beta < 0 else 4.0)
    assert module.beta.grad is not None
    assert module.beta.grad.abs().item() < 1e-30


# What a training script does to a layer


@pytest.mark.parametrize("frozen", ["x", "alpha", "beta", "alpha beta", "x alpha", "x beta"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: str) -> None:
    def gradients(frozen: list[str]) -> dict[str, Tensor | None]:
        torch.manual_seed(3)
        tensors = {"x": torch.randn(50, dtype=torch.float64), "alpha": float64(0.3), "beta": float64(0.7)}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name not in frozen)
        arelu(**tensors).square().sum().backward()
        return {name: tensor.grad for name, tensor in tensors.items()}

    every, some = gradients([]), gradients(frozen.split())
    for name, gradient in some.items():
        if name in frozen.split():
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, every[name])


def test_one_layer_called_twice_adds_its_gradients() -> None:
    x = torch.randn(20, dtype=torch.float64)
    shared, first, second = (AReLU(dtype=torch.float64) for _ in range(3))
    shared(shared(x)).sum().backward()
    second(first(x)).sum().backward()
    for name in ("alpha", "beta"):
        parts = [copy_of_grad(getattr(module, name)) for module in (first, second)]
        torch.testing.assert_close(copy_of_grad(getattr(shared, name)), parts[0] + parts[1])


def test_inplace_gives_the_same_numbers_and_gradients() -> None:
    results = []
    for inplace in (False, True):
        torch.manual_seed(2)
        x = torch.randn(4, 3, 8, 8)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), AReLU(inplace=inplace), nn.Conv2d(8, 2, 3), AReLU(inplace=inplace))
        y = model(x)
        y.square().sum().backward()
        results.append([y, *(copy_of_grad(p) for p in model.parameters())])
    torch.testing.assert_close(results[0], results[1])


def test_without_inplace_the_input_is_left_as_it_was() -> None:
    for module in (AReLU(), GatedAReLU(nn.ReLU6(), t=1.0)):
        x = torch.randn(100)
        before = x.clone()
        with torch.no_grad():
            module(x)
        assert torch.equal(x, before)


def test_activation_checkpointing_changes_no_gradient() -> None:
    module, x = AReLU(dtype=torch.float64), torch.randn(30, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(module(x).square().sum(), x)
    (recomputed,) = torch.autograd.grad(checkpoint(module, x, use_reentrant=False).square().sum(), x)
    torch.testing.assert_close(recomputed, plain)


def test_gradient_descent_finds_the_scalars_that_made_the_target() -> None:
    """The target is itself an AReLU, so the two scalars have one right answer."""
    x, module = torch.randn(512), AReLU(alpha=0.9, beta=2.0)
    target = torch.from_numpy(paper(exact(x), 0.2, -1.0)).float()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(400):
        optimiser.zero_grad()
        F.mse_loss(module(x), target).backward()
        optimiser.step()
    assert module.alpha.item() == pytest.approx(0.2, abs=0.01)
    assert module.beta.item() == pytest.approx(-1.0, abs=0.05)


# torch.func


def test_vmap_over_inputs_equals_a_loop() -> None:
    x = torch.randn(5, 3, 4)
    module = AReLU()
    torch.testing.assert_close(vmap(module)(x), torch.stack([module(one) for one in x]))


@pytest.mark.parametrize("out_dim", [0, 1])
def test_vmap_with_each_tasks_own_alpha_and_beta_equals_a_loop(out_dim: int) -> None:
    x, alphas, betas = torch.randn(5, 3, 4), torch.linspace(-0.1, 1.1, 5).reshape(5, 1), torch.randn(5, 1)
    batched = vmap(arelu, out_dims=out_dim)(x, alphas, betas)
    looped = torch.stack([arelu(*one) for one in zip(x, alphas, betas, strict=True)], dim=out_dim)
    torch.testing.assert_close(batched, looped)
    one_input = vmap(arelu, in_dims=(None, 0, 0))(x[0], alphas, betas)
    torch.testing.assert_close(one_input, torch.stack([arelu(x[0], *pair) for pair in zip(alphas, betas, strict=True)]))


def test_vmap_of_grad_with_each_tasks_own_scalars_equals_a_loop() -> None:
    x = torch.randn(4, 10, dtype=torch.float64)
    alphas, betas = torch.rand(4, 1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)

    def loss(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return arelu(x, alpha, beta).pow(3).sum()

    slopes = vmap(grad(loss, argnums=(0, 1, 2)))(x, alphas, betas)
    for task in range(4):
        leaves = [tensor[task].clone().requires_grad_() for tensor in (x, alphas, betas)]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(slope[task] for slope in slopes), expected)


def test_grad_of_grad_under_vmap_is_a_second_order_meta_gradient() -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    scalars = {"alpha": torch.tensor([0.4], dtype=torch.float64), "beta": torch.tensor([0.1], dtype=torch.float64)}
    module = AReLU(dtype=torch.float64)

    def inner(scalars: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(module, scalars, (x,))
        return output.square().mean()

    def after_a_step(scalars: dict[str, Tensor], x: Tensor) -> Tensor:
        slopes = grad(inner)(scalars, x)
        return inner({name: value - 0.1 * slopes[name] for name, value in scalars.items()}, x)

    meta = vmap(grad(after_a_step), in_dims=(None, 0))(scalars, x)
    step = 1e-6
    for task in range(3):
        for name, value in scalars.items():
            either = [after_a_step(scalars | {name: value + sign * step}, x[task]) for sign in (1, -1)]
            assert meta[name][task].item() == pytest.approx((either[0] - either[1]).item() / (2 * step), rel=1e-5)


def test_functional_call_uses_the_scalars_that_it_is_given() -> None:
    module, x = AReLU(dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    scalars = {"alpha": float64(0.1), "beta": float64(-2.0)}
    y = functional_call(module, scalars, (x,))
    np.testing.assert_allclose(exact(y), paper(exact(x), 0.1, -2.0), rtol=1e-15)
    assert module.alpha.item() == 0.9


def test_the_gate_works_under_vmap_with_scalars_of_each_task() -> None:
    x = torch.randn(4, 6)
    tasks = [GatedAReLU(nn.SiLU(), alpha=0.1 * i, beta=float(i), t=0.2 * i) for i in range(4)]
    names = [name for name, _ in tasks[0].named_parameters()]
    stacked = {name: torch.stack([task.get_parameter(name) for task in tasks]) for name in names}

    def loss(scalars: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(tasks[0], scalars, (x,))
        return output.square().sum()

    slopes = vmap(grad(loss))(stacked, x)
    for index, task in enumerate(tasks):
        task(x[index]).square().sum().backward()
        for name in names:
            torch.testing.assert_close(slopes[name][index], copy_of_grad(task.get_parameter(name)))


# Copies, files, compilers


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_computes_the_same_and_shares_nothing(copied: Callable[[nn.Module], nn.Module]) -> None:
    x = torch.randn(50)
    for module in (AReLU(0.3, -0.4, inplace=True), GatedAReLU(nn.PReLU(), 0.3, -0.4, 0.6)):
        before = module(x.clone())
        other = copied(module)
        assert torch.equal(other(x.clone()), before)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.5)
        assert torch.equal(module(x.clone()), before)
        assert not torch.equal(other(x.clone()), before)


def test_the_authors_checkpoint_loads_strictly_and_computes_what_theirs_did() -> None:
    theirs = AuthorsAReLU(alpha=0.37, beta=-1.2)
    assert {name: tuple(value.shape) for name, value in theirs.state_dict().items()} == {"alpha": (1,), "beta": (1,)}
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours = AReLU()
    ours.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(500)
    torch.testing.assert_close(ours(x), theirs(x))


def test_ours_starts_where_the_authors_starts() -> None:
    x = torch.randn(500)
    torch.testing.assert_close(AReLU()(x), AuthorsAReLU()(x))


def test_the_gates_state_dict_holds_its_scalars_and_the_bases() -> None:
    shapes = {name: tuple(value.shape) for name, value in GatedAReLU(nn.PReLU(3)).state_dict().items()}
    assert shapes == {"alpha": (1,), "beta": (1,), "t": (1,), "base.weight": (3,)}


@pytest.mark.parametrize("gated", [False, True], ids=["arelu", "gated"])
def test_torch_compile_takes_it_as_one_graph_with_the_same_gradients(gated: bool) -> None:
    torch.compiler.reset()
    module: nn.Module = GatedAReLU(nn.ReLU6(), t=0.4) if gated else AReLU()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    results = []
    for run in (module, compiled):
        torch.manual_seed(4)
        x = torch.randn(3, 7, requires_grad=True)
        module.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(copy_of_grad(p) for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("gated", [False, True], ids=["arelu", "gated"])
def test_torch_export_keeps_function_and_scalars(gated: bool) -> None:
    module = (GatedAReLU(nn.SiLU(), 0.3, 0.1, 0.4) if gated else AReLU(0.3, 0.1)).eval()
    program = torch.export.export(module, (torch.randn(2, 5),))
    x = torch.randn(2, 5)
    torch.testing.assert_close(program.module()(x), module(x))
    assert {"alpha", "beta"} <= set(program.state_dict)


def scripted(module: nn.Module) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        script: Callable[[Tensor], Tensor] = torch.jit.script(module)
    return script


def graph(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.fx.symbolic_trace(module)


class Functional(nn.Module):
    """Calls the functional forms, with scalars that are numbers or tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.t = nn.Parameter(torch.tensor([0.3])), nn.Parameter(torch.tensor([0.4]))

    def forward(self, x: Tensor) -> Tensor:
        y = arelu(x, self.alpha, 1.5)
        return gated_arelu(y, elsa(y, 0.25, 0.5), self.alpha, -1.0, self.t)


@pytest.mark.parametrize("way", [scripted, graph, lambda module: scripted(torch.fx.symbolic_trace(module))])
@pytest.mark.parametrize(
    "module",
    [
        AReLU(0.3, -0.5),
        AReLU(alpha=2.0, inplace=True),
        GatedAReLU(nn.ReLU6(), alpha=-1.0, t=0.4),
        GatedAReLU(nn.PReLU(), t=0.4),
        GatedAReLU(timm.models.metaformer.StarReLU(), t=-2.0),
        Functional(),
    ],
    ids=["arelu", "clamped", "gated", "prelu", "star_relu", "functional"],
)
def test_scripted_or_traced_by_fx_it_computes_and_learns_the_same(
    module: nn.Module, way: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    results = []
    for run in (module, way(module)):
        torch.manual_seed(4)
        x = torch.randn(3, 7, requires_grad=True)
        module.zero_grad()
        y = run(x * 1)
        y.square().sum().backward()
        results.append([y, x.grad, *(copy_of_grad(p) for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_scripted_it_keeps_half_precision_and_takes_shapes_without_dimensions() -> None:
    module = AReLU(0.3, -0.5)
    script = scripted(module)
    for x in (torch.randn(5).half(), torch.randn(5).bfloat16(), torch.tensor(-2.0), torch.tensor([-0.0, 0.0])):
        assert script(x).dtype == x.dtype
        assert torch.equal(script(x), module(x))


def test_in_the_graph_of_fx_the_activation_is_one_call_and_its_scalars_are_the_modules() -> None:
    module = AReLU()
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), module))
    assert [node.op for node in traced.graph.nodes].count("call_function") == 1
    assert traced.get_parameter("1.alpha") is module.alpha


# The gated residual


@every_base
@every_float
def test_a_closed_gate_is_its_base_to_the_last_bit(base: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    module = base()
    x = torch.cat([5 * torch.randn(2000), torch.linspace(-8, 8, 161), torch.tensor([0.0, -0.0, 1e-30, -1e-30])])
    x = x.to(dtype)
    module, gate = module.to(dtype), GatedAReLU(copy.deepcopy(module)).to(dtype)
    assert torch.equal(bits(gate(x)), bits(module(x)))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: x.chunk(2, 1)[1],
    "last chunk": lambda x: x.chunk(2, -1)[0],
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "channels last, chunk": lambda x: x.to(memory_format=torch.channels_last).chunk(2, 1)[1],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "transposed": lambda x: x.transpose(1, 3),
    "strided": lambda x: x.flatten()[::3],
    "unaligned": lambda x: x.flatten()[1:],
    "overlapping": lambda x: x.flatten().unfold(0, 5, 3),
    "0-d": lambda x: x[0, 0, 0, 0],
    "empty": lambda x: x[:0],
}


@every_base
@every_float
def test_a_closed_gate_is_its_base_to_the_last_bit_in_every_layout(
    base: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    module = base().to(dtype)
    gate = GatedAReLU(copy.deepcopy(module)).to(dtype)
    x = 5 * torch.randn(4, 6, 9, 14)
    x[0, :4, 0, 0] = torch.tensor([0.0, -0.0, 1e-30, 3.0])
    for name, lay_out in LAYOUTS.items():
        laid_out = lay_out(x.to(dtype))
        expected = module(laid_out)
        assert torch.equal(bits(gate(laid_out)), bits(expected)), name
        assert torch.equal(bits(gated_arelu(laid_out, expected, 0.9, 2.0, 0.0)), bits(expected)), name


@every_base
def test_a_closed_gate_hands_back_its_bases_gradients(base: Callable[[], nn.Module]) -> None:
    plain = base().double()
    gate = GatedAReLU(copy.deepcopy(plain), dtype=torch.float64)
    xs = [torch.randn(200, dtype=torch.float64) for _ in range(2)]
    xs[1].copy_(xs[0])
    for module, x in zip((plain, gate), xs, strict=True):
        module(x.requires_grad_()).square().sum().backward()
    torch.testing.assert_close(xs[1].grad, xs[0].grad)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gate.get_parameter(f"base.{name}").grad, parameter.grad)


@slopes
def test_an_open_gate_over_relu_is_arelu(alpha: float, beta: float) -> None:
    gate = GatedAReLU(nn.ReLU(), alpha, beta, t=1.0, dtype=torch.float64)
    x = torch.randn(500, dtype=torch.float64)
    np.testing.assert_allclose(exact(gate(x)), paper(exact(x), alpha, beta), rtol=1e-15)


@every_base
def test_a_half_open_gate_adds_half_the_attention_to_any_base(base: Callable[[], nn.Module]) -> None:
    gate = GatedAReLU(base(), 0.3, -1.0, t=0.5).double()
    x = torch.randn(500, dtype=torch.float64)
    alpha = float(torch.tensor(0.3))  # 0.3 as float32 holds it
    attention = paper(exact(x), alpha, -1.0) - np.maximum(exact(x), 0)
    np.testing.assert_allclose(exact(gate(x)), exact(gate.base(x)) + 0.5 * attention, rtol=1e-13, atol=1e-14)


@every_base
def test_every_gradient_of_the_gate_is_right_to_second_order(base: Callable[[], nn.Module]) -> None:
    module = GatedAReLU(base(), dtype=torch.float64).double()
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return output

    start = {"alpha": 0.4, "beta": -0.7, "t": 0.3}
    values = [float64(start[name]) if name in start else module.get_parameter(name).detach().clone() for name in names]
    x = (torch.rand(6, dtype=torch.float64) * 0.8 + 0.1) * torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    inputs = (x.requires_grad_(), *(value.requires_grad_() for value in values))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_closed_gate_learns_only_its_gate() -> None:
    gate = GatedAReLU(nn.GELU(), alpha=0.5, beta=0.0, dtype=torch.float64)
    gate(torch.tensor([-2.0, 4.0, -6.0], dtype=torch.float64)).sum().backward()
    assert copy_of_grad(gate.t).item() == pytest.approx(0.5 * -2 + 0.5 * 4 + 0.5 * -6)
    assert copy_of_grad(gate.alpha).tolist() == [0.0]
    assert copy_of_grad(gate.beta).tolist() == [0.0]


def test_the_functional_gate_agrees_with_the_module() -> None:
    x = torch.randn(100, dtype=torch.float64)
    gate = GatedAReLU(nn.SiLU(), 0.2, 0.4, 0.6, dtype=torch.float64)
    torch.testing.assert_close(gated_arelu(x, F.silu(x), 0.2, 0.4, 0.6), gate(x))


@pytest.mark.parametrize("base", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU])
def test_a_base_that_works_in_place_is_refused(base: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="works in place"):
        GatedAReLU(base(inplace=True))


def test_a_base_with_an_in_place_part_is_refused_too() -> None:
    with pytest.raises(ValueError, match="works in place"):
        GatedAReLU(nn.Sequential(nn.Softplus(), nn.ReLU(inplace=True)))
    with pytest.raises(ValueError, match="works in place"):
        GatedAReLU(timm.models.metaformer.StarReLU(inplace=True))


# Bad input


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_an_input_that_is_not_floating_point_is_refused_by_name(dtype: torch.dtype) -> None:
    x = torch.ones(3, dtype=dtype)
    calls: list[Callable[[], Tensor]] = [
        lambda: arelu(x, 0.9, 2.0),
        lambda: elsa(x, 0.9, 2.0),
        lambda: gated_arelu(x, x, 0.9, 2.0, 0.0),
        lambda: AReLU()(x),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"floating-point.*{dtype}"):
            call()


@pytest.mark.parametrize("shape", [(2,), (3, 1), (0,)])
@pytest.mark.parametrize("name", ["alpha", "beta", "t"])
def test_a_scalar_of_more_or_less_than_one_element_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    x = torch.ones(3)
    scalars = {"alpha": torch.tensor([0.9]), "beta": torch.tensor([2.0]), "t": torch.tensor([0.0])}
    scalars[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=rf"{name}.*one element"):
        gated_arelu(x, x, **scalars)
    if name != "t":
        for function in (arelu, elsa):
            with pytest.raises(ValueError, match=rf"{name}.*one element"):
                function(x, scalars["alpha"], scalars["beta"])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scalar_of_one_element_may_have_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(())
    y = arelu(x, torch.full(shape, 0.9), torch.full(shape, 2.0))
    assert y.shape == ()
    torch.testing.assert_close(y, arelu(x, 0.9, 2.0))


def test_device_and_dtype_of_the_scalars_are_as_asked() -> None:
    for module in (
        AReLU(device="meta", dtype=torch.float16),
        GatedAReLU(nn.Tanh(), device="meta", dtype=torch.float16),
    ):
        assert {(p.device.type, p.dtype, tuple(p.shape)) for p in module.parameters()} == {
            ("meta", torch.float16, (1,))
        }


def test_a_layers_text_shows_its_scalars_as_they_are_now() -> None:
    assert str(AReLU()) == "AReLU(alpha=0.9, beta=2.0)"
    assert str(AReLU(1 / 3, -1e-5, inplace=True)) == "AReLU(alpha=0.3333, beta=-1e-05, inplace=True)"
    gate = GatedAReLU(nn.ReLU6())
    assert str(gate).splitlines() == ["GatedAReLU(", "  alpha=0.9, beta=2.0, t=0.0", "  (base): ReLU6()", ")"]
    with torch.no_grad():
        gate.t.add_(0.25)
    assert "t=0.25" in str(gate)
    assert str(AReLU(device="meta")) == "AReLU(alpha=..., beta=...)"


def test_a_whole_pickled_layer_of_the_authors_computes_what_theirs_did() -> None:
    theirs = AuthorsAReLU(alpha=0.37, beta=-1.2)
    ours = AReLU.__new__(AReLU)  # as pickle makes it, where their class's name leads to ours
    ours.__setstate__(theirs.__dict__)
    x = torch.randn(50)
    torch.testing.assert_close(ours(x), theirs(x))
    assert str(ours) == "AReLU(alpha=0.37, beta=-1.2)"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_computed_if_jagged_and_refused_in_a_sentence_if_strided() -> None:
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    for module in (AReLU(), GatedAReLU(nn.GELU(), t=0.5), GatedAReLU(nn.Tanh(), t=0.5)):
        nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
        for one, part in zip(module(nested).unbind(), parts, strict=True):
            torch.testing.assert_close(one, module(part))
        with pytest.raises(TypeError, match=r"nested tensor of layout torch\.strided.*torch\.jagged"):
            module(torch.nested.nested_tensor(parts))
