"""A swap judged by what reaches torch's dispatcher, not by its own report: kernels gone, AReLUs come, none left."""

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from arelu_meta.activations.arelu import AReLU
from arelu_meta.backbones.commands import EXCUSED
from arelu_meta.backbones.swap import swap_activations

_HIDDEN = ["relu", "hardtanh", "gelu", "silu", "leaky_relu", "elu", "celu", "selu", "hardswish", "mish", "softplus"]
_HIDDEN += ["prelu", "_prelu_kernel", "threshold", "softshrink", "hardshrink", "rrelu_with_noise", "erf"]
# A gate's kernels, and those that an activation may be written with: they may stay, and are counted by what goes.
_OTHERS = ["clamp", "clamp_min", "clamp_max", "maximum", "minimum", "sigmoid", "tanh", "hardsigmoid"]
_PRODUCT = "x * sigmoid(x)"

SAMPLE = ["dla46x_c", "efficientvit_m0", "res2next50", "mobilevit_xxs", "test_nfnet", "swinv2_cr_tiny_224"]
SAMPLE += ["legacy_seresnet18", "resnest14d", "test_byobnet", "test_vit"]


class Kernels(TorchDispatchMode):
    """Counts the activation kernels that run outside AReLUs, by the module that runs, and the AReLUs' calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.arelus = 0
        self._paths = {module: path for path, module in model.named_modules()}
        self._running: list[nn.Module] = [model]
        # A sigmoid's output and input, both kept alive: an identity is never given to another.
        self._sigmoids: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(module, AReLU) for module in self._running):
            return result
        name = func._schema.name.split("::")[1].rstrip("_") or "_"
        if name in _HIDDEN or name in _OTHERS:
            self.counts[name, self._where()] += 1
        if name == "sigmoid":
            self._sigmoids[id(result)] = result, args[0]
        if name == "mul" and len(args) == 2 and self._is_product(*args):
            self.counts[_PRODUCT, self._where()] += 1
        return result

    def _is_product(self, one: object, other: object) -> bool:
        pairs = ((self._sigmoids.get(id(gate)), x) for gate, x in ((one, other), (other, one)))
        return any(pair is not None and pair[1] is x for pair, x in pairs)

    def _where(self) -> str:
        return next((self._paths[one] for one in reversed(self._running) if one in self._paths), "")

    def enter(self, module: nn.Module, _: object) -> None:
        self._running.append(module)
        self.arelus += isinstance(module, AReLU)

    def leave(self, *_: object) -> None:
        self._running.pop()

    def total(self) -> int:
        return sum(count for (name, _), count in self.counts.items() if name in [*_HIDDEN, *_OTHERS])


def kernels_of(model: nn.Module) -> Kernels:
    kernels = Kernels(model)
    images = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")  # type: ignore[index]
    hooks = [register_module_forward_pre_hook(kernels.enter), register_module_forward_hook(kernels.leave)]
    try:
        with torch.no_grad(), kernels:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return kernels


def check(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    before = kernels_of(model)
    report = swap_activations(model, "arelu", init="paper")
    after = kernels_of(model)
    assert after.arelus == before.total() - after.total() == len(report.swapped)
    kept = {entry.path for entry in report.kept}
    left = [where for kernel, where in after.counts if kernel in [*_HIDDEN, _PRODUCT] and where not in kept]
    assert not left
    assert report.complete or name in EXCUSED


@pytest.mark.parametrize("name", SAMPLE)
def test_every_kernel_of_a_hidden_activation_gives_way_to_one_arelu(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models())
def test_every_kernel_of_a_hidden_activation_gives_way_to_one_arelu_in_all_of_timm(name: str) -> None:
    check(name)
