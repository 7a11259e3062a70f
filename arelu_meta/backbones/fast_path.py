"""torch's transformer layers, which in evaluation may compute their activation themselves instead of calling it."""

import torch.nn.functional as F
from torch import nn

from arelu_meta.backbones.walking import named_modules


def match_fast_paths(model: nn.Module) -> None:
    """Let each transformer layer take its fast path only over the activation that the fast path computes.

    Args:
        model: changed in place; the layers' note of which activation they hold is made again, by torch's own rule.
    """
    for _, module in named_modules(model):
        if isinstance(module, nn.TransformerEncoderLayer):
            held = getattr(module, "activation", None)
            relu, gelu = held is F.relu or isinstance(held, nn.ReLU), held is F.gelu or isinstance(held, nn.GELU)
            module.activation_relu_or_gelu = 1 if relu else 2 if gelu else 0
