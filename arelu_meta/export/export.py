"""`arelu-meta export`: a fine-tuned model for use without this toolkit, as ONNX, TorchScript or torch.export.

Beside the model lie a JSON file that says which output is which class and how an image becomes an input, and a card.
"""

import importlib.util
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec
from arelu_meta.backbones.initialization import fold as fold_gates
from arelu_meta.config import ExportConfig
from arelu_meta.errors import InputError, MissingExtraError, RunError, nearest_names
from arelu_meta.export.hub import check_classifier, check_repository, push
from arelu_meta.export.model_card import model_card, results_beside, without_paths
from arelu_meta.runs.atomic_io import write_atomically, write_text
from arelu_meta.validation import checked, validate

TOLERANCE = 1e-3
"""How far an exported file's logits may be from the model's, as a share of the largest logit (1 at least)."""

_INSTALL_ONNX = "pip install 'arelu-meta[onnx]'"
_ONNX_LIMIT = 2**31 - 2**24  # bytes; protobuf's 2 GiB, less what is not weights
_INFO = "arelu_meta.json"  # the description's name inside TorchScript and torch.export archives


def export_task(config: ExportConfig) -> dict[str, Any]:
    """Export from the command line, and print what was written and how exact it is.

    Args:
        config: the checkpoint and where it goes.

    Returns:
        As `export`; with `hub`, the repository's address.
    """
    validate(config)
    found: dict[str, Any] = {}
    if config.hub is not None:
        check_repository(config.hub)
    if config.hub is None or config.output is not None or config.format is not None:
        found = export(config.checkpoint, config.output, config.format, config.fold, config.overwrite)
        _report(found, config.fold)
    if config.hub is not None:
        found["hub"] = push(config.checkpoint, config.hub, config.private)
        print(f"pushed to {found['hub']}", flush=True)
    return found


def _report(found: dict[str, Any], fold: bool) -> None:
    print(
        f"{found['file']}: {found['format']}, {found['bytes'] / 1e6:.1f} MB, any batch size; largest difference from "
        f"the model's logits on random images: {found['largest_difference']:.2g} "
        f"(the largest logit is {found['largest_logit']:.3g})"
    )
    if fold:
        print(f"gates folded: {found['gates_folded']} of {found['gates']}; the others are no AReLU's and stay")
    name = Path(found["file"]).name
    print(f"beside it: {name}.json (classes, preprocessing) and {name}.md (model card)", flush=True)


