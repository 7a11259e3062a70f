"""`arelu-meta swap MODEL`: what a swap replaces and how far outputs move, as a table and as a picture."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import check_model_config, inputs_of
from arelu_meta.backbones.report import SwapReport
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.swap_all import swap_all
from arelu_meta.config import DataConfig, SwapConfig
from arelu_meta.data.images import load_images
from arelu_meta.data.loading import unlabelled_batches
from arelu_meta.data.photographs import sample_photographs
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import print_table

_MOST_IMAGES = 64


def swap_task(config: SwapConfig) -> SwapReport | None:
    """Make a model, swap its activations, print what was replaced and what was kept; or do so with all of timm.

    Args:
        config: model.name, pretrained, activation (default arelu), init; data.root, image_size; batch_norm; all; image.

    Returns:
        The report that was printed; None with `all`.

    Raises:
        InputError: if a value does not fit.
        RunError: with `all`, if a model is neither fully swapped nor excused.
    """
    model_config = config.model
    activation = model_config.activation or "arelu"
    check_model_config(model_config)
    if config.all:
        swap_all(activation, model_config.init)
        return None
    if isinstance(model_config.pretrained, str):
        raise InputError(f"model.pretrained: {model_config.pretrained!r} is a path; `swap` takes true or false")
    if config.image is not None:
        _check_image(config.image)
    init = model_config.init
    if activation == "arelu" and init is None:
        init = "preserve" if model_config.pretrained else "paper"
    torch.manual_seed(0)  # the same random weights, so the same drift, every time
    model = create_backbone(model_config.name, pretrained=bool(model_config.pretrained)).eval()
    report = swap_activations(
        model, activation, init=init, data=_images(model, config.data), batch_norm=config.batch_norm
    )
    _print_report(report, f"{model_config.name} → {activation}" + (f", {init}" if init else ""))
    if config.image is not None:
        draw_drift(report, config.image, f"{model_config.name}: {activation}" + (f" ({init})" if init else ""))
    return report


def _images(model: nn.Module, config: DataConfig) -> list[Tensor]:
    """Take some of the user's images, or pieces of two photographs, as the model takes them."""
    named = config.root is not None or config.name is not None
    images = load_images(config, seed=0).train if named else sample_photographs()
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1), 3)
    inputs = inputs_of(model, channels if channels in (1, 3) else 3, config.image_size)
    return unlabelled_batches(images, inputs, _MOST_IMAGES, batch_size=8)


def _print_report(report: SwapReport, title: str) -> None:
    rows = [
        [e.path, e.role, e.before, e.after, *(_number(value) for value in (e.alpha, e.beta, e.drift))]
        for e in report.swapped
    ]
    stages = [stage_of(entry.path) for entry in report.swapped]
    ends = [index for index, stage in enumerate(stages) if stages[index + 1 : index + 2] != [stage]]
    if len(ends) == len(rows):  # a stage for each activation: no line tells anything
        ends = ends[-1:]
    rows += [[entry.path, entry.role, entry.before, f"kept: {entry.reason}", "", "", ""] for entry in report.kept]
    print_table(title, ["path", "role", "before", "after", "alpha", "beta", "drift"], rows, ends)
    print(report.counts())


def stage_of(path: str) -> str:
    """Name the stage that a module belongs to: its path up to the first number (`layer1`, `blocks.3`, `stages.0`).

    Args:
        path: of an activation.

    Returns:
        The stage; "" for what stands before or behind the numbered stages.
    """
    found = re.match(r"(\D*\d+)\.", path)
    return found[1] if found else ""


def draw_drift(report: SwapReport, path: str, title: str) -> None:
    """Draw how far each replaced activation's output has moved, in the model's order, with the stages marked.

    Args:
        report: of a swap that was given data.
        path: of the picture.
        title: what stands above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drifts = [entry.drift if entry.drift is not None else float("nan") for entry in report.swapped]
    stages = [stage_of(entry.path) for entry in report.swapped]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.plot(range(len(drifts)), drifts, marker=".", label="activations")
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            axes.axvline(index - 0.5, color="0.85", linewidth=0.8, zorder=0)
    if report.logit_drift is not None:
        axes.axhline(report.logit_drift, linestyle="--", color="C1", label="logits")
    axes.set(
        xlabel="activation, in the model's order; grey lines between stages",
        ylabel="change relative to size",
        title=title,
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _check_image(path: str) -> None:
    if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"image: {path!r} is no picture's name; give one that ends in .png, .pdf or .svg")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"image: the folder of {path!r} does not exist; make it first")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
