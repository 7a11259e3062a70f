"""The main job in minutes: fine-tune a pretrained backbone three ways, meta-learn two ways, one table, one picture."""

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arelu_meta.config import (
    DataConfig,
    DemoConfig,
    EvalConfig,
    FinetuneConfig,
    MetaConfig,
    MetatrainConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from arelu_meta.data.image_folder import class_holders
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import Splits
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.meta.metatrain import metatrain
from arelu_meta.runs.atomic_io import write_atomically, write_json
from arelu_meta.runs.curves import COLOURS
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.run_folder import check_apart, open_run
from arelu_meta.validation import validate

SMALL_LEARNING_RATE = 1e-3
_NO_LIMIT = 1e9  # of gradients
_PER_CLASS = 20
# All three train alike, from a head at zero: what is compared is the activation, not the defaults' choices for each.
_FINETUNED: dict[str, ModelConfig] = {
    "as it came": ModelConfig(head_init="zero"),
    "AReLU, paper's start": ModelConfig(activation="arelu", init="paper", head_init="zero"),
    "AReLU, preserve": ModelConfig(activation="arelu", init="preserve", head_init="zero"),
}
_META: dict[str, str | None] = {"ReLU": None, "AReLU": "arelu"}


@dataclass(frozen=True)
class _Row:
    job: str
    contender: str
    results: Mapping[str, Any]
    metrics: list[dict[str, str]]

    def cells(self) -> list[str]:
        r = self.results
        unit = "images" if r["task"] == "finetune" else "unseen tasks"
        interval = f"{r['test_low']:.1%} to {r['test_high']:.1%}"
        return [
            self.job,
            self.contender,
            f"{r['test_accuracy']:.1%}",
            interval,
            f"{r['test_n']} {unit}",
            f"{r['seconds']:.0f}",
        ]


def demo(config: DemoConfig | None = None) -> dict[str, Any]:
    """Run the main job on embedded data, or its fine-tuning part on a folder of images.

    Fine-tunes the pretrained EfficientNet-Lite0 at a small learning rate as it came, with AReLU from the paper's start
    and with `preserve`; then, on embedded data, meta-learns 5-way 1-shot digits with ReLU and with AReLU, tested on
    classes that it has not seen. Prints one table and writes demo.png.

    Args:
        config: run.folder, run.seed, run.device; data.root for a folder of one's own.

    Returns:
        What results.json holds: for each row its accuracy, interval and number of images or tasks.

    Raises:
        InputError: if the folder of images cannot be used; nothing is written then.
    """
    config = DemoConfig() if config is None else config
    validate(config, DemoConfig)
    own_images = config.data.root is not None or config.data.name is not None
    opened = open_run(replace(config.run, resume="never"), "demo")
    check_apart(opened, class_holders(config.data))
    folder = opened.path
    started = time.monotonic()
    rows = _finetune_rows(config, folder, own_images)
    if not own_images:
        rows += _meta_rows(config.run, folder)
    _print_table(rows, own_images)
    _draw(folder / "demo.png", rows)
    results = _flat(rows) | {"seed": config.run.seed, "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / "results.json", results)
    print(f"{results['seconds']:.0f} s in all; picture: {folder / 'demo.png'}; every run in {folder}")
    return results


def _finetune_rows(config: DemoConfig, folder: Path, own_images: bool) -> list[_Row]:
    splits = load_images(config.data, config.run.seed)
    data = replace(config.data, per_class=min(_PER_CLASS, _smallest_class(splits)), image_size=96 if own_images else 64)
    job = f"fine-tune, learning rate {SMALL_LEARNING_RATE:g}"
    rows = []
    for number, (name, model) in enumerate(_FINETUNED.items(), 1):
        print(f"\n[{number}/{len(_FINETUNED)}] {job}: EfficientNet-Lite0, {name}")
        run = replace(config.run, folder=str(folder / _slug(f"finetune {name}")), resume="never")
        act_lr = SMALL_LEARNING_RATE if model.activation else None
        optim = OptimConfig(lr=SMALL_LEARNING_RATE, act_lr=act_lr, clip_grad=_NO_LIMIT)
        train = TrainConfig(epochs=6, freeze_bn=False)
        rows.append(_row(job, name, finetune(FinetuneConfig(run, data, model, optim, train))))
    return rows


def _smallest_class(splits: Splits) -> int:
    return int(np.bincount(splits.train.labels).min())


def _meta_rows(run: RunConfig, folder: Path) -> list[_Row]:
    rows = []
    for number, (name, activation) in enumerate(_META.items(), 1):
        job = "MAML, digits, 5-way 1-shot"
        print(f"\n[{number}/{len(_META)}] {job}: MNIST-Conv, {name}")
        config = MetatrainConfig(
            run=replace(run, folder=str(folder / _slug(f"maml {name}")), resume="never"),
            data=DataConfig(name="digits"),
            model=ModelConfig(name="mnist_conv", pretrained=False, activation=activation),
            task=TaskConfig(ways=5, shots=1, queries=10),
            meta=MetaConfig(inner_lr=0.1, inner_steps=3, batch_tasks=8, steps=60),
            eval=EvalConfig(tasks=600, every=10),
        )
        rows.append(_row(job, name, metatrain(config)))
    return rows


def _row(job: str, contender: str, results: Mapping[str, Any]) -> _Row:
    with (Path(results["folder"]) / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return _Row(job, contender, results, list(csv.DictReader(file)))


def _slug(name: str) -> str:
    return "-".join(name.lower().replace(",", "").replace("'", "").split())


def _print_table(rows: list[_Row], own_images: bool) -> None:
    print()
    where = "on your images" if own_images else "on embedded digits"
    header = ["job", "activation", "test accuracy", "95 % interval", "tested on", "seconds"]
    print_table(f"arelu_meta demo {where}, seed {rows[0].results['seed']}", header, [row.cells() for row in rows])


def _flat(rows: list[_Row]) -> dict[str, Any]:
    flat: dict[str, Any] = {"task": "demo"}
    for row in rows:
        key = _slug(f"{row.results['task']} {row.contender}").replace("-", "_")
        flat |= {f"{key}_{name}": row.results[f"test_{name}"] for name in ("accuracy", "low", "high", "n")}
    return flat


def _draw(path: Path, rows: list[_Row]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    jobs = list(dict.fromkeys(row.job for row in rows))
    figure = Figure(figsize=(6 * len(jobs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, job in zip(figure.subplots(1, len(jobs), squeeze=False)[0], jobs, strict=True):
        mine = [row for row in rows if row.job == job]
        for colour, row in zip(COLOURS, mine, strict=False):
            x = "epoch" if "epoch" in row.metrics[0] else "step"
            points = [(float(entry[x]), 100 * float(entry["validation_accuracy"])) for entry in row.metrics]
            label = f"{row.contender}: {row.results['test_accuracy']:.1%} in the test"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
        axes.set(title=job, xlabel="meta-step" if x == "step" else "epoch", ylabel="validation accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
