"""What a swap costs, beside what it may: a tenth of creating the model, and one forward to see its calls."""

import gc
import time
from collections.abc import Iterable

import timm
import torch
from torch import Tensor, nn

from arelu_meta.backbones.swap import swap_activations
from arelu_meta.bench.timing import Row, make_row

PEER = "create/10 + forward"
"""One model created with random weights, by ten, and one image forward in evaluation, after a first of each."""

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
"""The model with the fewest parameters of each file of timm 1.0.31."""


def swap_rows(names: Iterable[str], rounds: int = 5) -> list[Row]:
    """Time the swap of models that timm has just made, as one thread's own time: what else runs does not count.

    Args:
        names: of timm's models.
        rounds: over which medians are taken; one more comes first and does not count.

    Returns:
        One row a model: the case is its name, the contender `swap`. No memory is measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(name, rounds) for name in names]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, rounds: int) -> Row:
    times: dict[str, list[float]] = {"swap": [], PEER: []}
    for number in range(rounds + 1):
        create, forward, swap = _round(name)
        gc.collect()  # modules refer to each other in circles, and the next round's model is as large
        if number:
            times["swap"].append(swap)
            times[PEER].append(create / 10 + forward)
    return make_row(name, "swap", PEER, times, peak_bytes=0)


def _round(name: str) -> tuple[float, float, float]:
    """Create, run and swap one model, and say how many seconds each took."""
    start = time.process_time()
    model: nn.Module = timm.create_model(name).eval()
    created = time.process_time()
    images = _images(model)
    with torch.no_grad():
        model(images)
        before = time.process_time()
        model(images)
        after = time.process_time()
    swap_activations(model, "arelu", init="preserve")
    return created - start, after - before, time.process_time() - after


def _images(model: nn.Module) -> Tensor:
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return torch.zeros(1, *size)
