"""The main job in minutes: fine-tune a pretrained backbone, meta-learn, with what needs neither beside them."""

import csv
import itertools
import shlex
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
from arelu_meta.evaluation import evaluate
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.meta.metatrain import metatrain
from arelu_meta.report.compare_page import compared
from arelu_meta.report.report import write_report
from arelu_meta.report.run_data import open_folder
from arelu_meta.runs.atomic_io import write_atomically, write_json
from arelu_meta.runs.curves import COLOURS
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.run_folder import check_apart, open_run
from arelu_meta.validation import validate

SMALL_LEARNING_RATE = 1e-3
_PER_CLASS = {True: 20, False: 60}  # of one's own images, and of the embedded digits
_META: dict[str, str | None] = {"ReLU": None, "AReLU": "arelu"}
_ANCHORS = {"pixels": "nearest class by raw pixels", "centroid": "nearest centroids, untrained features"}


@dataclass(frozen=True)
class _Row:
    job: str
    contender: str
    results: Mapping[str, Any]
    metrics: list[dict[str, str]]

    def cells(self) -> list[str]:
        r = self.results
        interval = f"{r['test_low']:.1%} to {r['test_high']:.1%}" if "test_low" in r else "same tasks"
        rate = r.get("learning_rate")
        return [
            self.job,
            self.contender,
            "-" if rate is None or r.get("mode") == "probe" else f"{rate:g}",
            f"{r['test_accuracy']:.1%}",
            interval,
            f"{r['test_n']} {'images' if r['task'] == 'finetune' else 'unseen tasks'}",
            f"{r['seconds']:.0f}" if "seconds" in r else "-",
        ]


