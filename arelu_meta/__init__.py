"""Swap a learnable activation into any timm backbone, fine-tune it or meta-learn with it, and see whether it adapts.

The public API is re-exported lazily: `import arelu_meta` alone imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from arelu_meta.backbones import FINISHERS
from arelu_meta.timm_act_layer import register_act_layer

if TYPE_CHECKING:
    from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu
    from arelu_meta.activations.registry import create_activation, list_activations
    from arelu_meta.backbones.adapters import load_adapter, save_adapter
    from arelu_meta.backbones.create import create_backbone
    from arelu_meta.backbones.initialization import fold
    from arelu_meta.backbones.swap import SwapReport, swap_activations, unswap
    from arelu_meta.evaluation import evaluate
    from arelu_meta.finetuning.finetune import finetune
    from arelu_meta.finetuning.freezing import set_trainable
    from arelu_meta.finetuning.optimizer import parameter_groups
    from arelu_meta.meta.engine import meta_gradient
    from arelu_meta.meta.few_shot_learner import Learner
    from arelu_meta.meta.metatrain import metatrain

__version__ = "0.2.0.dev0"

__all__ = [
    "AReLU",
    "GatedAReLU",
    "Learner",
    "SwapReport",
    "arelu",
    "create_activation",
    "create_backbone",
    "evaluate",
    "finetune",
    "fold",
    "list_activations",
    "load_adapter",
    "meta_gradient",
    "metatrain",
    "parameter_groups",
    "save_adapter",
    "set_trainable",
    "swap_activations",
    "unswap",
]

_HOMES = {
    "AReLU": "arelu_meta.activations.arelu",
    "GatedAReLU": "arelu_meta.activations.arelu",
    "arelu": "arelu_meta.activations.arelu",
    "create_activation": "arelu_meta.activations.registry",
    "list_activations": "arelu_meta.activations.registry",
    "load_adapter": "arelu_meta.backbones.adapters",
    "save_adapter": "arelu_meta.backbones.adapters",
    "create_backbone": "arelu_meta.backbones.create",
    "fold": "arelu_meta.backbones.initialization",
    "SwapReport": "arelu_meta.backbones.swap",
    "swap_activations": "arelu_meta.backbones.swap",
    "unswap": "arelu_meta.backbones.swap",
    "evaluate": "arelu_meta.evaluation",
    "parameter_groups": "arelu_meta.finetuning.optimizer",
    "set_trainable": "arelu_meta.finetuning.freezing",
    "finetune": "arelu_meta.finetuning.finetune",
    "meta_gradient": "arelu_meta.meta.engine",
    "metatrain": "arelu_meta.meta.metatrain",
    "Learner": "arelu_meta.meta.few_shot_learner",
}

register_act_layer()
FINISHERS["metatrain"] = "arelu_meta.meta.inner_loop:finish_learner"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
