"""What is written down while a fine-tuning run goes on: the activations' scalars and the gradients, over time."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.zoo import ELSA
from arelu_meta.finetuning.fsdp import whole_tensor
from arelu_meta.finetuning.metrics import is_clamped
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.runs.checkpoints import is_cell

SCALAR_COLUMNS = ("epoch", "path", "alpha", "beta", "t", "alpha_clamped")
GRADIENT_COLUMNS = ("step", "layer", "norm")


class Table:
    """Rows of a CSV file that survive a resumed run: a checkpoint carries those written so far.

    Args:
        path: the file; made with the first row, in a folder that is there.
        columns: the header.
        silent: whether another process writes the file.
    """

    def __init__(self, path: Path, columns: Sequence[str], silent: bool = False) -> None:
        self.path, self.columns, self.silent = path, tuple(columns), silent
        self.rows: list[list[Any]] = []

    def append(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows to the file.

        Args:
            rows: plain values, one a column; without any, nothing is done.

        Raises:
            OSError: if the disk refuses.
        """
        if not rows:
            return
        new = not self.rows
        self.rows += [list(row) for row in rows]
        if self.silent:
            return
        with self.path.open("w" if new else "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *rows] if new else rows)

    def state(self) -> list[list[Any]]:
        """Take the rows for a checkpoint: plain values, which `torch.load(weights_only=True)` reads."""
        return [list(row) for row in self.rows]

    def restore(self, state: Sequence[Sequence[Any]] | None) -> None:
        """Go on from a checkpoint: rows written after it are dropped, also from the file.

        Args:
            state: what `state` took; None, of a checkpoint without any, for no rows.

        Raises:
            ValueError: if it is no table.
        """
        self.rows = [list(row) for row in state or ()]
        if not all(is_cell(value) for row in self.rows for value in row):
            raise ValueError(f"its {self.path.name} holds more than plain values")
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        write_atomically(self.path, self._write)

    def _write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *self.rows])


class ScalarRecorder(Table):
    """Alpha, beta and the gate t of every AReLU over the epochs, in scalars.csv.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "scalars.csv", SCALAR_COLUMNS)

    def record(self, model: nn.Module, epoch: int) -> None:
        """Write down a model's scalars; nothing where it has none.

        Args:
            model: bare, not wrapped by DDP or torch.compile: the paths are its own.
            epoch: epochs done.
        """
        found = [(path, one) for path, one in model.named_modules() if isinstance(one, AReLU | GatedAReLU | ELSA)]
        if not found:
            return  # there is nothing to stack
        # One copy from the device for all layers.
        parts = [[one.alpha, one.beta, getattr(one, "t", torch.zeros_like(one.alpha))] for _, one in found]
        values = torch.stack([torch.cat([part.detach().float() for part in three]) for three in parts]).cpu()
        self.append(
            [
                [epoch, path, alpha, beta, t if isinstance(one, GatedAReLU) else None, is_clamped(row[0])]
                for (path, one), row, (alpha, beta, t) in zip(found, values, values.tolist(), strict=True)
            ]
        )


class GradientRecorder(Table):
    """The length of the gradient of each layer over the steps, in gradients.csv.

    Args:
        folder: of the run.
        every: steps between two samples; the first step is one. A sample waits for the device once.
        silent: whether another process writes the file.
    """

    def __init__(self, folder: Path, every: int = 50, silent: bool = False) -> None:
        super().__init__(folder / "gradients.csv", GRADIENT_COLUMNS, silent)
        self.every = every

    def record(self, model: nn.Module, step: int, scale: float = 1.0) -> None:
        """Write down the L2 norm of each layer's gradients, if it is time.

        Call it between the backward pass and the optimiser's step, before clipping.

        Args:
            model: bare, not wrapped by DDP or torch.compile; parameters without a gradient are left out.
            step: optimiser steps, this one included; from 1.
            scale: the factor that the loss was multiplied by (a GradScaler's), taken out again.
        """
        if step != 1 and step % self.every:
            return
        norms = gradient_norms(model)
        self.append([[step, layer, norm / scale] for layer, norm in norms.items()])


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Compute the L2 norm of the gradients of each layer.

    Args:
        model: after a backward pass; of one that is shared out over processes, all of them ask.

    Returns:
        Layer (see `layer_of`) → norm, in the model's order; layers without gradients are left out.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(layer_of(name), []).append(parameter.grad.detach())
    if not groups:
        return {}
    # All layers come from the device at once.
    norms = torch.stack([whole_tensor(torch.nn.utils.get_total_norm(grads)) for grads in groups.values()])
    return dict(zip(groups, norms.tolist(), strict=True))


def layer_of(name: str) -> str:
    """Name the layer that a parameter belongs to: its first part, and the number behind it where there is one.

    Args:
        name: of the parameter, as in `blocks.3.1.conv_pw.weight`.

    Returns:
        As in `blocks.3`, `layer1.0`, `conv_stem`.
    """
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if len(rest) > 1 and rest[0].isdigit() else first
