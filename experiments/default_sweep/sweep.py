"""Are the defaults good enough? Twelve ways to fine-tune, each run once into a file, and a table of what is there."""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arelu_meta.claims.study import ResultsLog, key_of
from arelu_meta.config import DataConfig, FinetuneConfig, Keep, ModelConfig, RunConfig, TrainConfig
from arelu_meta.errors import RunError, counted
from arelu_meta.finetuning.defaults import default_rate
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.runs.progress import print_table

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
WAYS = {  # the learning rates of each, and its epochs in the defaults' number
    "defaults": (RATES, 1.0),
    "plain": (RATES, 1.0),
    "twice as long": ((1e-2, 3e-2), 2.0),
    "half as long": ((1e-2, 3e-2), 0.5),
}
SETS: dict[str, int | None] = {"flowers17": None, "cifar10-subset": 100}  # training images a class; None: all
_IMAGES = {"flowers17": 680, "cifar10-subset": 1000}  # that are trained on
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

    results: str = "experiments/default_sweep/results.jsonl"
    data: list[str] = field(default_factory=lambda: list(SETS))
    seeds: int = 1
    image_size: int = 64
    table: bool = False


@dataclass(frozen=True)
class Point:
    """One run of the sweep: all that decides its figure.

    Args:
        data: flowers17 or cifar10-subset.
        image_size: side in pixels.
        seed: of the split, the weights and the order.
        plain: a new head at zero, and nothing clipped, held or slowed; else what `finetune` chooses.
        epochs: how many.
        lr: the learning rate.
        keep: train.keep, which epoch's model is tested.
    """

    data: str
    image_size: int
    seed: int
    plain: bool
    epochs: int
    lr: float
    keep: Keep


def default_point(data: str, image_size: int, seed: int) -> Point:
    """Say which run the defaults are.

    Args:
        data: flowers17 or cifar10-subset.
        image_size: side in pixels.
        seed: of the run.
    """
    train = TrainConfig()
    return Point(
        data, image_size, seed, False, train.epochs, default_rate(_default_config(), _IMAGES[data]), train.keep
    )


def points_of(config: DefaultsConfig, data: str, seed: int) -> dict[tuple[str, float], Point]:
    """List the twelve runs of a seed by way and rate, the defaults first.

    Args:
        config: the sweep.
        data: the set.
        seed: of the runs.
    """
    default = default_point(data, config.image_size, seed)
    first = ("defaults", default.lr)
    cells = dict.fromkeys([first, *((way, lr) for way, (rates, _) in WAYS.items() for lr in rates)])
    return {
        (way, lr): replace(default, plain=way == "plain", epochs=round(WAYS[way][1] * default.epochs), lr=lr)
        for way, lr in cells
    }


def points(config: DefaultsConfig) -> Iterator[Point]:
    """List the runs: all of a seed, the defaults first, before the next seed's.

    Args:
        config: the sweep.
    """
    for seed in range(config.seeds):
        for data in config.data:
            yield from points_of(config, data, seed).values()


def sweep_defaults(config: DefaultsConfig) -> None:
    """Run what is missing, and print the table, the verdict and all runs that are there.

    Args:
        config: the sweep.

    Raises:
        InputError: if the file of the results is damaged.
        RunError: if it cannot be written.
    """
    path = Path(config.results)
    log = ResultsLog(path, "results")
    listed = list(points(config))
    for number, point in enumerate(listed, 1):
        if point not in log and not config.table:
            print(f"{number}/{len(listed)} {key_of(point)}", flush=True)
            row = run_point(point)
            path.parent.mkdir(parents=True, exist_ok=True)
            log.append(point, [row])
    for data in config.data:
        title = f"{data}, {config.image_size} px: test accuracy (%), mean of the seeds that have ended (their number)"
        print_table(title, ["way", *(f"{lr:g}" for lr in RATES)], table(config, log, data))
        print(verdict(config, log, data), flush=True)
        print_table(f"{data}: all runs that are there, likewise", *everything(config, log, data))


def _default_config() -> FinetuneConfig:
    return FinetuneConfig(model=ModelConfig(activation="arelu"))


