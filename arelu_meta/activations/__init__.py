"""Activations: AReLU, the paper's others, and every one of torch.nn and timm, by name."""

from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu, elsa, gated_arelu
from arelu_meta.activations.registry import ActivationInfo, create_activation, list_activations

__all__ = [
    "AReLU",
    "ActivationInfo",
    "GatedAReLU",
    "arelu",
    "create_activation",
    "elsa",
    "gated_arelu",
    "list_activations",
]
