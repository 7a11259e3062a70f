"""`arelu-meta activations`: every activation by name, as a table and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS
from arelu_meta.activations.registry import ActivationInfo, activation_info, create_activation, list_activations
from arelu_meta.config import ActivationsConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import print_table

REACH = 4.0
POINTS = 400  # Even, so that no point falls on 0, where many derivatives jump.
COLUMNS = 7
FUNCTION: dict[str, Any] = {"color": "tab:blue", "linewidth": 1.4, "label": "function"}
DERIVATIVE: dict[str, Any] = {"color": "tab:orange", "linewidth": 1.0, "linestyle": "--", "label": "derivative"}


def activations_task(config: ActivationsConfig) -> list[ActivationInfo]:
    """Print every activation's name, its aliases, whether it learns, and its source; draw them where config.plot says.

    Args:
        config: where to draw.

    Returns:
        What was printed.

    Raises:
        InputError: if the picture cannot be written.
    """
    drawn = plot_activations(config.plot) if config.plot is not None else None
    found = list_activations()
    rows = [[one.name, ", ".join(one.aliases), "yes" if one.learnable else "", one.source] for one in found]
    print_table(f"{len(found)} activations", ["name", "alias", "learns", "source"], rows)
    print("\ncontrols, for --model.activation of finetune and claims:")
    for name, control in CONTROLS.items():
        print(f"  {name}: {control.formula}\n    {control.why}")
    if drawn is not None:
        print(f"drawn to {drawn}")
    return found


def curve(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate an element-wise activation and its derivative.

    Args:
        activation: an element-wise activation.
        x: where; any shape, floating.

    Returns:
        The values and the derivatives at x, each of x's shape, detached.
    """
    x = x.detach().clone().requires_grad_()
    y: Tensor = activation(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def plot_activations(file: Path | str, names: Sequence[str] | None = None) -> Path:
    """Draw each activation as it is initialized, in evaluation mode, with its derivative; one panel a name.

    What looks across channels (softmax, maxout) has no curve over one input: its panel says so. What is random is drawn
    from a fixed seed; torch's own generator is left as it was.

    Args:
        file: where to write; its ending sets the format (".png", ".pdf", ".svg" …).
        names: what to draw, in this order; every listed activation unless given.

    Returns:
        The path written.

    Raises:
        InputError: if a name is not known, names is empty, or the file cannot be written.
    """
    path = Path(file)
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(f"plot: '{path}' ends in no picture format; allowed are {', '.join('.' + k for k in kinds)}")
    if names is None:
        names = [info.name for info in list_activations()]
    if not names:
        raise InputError("plot: there is nothing to draw; give at least one activation's name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        activations = [create_activation(name, dtype=torch.float64).eval() for name in names]

    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.2 * columns, 1.9 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name, activation in zip(panels, names, activations, strict=False):
        _draw(panel, name, activation, activation_info(name).elementwise)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.legend(
        handles=[Line2D([], [], **style) for style in (FUNCTION, DERIVATIVE)], loc="outside upper center", ncols=2
    )
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"plot: '{path}' cannot be written ({reason}); give a file in a folder that exists") from error
    return path


def _draw(panel: Axes, name: str, activation: nn.Module, elementwise: bool) -> None:
    panel.set_title(name, fontsize=9)
    if not elementwise:
        panel.set(xticks=[], yticks=[])
        panel.text(0.5, 0.5, "looks across\nchannels", ha="center", va="center", fontsize=8, transform=panel.transAxes)
        return
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    y, slope = curve(activation, x)
    panel.set_xlim(-REACH, REACH)
    panel.tick_params(labelsize=7)
    panel.axhline(0, color="0.8", linewidth=0.6)
    panel.axvline(0, color="0.8", linewidth=0.6)
    panel.plot(x.numpy(), y.numpy(), **FUNCTION)
    panel.plot(x.numpy(), slope.numpy(), **DERIVATIVE)
