"""`arelu-meta swap MODEL`: what a swap replaces, as a table."""

from pathlib import Path

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.backbones.report import SwapReport
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.swap_all import swap_all
from arelu_meta.backbones.tracing import example_input
from arelu_meta.config import SwapConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import print_table


def swap_task(config: SwapConfig) -> SwapReport | None:
    """Make a model, swap its activations, print what was replaced and what was kept; or do so with all of timm.

    Args:
        config: model.name, pretrained, activation (default arelu), init; all; image.

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
    init = model_config.init
    if activation == "arelu" and init is None:
        init = "preserve" if model_config.pretrained else "paper"
    if config.image is not None:
        _check_image(config.image)
    model = create_backbone(model_config.name, pretrained=bool(model_config.pretrained))
    data = None
    if config.image is not None:
        import torch

        example = example_input(model)
        if example is None:
            raise InputError(f"image: {model_config.name!r} does not say what size it takes; leave image out")
        # The same noise in every run: a batch as the model's normalisation would give it.
        data = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    report = swap_activations(model, activation, init=init, data=data)
    rows = [
        [e.path, e.role, e.before, e.after, *(_number(value) for value in (e.alpha, e.beta, e.drift))]
        for e in report.swapped
    ]
    rows += [[entry.path, entry.role, entry.before, f"kept: {entry.reason}", "", "", ""] for entry in report.kept]
    header = ["path", "role", "before", "after", "alpha", "beta", "drift"]
    if data is None:
        header, rows = header[:-1], [row[:-1] for row in rows]
    print_table(f"{model_config.name} → {activation}", header, rows)
    print(report.counts())
    if config.image is not None:
        draw_drift(report, config.image, f"{model_config.name}: {activation} ({init})")
    return report


def draw_drift(report: SwapReport, path: str, title: str) -> None:
    """Draw how far each replaced activation's output has moved, in the model's order.

    Args:
        report: of a swap that was given data.
        path: of the picture.
        title: what stands above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drifts = [entry.drift if entry.drift is not None else float("nan") for entry in report.swapped]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.plot(range(len(drifts)), drifts, marker=".", label="activations")
    if report.logit_drift is not None:
        axes.axhline(report.logit_drift, linestyle="--", color="C1", label="logits")
    axes.set(xlabel="activation, in the model's order", ylabel="change relative to size", title=title)
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
