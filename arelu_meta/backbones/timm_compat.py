"""What timm, torch and Hugging Face offer around a model, kept right after a swap: rates by layer, loading weights."""

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.activation_sites import find_sites

_MATCHER, _LOADER, _INITIALIZER = "group_matcher", "load_state_dict", "_init_weights"
_SCALARS = ("alpha", "beta", "t")


def add_timm_support(model: nn.Module) -> None:
    """Let a swapped model's scalars follow their layer in layer decay, and say clearly which weights do not fit.

    Args:
        model: changed in place; `drop_timm_support` takes it back.
    """
    # Where timm knows no patterns, it cuts the list of parameters into pieces; a stranger's module it leaves whole.
    if callable(getattr(type(model), _MATCHER, None)) or hasattr(model, "pretrained_cfg"):
        model.__dict__[_MATCHER] = GroupMatcher(model)
    for module in model.modules():
        if hasattr(module, "from_pretrained") and callable(getattr(type(module), _INITIALIZER, None)):
            module.__dict__[_INITIALIZER] = Initializer(module)
    explain_weights_that_do_not_fit(model)


def drop_timm_support(model: nn.Module) -> None:
    """Take back `add_timm_support`, but for what tells of weights that do not fit: they may be of the swapped model.

    Args:
        model: changed in place.
    """
    if isinstance(model.__dict__.get(_MATCHER), GroupMatcher):
        del model.__dict__[_MATCHER]
    if isinstance(model.__dict__.get(_INITIALIZER), Initializer):
        del model.__dict__[_INITIALIZER]


def explain_weights_that_do_not_fit(model: nn.Module) -> None:
    """Let `load_state_dict` say in a sentence where weights differ from the model in what was swapped in.

    Args:
        model: swapped or not.
    """
    model.__dict__[_LOADER] = Loader(model)


class Initializer:
    """`_init_weights` of a model of Hugging Face's: its `from_pretrained` makes models without memory, and calls this.

    Args:
        model: its own; one that is swapped in its `__init__` would find its scalars wherever memory was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, module: nn.Module) -> None:
        """Initialise a part of the model that no weights were loaded into."""
        if isinstance(module, AReLU | GatedAReLU):
            module.reset_parameters()
        else:
            getattr(type(self.model), _INITIALIZER)(self.model, module)


class Loader:
    """`load_state_dict` of a model that was swapped, or may be.

    Args:
        model: its own. (A hook would do, but torch does not tell hooks whether loading is strict.)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as `torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: as there, and for weights of the model before the swap, or after another, unless `strict` is
                off.
        """
        if strict and (fault := swap_fault(self.model, state_dict)) is not None:
            raise RuntimeError(f"load_state_dict: {fault}")
        return type(self.model).load_state_dict(self.model, state_dict, strict=strict, assign=assign)


def swap_fault(model: nn.Module, given: Mapping[str, Any]) -> str | None:
    """Say in a sentence where weights differ from a model in what was swapped in; None where they do not.

    Args:
        model: swapped or not.
        given: the weights, by name.
    """
    found = model.named_modules()
    gates = {path: isinstance(one, GatedAReLU) for path, one in found if isinstance(one, AReLU | GatedAReLU)}
    if gates and not any(f"{path}.{name}" in given for path in gates for name in _SCALARS):
        return (
            "these are the weights of the model before the swap: load them first and swap then, "
            "or load with strict=False to keep the activations' scalars as they are"
        )
    paths = list(gates) or [f"{site.path}{call}" for site in find_sites(model) for call in ("", ".0")]
    init = "preserve" if any(f"{path}.t" in given for path in paths) else "paper"
    if any(not gated and f"{path}.t" in given for path, gated in gates.items()):
        what = "have gates, and the model has none"
    elif any(gated and f"{path}.alpha" in given and f"{path}.t" not in given for path, gated in gates.items()):
        what = "have no gates, and the model has some"
    elif not gates and any(f"{path}.alpha" in given and f"{path}.beta" in given for path in paths):
        what = "are of a swapped model, and this one is not swapped"
    else:
        return None
    return f'these weights {what}: call swap_activations(model, "arelu", init="{init}") first'


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
        if not hasattr(type(self.model), _MATCHER):
            return _pieces(self.model)
        matcher = getattr(type(self.model), _MATCHER)(self.model, coarse=coarse)
        if not isinstance(matcher, dict):
            return matcher
        found = dict(matcher)
        before: str | None = None
        for name, _ in self.model.named_parameters():
            owner = name.rpartition(".")[0]
            key = _first_match(matcher, name)
            scalar = _is_scalar(self.model, name)
            if scalar and key is None and before is not None and isinstance(found[before], str):
                found[before] = f"{found[before]}|{re.escape(owner)}\\."
            elif not scalar:
                before = key
        return found


def _is_scalar(model: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in _SCALARS and isinstance(model.get_submodule(owner), AReLU | GatedAReLU)


def _pieces(model: nn.Module) -> Callable[[str], int]:
    """Cut the parameters into layers as timm did before the swap, and let each scalar follow the one before it."""
    from timm.optim._param_groups import auto_group_layers

    leaders: dict[str, str] = {}
    before: str | None = None
    for name, _ in model.named_parameters():
        if before is None or not _is_scalar(model, name):
            before = name
        leaders[name] = before
    plain = [(name, None) for name in dict.fromkeys(leaders.values())]
    config = getattr(model, "pretrained_cfg", {})
    layers = auto_group_layers(SimpleNamespace(named_parameters=lambda: plain, pretrained_cfg=config))
    return lambda name: layers[leaders[name]]


def _first_match(matcher: dict[str, Any], name: str) -> str | None:
    for key, spec in matcher.items():
        patterns = [spec] if isinstance(spec, str) else [one[0] for one in spec or ()]
        if any(re.match(pattern, name) for pattern in patterns):
            return key
    return None
