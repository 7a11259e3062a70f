"""The model card: Markdown that says what a model is, how it was made, how good it is and how to use it."""

import html
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from arelu_meta import __version__
from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import printable
from arelu_meta.runs.run_folder import seen_line
from arelu_meta.validation import flatten

TAGS = ("image-classification", "timm", "arelu-meta")
_CLASSES_SHOWN = 200
_NOT_SAID = {"run.folder", "run.resume"}


def escape(text: object) -> str:
    """Escape a text so that Markdown and HTML show it as it is, on one line.

    Args:
        text: such as a class's name, which may be anything that a folder can be called.
    """
    line = printable(" ".join(str(text).split()))
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~$:])", r"\\\1", html.escape(line, quote=False))


def fenced(code: str, language: str) -> str:
    """Put code into a fence that nothing in it can close.

    Args:
        code: any text.
        language: for the highlighter.
    """
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def command_of(config: Mapping[str, Any]) -> str:
    """Write a run's config as the command that makes it: what differs from the defaults, without where it wrote.

    Args:
        config: a `FinetuneConfig` as nested mappings, as a model file's header has it; what it does not know is left
            out, and of an absolute path all but the last part: a card is made to be published.
    """
    defaults, words = flatten(FinetuneConfig()), ["arelu-meta", "finetune"]
    for name, value in _flat(config).items():
        if name in defaults and name not in _NOT_SAID and value != defaults[name]:
            words += [f"--{name}", _word(value)]
    return shlex.join(words)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name or "/"
    return str(value) if isinstance(value, str | int | float) else json.dumps(value, default=str)


def results_beside(file: Path) -> dict[str, Any]:
    """Find what a run folder says of its model.

    Args:
        file: the model.safetensors.

    Returns:
        results.json, and as `images` the number of images of each part of split.json; empty where there is no such
        file, or it cannot be read.
    """
    found = _read(file.with_name("results.json"))
    if found.get("task") != "finetune":
        return {}
    split = _read(file.with_name("split.json"))
    parts = ("train", "validation", "test")
    found["images"] = {part: len(split[part]) for part in parts if isinstance(split.get(part), list)}
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def card_body(spec: ModelSpec, results: Mapping[str, Any], use: str) -> str:
    """Write the card's text, without its title and its metadata.

    Args:
        spec: of the model.
        results: of `results_beside`.
        use: Python code that loads and runs the model.

    Returns:
        Markdown.
    """
    start = f" (start: {escape(spec.init)})" if spec.init else ""
    activation = f"its activations replaced by `{spec.activation}`{start}" if spec.activation else "its own activations"
    size = f"{spec.inputs.image_size} × {spec.inputs.image_size} px, {spec.inputs.channels} channels"
    return "\n\n".join(
        [
            f"An image classifier: `{spec.name}` of timm or arelu\\_meta with {activation}, fine-tuned on "
            f"{escape(_data_name(spec))}. It takes images of {size}, and tells {spec.num_classes} classes apart.",
            f"## Classes\n\n{_class_list(spec.classes)}",
            f"## How it was trained\n\n{_data_line(results)}With arelu\\_meta {escape(__version__)}; what the command "
            f"does not say is the default:\n\n{fenced(command_of(spec.config), 'sh')}",
            f"## How good it is\n\n{_result_lines(results)}",
            f"## How to use it\n\n{fenced(use, 'python')}",
        ]
    )


def _data_name(spec: ModelSpec) -> str:
    data = spec.config.get("data") if isinstance(spec.config, dict) else None
    data = data if isinstance(data, dict) else {}
    root = data.get("root")
    return str(data.get("name") or (PurePath(str(root)).name if root else "") or "digits")


def _class_list(classes: list[str]) -> str:
    shown = ", ".join(escape(name) for name in classes[:_CLASSES_SHOWN])
    more = len(classes) - _CLASSES_SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown


def _data_line(results: Mapping[str, Any]) -> str:
    images = results.get("images")
    if not images:
        return ""
    return ", ".join(f"{count} {part} images" for part, count in images.items()) + ". "


def _result_lines(results: Mapping[str, Any]) -> str:
    if not all(_is_number(results.get(name)) for name in ("test_accuracy", "test_low", "test_high", "test_n")):
        return "No test results lie beside the weights."
    lines = [
        f"Test accuracy {results['test_accuracy']:.1%} (95 % interval {results['test_low']:.1%} to "
        f"{results['test_high']:.1%}, {results['test_n']} images"
        + (" that it was not trained on)." if results.get("test_seen") == 0 else ").")
    ]
    if (told := seen_line(results)) is not None:
        lines.append(f"{told[:1].upper()}{told[1:]}.")
    if _is_number(results.get("macro_f1")):
        lines.append(f"Macro F1 {results['macro_f1']:.3f}.")
    if _is_number(results.get("ece")):
        lines.append(f"Expected calibration error {results['ece']:.3f}.")
    if _is_number(results.get("worst_recall")):
        lines.append(f"Worst class: {escape(results.get('worst_class'))}, recall {results['worst_recall']:.1%}.")
    return " ".join(lines) + " On images of another kind than the test images expect less."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def model_card(spec: ModelSpec, results: Mapping[str, Any], use: str) -> str:
    """Write a whole card, with the metadata that the Hugging Face Hub reads.

    Args:
        spec: of the model.
        results: of `results_beside`.
        use: Python code that loads and runs the model.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = f"{spec.name} on {_data_name(spec)}"
    data: dict[str, Any] = {"library_name": "arelu-meta", "tags": list(TAGS), "pipeline_tag": TAGS[0]}
    if _is_number(results.get("test_accuracy")):
        result = EvalResult(
            task_type=TAGS[0],
            dataset_type="imagefolder",
            dataset_name=_data_name(spec),
            metric_type="accuracy",
            metric_value=results["test_accuracy"],
        )
        data |= {"model_name": name, "eval_results": [result]}
    body = f"# {escape(name)}\n\n{card_body(spec, results, use)}"
    return str(ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{body}\n"))


def without_paths(spec: ModelSpec) -> dict[str, Any]:
    """List a spec for publication: all that rebuilds the model, without the run's config, which names local folders.

    Nor are there digests of the images it was trained on: they would tell who holds an image whether it is among them.

    Args:
        spec: of the model.
    """
    return {**asdict(spec), "config": {}, "provenance": {}}
