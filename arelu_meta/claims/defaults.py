"""Are the defaults good enough? Twelve ways to fine-tune, each run once into a file, and a table of what is there."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arelu_meta.claims.ledger import Ledger, key_of
from arelu_meta.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from arelu_meta.errors import RunError
from arelu_meta.finetuning import finetune
from arelu_meta.runs.progress import print_table

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
WAYS = ("defaults", "twice as long", "plain")
SETS: dict[str, int | None] = {"flowers17": None, "cifar10-subset": 100}  # training images a class; None: all
_NO_LIMIT = 1e9  # of gradients


@dataclass
class DefaultsConfig:
    """The sweep that the defaults are held against.

    Args:
        results: the file with one JSON line a run; runs that it holds are not run again.
        data: which sets, of flowers17 and cifar10-subset (100 training images a class).
        seeds: how many, from 0.
        image_size: side in pixels.
        table: print the table of what is there and run nothing.
    """

    results: str = "configs/defaults/results.jsonl"
    data: list[str] = field(default_factory=lambda: list(SETS))
    seeds: int = 1
    image_size: int = 64
    table: bool = False


@dataclass(frozen=True)
class Point:
    """One run of the sweep: all that decides its figure."""

    data: str
    image_size: int
    seed: int
    way: str
    lr: float


def points(config: DefaultsConfig) -> Iterator[Point]:
    """List the runs: all of a seed, the defaults first, before the next seed's.

    Args:
        config: the sweep.
    """
    for seed in range(config.seeds):
        for data in config.data:
            default = [(WAYS[0], OptimConfig().lr)]
            for way, lr in dict.fromkeys(default + [(way, lr) for way in WAYS for lr in RATES]):
                yield Point(data, config.image_size, seed, way, float(lr))


def sweep_defaults(config: DefaultsConfig) -> None:
    """Run what is missing, and print the table.

    Args:
        config: the sweep.

    Raises:
        InputError: if the file of the results is damaged.
        RunError: if it cannot be written.
    """
    path = Path(config.results)
    ledger = Ledger(path, "results")
    listed = list(points(config))
    for number, point in enumerate(listed, 1):
        if point not in ledger and not config.table:
            print(f"{number}/{len(listed)} {key_of(point)}", flush=True)
            row = run_point(point)
            path.parent.mkdir(parents=True, exist_ok=True)
            ledger.append(point, [row])
    for data in config.data:
        title = f"{data}, {config.image_size} px: test accuracy (%), mean of the seeds that have ended (their number)"
        print_table(title, ["way", *(f"{lr:g}" for lr in RATES)], table(config, ledger, data))
        print(verdict(config, ledger, data), flush=True)


def config_of(point: Point, folder: str) -> FinetuneConfig:
    """Make a point's config: AReLU by preserve; `plain` has a new head at zero, and nothing clipped, held or slowed.

    Args:
        point: the run.
        folder: of the run.
    """
    plain, epochs = point.way == "plain", TrainConfig().epochs
    optim = OptimConfig(lr=point.lr)
    train = TrainConfig(epochs=2 * epochs if point.way == "twice as long" else epochs)
    if plain:
        optim.act_lr, optim.clip_grad, train.freeze_bn = point.lr, _NO_LIMIT, False
    return FinetuneConfig(
        run=RunConfig(folder=folder, seed=point.seed, pictures=False),
        data=DataConfig(root=point.data, per_class=SETS[point.data], image_size=point.image_size),
        model=ModelConfig(activation="arelu", head_init="zero" if plain else "auto"),
        optim=optim,
        train=train,
    )


def run_point(point: Point) -> dict[str, Any]:
    """Run one point through `finetune`.

    Args:
        point: the run.

    Returns:
        Its figures; a run that diverged has accuracies of 0 and says why.
    """
    folder = Path(tempfile.mkdtemp(prefix="sweep-defaults-"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = finetune(config_of(point, str(folder / "run")))
        return {name: found[name] for name in ("test_accuracy", "validation_accuracy", "best_epoch", "seconds")}
    except RunError as error:
        return {"test_accuracy": 0.0, "validation_accuracy": 0.0, "diverged": str(error)}
    finally:
        shutil.rmtree(folder)


def _found(config: DefaultsConfig, ledger: Ledger, data: str, way: str, lr: float) -> list[float]:
    found = [Point(data, config.image_size, seed, way, lr) for seed in range(config.seeds)]
    return [100 * row["test_accuracy"] for row in ledger.of_all(point for point in found if point in ledger)]


def table(config: DefaultsConfig, ledger: Ledger, data: str) -> list[list[str]]:
    """List a set's means, one row a way and one column a rate.

    Args:
        config: the sweep.
        ledger: the runs that have ended.
        data: the set.
    """
    cells: list[list[str]] = []
    for way in WAYS:
        means = [_found(config, ledger, data, way, lr) for lr in RATES]
        cells.append([way, *(f"{sum(found) / len(found):.1f} ({len(found)})" if found else "" for found in means)])
    return cells


def verdict(config: DefaultsConfig, ledger: Ledger, data: str) -> str:
    """Say how far the defaults are from the best of the twelve, or how many runs are missing.

    Args:
        config: the sweep.
        ledger: the runs that have ended.
        data: the set.
    """
    means = {(way, lr): _found(config, ledger, data, way, lr) for way in WAYS for lr in RATES}
    missing = sum(config.seeds - len(found) for found in means.values())
    if missing:
        return f"{data}: {missing} of {config.seeds * len(means)} runs are missing: no verdict"
    best = max(means, key=lambda point: sum(means[point]))
    gap = (sum(means[best]) - sum(means[WAYS[0], float(OptimConfig().lr)])) / config.seeds
    within = "within 1 point" if gap <= 1 else "NOT within 1 point"
    return f"{data}: the defaults are {gap:.1f} points below the best ({best[0]}, {best[1]:g}): {within}"
