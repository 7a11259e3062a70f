"""Model files: one safetensors file that says in its header how to rebuild its model. Nothing in it is code."""

import copy
import importlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS
from arelu_meta.backbones import FINISHERS
from arelu_meta.backbones.adapters import apply_adapter, check_adapter, read_adapter, record_in, write_adapter
from arelu_meta.backbones.lora import has_lora, merge_lora
from arelu_meta.backbones.networks import (
    OUR_HEADER,
    check_model_name,
    check_path,
    is_given,
    is_stock,
    load_tensors,
    make_backbone,
    read_tensors,
    size_argument,
)
from arelu_meta.backbones.swap import base_of, forget_base, remember_base
from arelu_meta.backbones.timm_compat import swap_fault
from arelu_meta.config import LARGEST_IMAGE, RANGE, Init, MetaConfig, TaskConfig
from arelu_meta.data.image_io import read_image
from arelu_meta.data.loaders import InputSpec, build_transform
from arelu_meta.data.splits import Provenance
from arelu_meta.errors import InputError, shown
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.validation import check_value, checked, flags_of

_SMALL = 1_000_000  # parameters that any model may have, however few numbers its file holds
_LARGEST_BACKBONE = 1_000_000_000  # parameters that an adapter, whose file need not hold them, may ask timm's hub for
_SMALLEST_STD = 1e-4  # of pixels in [0, 1]; 1/255 where a model takes them as bytes
# What a header may say: each field's type, and the limits of a number.
_HEADER_FIELDS: dict[str, tuple[Any, dict[str, float]]] = {
    "task": (Literal["finetune", "metatrain"], {}),
    "name": (str, {}),
    "num_classes": (int, {"least": 0}),
    "activation": (str | None, {}),
    "init": (Init | None, {}),
    "classes": (list, {}),
    "mirrored": (bool, {}),
    "meta": (dict, {}),
    "config": (dict, {}),
    "provenance": (dict, {}),
    "adapter": (dict, {}),
}
_INPUT_FIELDS: dict[str, tuple[Any, dict[str, float]]] = {
    "image_size": (int, {"least": 1, "most": LARGEST_IMAGE}),
    "channels": (int, {"least": 1, "most": 64}),
    "mean": (tuple, {}),
    "std": (tuple, {}),
    "interpolation": (Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"], {}),
    "crop_pct": (float, {"least": 0.1, "most": 10}),  # above 1 in a few of timm's models
    "range": (str, {}),
    "fit": (Literal["crop", "pad", "squash"], {}),
    "prepared": (bool, {}),
}


@dataclass
class ModelSpec:
    """All that is needed to rebuild a model before its weights are loaded, and to use it.

    Args:
        task: finetune or metatrain.
        name: as in `create_backbone`.
        num_classes: the head's outputs.
        activation: what was swapped in, or None.
        init: how it started.
        inputs: what the model takes.
        classes: the classes' names; for a meta-learner those it was trained on.
        mirrored: whether a mirror image means the same in the data.
        meta: for a meta-learner: ways, shots, queries, inner_lr, inner_steps, normalization, inverted.
        config: the run's whole config, for the record and for `evaluate`.
        provenance: which images and classes it was trained and validated on, as `Provenance.as_header` writes it; empty
            for a model of before 0.2, which does not say.
        adapter: of an adapter: its backbone, what was swapped in where, and a digest; empty for a whole model.
    """

    task: str
    name: str
    num_classes: int
    activation: str | None
    init: str | None
    inputs: InputSpec
    classes: list[str] = field(default_factory=list)
    mirrored: bool = True
    meta: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the model, its weights at random."""
        check_model_name(self.name)
        model = make_backbone(
            self.name,
            num_classes=self.num_classes,
            in_chans=self.inputs.channels,
            activation=self.activation,
            init="nearest" if self.init == "fit" else self.init,  # of the same parts, and needs no images
            **size_argument(self.name, self.inputs.image_size),
        )
        return self.finished(model)

    def finished(self, model: nn.Module) -> nn.Module:
        """Make of a plain backbone what the task saves, in place: a meta-learner has its own normalisation and rates.

        Args:
            model: as `build` makes it, or as its owner does.
        """
        if (finisher := FINISHERS.get(self.task)) is not None:
            module, _, name = finisher.partition(":")
            getattr(importlib.import_module(module), name)(model, self.meta)
        return model


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's weights with its spec, atomically.

    Args:
        path: the file, `*.safetensors`.
        model: on any device; low-rank adapters are written merged, as a plain network.
        spec: goes into the header.
    """
    if has_lora(model):
        model = merge_lora(copy.deepcopy(model))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    header = {name: value for name, value in asdict(spec).items() if name != "adapter"}
    metadata = {OUR_HEADER: json.dumps(header), "format": "pt"}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def save_as_adapter(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write what has changed of a run's backbone, with the run's spec.

    Args:
        path: the file, `*.safetensors`.
        model: as `build_with_head` made it, trained.
        spec: goes into the header.
    """
    base = base_of(model)
    header = {name: value for name, value in asdict(spec).items() if name != "adapter"}
    write_adapter(path, model, {} if base is None else base.prints, header)


def read_spec(path: str | Path, where: str = "checkpoint") -> tuple[Path, ModelSpec]:
    """Find a model file and read its header.

    Args:
        path: a run folder or a model.safetensors.
        where: the flag that named it, for errors.

    Returns:
        The file's path, and its spec.

    Raises:
        InputError: if it is missing, damaged, or no model of this toolkit.
    """
    check_path(path, where)
    file = Path(path)
    if file.is_dir():
        if not (file / "model.safetensors").is_file():
            raise InputError(
                f"{where}: folder {str(path)!r} holds no model.safetensors; give a run folder that has one"
            )
        file = file / "model.safetensors"
    if not file.is_file():
        raise InputError(f"{where}: {str(path)!r} does not exist; give a run folder or a model.safetensors")
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(OUR_HEADER)
            held = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        if header is None:
            raise InputError(f"{where}: {str(file)!r} does not say what model it holds; give one that a run here wrote")
        content = json.loads(header)
        if isinstance(content, dict) and "adapter" in content:
            content |= record_in(file)
            if "task" not in content:
                backbone = check_adapter(content["adapter"])["backbone"]
                raise InputError(
                    f"{where}: {str(file)!r} is an adapter of {backbone!r}, a network that only its own code makes; "
                    "make it and call arelu_meta.load_adapter(model, FILE)"
                )
        spec = parse_spec(content)
        if not is_given(spec.name):
            check_size(spec, held)
        return file, spec
    # A header may be nested deeper than JSON's reader goes, and hold numbers that no float holds.
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        kept = file.parent.parent / "model.safetensors"
        if file.suffix == ".pt" and kept.is_file():
            raise InputError(
                f"{where}: {str(file)!r} is what --run.resume goes on from; the model its run kept is {str(kept)!r}"
            ) from error
        if is_stock(str(file)):
            raise InputError(
                f"{where}: {str(file)!r} is no model of this toolkit; if it holds weights as PyTorch or timm save "
                "them, arelu-meta finetune --model.pretrained takes it"
            ) from error
        raise InputError(f"{where}: {str(file)!r} is damaged or no model of this toolkit ({error})") from error


def check_size(spec: ModelSpec, held: int) -> None:
    """Refuse a header whose model is far larger than its file, before any memory is reserved for it.

    Args:
        spec: which anyone may have written.
        held: numbers in the file's tensors.

    Raises:
        TypeError: if the model has more parameters than that; InputError if there is no such model.
    """
    check_model_name(spec.name)
    needed = _count_parameters(spec.name, spec.num_classes, spec.inputs.channels, spec.inputs.image_size)
    if spec.adapter:  # the backbone is not in the file
        if spec.num_classes > held or needed > _LARGEST_BACKBONE:
            raise TypeError(f"its header's model has {needed:,} parameters; a backbone has at most a billion here")
        return
    # Activations and normalisations that were taken out leave fewer behind, never many.
    if needed > 2 * held + _SMALL:
        raise TypeError(f"its header's model has {needed:,} parameters, and it holds {held:,} numbers")


@lru_cache(maxsize=64)
def _count_parameters(name: str, num_classes: int, channels: int, image_size: int) -> int:
    """Count what a model has without making it; 0 where it cannot be told so."""
    try:
        with torch.device("meta"):
            model = make_backbone(name, num_classes=num_classes, in_chans=channels, **size_argument(name, image_size))
    except (InputError, NotImplementedError):  # it cannot be made, or reads its own numbers while it is
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def parse_spec(content: Any) -> ModelSpec:
    """Make a spec of a header's content, which anyone may have written.

    Args:
        content: what JSON gave.

    Raises:
        TypeError: if it says what no spec says; KeyError and ValueError likewise.
    """
    if not isinstance(content, dict):
        raise TypeError(f"its header holds a {type(content).__name__}")
    inputs = dict(content["inputs"])
    inputs |= {key: tuple(inputs[key]) for key in ("mean", "std")}
    spec = ModelSpec(**{**content, "inputs": InputSpec(**inputs)})
    try:
        _check_header(spec)
        if spec.adapter:
            check_adapter(spec.adapter)
    except InputError as error:
        raise TypeError(f"its header's {error}") from error
    return spec


def _check_header(spec: ModelSpec) -> None:
    """Check a header as a config is checked, field by field, before anything is made of it: InputError."""
    inputs, meta = spec.inputs, spec.meta
    for name, (hint, limits) in _HEADER_FIELDS.items():
        check_value(name, getattr(spec, name), hint, {"limits": limits})
    for name, (hint, limits) in _INPUT_FIELDS.items():
        check_value(f"inputs.{name}", getattr(inputs, name), hint, {"limits": limits})
    if not re.fullmatch(RANGE, inputs.range):
        raise InputError(f"inputs.range is {shown(inputs.range)}, and no LOW-HIGH")
    if {len(inputs.mean), len(inputs.std)} != {inputs.channels}:
        raise InputError(f"inputs.mean and inputs.std do not fit {inputs.channels} channels")
    for value in (*inputs.mean, *inputs.std):
        check_value("inputs.mean and inputs.std", value, float, {"limits": {"least": -1e4, "most": 1e4}})
    for value in inputs.std:
        check_value("inputs.std", value, float, {"limits": {"least": _SMALLEST_STD}})
    if not all(isinstance(name, str) for name in spec.classes):
        raise InputError("classes are no texts")
    try:
        Provenance.of_header(spec.provenance)
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance is no run's ({error})") from error
    if spec.task == "finetune":
        if meta:
            raise InputError(f"meta is a meta-learner's, and its task {spec.task}")
        if len(spec.classes) != spec.num_classes:
            raise InputError(f"classes are {len(spec.classes)}, its num_classes {spec.num_classes}")
        return
    # Its tasks and its inner loop are what a config would say of them; files of 0.1 lack some.
    fields_known = {**flags_of(TaskConfig), **flags_of(MetaConfig), "inverted": (bool, {})}
    fields_known["train_steps"] = fields_known["inner_steps"]
    for name in {"ways", "shots", "queries", "inner_lr", "inner_steps", "normalization", "inverted"} - meta.keys():
        raise InputError(f"meta.{name} is missing")
    for name in meta.keys() & fields_known.keys():
        check_value(f"meta.{name}", meta[name], *fields_known[name])
    if meta["ways"] != spec.num_classes:
        raise InputError(f"meta.ways: {meta['ways']}, for {spec.num_classes} outputs")


def provenance_of(pretrained: bool | str) -> Provenance:
    """Return what the model that a run starts from was trained and validated on.

    Args:
        pretrained: model.pretrained: weights of a package or of somebody else's say nothing, and nobody is told so; a
            model of this toolkit made before 0.2 does not say it either, and is incomplete.

    Raises:
        InputError: if it names no model.
    """
    if not isinstance(pretrained, str) or is_stock(pretrained):
        return Provenance()
    return Provenance.of_header(read_spec(pretrained, "model.pretrained")[1].provenance)


class LoadedModel(NamedTuple):
    """A saved model, ready to be used: `model, spec = load_model(run)`, or by its parts.

    Args:
        model: in eval mode, on the CPU.
        spec: all that its file says of it.

    Example:
        >>> from arelu_meta import load_model
        >>> loaded = load_model("runs/flowers")  # doctest: +SKIP
        >>> logits = loaded.model(loaded.transform("photo.jpg")[None])  # doctest: +SKIP
        >>> loaded.classes[int(logits.argmax())]  # doctest: +SKIP
        'tulip'
    """

    model: nn.Module
    spec: ModelSpec

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the classes, in the order of the logits."""
        return tuple(self.spec.classes)

    def transform(self, image: str | Path | Image.Image) -> Tensor:
        """Prepare an image as the run's test images were: upright, its transparency over white, cropped, normalised.

        Args:
            image: a file, or one of Pillow's.

        Returns:
            Shape (channels, image_size, image_size), float32.

        Raises:
            InputError: if the run was trained on tensors that its data set made.
            OSError: if the file is no whole image.
        """
        inputs = self.spec.inputs
        check_takes_images(inputs)
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        else:
            image = read_image(Path(image), inputs.channels, inputs.range)
        return build_transform(inputs, training=False)(image)


@checked
def load_model(path: str | Path, where: str = "checkpoint", model: nn.Module | None = None) -> LoadedModel:
    """Rebuild a saved model with its weights.

    Args:
        path: a run folder or a model.safetensors.
        where: the flag that named it, for errors.
        model: a network to load the weights into, in place: of a run of one's own network, made and swapped as it was.

    Returns:
        The model in eval mode, on the CPU unless it was handed over, and its spec; with `classes` and `transform`.

    Raises:
        InputError: if it is missing, damaged, or does not fit what its header says or the network handed over.

    Example:
        >>> import tempfile, torch
        >>> from arelu_meta import FinetuneConfig, finetune, load_model
        >>> run = tempfile.mkdtemp() + "/run"
        >>> config = FinetuneConfig()
        >>> config.run.folder, config.run.pictures, config.train.epochs = run, False, 1
        >>> config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 8
        >>> _ = finetune(config)  # doctest: +ELLIPSIS
        mnist_linear...
        >>> loaded = load_model(run)
        >>> loaded.classes[:3]
        ('0', '1', '2')
        >>> loaded.model(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    file, spec = read_spec(path, where)
    if spec.adapter:
        if model is not None:
            raise InputError(f"{where}: {str(file)!r} is an adapter; call arelu_meta.load_adapter(model, FILE)")
        return LoadedModel(_with_adapter(file, spec, where).eval(), replace(spec, adapter={}))
    found, tensors = spec.build() if model is None else spec.finished(model), read_tensors(file)
    if model is not None and (fault := swap_fault(model, tensors)) is not None:
        raise InputError(f"{where}: {str(file)!r}: {fault}")
    load_tensors(found, tensors, f"{where}: {str(file)!r}")
    remember_file(found, file, spec)
    return LoadedModel(found.eval(), spec)


def check_takes_images(inputs: InputSpec, where: str = "images") -> None:
    """Refuse to make a model's input of an image where its run never saw one.

    Args:
        inputs: of the model.
        where: the argument that named the image, for errors.

    Raises:
        InputError: if it was trained on tensors.
    """
    if inputs.prepared:
        raise InputError(
            f"{where}: the run was trained on tensors that its data set made of images, in a way it does not know; "
            "give tensors that the same transform made"
        )


def remember_file(model: nn.Module, file: Path, spec: ModelSpec) -> None:
    """Remember of a model that it starts from a file: an adapter holds what changes from here on.

    Args:
        model: with the file's weights.
        file: of the whole model.
        spec: of the model.
    """
    forget_base(model)
    if is_given(spec.name):
        remember_base(model)
    else:
        remember_base(model, spec.name, str(file.resolve()), spec.inputs.channels)


def _with_adapter(file: Path, spec: ModelSpec, where: str) -> nn.Module:
    """Make an adapter's backbone with its own weights, and put the adapter on it."""
    content, tensors = read_adapter(file)
    source, named = content["pretrained"], f"{where}: {str(file)!r}"
    if source is False:
        raise InputError(
            f"{named} is an adapter of random weights, which no file holds; make the network as it was made and call "
            "arelu_meta.load_adapter(model, FILE)"
        )
    if isinstance(source, str) and not is_stock(source):
        if not Path(source).exists():
            raise InputError(
                f"{named} is an adapter of {source!r}, which is not here; put it there, or load it from where it is "
                "and call arelu_meta.load_adapter(model, FILE)"
            )
        if read_spec(source, named)[1].adapter:
            raise InputError(f"{named} is an adapter of an adapter; give one that a run here wrote")
        model, _ = load_model(source, named)
    else:
        size = size_argument(spec.name, spec.inputs.image_size)
        control = CONTROLS.get(spec.activation or "")  # of a head no swap is told
        activation = spec.activation if control is not None and control.at == "head" else None
        model = make_backbone(spec.name, source, spec.num_classes, spec.inputs.channels, activation, **size)
    apply_adapter(model, content, tensors, named)
    return merge_lora(model)
