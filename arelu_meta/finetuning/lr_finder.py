"""A learning rate looked for: a range test over a few dozen steps, on a copy that is thrown away."""

import copy
import csv
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from arelu_meta.config import OptimConfig
from arelu_meta.errors import RunError
from arelu_meta.finetuning.optimizer import build_optimizer
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.runs.progress import progress

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 60
_SMOOTHING = 0.8  # of the loss, over the steps
_DIVERGED = 3.0  # times the best loss, 1 at least: the end of the test


@dataclass(frozen=True)
class Search:
    """What a range test found.

    Args:
        rates: learning rates tried, rising.
        losses: the loss at each, smoothed, with the differences between batches taken out.
        chosen: the rate to train with.
        steepest: where the loss fell fastest.
        lowest: where it was lowest.
    """

    rates: list[float]
    losses: list[float]
    chosen: float
    steepest: float
    lowest: float

    def why(self) -> str:
        """Say in a sentence what was chosen, and why."""
        return (
            f"optim.lr auto: {self.chosen:.2g}, where the loss falls fastest ({self.steepest:.2g}), at most a tenth "
            f"of where it is lowest ({self.lowest:.2g}), over {len(self.rates)} steps from {self.rates[0]:.0e} to "
            f"{self.rates[-1]:.2g}"
        )


def search_rate(
    model: nn.Module,
    config: OptimConfig,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    prepare: Callable[[nn.Module], object],
    scalars_share: float = 1.0,
) -> Search:
    """Train a copy of a model for a few dozen steps, its learning rate rising from one to the next.

    What is smoothed is how far each batch's loss lies from what it was before the first step: from batch to batch
    losses differ by more than a small rate moves them.

    Args:
        model: stays as it is.
        config: the optimiser and the clipping; its own rates of the head and the activations are left out.
        batches: images and labels; gone through again where they are fewer than the steps.
        loss_of: the mean loss of a model over a batch.
        prepare: puts the copy into training mode.
        scalars_share: of the rate, at which the activations' scalars learn.

    Returns:
        The losses, and the rate chosen: where the smoothed loss falls fastest over the rate's logarithm, at most a
        tenth of the rate at which it is lowest.

    Raises:
        RunError: if the loss is not finite at the lowest rate already.

    Source: the range test is Smith 2017's; the two rules of choice are common practice.
    """
    copied = copy.deepcopy(model)
    prepare(copied)
    start = copy.deepcopy(copied)
    optimizer = build_optimizer(copied, _plain(config))
    rates, gains, before = [], [], []
    smoothed, best = 0.0, 0.0
    with progress("looking for a learning rate", STEPS, "steps") as bar:
        for step, (images, labels) in enumerate(_repeated(batches, STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            for group in optimizer.param_groups:
                group["lr"] = rate * (scalars_share if group.get("group_name") == "activations" else 1.0)
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad(), _same_draws(copied):
                at_start = loss_of(start, images, labels).item()
            loss = loss_of(copied, images, labels)
            gain = loss.item() - at_start
            if not math.isfinite(gain):
                break
            smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * gain
            rates.append(rate)
            gains.append(smoothed / (1 - _SMOOTHING ** (step + 1)))
            before.append(at_start)
            mean = sum(before) / len(before)
            best = min(best, gains[-1])
            if gains[-1] > best + (_DIVERGED - 1) * max(1.0, mean + best):
                break
            loss.backward()
            if config.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(copied.parameters(), config.clip_grad)
            optimizer.step()
            bar.advance(1, rate=rate, loss=mean + gains[-1])
    if len(rates) < 3:
        raise RunError(
            f"optim.lr auto: the loss is not finite at a rate of {LOWEST:g} already; give --optim.lr a number"
        )
    return _choose(rates, [mean + gain for gain in gains])


def _same_draws(model: nn.Module) -> AbstractContextManager[None]:
    """Put torch's generators back afterwards: the next forward drops out what this one does."""
    device = next(model.parameters()).device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _plain(config: OptimConfig) -> OptimConfig:
    return OptimConfig(name=config.name, lr=LOWEST, weight_decay=config.weight_decay)


def _repeated(batches: Iterable[tuple[Tensor, Tensor]], steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    given = 0
    while given < steps:
        before = given
        for batch in batches:
            if given == steps:
                return
            given += 1
            yield batch
        if given == before:
            return


def _choose(rates: list[float], losses: list[float]) -> Search:
    """Choose by the slope over two steps to either side, up to where the loss is lowest."""
    end = max(2, min(range(len(losses)), key=losses.__getitem__))
    slopes = [
        (losses[min(i + 2, len(losses) - 1)] - losses[max(i - 2, 0)])
        / (math.log(rates[min(i + 2, len(rates) - 1)]) - math.log(rates[max(i - 2, 0)]))
        for i in range(end + 1)
    ]
    steepest = rates[min(range(len(slopes)), key=slopes.__getitem__)]
    lowest = rates[end]
    return Search(rates, losses, float(f"{min(steepest, lowest / 10):.2g}"), steepest, lowest)


def write_search(folder: Path, found: Search) -> None:
    """Write a range test's table and picture: lr_search.csv and lr_search.png.

    Args:
        folder: of the run; it is there.
        found: what to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def table(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            rows = zip(found.rates, found.losses, strict=True)
            csv.writer(file).writerows([("learning_rate", "smoothed_loss"), *rows])

    write_atomically(folder / "lr_search.csv", table)
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#0072B2")
    axes.axvline(found.chosen, color="#D55E00", label=f"chosen: {found.chosen:.2g}")
    axes.axvline(found.lowest, color="#009E73", linestyle=":", label=f"lowest loss: {found.lowest:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title="range test")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(folder / "lr_search.png", lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
