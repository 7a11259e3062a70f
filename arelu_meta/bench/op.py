"""What one activation costs: time forward and backward, and bytes kept, beside `nn.ReLU` in the same run."""

from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.arelu import ALPHA_INIT, ALPHA_MAX, ALPHA_MIN, BETA_INIT, AReLU, GatedAReLU
from arelu_meta.bench.timing import Cases, Contender, Row, cuda_peak_bytes, kept_bytes, make_row, time_in_turns

PEER = "relu"
SIZES = ((16, 10, 12, 12), (32, 64, 56, 56), (64, 64, 112, 112))
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PASSES = ("forward", "forward_backward")
GATE = 0.1
"""The gate of the `preserve` contenders: open, since a shut one would spare them the attention's forward."""


class PlainAReLU(nn.Module):
    """The paper's formula, one operator after the other: what `AReLU` costs without its kernels.

    Args:
        alpha: start of the negative side's slope.
        beta: start of the positive side's logit.

    Source: Chen et al. 2020, equations 1 to 3.
    """

    def __init__(self, alpha: float = ALPHA_INIT, beta: float = BETA_INIT) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.beta = nn.Parameter(torch.tensor([beta]))

    def forward(self, x: Tensor) -> Tensor:
        """Return AReLU of x, of x's shape; float32 scalars make half precision float32."""
        positive, negative = 1 + torch.sigmoid(self.beta), self.alpha.clamp(ALPHA_MIN, ALPHA_MAX)
        return F.relu(x) * positive - F.relu(-x) * negative


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu-inplace": lambda: nn.ReLU(inplace=True),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "arelu-plain": PlainAReLU,
    "arelu": AReLU,
    "arelu-inplace": lambda: AReLU(inplace=True),
    "preserve-relu6": lambda: GatedAReLU(nn.ReLU6(), t=GATE),
    "preserve-gelu": lambda: GatedAReLU(nn.GELU(), t=GATE),
}


def op_cases(device: torch.device, rounds: int | None = None) -> Cases:
    """List the cases, with ids as `32x64x56x56/float32/contiguous/forward_backward`.

    Args:
        device: where to compute.
        rounds: over which medians are taken; default: 50.
    """
    settings = product(SIZES, DTYPES, LAYOUTS, PASSES)
    return {_case(*setting): partial(op_rows, *setting, rounds or 50, device) for setting in settings}


def _case(size: tuple[int, ...], dtype: torch.dtype, layout: str, which: str) -> str:
    return f"{'x'.join(map(str, size))}/{str(dtype).removeprefix('torch.')}/{layout}/{which}"


def op_rows(
    size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    which: str = "forward_backward",
    rounds: int = 50,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Time every contender in one case.

    Args:
        size: a shape (batch, channels, height, width).
        dtype: of the feature map; the scalars are float32 for float32, and follow it otherwise.
        layout: a key of `LAYOUTS`.
        which: one of `PASSES`.
        rounds: over which medians are taken.
        device: where to compute.

    Returns:
        One row for each contender, `relu` first.
    """
    torch.manual_seed(0)
    x = torch.randn(size, device=device).to(dtype).to(memory_format=LAYOUTS[layout])
    modules = {name: make().to(device=device, dtype=dtype) for name, make in CONTENDERS.items()}
    backward = which == "forward_backward"
    contenders = {name: _contender(module, x, backward) for name, module in modules.items()}
    target = torch.empty_like(x)
    timed = {**contenders, "copy": Contender(lambda _: target.copy_(x))}
    times = time_in_turns(timed, rounds, device)
    few = x.flatten()[:16].reshape((1,) * (len(size) - 1) + (16,))
    tiny = {name: _contender(module, few, backward) for name, module in modules.items()}
    dispatch = time_in_turns(tiny, max(3, rounds // 5), device)
    # Forward reads one tensor and writes one, as a copy does; backward reads two and writes one.
    copies = 2.5 if backward else 1.0
    return [
        make_row(
            _case(size, dtype, layout, which),
            name,
            PEER,
            times,
            peak_bytes=_peak_bytes(modules[name], contenders[name], x),
            copy_ms=median(times["copy"]) * 1e3 * copies,
            dispatch_ms=median(dispatch[name]) * 1e3,
        )
        for name in CONTENDERS
    ]


def _contender(module: nn.Module, x: Tensor, backward: bool) -> Contender:
    leaf = x.detach().clone().requires_grad_(backward)
    grad = torch.randn_like(x)
    wanted = [leaf, *module.parameters()]

    def call(copy: Tensor) -> None:
        with torch.set_grad_enabled(backward):
            y = module(copy)
            if backward:
                torch.autograd.grad(y, wanted, grad)

    # A copy, for a leaf cannot be overwritten by those who work in place; everyone gets it, so that it favours nobody.
    return Contender(call, leaf.clone)


def _peak_bytes(module: nn.Module, contender: Contender, x: Tensor) -> int:
    if x.is_cuda:
        prepared = contender.prepare()
        return cuda_peak_bytes(lambda: contender.call(prepared))
    leaf = x.detach().clone().requires_grad_()
    return kept_bytes(lambda: module(leaf.clone()), owned=list(module.parameters()))
