"""One name, one activation: the paper's, torch.nn's and timm's under one roof.

Names are timm's spelling where timm has the activation, else torch.nn.functional's. Ours wins where a name clashes with
another's: `swish` has a learnable beta (what timm calls `swish` is `silu`). Aliases: see `ALIASES`. A name in any case
is understood, so torch.nn's class names work too ("LeakyReLU").
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from arelu_meta.activations.arelu import ALPHA_INIT, BETA_INIT, AReLU
from arelu_meta.activations.controls import CONTROLS, check_control_name, freeze_scalars, scaled_line, scaled_relu
from arelu_meta.activations.zoo import (
    APL,
    ELSA,
    PAU,
    SLAF,
    AconC,
    AuthorsGELU,
    Device,
    Hardsigmoid,
    Maxout,
    Mixture,
    RReLU,
    SquaredReLU,
    StarReLU,
    Swish,
    Variant,
    check_variant,
)
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.validation import checked

PAPER_ACTIVATIONS: tuple[str, ...] = (
    *("apl", "arelu", "celu", "elu", "gelu", "leaky_relu", "maxout", "mixture", "pau", "prelu"),
    *("relu", "relu6", "rrelu", "selu", "sigmoid", "slaf", "softplus", "swish", "tanh"),
)
"""What the AReLU paper compares. These take `variant`; where paper and authors' code agree, it changes nothing."""

ALIASES: Mapping[str, str] = {
    "hardswish": "hard_swish",
    "hardsigmoid": "hard_sigmoid",
    "hard_tanh": "hardtanh",
    "hard_shrink": "hardshrink",
    "leakyrelu": "leaky_relu",
    "log_sigmoid": "logsigmoid",
    "logsoftmax": "log_softmax",
}
"""Another spelling → the name under which the activation is listed with its source."""

_UNLISTED = frozenset({"log_softmax", "softmax", "softmax2d", "softmin", *CONTROLS})
"""They can be created, but they normalise over a dimension, and so activate nothing; or they are controls."""

_LEFT_OUT: Mapping[str, str] = {
    "glu": "it halves a dimension, and an activation here keeps its input's shape",
    "multiheadattention": "it is a layer of attention over three inputs, and an activation here takes one",
}

_EVERYWHERE = ("device", "dtype", "inplace")

_WITH_VARIANT = frozenset({*PAPER_ACTIVATIONS, "elsa"})


@dataclass(frozen=True)
class ActivationInfo:
    """What `list_activations` tells of one activation.

    Attributes:
        name: what `create_activation` takes.
        learnable: whether the module, built with its defaults, has parameters.
        source: the paper (authors, year), or where the class comes from ("torch.nn.GELU", "timm.layers.HardMish").
        aliases: other spellings of the name.
        elementwise: whether each output depends on its own input alone; maxout looks across channels.
    """

    name: str
    learnable: bool
    source: str
    aliases: tuple[str, ...] = ()
    elementwise: bool = True


@dataclass(frozen=True)
class _Entry:
    """How one activation is built. `load` returns the class, so that timm is imported only when it is needed."""

    load: Callable[[], Callable[..., nn.Module]]
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    elementwise: bool = True


def _torch(class_name: str, elementwise: bool = True, **defaults: Any) -> _Entry:
    return _Entry(lambda: getattr(nn, class_name), f"torch.nn.{class_name}", defaults, elementwise)


def _timm(class_name: str) -> _Entry:
    # timm's plain classes, not its memory-efficient ones: those are autograd functions without vmap or second order.
    return _Entry(
        lambda: getattr(importlib.import_module("timm.layers.activations"), class_name), f"timm.layers.{class_name}"
    )


def _ours(cls: Callable[..., nn.Module], source: str, elementwise: bool = True) -> _Entry:
    return _Entry(lambda: cls, source, elementwise=elementwise)


def _gelu(approximate: str = "none", variant: Variant = "paper") -> nn.Module:
    check_variant(variant)
    if approximate not in ("none", "tanh"):  # torch would say so at the first input only.
        raise ValueError("approximate must be 'none' or 'tanh'")
    return nn.GELU(approximate) if variant == "paper" else AuthorsGELU()


