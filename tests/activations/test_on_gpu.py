"""The operators on a CUDA device: right by float64, the same bits twice, and without a wait of the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU

pytestmark = pytest.mark.gpu

BASES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "mish": nn.Mish,  # has no kernel of its own
}
MAKES: dict[str, Callable[[], nn.Module]] = {
    "arelu": AReLU,
    "arelu-inplace": lambda: AReLU(inplace=True),
    **{f"preserve-{name}": lambda make=make: GatedAReLU(make(), t=0.3) for name, make in BASES.items()},  # type: ignore[misc]
}
SHAPES = [(), (1,), (0, 3), (5, 7, 3), (16, 10, 12, 12), (16, 64, 112, 112)]
# Of the largest value.
NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside the block an operation that makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def results(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output, the input's gradient and the scalars'."""
    leaf = x.detach().clone().requires_grad_()
    y = module(leaf.clone())
    gradients = torch.autograd.grad(y, [leaf, *module.parameters()], grad)
    return {"y": y.detach(), **dict(zip(["x", *dict(module.named_parameters())], gradients, strict=True))}


def exact(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The same in float64, by torch's own operators."""
    leaf = x.detach().double().requires_grad_()
    scalars = {name: value.detach().double().requires_grad_() for name, value in module.named_parameters()}
    alpha, beta = scalars["alpha"].reshape(()), scalars["beta"].reshape(())
    attention = torch.where(leaf >= 0, torch.sigmoid(beta), alpha) * leaf
    base, gate = (module.base, scalars["t"].reshape(())) if isinstance(module, GatedAReLU) else (torch.relu, 1.0)
    y = base(leaf) + gate * attention
    gradients = torch.autograd.grad(y, [leaf, *scalars.values()], grad.double())
    return {"y": y.detach(), **dict(zip(["x", *scalars], gradients, strict=True))}


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_a_gpu_computes_what_float64_says(name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x, grad = torch.randn(shape, device="cuda").to(dtype), torch.randn(shape, device="cuda").to(dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            if len(shape) == 4:
                x = x.to(memory_format=layout)
            module = MAKES[name]().to("cuda", dtype if dtype == torch.float64 else torch.float32)
            with no_waiting():
                found = results(module, x, grad)
            expected = exact(module, x, grad)
            assert found["y"].dtype == dtype
            for key, value in expected.items():
                scale = (x.double() * grad.double()).abs().sum().item() if key not in ("y", "x") else None
                size = value.abs().max().item() if value.numel() else 0.0
                # The roundings of a sum's terms are independent of each other, so they grow as its root.
                slack = NEAR[dtype] * (max(1.0, size) if scale is None else 4 * scale / max(1, x.numel()) ** 0.5 + 1e-3)
                if dtype == torch.float64 and name == "preserve-hardswish":
                    slack *= 1e5  # on CUDA torch's own takes a sixth as float32 rounds it
                error = (found[key].double() - value).abs()
                assert error.le(slack).all(), (shape, layout, key, error.max().item(), slack)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("name", BASES)
def test_a_shut_gate_gives_what_the_base_gives_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    base = BASES[name]()
    module = GatedAReLU(base, t=0.0).to("cuda", dtype)
    ends = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.0, -3.0, 6.0, 1e-7, -1e-7, 100.0])
    for scale in (0.01, 1.0, 5.0, 1e4):
        x = torch.cat([scale * torch.randn(1 << 20), ends]).to("cuda", dtype)
        # Sign bits and the place of each nan included.
        words = torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
        y, expected = module(x).detach(), base(x)
        same = (y.view(words) == expected.view(words)) | (y.isnan() & expected.isnan())
        assert same.all(), (scale, x[~same][:5], y[~same][:5], expected[~same][:5])


@pytest.mark.parametrize("name", MAKES)
def test_a_gpu_gives_the_same_bits_twice(name: str) -> None:
    x, grad = torch.randn(2, 32, 64, 112, 112, device="cuda")
    module = MAKES[name]().cuda()
    first = results(module, x, grad)
    for _ in range(5):
        assert all(torch.equal(value, first[key]) for key, value in results(module, x, grad).items())


@pytest.mark.parametrize("name", ["arelu", "arelu-inplace", "preserve-gelu", "preserve-relu6"])
def test_a_tensor_of_more_than_two_billion_elements_is_computed_to_its_end(name: str) -> None:
    if torch.cuda.mem_get_info()[0] < 32 << 30:
        pytest.skip("the GPU has less than 32 GiB free")
    size = 2**31 + 4096
    module = MAKES[name]().cuda().bfloat16()
    x = torch.full((size,), -1.0, device="cuda", dtype=torch.bfloat16)
    x[-1], x[0] = 2.0, 3.0
    ends = torch.stack([x[0], x[1], x[-2], x[-1]])
    x.requires_grad_()
    y = module(x.clone())
    (to_x,) = torch.autograd.grad(y, x, torch.ones_like(y))
    few = ends.requires_grad_()
    expected = module(few.clone())
    (to_few,) = torch.autograd.grad(expected, few, torch.ones_like(expected))
    assert torch.equal(torch.stack([y[0], y[1], y[-2], y[-1]]), expected)
    assert torch.equal(torch.stack([to_x[0], to_x[1], to_x[-2], to_x[-1]]), to_few)


@pytest.mark.parametrize(("name", "peer"), [("arelu", nn.ReLU), ("arelu-inplace", nn.ReLU), ("preserve-gelu", nn.GELU)])
def test_a_layer_keeps_what_its_peer_keeps(name: str, peer: Callable[[], nn.Module]) -> None:
    kept = []
    for module in (MAKES[name]().cuda(), peer()):
        source = torch.randn(4 << 20, device="cuda", requires_grad=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = module(source * 1.0)
        kept.append(torch.cuda.memory_allocated() - before)
        del y
    # The scalars' copies are 512 bytes each, the allocator's least.
    assert kept[0] <= kept[1] + 4096


@pytest.mark.parametrize("name", ["arelu", "preserve-gelu"])
def test_forward_and_backward_are_captured_in_a_graph(name: str) -> None:
    module, x = MAKES[name]().cuda(), torch.randn(1 << 16, device="cuda", requires_grad=True)
    wanted = [x, *module.parameters()]
    torch.autograd.grad(module(x).sum(), wanted)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(module(x).sum(), wanted)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(module(x).sum(), wanted)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for value, expected in zip(captured, torch.autograd.grad(module(x).sum(), wanted), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", ["arelu", "preserve-gelu", "preserve-relu6"])
def test_the_second_derivative_is_exact(name: str) -> None:
    module = MAKES[name]().cuda().double()
    x = torch.randn(50, device="cuda", dtype=torch.float64)
    x = torch.where(x.abs() < 0.1, 0.5, x).requires_grad_()
    names = list(dict(module.named_parameters()))

    def call(x: Tensor, *scalars: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, scalars, strict=True)), (x,))  # type: ignore[no-any-return]

    scalars = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradgradcheck(call, (x, *scalars))


@pytest.mark.parametrize("name", ["arelu", "preserve-relu6"])
def test_a_compiled_network_gives_the_gradients_of_the_plain_one(name: str) -> None:
    module = MAKES[name]().cuda()
    network = nn.Sequential(nn.Linear(32, 64), module, nn.Linear(64, 8)).cuda()
    x = torch.randn(16, 32, device="cuda")
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    found = torch.autograd.grad(torch.compile(network)(x).square().sum(), list(network.parameters()))
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_trains(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), AReLU(), nn.Conv2d(16, 16, 3), GatedAReLU(nn.SiLU(), t=0.1)).cuda()
    with torch.autocast("cuda", dtype=dtype):
        y = network(torch.randn(4, 3, 32, 32, device="cuda"))
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
