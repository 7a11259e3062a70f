"""Low-rank adapters of a backbone's linear layers and convolutions, made by peft (the extra `peft`).

Source: Hu et al. 2022 (LoRA): the weight stays, and a product of two thin matrices that learns is added to it.
"""

import re

from torch import nn

from arelu_meta.backbones.networks import heads_of
from arelu_meta.errors import InputError

LORA_RANK = 8
_PLAIN = (nn.Linear, nn.Conv2d)  # not their subclasses, which pad or read their weight in ways of their own


def has_lora(model: nn.Module) -> bool:
    """Return True if a model carries low-rank adapters."""
    return any(hasattr(module, "lora_A") for module in model.modules())


def rank_of(model: nn.Module) -> int | None:
    """Return the rank of a model's low-rank adapters; None without any."""
    ranks = [rank for module in model.modules() for rank in getattr(module, "r", {}).values() if has_lora(module)]
    return max(ranks, default=None)


def add_lora(model: nn.Module, rank: int = LORA_RANK, head: str | None = None) -> None:
    """Give each linear layer and convolution but the head a low-rank adapter, at first of no effect.

    Args:
        model: changed in place: everything but the adapters stops learning. Grouped convolutions have none.
        rank: of the adapters; as with peft's own default of alpha, they are added as they are.
        head: the path of the head; default: as `heads_of` finds it.

    Raises:
        InputError: if peft is not installed, or the model has no layer for it.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            "train.mode: 'lora' needs peft, which is not installed; pip install 'arelu-meta[peft]'"
        ) from error
    of_head = {module for one in heads_of(model, head) for module in one.modules()}
    paths = [
        path
        for path, module in model.named_modules()
        if type(module) in _PLAIN and module not in of_head and getattr(module, "groups", 1) == 1
    ]
    if not paths:
        raise InputError("train.mode: 'lora' needs linear layers or convolutions beside the head, and there are none")
    pattern = "|".join(map(re.escape, paths))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=rf"^({pattern})$"), model)


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a model's low-rank adapters."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_" in name]


def merge_lora(model: nn.Module) -> nn.Module:
    """Write a model's low-rank adapters into the weights that they are added to; a plain network is left.

    Args:
        model: changed in place; without adapters it stays as it is.

    Returns:
        The model.
    """
    for path, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, module.get_base_layer())
    vars(model).pop("peft_config", None)
    return model


def plain_name(name: str) -> str:
    """Return the name that a tensor has in the network without low-rank adapters.

    Args:
        name: in `state_dict()`.
    """
    return name.replace(".base_layer.", ".")