@checked
def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    format: str | None = None,
    fold: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a fine-tuned model; the file takes any batch size and gives logits.

    What is exported is loaded again and run on random images before it is written: nothing wrong is left. FILE.json
    (classes, preprocessing) and FILE.md (the model card) are written beside it.

    Args:
        checkpoint: a run folder or a model.safetensors.
        output: the file; default: model.onnx, model.pt or model.pt2 beside the weights.
        format: onnx, torchscript or pt2; default: by the output's ending, else onnx.
        fold: write gated residuals as plain AReLUs, where an AReLU is the same function.
        overwrite: replace what is there.

    Returns:
        `file`, `format`, `bytes`, `largest_difference` (between the logits of the file and of the model),
        `largest_logit`, `gates_folded`, `gates`, `card`.

    Raises:
        InputError: if an argument or the checkpoint does not fit, or a package is missing; nothing is written then.
        RunError: if the model cannot be exported so, or the disk refuses.
    """
    file, spec = read_spec(checkpoint)
    check_classifier(spec)
    kind, path = choose_output(file.parent, output, format)
    _check_packages(kind)
    info_path, card_path = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.md")
    for place in (path, info_path, card_path):
        _check_place(place, overwrite)
    model, spec = load_model(checkpoint)
    _check_size(model, kind)
    images = _random_images(spec)
    wanted = _logits(model, images)
    gates = sum(isinstance(module, GatedAReLU) for module in model.modules())
    folded = len(fold_gates(model)) if fold else 0
    info = describe(spec, kind)
    content, found = _exported(model, images, kind, info)
    difference = _difference(found, wanted, kind)
    card = model_card(spec, results_beside(file), use_of_file(path.name, kind, spec))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    for place, text in ((info_path, json.dumps(info, indent=2, ensure_ascii=False) + "\n"), (card_path, card)):
        write_text(place, text)
    return {
        "file": str(path),
        "format": kind,
        "bytes": len(content),
        "largest_difference": difference,
        "largest_logit": wanted.abs().max().item(),
        "gates_folded": folded,
        "gates": gates,
        "card": str(card_path),
    }


def choose_output(folder: Path, output: str | Path | None, format: str | None) -> tuple[str, Path]:
    """Return the format and the file.

    Args:
        folder: where the file goes unless `output` says so.
        output: a file's name.
        format: a key of the formats.

    Returns:
        The format and the file.

    Raises:
        InputError: if the format is unknown, cannot be told, or the ending is another format's.
    """
    if format is not None and format not in _FORMATS:
        raise InputError(f"format: {format!r} is not known; {nearest_names(format, _FORMATS)}")
    if output is None:
        format = format or "onnx"
        return format, folder / f"model{_FORMATS[format].endings[0]}"
    path = Path(os.path.expanduser(output))  # noqa: PTH111 (pathlib's raises where there is no such user)
    of_ending = next((name for name, one in _FORMATS.items() if path.suffix.lower() in one.endings), None)
    endings = ", ".join(ending for one in _FORMATS.values() for ending in one.endings)
    if format is None and of_ending is None:
        raise InputError(f"output: {str(output)!r} ends in no known format; end it in {endings}, or give --format")
    if format is not None and of_ending not in (None, format):
        raise InputError(f"output: {str(output)!r} ends as {of_ending}, and format is {format}; make them agree")
    chosen = format or of_ending
    assert chosen is not None
    return chosen, path


def describe(spec: ModelSpec, kind: str) -> dict[str, Any]:
    """Describe an exported model: what goes in, what comes out, in JSON types.

    Args:
        spec: of the model.
        kind: the format.

    Returns:
        `preprocessing` holds the arguments of `timm.data.create_transform`, `steps` the same in words.
    """
    inputs, side = spec.inputs, spec.inputs.image_size
    resized = math.floor(side / inputs.crop_pct)
    fill = ", ".join(str(round(255 * value)) for value in inputs.mean)
    square = {
        "crop": [
            f"resize the shorter side to {resized} px ({inputs.interpolation})",
            f"cut {side} × {side} px from the centre",
        ],
        "pad": [
            f"resize the longer side to {side} px ({inputs.interpolation})",
            f"pad to {side} × {side} px with {fill}",
        ],
        "squash": [f"resize to {side} × {side} px ({inputs.interpolation}), whatever the shape was"],
    }[inputs.fit]
    return {
        "format": kind,
        "model": spec.name,
        "activation": spec.activation,
        "classes": list(spec.classes),
        "input": {"name": "images", "shape": ["batch", inputs.channels, side, side], "dtype": "float32"},
        "output": {"name": "logits", "shape": ["batch", spec.num_classes], "dtype": "float32"},
        "preprocessing": {
            "input_size": [inputs.channels, side, side],
            "interpolation": inputs.interpolation,
            "mean": list(inputs.mean),
            "std": list(inputs.std),
            **inputs.crop(),
        },
        "steps": [
            "decode, turn upright as the EXIF says, scale 16 bits a channel to 8, lay what is transparent over white"
            + ("" if inputs.range == "auto" else f"; grey of more than 8 bits: {inputs.range} becomes 0-255"),
            f"convert to {'RGB' if inputs.channels == 3 else 'grey'}",
            *square,
            "divide by 255, subtract mean, divide by std, channel by channel",
        ],
        "spec": without_paths(spec),
    }


def use_of_file(name: str, kind: str, spec: ModelSpec) -> str:
    """Write the Python code that uses an exported file, without this toolkit.

    Args:
        name: of the file.
        kind: its format.
        spec: of the model.
    """
    mode = "RGB" if spec.inputs.channels == 3 else "L"
    run = {
        "onnx": f'onnxruntime.InferenceSession({name!r}).run(None, {{"images": images.numpy()}})[0]',
        "torchscript": f"torch.jit.load({name!r})(images)",
        "pt2": f"torch.export.load({name!r}).module()(images)",
    }
    return "\n".join(
        [
            f"import json, timm.data, {'onnxruntime' if kind == 'onnx' else 'torch'}",
            "from PIL import Image, ImageOps",
            f'info = json.load(open({f"{name}.json"!r}, encoding="utf-8"))',
            'transform = timm.data.create_transform(**info["preprocessing"])',
            'image = ImageOps.exif_transpose(Image.open("photo.jpg"))',
            "if image.has_transparency_data:",
            '    image = image.convert("RGBA")',
            '    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)',
            f"images = transform(image.convert({mode!r}))[None]",
            f"logits = {run[kind]}",
            'print(info["classes"][logits.argmax()])',
        ]
    )


def _batch() -> torch.export.Dim:
    """Let a batch have any size; without a largest one, torch 2.7 takes a transformer's for bounded by another."""
    return torch.export.Dim("batch", max=2**31 - 1)


