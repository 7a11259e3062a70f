"""`arelu-meta swap MODEL`: what a swap replaces and how far outputs move; `--all`: how much of timm it takes."""

import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from arelu_meta.backbones.call_tracing import example_input, functional_activations
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.backbones.networks import inputs_of
from arelu_meta.backbones.report import SwapReport
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.config import DataConfig, Init, SwapConfig
from arelu_meta.data.loaders import unlabelled_batches
from arelu_meta.data.named_datasets import load_images, sample_photographs
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.progress import print_table, progress

_MOST_IMAGES = 64

_EVO = "EvoNorm: the activation, x * sigmoid(v * x), is divided by the norm's own variance"
_FRN = "filter response norm: the activation is the norm's learned threshold, max(x, tau)"

EXCUSED: dict[str, str] = {
    "ese_vovnet39b_evos": _EVO,
    "regnetz_b16_evos": _EVO,
    "regnetz_c16_evos": _EVO,
    "regnetz_d8_evos": _EVO,
    "resnetv2_50d_evos": _EVO,
    "resnetv2_50d_frn": _FRN,
    "test_efficientnet_evos": _EVO,
}
"""The models of timm in which an activation stays, each with the reason."""


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
    torch.manual_seed(0)  # the same random weights, so the same drift, every time
    model = create_backbone(model_config.name, pretrained=bool(model_config.pretrained)).eval()
    report = swap_activations(
        model,
        activation,
        init=model_config.init,
        data=_images(model, config.data),
        batch_norm=config.batch_norm,
    )
    init = report.init
    why = [
        "random weights know nothing to keep, so AReLU starts as the paper's and logits move; --model.pretrained, or "
        "--model.init preserve, keeps every logit"
    ]
    if model_config.pretrained or activation != "arelu" or model_config.init is not None:
        why = []
    _print_report(report, f"{model_config.name} → {activation}" + (f", {init}" if init else ""), why)
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


def _print_report(report: SwapReport, title: str, notes: list[str]) -> None:
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
    print("\n".join([*report.notes, *notes, report.counts()]))


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


@dataclass(frozen=True)
class Outcome:
    """What a swap did to one of timm's models.

    Args:
        name: the model's.
        complete: whether every hidden activation was replaced.
        swapped: how many activations there are now.
        reason: why not all were, if not.
    """

    name: str
    complete: bool
    swapped: int
    reason: str = ""


def swap_one(name: str, activation: str = "arelu", init: Init | None = None) -> Outcome:
    """Make one of timm's models on the meta device, swap its activations, and say whether all were taken.

    Args:
        name: of the model.
        activation: what to swap in.
        init: how an AReLU starts.
    """
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        report = swap_activations(model, activation, init=init)
        # Not the report alone says so: a second look at the swapped model must find no call that is left.
        example = example_input(model)
        after = None if example is None else functional_activations(model, example)
    except Exception as error:  # one model that cannot be swapped must not hide what becomes of the others
        return Outcome(name, False, 0, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    left = Counter(f"{entry.before}: {entry.reason}" for entry in report.kept if entry.role in ("hidden", "se_hidden"))
    if after is None:
        left["the forward pass fails"] += 1
    elif after:
        left[f"{after[0].function} is still called in {after[0].where}"] += 1
    reason = "; ".join(f"{count} {what}" for what, count in left.items())
    return Outcome(name, report.complete and not left, len(report.swapped), reason)


def swap_all(activation: str = "arelu", init: Init | None = None, names: list[str] | None = None) -> list[Outcome]:
    """Swap into every model that timm registers, print the share and what is left, each with its reason.

    Args:
        activation: what to swap in.
        init: how an AReLU starts.
        names: only these models.

    Returns:
        What became of each.

    Raises:
        RunError: if a model is neither fully swapped nor excused.
    """
    import timm

    if init == "fit":
        raise InputError("model.init: 'fit' looks at images; `swap --all` has none, give another")
    names = timm.list_models() if names is None else names
    outcomes: list[Outcome] = []
    with progress("swapping", len(names), "models") as bar:
        for outcome in _outcomes(names, activation, init):
            outcomes.append(outcome)
            bar.advance(1, complete=sum(one.complete for one in outcomes) / len(outcomes))
    _print_outcomes(outcomes)
    failed = [outcome for outcome in outcomes if not outcome.complete and outcome.name not in EXCUSED]
    if failed:
        raise RunError(
            f"swap --all: {len(failed)} of {len(outcomes)} models are neither fully swapped nor excused: "
            + ", ".join(outcome.name for outcome in failed)
        )
    return outcomes


def _outcomes(names: list[str], activation: str, init: Init | None) -> Iterator[Outcome]:
    if len(names) < 20:
        yield from (swap_one(name, activation, init) for name in names)
        return
    # Not forked: torch's threads do not survive that.
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), start, initializer=_one_thread) as pool:
        count = len(names)
        yield from pool.map(swap_one, names, [activation] * count, [init] * count, chunksize=4)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _print_outcomes(outcomes: list[Outcome]) -> None:
    full = sum(outcome.complete for outcome in outcomes)
    activations = sum(outcome.swapped for outcome in outcomes)
    share = 100 * full / max(len(outcomes), 1)
    for outcome in outcomes:
        if not outcome.complete:
            excuse = EXCUSED.get(outcome.name)
            print(f"{outcome.name}: {f'excused ({excuse}); ' if excuse else 'FAILED; '}{outcome.reason}")
    excused = sum(not outcome.complete and outcome.name in EXCUSED for outcome in outcomes)
    print(
        f"{full} of {len(outcomes)} models fully swapped ({share:.1f} %), {activations} activations; "
        f"{excused} excused, {len(outcomes) - full - excused} failed"
    )