def demo(config: DemoConfig | None = None) -> dict[str, Any]:
    """Run the main job on embedded data, or its fine-tuning part on a folder of images.

    Fine-tunes the pretrained EfficientNet-Lite0 at a small rate and at the default one: with its own activations and
    with AReLU that preserves them, both as `finetune` trains by default (statistics held, the head from logistic
    regression), and with the paper's start, which changes the function and so trains as most scripts do. The probe
    stands beside them. On embedded data it then meta-learns 5-way 1-shot digits with ReLU and with AReLU, tested on
    classes that neither has seen, beside raw pixels and the centroids of untrained features on the same tasks. Prints
    one table and a sentence, and writes demo.png and report.html.

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
    print(_sentence(rows))
    _draw(folder / "demo.png", rows)
    runs = [str(row.results["folder"]) for row in rows if "folder" in row.results]
    page, *_ = write_report(runs, folder / "report.html")
    results = _flat(rows) | {"seed": config.run.seed, "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / "results.json", results)
    print(f"{results['seconds']:.0f} s in all; page: {page}; picture: {folder / 'demo.png'}")
    print(
        "next:\n"
        "  arelu-meta finetune photos --model.activation arelu   # photos/CLASS/1.jpg …\n"
        "  arelu-meta race --data.root photos                    # what adapts fastest on them, and why\n"
        f"  arelu-meta predict {shlex.quote(_of(rows, 'preserve').results['folder'])} IMAGES"
    )
    return results


def _finetuned(own: OptimConfig) -> dict[str, tuple[ModelConfig, OptimConfig, TrainConfig]]:
    """Name what is fine-tuned, from the quickest on; `own` has the small rate, or leaves it to finetune."""
    epochs = 4
    small = "small rate" if own.lr != "default" else "default rate"
    return {
        f"original, statistics held, {small}": (ModelConfig(), own, TrainConfig(epochs)),
        f"AReLU, preserve, {small}": (ModelConfig(activation="arelu", init="preserve"), own, TrainConfig(epochs)),
        f"AReLU, paper's start, {small}": (ModelConfig(activation="arelu", init="paper"), own, TrainConfig(epochs)),
    }


def _finetune_rows(config: DemoConfig, folder: Path, own_images: bool) -> list[_Row]:
    splits = load_images(config.data, config.run.seed)
    smallest = int(np.bincount(splits.train.labels).min())
    data = replace(config.data, per_class=min(_PER_CLASS[own_images], smallest), image_size=96 if own_images else 64)
    plan = {"probe": (ModelConfig(), OptimConfig(), TrainConfig(mode="probe"))}
    plan |= _finetuned(OptimConfig(lr=SMALL_LEARNING_RATE)) | _finetuned(OptimConfig())
    rows = []
    for number, (name, (model, optim, train)) in enumerate(plan.items(), 1):
        print(f"\n[{number}/{len(plan)}] fine-tune EfficientNet-Lite0: {name}")
        run = replace(config.run, folder=str(folder / _slug(f"finetune {name}")), resume="never")
        rows.append(_row("fine-tune", name, finetune(FinetuneConfig(run, data, model, optim, train))))
    return rows


def _meta_rows(run: RunConfig, folder: Path) -> list[_Row]:
    rows: list[_Row] = []
    job = "MAML, digits, 5-way 1-shot"
    for number, (name, activation) in enumerate(_META.items(), 1):
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
    print("\nwhat takes no training, on the same tasks")
    found = evaluate(rows[-1].results["folder"], tasks=600, against=",".join(_ANCHORS))
    for suffix in ("", "_2"):
        anchor = {"task": "metatrain", "test_accuracy": found[f"against_accuracy{suffix}"], "test_n": found["test_n"]}
        rows.append(_Row(job, _ANCHORS[found[f"against{suffix}"]], anchor, []))
    return rows


def _row(job: str, contender: str, results: Mapping[str, Any]) -> _Row:
    with (Path(results["folder"]) / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return _Row(job, contender, results, list(csv.DictReader(file)))


def _of(rows: list[_Row], part: str) -> _Row:
    """Return the row of the default rate whose name has a part, or that of the probe."""
    return next(row for row in reversed(rows) if part in row.contender)


def _sentence(rows: list[_Row]) -> str:
    """Say what the table shows, in a sentence a person can act on; one seed, so of this split alone."""
    original, preserve, probe = (_of(rows, part) for part in ("original", "preserve", "probe"))
    found = compared(*(open_folder(row.results["folder"]) for row in (original, preserve)))
    beside = ""
    if found is not None:
        difference, _ = found
        told = "told apart on these images" if difference.told else "not told apart on these images"
        beside = f" ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}: {told})"
    gain = 100 * (preserve.results["test_accuracy"] - original.results["test_accuracy"])
    said = (
        f"On {original.results['classes']} classes: hold batch normalisation and train everything at "
        f"{original.results['learning_rate']:g}: {original.results['test_accuracy']:.1%}. AReLU (preserve): "
        f"{gain:+.1f} points{beside}. A probe alone: {probe.results['test_accuracy']:.1%}."
    )
    meta = {row.contender: row.results["test_accuracy"] for row in rows if row.results["task"] == "metatrain"}
    if meta:
        best, accuracy = max(((name, meta[name]) for name in _META), key=lambda one: one[1])
        pixels = meta[_ANCHORS["pixels"]]
        said += f" Few-shot: MAML with {best} {accuracy:.1%}; raw pixels {pixels:.1%}: " + (
            "meta-training is ahead of them." if accuracy > pixels else "these tasks need no meta-training."
        )
    return said


def _slug(name: str) -> str:
    return "-".join(name.lower().replace(",", "").replace("'", "").split())


def _print_table(rows: list[_Row], own_images: bool) -> None:
    print()
    where = "on your images" if own_images else "on embedded digits"
    header = ["job", "what", "rate", "test accuracy", "95 % interval", "tested on", "seconds"]
    print_table(f"arelu_meta demo {where}, seed {rows[0].results['seed']}", header, [row.cells() for row in rows])


def _flat(rows: list[_Row]) -> dict[str, Any]:
    flat: dict[str, Any] = {"task": "demo"}
    for row in rows:
        key = _slug(f"{row.results['task']} {row.contender}").replace("-", "_")
        known = [name for name in ("accuracy", "low", "high", "n") if f"test_{name}" in row.results]
        flat |= {f"{key}_{name}": row.results[f"test_{name}"] for name in known}
    return flat


def _draw(path: Path, rows: list[_Row]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    jobs = list(dict.fromkeys(row.job for row in rows))
    figure = Figure(figsize=(6 * len(jobs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, job in zip(figure.subplots(1, len(jobs), squeeze=False)[0], jobs, strict=True):
        mine = [row for row in rows if row.job == job]
        colours = itertools.cycle(COLOURS)
        for row in mine:
            colour = next(colours)
            if len(row.metrics) < 2:  # nothing was trained: a line
                accuracy = 100 * row.results["test_accuracy"]
                label = f"{row.contender}: {row.results['test_accuracy']:.1%}"
                axes.axhline(accuracy, linestyle="--", linewidth=1, color=colour, label=label)
                continue
            x = "epoch" if "epoch" in row.metrics[0] else "step"
            points = [(float(entry[x]), 100 * float(entry["validation_accuracy"])) for entry in row.metrics]
            label = f"{row.contender}: {row.results['test_accuracy']:.1%} in the test"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
        axes.set(
            title=job if "," in job else f"{job} EfficientNet-Lite0",
            xlabel="meta-step" if x == "step" else "epoch",
            ylabel="validation accuracy, %",
        )
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