def _onnx(model: nn.Module, images: Tensor, info: dict[str, Any]) -> bytes:
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: _batch()},),
        verbose=False,
    )
    assert program is not None
    flat = {"arelu_meta": info, "classes": info["classes"], **info["preprocessing"]}
    program.model.metadata_props.update(
        {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in flat.items()
        }
    )
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _load_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _torchscript(model: nn.Module, images: Tensor, info: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    torch.jit.save(torch.jit.trace(model, images), buffer, _extra_files={_INFO: json.dumps(info)})
    return buffer.getvalue()


def _load_torchscript(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.jit.load(io.BytesIO(content))  # type: ignore[no-any-return]


def _pt2(model: nn.Module, images: Tensor, info: dict[str, Any]) -> bytes:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: _batch()},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_INFO: json.dumps(info)})
    return buffer.getvalue()


def _load_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


@dataclass(frozen=True)
class _Format:
    """A format: the endings of its files, the first the default; what makes a file's bytes, and a function of them."""

    endings: tuple[str, ...]
    export: Callable[[nn.Module, Tensor, dict[str, Any]], bytes]
    load: Callable[[bytes], Callable[[Tensor], Tensor]]


_FORMATS = {
    "onnx": _Format((".onnx",), _onnx, _load_onnx),
    "torchscript": _Format((".pt", ".ts", ".torchscript"), _torchscript, _load_torchscript),
    "pt2": _Format((".pt2",), _pt2, _load_pt2),
}


def _check_packages(kind: str) -> None:
    if kind != "onnx":
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # None stands in sys.modules
            found = None
        if found is None:
            raise MissingExtraError(f"format: onnx needs the package {package}: {_INSTALL_ONNX}")


def _check_place(path: Path, overwrite: bool) -> None:
    """Refuse a file that could not be written: found now, not after the export."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output: {str(path)!r} cannot be written: {str(folder)!r} is no folder; give another")
    if path.is_dir():
        raise InputError(f"output: {str(path)!r} is a folder; give a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"output: {str(path)!r} is there already; give another file or --overwrite")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"output: {str(path)!r} cannot be written: {str(folder)!r} is read-only; give another")


def _check_size(model: nn.Module, kind: str) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if kind == "onnx" and size > _ONNX_LIMIT:
        raise InputError(
            f"format: onnx holds at most 2 GB in one file, and the weights take {size / 1e9:.1f} GB; give pt2"
        )


def _random_images(spec: ModelSpec) -> Tensor:
    # More than one: exporters take a batch of one for a constant.
    shape = (3, spec.inputs.channels, spec.inputs.image_size, spec.inputs.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits by batches of other sizes than the one that the model was traced with."""
    return torch.cat([model(images[:1]), model(images[1:])])


def _exported(model: nn.Module, images: Tensor, kind: str, info: dict[str, Any]) -> tuple[bytes, Tensor]:
    """Export a model, and run it again from what would be its file's bytes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # exporters warn of what in torch they use themselves
            content = _FORMATS[kind].export(model, images, info)
            return content, _logits(_FORMATS[kind].load(content), images)
    except MemoryError:
        raise
    except Exception as error:  # each exporter has errors of its own
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"{kind}: this model cannot be exported so ({type(error).__name__}: {reason}); try another --format"
        ) from error
    finally:
        logger.setLevel(level)


def _difference(found: Tensor, wanted: Tensor, kind: str) -> float:
    if not wanted.isfinite().all():
        raise RunError("checkpoint: its logits on random images are NaN or infinite; there is nothing to export")
    difference = (found - wanted).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
        largest = wanted.abs().max().item()
        raise RunError(
            f"{kind}: the exported file's logits are {difference:.3g} off the model's, whose largest is {largest:.3g}; "
            "nothing is written"
        )
    return difference
