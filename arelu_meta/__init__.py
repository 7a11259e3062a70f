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
    from arelu_meta.backbones.checkpoint import LoadedModel, load_model
    from arelu_meta.backbones.create import create_backbone
    from arelu_meta.backbones.initialization import fold
    from arelu_meta.backbones.swap import SwapReport, swap_activations, unswap
    from arelu_meta.config import (
        DataConfig,
        EvalConfig,
        FinetuneConfig,
        MetaConfig,
        MetatrainConfig,
        ModelConfig,
        OptimConfig,
        RunConfig,
        TaskConfig,
        TrainConfig,
    )
    from arelu_meta.errors import InputError, RunError
    from arelu_meta.evaluation import evaluate
    from arelu_meta.finetuning.finetune import finetune
    from arelu_meta.finetuning.freezing import set_trainable
    from arelu_meta.finetuning.optimizer import parameter_groups
    from arelu_meta.meta.engine import meta_gradient
    from arelu_meta.meta.few_shot_learner import Learner
    from arelu_meta.meta.metatrain import metatrain
    from arelu_meta.prediction import Prediction, predict

__version__ = "0.2.0.dev0"

__all__ = [
    "AReLU",
    "DataConfig",
    "EvalConfig",
    "FinetuneConfig",
    "GatedAReLU",
    "InputError",
    "Learner",
    "LoadedModel",
    "MetaConfig",
    "MetatrainConfig",
    "ModelConfig",
    "OptimConfig",
    "Prediction",
    "RunConfig",
    "RunError",
    "SwapReport",
    "TaskConfig",
    "TrainConfig",
    "arelu",
    "create_activation",
    "create_backbone",
    "evaluate",
    "finetune",
    "fold",
    "list_activations",
    "load_adapter",
    "load_model",
    "meta_gradient",
    "metatrain",
    "parameter_groups",
    "predict",
    "save_adapter",
    "set_trainable",
    "swap_activations",
    "unswap",
]

# Where each public name lives; the imports above say the same to editors.
_HOMES = {
    "arelu_meta.activations.arelu": ("AReLU", "GatedAReLU", "arelu"),
    "arelu_meta.activations.registry": ("create_activation", "list_activations"),
    "arelu_meta.backbones.adapters": ("load_adapter", "save_adapter"),
    "arelu_meta.backbones.checkpoint": ("LoadedModel", "load_model"),
    "arelu_meta.backbones.create": ("create_backbone",),
    "arelu_meta.backbones.initialization": ("fold",),
    "arelu_meta.backbones.swap": ("SwapReport", "swap_activations", "unswap"),
    "arelu_meta.config": (
        "DataConfig",
        "EvalConfig",
        "FinetuneConfig",
        "MetaConfig",
        "MetatrainConfig",
        "ModelConfig",
        "OptimConfig",
        "RunConfig",
        "TaskConfig",
        "TrainConfig",
    ),
    "arelu_meta.errors": ("InputError", "RunError"),
    "arelu_meta.evaluation": ("evaluate",),
    "arelu_meta.finetuning.finetune": ("finetune",),
    "arelu_meta.finetuning.freezing": ("set_trainable",),
    "arelu_meta.finetuning.optimizer": ("parameter_groups",),
    "arelu_meta.meta.engine": ("meta_gradient",),
    "arelu_meta.meta.few_shot_learner": ("Learner",),
    "arelu_meta.meta.metatrain": ("metatrain",),
    "arelu_meta.prediction": ("Prediction", "predict"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

register_act_layer()
FINISHERS["metatrain"] = "arelu_meta.meta.inner_loop:finish_learner"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