def config_of(point: Point, folder: str) -> FinetuneConfig:
    """Make a point's config: AReLU by preserve.

    Args:
        point: the run.
        folder: of the run.
    """
    config = _default_config()
    config.run = RunConfig(folder=folder, seed=point.seed, pictures=False)
    config.data = DataConfig(root=point.data, per_class=SETS[point.data], image_size=point.image_size)
    config.optim.lr, config.train.epochs, config.train.keep = point.lr, point.epochs, point.keep
    if point.plain:
        config.model.head_init, config.train.freeze_bn = "zero", False
        config.optim.act_lr, config.optim.clip_grad = point.lr, _NO_LIMIT
    return config


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


def _found(config: DefaultsConfig, log: ResultsLog, data: str) -> dict[tuple[str, float], list[float]]:
    """List the test accuracies that are there, in per cent, by way and rate."""
    found: dict[tuple[str, float], list[float]] = {cell: [] for cell in points_of(config, data, 0)}
    for seed in range(config.seeds):
        for cell, point in points_of(config, data, seed).items():
            if point in log:
                found[cell] += [100 * row["test_accuracy"] for row in log.of(point)]
    return found


def table(config: DefaultsConfig, log: ResultsLog, data: str) -> list[list[str]]:
    """List a set's means, one row a way and one column a rate.

    Args:
        config: the sweep.
        log: the runs that have ended.
        data: the set.
    """
    found, listed = _found(config, log, data), points_of(config, data, 0)
    return [
        [
            f"{way}, {counted(listed[way, rates[0]].epochs, 'epoch')}",
            *(_mean_and_number(found[way, lr]) if lr in rates else "–" for lr in RATES),
        ]
        for way, (rates, _) in WAYS.items()
    ]


def everything(config: DefaultsConfig, log: ResultsLog, data: str) -> tuple[list[str], list[list[str]]]:
    """Lay out a set's means of all runs that have ended, those of other defaults' sweeps among them.

    Args:
        config: the sweep; its seeds and size.
        log: the runs that have ended.
        data: the set.

    Returns:
        The columns' titles, and a row for what the defaults choose and for plain training at each number of epochs and
        each train.keep.
    """
    listed = [Point(**json.loads(key)) for key in log.rows]
    listed = [one for one in listed if (one.data, one.image_size) == (data, config.image_size)]
    listed = [one for one in listed if one.seed < config.seeds]
    rates = sorted({one.lr for one in listed})
    rows = []
    for plain, epochs, keep in sorted({(one.plain, one.epochs, one.keep) for one in listed}):
        alike = [one for one in listed if (one.plain, one.epochs, one.keep) == (plain, epochs, keep)]
        found = [[100 * log.of(one)[0]["test_accuracy"] for one in alike if one.lr == lr] for lr in rates]
        way = "plain" if plain else "defaults"
        rows.append([f"{way}, {counted(epochs, 'epoch')}, {keep}", *map(_mean_and_number, found)])
    return ["way", *(f"{lr:g}" for lr in rates)], rows


def _mean_and_number(found: list[float]) -> str:
    return f"{sum(found) / len(found):.1f} ({len(found)})" if found else ""


def verdict(config: DefaultsConfig, log: ResultsLog, data: str) -> str:
    """Say how far the defaults are from the best of the twelve, or how many runs are missing.

    Args:
        config: the sweep.
        log: the runs that have ended.
        data: the set.
    """
    found = _found(config, log, data)
    missing = sum(config.seeds - len(accuracies) for accuracies in found.values())
    if missing:
        return f"{data}: {missing} of {config.seeds * len(found)} runs are missing: no verdict"
    best = max(found, key=lambda cell: sum(found[cell]))
    gap = (sum(found[best]) - sum(found["defaults", default_point(data, config.image_size, 0).lr])) / config.seeds
    within = "within 1 point" if gap <= 1 else "NOT within 1 point"
    return f"{data}: the defaults are {gap:.1f} points below the best ({best[0]}, {best[1]:g}): {within}"
