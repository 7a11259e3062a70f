"""One small model of every file in timm/models goes through swap, forward and backward."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.swap import swap_activations, unswap

SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny_jx",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""A small model of each file in timm/models that has any."""

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
    for file, name in SMALLEST.items():
        assert name in timm.list_models(module=file)


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
