"""What timm offers around a model, kept right after a swap: learning rates by layer, checkpoints, `act_layer` names."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU

_MATCHER, _LOADER = "group_matcher", "load_state_dict"
_SCALARS = ("alpha", "beta", "t")


def register_act_layer() -> None:
    """Let timm's models take `act_layer="arelu"`."""
    from timm.layers import create_act

    for table in (create_act._ACT_LAYER_DEFAULT, create_act._ACT_LAYER_ME):
        table.setdefault("arelu", AReLU)


def add_timm_support(model: nn.Module) -> None:
    """Let a swapped model's scalars follow their layer in layer decay, and say clearly which checkpoints do not fit.

    Args:
        model: changed in place; `drop_timm_support` takes it back.
    """
    if callable(getattr(type(model), _MATCHER, None)):
        model.__dict__[_MATCHER] = GroupMatcher(model)
    model.__dict__[_LOADER] = Loader(model)


def drop_timm_support(model: nn.Module) -> None:
    """Take back `add_timm_support`.

    Args:
        model: changed in place.
    """
    for name, kind in ((_MATCHER, GroupMatcher), (_LOADER, Loader)):
        if isinstance(model.__dict__.get(name), kind):
            del model.__dict__[name]


class Loader:
    """`load_state_dict` of a swapped model, which says so where the weights are those of the model before the swap.

    Args:
        model: after a swap.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as `torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: as there, and for weights that hold none of the activations' scalars unless `strict` is off.
        """
        scalars = {
            f"{path}.{name}"
            for path, module in self.model.named_modules()
            if isinstance(module, AReLU | GatedAReLU)
            for name in module._parameters
        }
        if strict and scalars and not scalars & state_dict.keys():
            raise RuntimeError(
                "load_state_dict: these are the weights of the model before the swap: load them first and swap then, "
                "or load with strict=False to keep the activations' scalars as they are"
            )
        return type(self.model).load_state_dict(self.model, state_dict, strict=strict, assign=assign)


class GroupMatcher:
    """timm's `group_matcher` of a model, in which an activation that no pattern knows goes with the layer before it.

    Args:
        model: a timm model after a swap.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, coarse: bool = False) -> Any:
        """Give the patterns by which timm tells a parameter's layer.

        Args:
            coarse: whether by stages instead of blocks.
        """
        matcher = getattr(type(self.model), _MATCHER)(self.model, coarse=coarse)
        if not isinstance(matcher, dict):
            return matcher
        found = dict(matcher)
        before: str | None = None
        for name, _ in self.model.named_parameters():
            owner, _, last = name.rpartition(".")
            key = _first_match(matcher, name)
            scalar = last in _SCALARS and isinstance(self.model.get_submodule(owner), AReLU | GatedAReLU)
            if scalar and key is None and before is not None and isinstance(found[before], str):
                found[before] = f"{found[before]}|{re.escape(owner)}\\."
            elif not scalar:
                before = key
        return found


def _first_match(matcher: dict[str, Any], name: str) -> str | None:
    for key, spec in matcher.items():
        patterns = [spec] if isinstance(spec, str) else [one[0] for one in spec or ()]
        if any(re.match(pattern, name) for pattern in patterns):
            return key
    return None
