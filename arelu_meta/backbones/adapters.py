"""Adapters: what has changed of a backbone, in one small safetensors file that loads on the same backbone alone.

In the file are the head, the activations' scalars, low-rank adapters, and every other tensor that is no longer what the
backbone has. Its header names the backbone, what was swapped in and where, what the images are like, and a digest of
the rest of the weights: the model's own have to be the same to the bit, so that it answers as it did where it was made.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.zoo import ELSA
from arelu_meta.backbones.call_tracing import Example, example_input
from arelu_meta.backbones.initialization import INITS
from arelu_meta.backbones.lora import add_lora, has_lora, plain_name, rank_of
from arelu_meta.backbones.networks import OUR_HEADER, check_path, heads_of, inputs_of, load_tensors
from arelu_meta.backbones.swap import (
    base_of,
    print_of,
    remember_base,
    swap_activations,
    swaps_of,
    unchanged_after_an_error,
)
from arelu_meta.config import Init
from arelu_meta.errors import InputError, shown
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.validation import checked

_SCALARS = ("alpha", "beta", "t")
_RECORD = "*record"  # a run's config and the digests of its images, compressed; no module has such a name
_LARGEST_RECORD = 2**26  # bytes
_LARGEST_RANK = 4096


@checked
def save_adapter(
    model: nn.Module,
    path: str | Path,
    base: Mapping[str, Tensor] | nn.Module | None = None,
    classes: Iterable[str] | None = None,
) -> None:
    """Save what has changed of a backbone: scalars, head, statistics that moved, and whatever else was trained.

    Args:
        model: trained; left as it is.
        path: the file to write, `*.safetensors`.
        base: the model or the state dict that it started from. `create_backbone` and the first `swap_activations`
            remember that, so that it is needed for other networks only.
        classes: the classes' names, in the order of the outputs; default: their numbers.

    Raises:
        InputError: if nothing is known of what the model started from.

    Example:
        >>> import torch, tempfile
        >>> from arelu_meta import create_backbone, load_adapter, save_adapter, set_trainable
        >>> backbone = create_backbone("mnist_conv", num_classes=10, in_chans=1)
        >>> weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        >>> _ = set_trainable(backbone, "head")
        >>> backbone.head.bias.data += 1                       # a training
        >>> file = tempfile.mktemp(suffix=".safetensors")
        >>> save_adapter(backbone, file)
        >>> again = create_backbone("mnist_conv", num_classes=10, in_chans=1)
        >>> _ = again.load_state_dict(weights)
        >>> load_adapter(again, file)
        >>> torch.equal(again.head.bias, backbone.head.bias)
        True
    """
    model = _unwrapped(model)
    if base is not None:
        state = base.state_dict() if isinstance(base, nn.Module) else base
        prints = {plain_name(name): print_of(tensor) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    elif (known := base_of(model)) is not None:
        prints = known.prints
    else:
        raise InputError(
            f"base: nothing is known of what this {type(model).__name__} started from; give base=, the state dict that "
            "it had before the training"
        )
    write_adapter(Path(path), model, prints, _spec_of(model, classes))


@checked
def load_adapter(model: nn.Module, path: str | Path, example: Example | None = None) -> None:
    """Load an adapter on the backbone that it was made on; a model that was not swapped yet is swapped.

    Args:
        model: of the same weights; changed in place. A head of another size is replaced where the model can do that.
        path: what `save_adapter` wrote, or a run folder of `finetune --run.save adapter`.
        example: an input for the swap, for a network that does not say what it takes.

    Raises:
        InputError: if the file is no adapter, or was made on another backbone; the model is unchanged then.

    Example:
        >>> import tempfile, torch
        >>> from arelu_meta import create_backbone, load_adapter, save_adapter
        >>> _ = torch.manual_seed(0)
        >>> backbone = create_backbone("mnist_conv", num_classes=10, in_chans=1)
        >>> file = tempfile.mktemp(suffix=".safetensors")
        >>> backbone.head.bias.data += 1  # a training
        >>> save_adapter(backbone, file)
        >>> _ = torch.manual_seed(0)
        >>> load_adapter(create_backbone("mnist_conv", num_classes=10, in_chans=1), file)
    """
    from safetensors import SafetensorError

    check_path(path, "adapter")
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    where = f"adapter: {str(file)!r}"
    if not file.is_file():
        raise InputError(f"{where} does not exist; give a file that save_adapter wrote")
    try:
        content, tensors = read_adapter(file)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise InputError(f"{where} is damaged or no adapter ({' '.join(str(error).split())[:200]})") from error
    apply_adapter(_unwrapped(model), content, tensors, where, example)


def write_adapter(path: Path, model: nn.Module, prints: Mapping[str, int], spec: Mapping[str, Any]) -> None:
    """Write an adapter, atomically.

    Args:
        path: the file.
        model: trained.
        prints: of the tensors of what it started from, as `Base` has them.
        spec: a `ModelSpec` as a dict, or nothing.
    """
    state = _tensors_of(model)
    swaps = swaps_of(model)
    always = _always_saved(model, swaps)
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
        if name in always or prints.get(plain_name(name)) != print_of(tensor)
    }
    base = base_of(model)
    content = {
        "backbone": spec.get("name") or type(model).__name__,
        "pretrained": base.pretrained if base is not None else False,
        "rest": _digest(state, {plain_name(name) for name in tensors}),
        "swaps": [[activation, init, paths] for (activation, init), paths in swaps.items()],
        "lora": rank_of(model),
        "outputs": _outputs_of(model),
        "packed": _pack(model, tensors),
    }
    record = {key: spec[key] for key in ("config", "provenance") if spec.get(key)}
    if record:
        packed = zlib.compress(json.dumps(record).encode(), 9)
        tensors[_RECORD] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    header = {key: value for key, value in spec.items() if key not in record} | {"adapter": content}
    metadata = {OUR_HEADER: json.dumps(header), "format": "pt"}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_adapter(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter's part of the header, checked, and its tensors.

    Args:
        file: of anyone.

    Raises:
        TypeError: if it is no adapter; what safetensors and JSON raise likewise.
    """
    with safe_open(file, framework="pt") as opened:
        header = json.loads((opened.metadata() or {}).get(OUR_HEADER, "{}"))
        if not isinstance(header, dict) or "adapter" not in header:
            raise TypeError("it holds a whole model, or no model of this toolkit; arelu_meta.load_model loads a run's")
        content = check_adapter(header["adapter"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name != _RECORD}  # noqa: SIM118
    _unpack(tensors, content["packed"])
    return content, tensors


def record_in(file: Path) -> dict[str, Any]:
    """Read the run's config and provenance that an adapter carries; {} without.

    Args:
        file: of anyone.

    Raises:
        ValueError: if it is damaged; TypeError likewise.
    """
    with safe_open(file, framework="pt") as opened:
        if _RECORD not in opened.keys():  # noqa: SIM118 (no mapping)
            return {}
        packed = opened.get_tensor(_RECORD).numpy().tobytes()
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(packed, _LARGEST_RECORD)
    except zlib.error as error:
        raise ValueError(f"its record is damaged: {error}") from error
    if not reader.eof:
        raise ValueError("its record is damaged or too large")
    record = json.loads(plain)
    if not isinstance(record, dict) or not record.keys() <= {"config", "provenance"}:
        raise TypeError("its record is no run's")
    return record


def check_adapter(content: Any) -> dict[str, Any]:
    """Check an adapter's part of a header, which anyone may have written.

    Args:
        content: what JSON gave.

    Returns:
        The content.

    Raises:
        TypeError: if it says what no adapter says.
    """
    checks = {
        "backbone": lambda value: isinstance(value, str),
        "pretrained": lambda value: isinstance(value, bool | str),
        "rest": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
        "swaps": lambda value: isinstance(value, list) and all(map(_is_swap, value)),
        "lora": lambda value: value is None or (type(value) is int and 0 < value <= _LARGEST_RANK),
        "outputs": lambda value: value is None or (type(value) is int and value > 0),
        "packed": _are_texts,
    }
    if not isinstance(content, dict) or content.keys() != checks.keys():
        raise TypeError("its header is no adapter's")
    for name, is_right in checks.items():
        if not is_right(content[name]):
            raise TypeError(f"its header's {name} is {shown(content[name])}, which no adapter says")
    return content


def apply_adapter(
    model: nn.Module, content: dict[str, Any], tensors: dict[str, Tensor], where: str, example: Example | None = None
) -> None:
    """Put an adapter on a model, which is unchanged where that fails.

    Args:
        model: changed in place.
        content: the adapter's part of the header, checked.
        tensors: the adapter's.
        where: what an error starts with.
        example: an input for the swap.

    Raises:
        InputError: if the model is not the backbone that it was made on.
    """
    swaps = {(activation, init): paths for activation, init, paths in content["swaps"]}
    own = {path for paths in swaps_of(model).values() for path in paths}
    if extra := sorted(own - {path for paths in swaps.values() for path in paths}):
        raise InputError(
            f"{where} has no activation swapped in at {extra[0]!r}, and the model has; arelu_meta.unswap(model) first"
        )
    if has_lora(model) and content["lora"] != rank_of(model):
        raise InputError(f"{where} goes on a backbone without low-rank adapters of another rank; load it on a new one")
    below = tuple(f"{path}." for paths in swaps.values() for path in paths)
    state = {name: tensor for name, tensor in _tensors_of(model).items() if ".lora_" not in name}
    saved = {plain_name(name) for name in tensors} | {plain_name(name) for name in _head_names(model)}
    rest = _digest(state, saved | {name for name in map(plain_name, state) if name.startswith(below)})
    if rest != content["rest"]:
        raise InputError(
            f"{where} was made on other weights than this model's: those of {content['backbone']!r} with digest "
            f"{content['rest'][:12]}, and these have {rest[:12]}; load it on the backbone that it names"
        )
    with unchanged_after_an_error(model):
        if base_of(model) is None:
            remember_base(model)
        _fit_head(model, content["outputs"], tensors)
        for (activation, init), paths in swaps.items():
            start = "nearest" if init == "fit" else init  # of the same parts, and needs no images
            swap_activations(model, activation, init=cast(Init | None, start), include=paths, example=example)
        if content["lora"] is not None and not has_lora(model):
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
            add_lora(model, content["lora"])
            for parameter in learning:
                parameter.requires_grad_(True)
        load_tensors(model, {**model.state_dict(), **tensors}, where)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module below torch.compile's and DDP's wrapper."""
    for name in ("_orig_mod", "module"):
        inner = model._modules.get(name)
        if inner is not None and len(model._modules) == 1:
            return _unwrapped(inner)
    return model


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _always_saved(model: nn.Module, swaps: Mapping[Any, list[str]]) -> set[str]:
    """Name what every adapter holds: the head, and all that a swap and LoRA put in."""
    below = tuple(f"{path}." for paths in swaps.values() for path in paths)
    found = {name for name in model.state_dict() if name.startswith(below) or ".lora_" in name}
    return found | _head_names(model)


def _head_names(model: nn.Module) -> set[str]:
    try:
        of_head = {id(parameter) for head in heads_of(model) for parameter in head.parameters()}
    except InputError:
        return set()
    return {name for name, parameter in model.named_parameters() if id(parameter) in of_head}


def _outputs_of(model: nn.Module) -> int | None:
    outputs = getattr(model, "num_classes", None)
    return outputs if isinstance(outputs, int) and outputs > 0 else None


def _fit_head(model: nn.Module, outputs: int | None, tensors: Mapping[str, Tensor]) -> None:
    """Give a model with timm's interface a head of as many outputs as the adapter's has."""
    if outputs is None or not hasattr(model, "reset_classifier") or getattr(model, "num_classes", outputs) == outputs:
        return
    if outputs > sum(tensor.numel() for tensor in tensors.values()):
        raise InputError(f"adapter: its header says {outputs} outputs, and it holds fewer numbers")
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    model.reset_classifier(outputs)  # type: ignore[operator]
    if like is not None:
        for head in heads_of(model):
            head.to(like.device, like.dtype)


def _digest(state: Mapping[str, Tensor], left_out: set[str]) -> str:
    """Digest names, kinds and bits of a model's tensors but for some, by their plain names."""
    found = hashlib.sha256()
    plain = {plain_name(name): tensor for name, tensor in state.items()}
    for name in sorted(plain.keys() - left_out):
        tensor = plain[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _pack(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Write the activations' scalars as one tensor a kind: the names of a hundred would take more than they do."""
    paths = [path for path, module in model.named_modules() if isinstance(module, AReLU | GatedAReLU | ELSA)]
    columns = [[f"{path}.{kind}" for path in paths if f"{path}.{kind}" in tensors] for kind in _SCALARS]
    if not paths or any(len(names) not in (0, len(paths)) for names in columns) or len(columns[0]) != len(paths):
        return []
    if len({(tensors[name].dtype, tensors[name].shape) for names in columns for name in names}) != 1:
        return []
    for kind, names in zip(_SCALARS, columns, strict=True):
        if names:
            tensors[f"*.{kind}"] = torch.cat([tensors.pop(name) for name in names])
    return paths


def _unpack(tensors: dict[str, Tensor], paths: list[str]) -> None:
    for kind in _SCALARS:
        packed = tensors.pop(f"*.{kind}", None)
        if packed is None:
            continue
        if packed.shape != (len(paths),):
            raise TypeError(f"its {kind} are {tuple(packed.shape)}, for {len(paths)} activations")
        tensors |= {f"{path}.{kind}": value.reshape(1).clone() for path, value in zip(paths, packed, strict=True)}


def _spec_of(model: nn.Module, classes: Iterable[str] | None) -> dict[str, Any]:
    """Say of a model of `create_backbone` what `evaluate`, `predict` and `export` need to make it again."""
    base, outputs = base_of(model), _outputs_of(model)
    names = [] if classes is None else list(classes)
    if outputs is not None and classes is not None and len(names) != outputs:
        raise InputError(f"classes: {len(names)} names do not fit the model's {outputs} outputs")
    if base is None or not base.name or outputs is None:
        return {"classes": names} if names else {}
    example = example_input(model)
    side = example.shape[-1] if isinstance(example, Tensor) else None
    activations = list(swaps_of(model))
    activation, init = activations[0] if activations else (None, None)
    return {
        "task": "finetune",
        "name": base.name,
        "num_classes": outputs,
        "activation": activation,
        "init": init,
        "inputs": asdict(inputs_of(model, base.in_chans, side)),
        "classes": names or [str(number) for number in range(outputs)],
    }


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_swap(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    activation, init, paths = value
    return isinstance(activation, str) and (init is None or init in INITS) and _are_texts(paths) and bool(paths)
