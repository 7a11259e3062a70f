"""One small model of every file in timm/models goes through swap, forward and backward."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.bench.swap import SMALLEST

_MOST_PARAMETERS = 16e6
"""What has more runs on the meta device: shapes and gradients' presence, no arithmetic."""


SHALLOW = {"sequencer2d_s": {"layers": (1, 1, 1, 1)}}
"""Where depth makes nothing new and costs much: LSTMs, one step after the other."""


def models() -> list[str]:
    """A file that a newer timm has added is tried by the first of its models."""
    return [SMALLEST.get(file) or timm.list_models(module=file)[0] for file in timm.list_modules() if has_models(file)]


def has_models(file: str) -> bool:
    return file in SMALLEST or bool(timm.list_models(module=file))


def build(name: str) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10, **SHALLOW.get(name, {}))
    real = sum(parameter.numel() for parameter in model.parameters()) < _MOST_PARAMETERS
    if real:
        model = timm.create_model(name, num_classes=10, **SHALLOW.get(name, {}))
    config = model.pretrained_cfg
    side = config["input_size"][-1]
    if real and not config.get("fixed_input_size"):
        side = max(96, config.get("min_input_size", (3, 0, 0))[-1])
    return model.eval(), torch.randn(1, 3, side, side, device="cpu" if real else "meta")


def fill_zeros(model: nn.Module) -> None:
    """Give parameters that start at 0 (a branch's last norm, a layer scale) a value, or no gradient passes them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta and not parameter.any():
                parameter.normal_(std=0.5)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    found = model(images)
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits


def test_every_file_of_timm_has_its_model() -> None:
    assert len(models()) >= len(SMALLEST)


@pytest.mark.parametrize("name", models())
def test_a_model_of_every_file_keeps_its_logits_swapped_and_gives_every_scalar_a_gradient(name: str) -> None:
    model, images = build(name)
    fill_zeros(model)
    if not images.is_meta:
        with torch.no_grad():
            before = logits_of(model, images)
            assert swap_activations(model, "arelu", init="preserve").complete
            assert torch.equal(logits_of(model, images), before)
        unswap(model)
        assert not any(isinstance(module, AReLU | GatedAReLU) for module in model.modules())
    # Not the paper's start, whose growing outputs saturate the gates of squeeze-excite units, which then pass nothing.
    report = swap_activations(model, "arelu", init="nearest")
    assert report.complete
    logits_of(model, images).square().mean().backward()
    swapped = {entry.path: model.get_submodule(entry.path) for entry in report.swapped}
    assert len(swapped) == len(report.swapped) > 0
    for path, module in swapped.items():
        slopes = [module.get_parameter(scalar).grad for scalar in ("alpha", "beta")]
        assert all(slope is not None for slope in slopes), path
        # A unit of a few channels may see one side of 0 only, and then only one of the two learns.
        values = [slope.item() for slope in slopes if slope is not None and not slope.is_meta]
        assert not values or (math.isfinite(sum(values)) and any(values)), path
