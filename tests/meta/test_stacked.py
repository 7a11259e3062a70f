import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arelu_meta.meta import stacked_aten, stacked_numba
from arelu_meta.meta.stacked_conv import Conv, Patches, convolve_patches
from arelu_meta.meta.stacked_geometry import Geometry, output_size
from arelu_meta.meta.stacked_maps import Pool, Slopes

LAYOUTS = list(itertools.permutations(range(3)))


def _images(shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw images (tasks, images, channels, H, W) that lie in memory in some order of their first three dimensions."""
    generator = torch.Generator().manual_seed(0)
    inverse = [order.index(dim) for dim in range(3)]
    drawn = torch.randn([*(shape[dim] for dim in order), *shape[3:]], generator=generator, dtype=dtype)
    return drawn.permute(*inverse, 3, 4)


def _slopes(tasks: int, dims: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    shape = (tasks, *[1] * (dims - 1))
    return torch.linspace(1.2, 1.8, tasks, dtype=dtype).view(shape), torch.linspace(0.1, 0.9, tasks).to(dtype).view(
        shape
    )


def _assert_all_close(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-4 if one.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (2, 3), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling_is_pytorchs_in_any_layout(order: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype) -> None:
    x = _images((3, 2, 4, *size), order, dtype).requires_grad_()
    expected = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (3, 2))
    grad = torch.randn(expected.shape, dtype=dtype)
    y = Pool.apply(x)
    assert y.equal(expected)
    assert torch.autograd.grad(y, x, grad)[0].equal(torch.autograd.grad(expected, x, grad)[0])
    for operators in (stacked_aten, stacked_numba):
        maxima, places = operators.pool(x.detach())
        assert maxima.equal(expected)
        assert operators.gather(x.detach(), places).equal(expected)


@pytest.mark.parametrize("case", ["equal", "nan", "infinite", "expanded"])
def test_pooling_of_hard_values_is_pytorchs(case: str) -> None:
    x = torch.zeros(2, 1, 3, 4, 4)
    if case == "nan":
        x[0, 0, 0, 1, 1] = x[1, 0, 2, 3, 0] = torch.nan
    elif case == "infinite":
        x[0] = -torch.inf
        x[1, 0, 0, 0, 1] = torch.inf
    elif case == "expanded":
        x = torch.randn(1, 1, 3, 4, 4).expand(2, 1, 3, 4, 4)
    x = x.requires_grad_()
    expected = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (2, 1))
    y = Pool.apply(x)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    grad = torch.randn(y.shape)
    assert torch.autograd.grad(y, x, grad)[0].equal(torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (3, 5, 4)])
def test_pooling_twice_differentiated_and_of_images_without_a_batch(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert Pool.apply(x).equal(F.max_pool2d(x, 2))
    torch.autograd.gradcheck(Pool.apply, x)
    torch.autograd.gradgradcheck(Pool.apply, x)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("other", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_slopes_by_loops_are_those_by_operators_in_any_layout(order: tuple[int, ...], other: tuple[int, ...]) -> None:
    shape = (3, 2, 4, 5, 6)
    x, grad, by_x = _images(shape, order), _images(shape, other).flip(1), _images(shape, order).flip(2)
    slopes, shares = _slopes(3, 5), _slopes(3, 5)[::-1]
    torch.testing.assert_close(stacked_numba.slopes_forward(x, *slopes), stacked_aten.slopes_forward(x, *slopes))
    given = grad, x, *slopes
    _assert_all_close(stacked_numba.slopes_backward(*given), stacked_aten.slopes_backward(*given))
    twice = *given, by_x, *shares
    _assert_all_close(stacked_numba.slopes_double_backward(*twice), stacked_aten.slopes_double_backward(*twice))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 7),
        torch.randn(3, 1),
        torch.randn(3, 2, 7),
        torch.randn(3, 9, 7)[:, :2],
        torch.randn(3, 7, 2).transpose(1, 2),
        torch.randn(3, 2, 4, 6, 5).transpose(3, 4),
        torch.randn(3, 2, 4, 6, 5)[..., 1:4],
        torch.randn(1, 2, 4).expand(3, 2, 4),
        torch.randn(3, 2, 1, 1, 5000),
    ],
    ids=lambda x: str(tuple(x.shape)),
)
def test_slopes_of_other_shapes_and_of_parts_of_tensors(x: Tensor) -> None:
    slopes = _slopes(3, x.dim(), torch.float32)
    grad = torch.ones(()).expand(x.shape)
    torch.testing.assert_close(stacked_numba.slopes_forward(x, *slopes), stacked_aten.slopes_forward(x, *slopes))
    expected = stacked_aten.slopes_backward(grad, x, *slopes)
    for found, wanted in zip(stacked_numba.slopes_backward(grad, x, *slopes), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_slopes_twice_differentiated() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    slopes = [slope.requires_grad_() for slope in _slopes(2, 3)]
    torch.autograd.gradcheck(Slopes.apply, (x, *slopes))
    torch.autograd.gradgradcheck(Slopes.apply, (x, *slopes))


def test_the_same_slopes_for_all_tasks_are_one_tensor_expanded() -> None:
    x, grad = torch.randn(3, 5), torch.randn(3, 5)
    slopes = [torch.tensor([[value]]).expand(3, 1) for value in (1.5, 0.5)]
    given = grad, x, *slopes
    _assert_all_close(stacked_numba.slopes_backward(*given), stacked_aten.slopes_backward(*given))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, grad = torch.randn(8, 5, 10, 12, 12), torch.randn(8, 5, 10, 12, 12)
    slopes = _slopes(8, 5, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*stacked_numba.slopes_backward(grad, x, *slopes), *stacked_numba.pool(x)])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(one.equal(other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("tensor", [torch.randn(2, 3, 4, dtype=torch.bfloat16), torch.randn(2, 3, 0, 4)])
def test_what_the_loops_do_not_know_goes_to_operators(tensor: Tensor) -> None:
    slopes = _slopes(2, tensor.dim(), tensor.dtype)
    assert Slopes.apply(tensor, *slopes).equal(stacked_aten.slopes_forward(tensor, *slopes))


GEOMETRIES = [
    Geometry([1, 1], [0, 0], [1, 1], 1),
    Geometry([2, 1], [1, 0], [1, 1], 1),
    Geometry([1, 1], [2, 2], [2, 1], 1),
    Geometry([2, 3], [0, 1], [1, 2], 1),
]


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    patches = Patches().of(x, w, geometry)
    assert patches is not None
    return convolve_patches(patches, w, bias, [x.shape[1], *output_size(x, w, geometry)])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("biased", [True, False])
def test_products_with_patches_are_convolutions(geometry: Geometry, biased: bool) -> None:
    x = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64)
    w = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 4, dtype=torch.float64, requires_grad=True) if biased else None
    plain = [F.conv2d(x[task], w[task], None if bias is None else bias[task], *geometry[:3]) for task in range(len(x))]
    found = _convolve(x, w, bias, geometry)
    torch.testing.assert_close(found, torch.stack(plain))
    inputs = [w] if bias is None else [w, bias]
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(torch.stack(plain), inputs, grad), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.autograd.gradgradcheck(lambda *values: _convolve(x, values[0], bias, geometry), (w,))


def test_patches_are_kept_for_the_same_images_and_laid_out_anew_for_changed_ones() -> None:
    patches, geometry = Patches(), GEOMETRIES[0]
    x, w = torch.randn(2, 3, 1, 8, 8), torch.randn(2, 4, 1, 3, 3)
    first = patches.of(x, w, geometry)
    assert first is not None
    assert patches.of(x, w, geometry) is first
    x.mul_(2)
    second = patches.of(x, w, geometry)
    assert second is not None
    torch.testing.assert_close(second, first * 2)
    assert patches.of(x, w, GEOMETRIES[2]) is not second


def test_no_patches_where_they_would_cost_more_or_hide_a_gradient() -> None:
    patches, plain = Patches(), GEOMETRIES[0]
    x, w = torch.randn(2, 3, 1, 8, 8), torch.randn(2, 4, 1, 3, 3)
    assert patches.of(x.clone().requires_grad_(), w, plain) is None
    assert patches.of(x, w, plain._replace(groups=2)) is None
    assert patches.of(torch.randn(2, 3, 8, 8, 8), torch.randn(2, 4, 8, 3, 3), plain) is None
    with torch.inference_mode():
        assert patches.of(torch.randn(2, 3, 1, 8, 8), w, plain) is None


@pytest.mark.parametrize("channels", [(10, 20), (8, 16), (3, 20), (16, 12)])
@pytest.mark.parametrize("geometry", GEOMETRIES[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_images_are_those_of_one_convolution_a_task(
    channels: tuple[int, int], geometry: Geometry, dtype: torch.dtype
) -> None:
    inputs, outputs = channels
    x = torch.randn(3, 2, inputs, 9, 9, dtype=dtype, requires_grad=True)
    w = torch.randn(3, outputs, inputs, 3, 3, dtype=dtype, requires_grad=True)
    plain = torch.stack([F.conv2d(x[task], w[task], None, *geometry[:3]) for task in range(3)])
    found = Conv.apply(x, w, None, geometry)
    grad = torch.randn_like(plain)
    _assert_all_close(torch.autograd.grad(found, (x, w), grad), torch.autograd.grad(plain, (x, w), grad))
