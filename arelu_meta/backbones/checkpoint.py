"""Model files: one safetensors file that says in its header how to rebuild its model. Nothing in it is code."""

import importlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arelu_meta.backbones import FINISHERS
from arelu_meta.backbones.create import OUR_HEADER, check_model_name, create_backbone, is_stock, size_argument
from arelu_meta.config import LARGEST_IMAGE, RANGE, Init, MetaConfig, TaskConfig
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import Provenance
from arelu_meta.errors import InputError, shown
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.validation import check_value, checked, flags_of

_SMALL = 1_000_000  # parameters that any model may have, however few numbers its file holds
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

    def build(self) -> nn.Module:
        """Make the model, its weights at random."""
        check_model_name(self.name)
        model = create_backbone(
            self.name,
            num_classes=self.num_classes,
            in_chans=self.inputs.channels,
            activation=self.activation,
            init="nearest" if self.init == "fit" else self.init,  # of the same parts, and needs no images
            **size_argument(self.name, self.inputs.image_size),
        )
        if (finisher := FINISHERS.get(self.task)) is not None:
            module, _, name = finisher.partition(":")
            getattr(importlib.import_module(module), name)(model, self.meta)
        return model


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's weights with its spec, atomically.

    Args:
        path: the file, `*.safetensors`.
        model: on any device.
        spec: goes into the header.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    metadata = {OUR_HEADER: json.dumps(asdict(spec)), "format": "pt"}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


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
        spec = parse_spec(json.loads(header))
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
    # Activations and normalisations that were taken out leave fewer behind, never many.
    if needed > 2 * held + _SMALL:
        raise TypeError(f"its header's model has {needed:,} parameters, and it holds {held:,} numbers")


@lru_cache(maxsize=64)
def _count_parameters(name: str, num_classes: int, channels: int, image_size: int) -> int:
    """Count what a model has without making it; 0 where it cannot be told so."""
    try:
        with torch.device("meta"):
            model = create_backbone(name, num_classes=num_classes, in_chans=channels, **size_argument(name, image_size))
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


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file's tensors, on the CPU.

    Args:
        file: what `read_spec` found.
    """
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)


@checked
def load_model(path: str | Path, where: str = "checkpoint") -> tuple[nn.Module, ModelSpec]:
    """Rebuild a saved model with its weights.

    Args:
        path: a run folder or a model.safetensors.
        where: the flag that named it, for errors.

    Returns:
        The model in eval mode on the CPU, and its spec.

    Raises:
        InputError: if it is missing, damaged, or does not fit what its header says.
    """
    file, spec = read_spec(path, where)
    model = spec.build()
    load_tensors(model, read_tensors(file), f"{where}: {str(file)!r}")
    return model.eval(), spec


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
