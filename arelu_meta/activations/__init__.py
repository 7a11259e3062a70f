"""Activations: AReLU, the paper's others, and every one of torch.nn and timm, by name."""

from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu, elsa, gated_arelu
from arelu_meta.activations.registry import (
    PAPER_ACTIVATIONS,
    ActivationInfo,
    create_activation,
    list_activations,
)

__all__ = [
    "PAPER_ACTIVATIONS",
    "AReLU",
    "ActivationInfo",
    "GatedAReLU",
    "arelu",
    "create_activation",
    "elsa",
    "gated_arelu",
    "list_activations",
]