def _elsa(
    base: str | nn.Module = "relu",
    alpha: float = ALPHA_INIT,
    beta: float = BETA_INIT,
    variant: Variant = "paper",
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """ELSA over a base given by name; a base by name is built with the same variant, device and dtype."""
    if isinstance(base, str):
        resolved = canonical_name(base, "activation base")
        options = {"variant": variant} if resolved in _WITH_VARIANT else {}
        base = create_activation(resolved, device=device, dtype=dtype, **options)
    return ELSA(base, alpha, beta, variant, device, dtype)


def _frozen_arelu(
    alpha: float = ALPHA_INIT, beta: float = BETA_INIT, device: Device = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """AReLU whose scalars do not learn."""
    return freeze_scalars(AReLU(alpha, beta, device=device, dtype=dtype))


_ENTRIES: Mapping[str, _Entry] = {
    "acon_c": _ours(AconC, "Ma et al., 2021"),
    "apl": _ours(APL, "Agostinelli et al., 2015"),
    "arelu": _ours(AReLU, "Chen, Li and Xu, 2020"),
    "arelu:frozen": _ours(_frozen_arelu, "a control"),
    "celu": _torch("CELU"),
    "elsa": _ours(_elsa, "Chen, Li and Xu, 2020"),
    "elu": _torch("ELU"),
    "gelu": _ours(_gelu, "torch.nn.GELU"),
    "gelu_tanh": _timm("GELUTanh"),
    "hard_mish": _timm("HardMish"),
    "hard_sigmoid": _ours(Hardsigmoid, "torch.nn.Hardsigmoid"),
    "hard_swish": _torch("Hardswish"),
    "hardshrink": _torch("Hardshrink"),
    "hardtanh": _torch("Hardtanh"),
    "identity": _torch("Identity"),
    "leaky_relu": _torch("LeakyReLU"),
    "linear:gain": _ours(scaled_line, "a control"),
    "log_softmax": _torch("LogSoftmax", elementwise=False, dim=-1),
    "logsigmoid": _torch("LogSigmoid"),
    "maxout": _ours(Maxout, "Goodfellow et al., 2013", elementwise=False),
    "mish": _torch("Mish"),
    "mixture": _ours(Mixture, "Manessi and Rozza, 2018"),
    "pau": _ours(PAU, "Molina, Schramowski and Kersting, 2020"),
    "prelu": _torch("PReLU"),
    "quick_gelu": _timm("QuickGELU"),
    "relu": _torch("ReLU"),
    "relu6": _torch("ReLU6"),
    "relu:gain": _ours(scaled_relu, "a control"),
    "relu:he": _torch("ReLU"),
    "rrelu": _ours(RReLU, "torch.nn.RReLU"),
    "selu": _torch("SELU"),
    "sigmoid": _torch("Sigmoid"),
    "silu": _torch("SiLU"),
    "slaf": _ours(SLAF, "Goyal, Goyal and Lall, 2019"),
    "softmax": _torch("Softmax", elementwise=False, dim=-1),
    "softmax2d": _torch("Softmax2d", elementwise=False),
    "softmin": _torch("Softmin", elementwise=False, dim=-1),
    "softplus": _torch("Softplus"),
    "softshrink": _torch("Softshrink"),
    "softsign": _torch("Softsign"),
    "squared_relu": _ours(SquaredReLU, "So et al., 2021"),
    "star_relu": _ours(StarReLU, "Yu et al., 2022"),
    "swish": _ours(Swish, "Ramachandran, Zoph and Le, 2017"),
    "tanh": _torch("Tanh"),
    "tanhshrink": _torch("Tanhshrink"),
    "threshold": _torch("Threshold", threshold=0.0, value=0.0),
}


_OVER = "elsa:"  # and the base's name


def canonical_name(name: str, where: str = "activation") -> str:
    """Return the listed name behind `name`, which may be an alias or in another case.

    Args:
        name: of an activation.
        where: it stands, for errors.

    Raises:
        InputError: if the name is not known, or stands for what is no activation here.
    """
    folded = name.lower()
    folded = ALIASES.get(folded, folded)
    if folded.startswith(_OVER):
        return _OVER + canonical_name(folded.removeprefix(_OVER), f"{where}: {name!r}: base")
    if folded in _LEFT_OUT:
        raise InputError(f"{where}: {name!r} cannot be used as one; {_LEFT_OUT[folded]}")
    check_control_name(folded)
    if folded in CONTROLS and folded not in _ENTRIES:
        raise InputError(f"{where}: {name!r} goes over a model's own activations or its head; create_backbone takes it")
    if folded not in _ENTRIES:
        raise InputError(f"{where}: {name!r} is not known; {nearest_names(name, [*_ENTRIES, *ALIASES], most=1)}")
    return folded


def _arguments(build: Callable[..., nn.Module]) -> list[str]:
    """The keyword arguments that a class takes by name; torch.nn's classes without any declare `*args, **kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, parameter in inspect.signature(build).parameters.items() if parameter.kind not in variadic]


@checked
def create_activation(name: str, **kwargs: Any) -> nn.Module:
    """Build an activation by its name.

    Args:
        name: one of `list_activations()`, in timm's spelling ("leaky_relu", "hard_swish", "gelu_tanh"); or `elsa:BASE`,
            as `elsa:relu6`: that activation with AReLU's attention added to it.
        **kwargs: what the activation's class takes. `inplace`, `device` and `dtype` are accepted for every name, and
            have no effect where the class has none. `variant="authors"` (default "paper") is accepted for what the
            paper compares (`PAPER_ACTIVATIONS`) and `elsa`, and builds what the AReLU authors ran. `elsa` takes its
            `base` as a name or a module.

    Returns:
        A new module whose output has the shape and dtype of its input, whatever the number of channels.
        `softmax`, `softmin` and `log_softmax` run over the last dimension unless `dim` is given (`softmax2d` over the
        channels of feature maps, and it takes nothing else); `threshold` is ReLU, threshold 0 and value 0, unless told
        otherwise.

    Raises:
        InputError: if the name is not known, or the activation does not take an argument or its value.

    Example:
        >>> from arelu_meta import create_activation
        >>> create_activation("leaky_relu", negative_slope=0.2)
        LeakyReLU(negative_slope=0.2)
    """
    resolved = canonical_name(name)
    if resolved.startswith(_OVER):
        if "base" in kwargs:
            raise InputError(f"activation: {name!r} says its base; leave base out")
        resolved, kwargs = "elsa", {**kwargs, "base": resolved.removeprefix(_OVER)}
    entry = _ENTRIES[resolved]
    build = entry.load()
    takes = _arguments(build)
    allowed = list(dict.fromkeys([*takes, *(["variant"] if resolved in _WITH_VARIANT else []), *_EVERYWHERE]))
    unknown = sorted(set(kwargs) - set(allowed))
    if unknown:
        raise InputError(f"activation: {resolved!r} takes no {unknown[0]!r}; it takes {', '.join(allowed)}")
    if "variant" in kwargs:
        check_variant(kwargs["variant"])
    given = {**entry.defaults, **{key: value for key, value in kwargs.items() if key in takes}}
    try:
        return build(**given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"activation: {resolved!r} cannot be built from {given}; {error}") from error


@functools.cache
def activation_info(name: str) -> ActivationInfo:
    """Return what there is to know of an activation.

    Args:
        name: one that `create_activation` takes.

    Raises:
        InputError: if the name is not known.
    """
    resolved = canonical_name(name)
    entry = _ENTRIES[resolved.partition(":")[0] if resolved.startswith(_OVER) else resolved]
    # Built to see whether it has parameters; on the meta device, so that nothing is drawn.
    learnable = any(True for _ in create_activation(resolved, device=torch.device("meta")).parameters())
    aliases = tuple(alias for alias, known in ALIASES.items() if known == resolved)
    return ActivationInfo(resolved, learnable, entry.source, aliases, entry.elementwise)


def list_activations() -> list[ActivationInfo]:
    """Return every activation that `create_activation` builds, sorted by name, each once, with its aliases.

    `softmax`, `softmax2d`, `softmin` and `log_softmax` can be created, too; they normalise, and are not listed.

    Example:
        >>> from arelu_meta import list_activations
        >>> [one.name for one in list_activations() if one.learnable][:3]
        ['acon_c', 'apl', 'arelu']
    """
    return [activation_info(name) for name in sorted(_ENTRIES.keys() - _UNLISTED)]
