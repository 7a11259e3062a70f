"""Share a fine-tuned model on the Hugging Face Hub through timm's own code, and take one from there.

A repository holds what timm writes: `model.safetensors`, `config.json` and `README.md`. timm itself loads it unless an
activation was swapped in; for those `config.json` carries, as `arelu_meta`, what rebuilds the model.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from arelu_meta.backbones.checkpoint import ModelSpec, check_size, load_model, parse_spec, read_spec
from arelu_meta.backbones.networks import load_tensors, read_tensors
from arelu_meta.errors import InputError, RunError
from arelu_meta.export.model_card import TAGS, card_body, results_beside, without_paths

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def check_repository(name: str) -> None:
    """Refuse what cannot be a repository's name, before anything is read or sent.

    Args:
        name: USER/NAME.

    Raises:
        InputError: saying why.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"hub: {name!r} is not a repository's name ({str(error).split(':')[0]})") from error
    if name.count("/") != 1:
        raise InputError(f"hub: {name!r} is not a repository's name; give USER/NAME")


def check_classifier(spec: ModelSpec, where: str = "checkpoint") -> None:
    """Refuse a meta-learner, whose outputs mean nothing before a support set, and a model of tensors of unknown making.

    Args:
        spec: of the model.
        where: the flag that named it, for errors.

    Raises:
        InputError: if the model is not a fine-tuned one, or nobody here can say how an image is prepared for it.
    """
    if spec.task != "finetune":
        raise InputError(
            f"{where}: it holds a meta-learner, whose outputs mean nothing before it has adapted to a support set; "
            "give a fine-tuned model"
        )
    if spec.inputs.prepared:
        raise InputError(
            f"{where}: its run was trained on tensors that a data set made of images, in a way that its file could not "
            "say; train on the images to export it, or call torch.onnx.export on load_model(run).model"
        )


def push(checkpoint: str | Path, repository: str, private: bool = False) -> str:
    """Push a fine-tuned model to the Hugging Face Hub, with its card, through `timm.models.push_to_hf_hub`.

    A README.md that the repository has already is left as it is. Nothing of the run's config is sent but the command
    in the card, without local folders.

    Args:
        checkpoint: a run folder or a model.safetensors.
        repository: USER/NAME; made if it is not there.
        private: whether a new repository is.

    Returns:
        The repository's address.

    Raises:
        InputError: if the name or the checkpoint does not fit.
        RunError: if the Hub refuses, or cannot be reached.
    """
    from timm.models import push_to_hf_hub

    check_repository(repository)
    file, spec = read_spec(checkpoint)
    check_classifier(spec)
    model, spec = load_model(checkpoint)
    card = {
        "tags": list(TAGS),
        "library_name": "arelu-meta" if needs_arelu_meta(spec) else "timm",
        "license": "unknown",  # timm would write Apache's
        "description": card_body(spec, results_beside(file), use_of_hub(repository, spec)),
    }
    try:
        push_to_hf_hub(
            prepare(model, spec),
            repository,
            commit_message=f"{spec.name}, fine-tuned with arelu_meta",
            private=private,
            model_config=model_config(spec),
            model_card=card,
            safe_serialization=True,
        )
    except Exception as error:  # the Hub's client raises errors of its own, of HTTP and of the network
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"hub: {repository!r} could not be pushed ({type(error).__name__}: {reason}); "
            "log in with `hf auth login` and look whether the Hub can be reached"
        ) from error
    return f"https://huggingface.co/{repository}"


def load_from_hub(source: str | Path) -> tuple[nn.Module, ModelSpec]:
    """Rebuild a model that `push` shared, swapped activations and all.

    Args:
        source: USER/NAME on the Hugging Face Hub, or a folder with such a repository's files.

    Returns:
        The model in eval mode on the CPU, and its spec. No code from the repository is run.

    Raises:
        InputError: if a file is missing, damaged, or not of a model that was pushed from here.
    """
    where = f"hub: {str(source)!r}"
    try:
        config, weights = (Path(_fetch(source, name)) for name in (_CONFIG, _WEIGHTS))
        content = json.loads(config.read_text(encoding="utf-8"))
        spec = parse_spec(content["arelu_meta"])
        tensors = read_tensors(weights)
        check_size(spec, sum(tensor.numel() for tensor in tensors.values()))
    except KeyError as error:
        raise InputError(f"{where} was not pushed by arelu_meta; timm.create_model may load it") from error
    except Exception as error:  # the network, a missing or a damaged file
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where} cannot be loaded ({type(error).__name__}: {reason})") from error
    model = spec.build()
    load_tensors(model, tensors, where)
    return model.eval(), spec


def _fetch(source: str | Path, name: str) -> str | Path:
    if Path(source).is_dir():
        return Path(source) / name
    import huggingface_hub

    return huggingface_hub.hf_hub_download(str(source), name)


def needs_arelu_meta(spec: ModelSpec) -> bool:
    """Return True if timm alone cannot rebuild a model: an activation was swapped in, or the network is none of timm's.

    Args:
        spec: of the model.
    """
    import timm

    return spec.activation is not None or not timm.is_model(spec.name)


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what stands in timm's config.json beside timm's own entries.

    Args:
        spec: of the model.
    """
    return {"label_names": list(spec.classes), "arelu_meta": without_paths(spec)}


def prepare(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Make a model as timm's `save_for_hf` and `push_to_hf_hub` want it: they write what it says of itself.

    Args:
        model: changed in place, its weights and its outputs excepted.
        spec: of the model.

    Returns:
        The model.
    """
    inputs = spec.inputs
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    # The source checkpoint's recommendations for tests are not this model's.
    known = {key: value for key, value in known.items() if not key.startswith("test_")}
    model.pretrained_cfg = {  # type: ignore[assignment]
        "architecture": spec.name.split(".")[0],
        **known,
        "num_classes": spec.num_classes,
        "input_size": (inputs.channels, inputs.image_size, inputs.image_size),
        "mean": inputs.mean,
        "std": inputs.std,
        "interpolation": inputs.interpolation,
        **inputs.crop(),
    }
    model.register_state_dict_post_hook(_unshare)
    return model


def _unshare(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """Copy tensors that stand in a state dict under several names: safetensors keeps no two names of one."""
    for name, tensor in state.items():
        state[name] = tensor.detach().clone().contiguous()


def use_of_hub(repository: str, spec: ModelSpec) -> str:
    """Write the Python code that loads a model from the Hub.

    Args:
        repository: USER/NAME.
        spec: of the model.
    """
    lines = ["from arelu_meta.export.hub import load_from_hub", f"model, spec = load_from_hub({repository!r})"]
    if not needs_arelu_meta(spec):
        lines += ["", "# or with timm alone:", "import timm"]
        lines += [f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()']
    return "\n".join(lines)
