"""Run folders as finetune, metatrain and claims write them, made up in a moment; names are as hostile as they come."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

SCRIPT = "<script>alert(1)</script>"
CLASSES = (SCRIPT, "\"quoted\" & 'single'", "</script><b>bold</b>", "10", "9")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_start(folder: Path, config: str, **environment: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"# arelu-meta {SCRIPT}\n{config}", encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11", "devices": [], "command": f"arelu-meta finetune {SCRIPT}", **environment})
    )


def finetune_run(
    folder: Path, wrong: int = 3, seed: int = 0, lr: float = 0.01, activation: str | None = "arelu", images: int = 20
) -> Path:
    """Write a run that took `wrong` of its test images for another class, the first ones."""
    config = (
        f"run: {{seed: {seed}, folder: {folder.name}}}\nmodel: {{name: tiny, activation: {activation or 'null'}}}\n"
    )
    write_start(folder, f"{config}optim: {{lr: {lr}}}\ntrain: {{mode: full, epochs: 3}}\n")
    test = [f"{CLASSES[index % 5]}/{index}.jpg" for index in range(images)]
    (folder / "split.json").write_text(json.dumps({"classes": CLASSES, "test": test}))
    losses = [[epoch, 3 / epoch, 0.3 * epoch, 3.1 / epoch, 0.25 * epoch + seed / 100] for epoch in (1, 2, 3)]
    metrics = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    write_csv(folder / "metrics.csv", metrics, losses)
    per_class = [[name, 0.5, 0.75, 0.6, 4] for name in CLASSES]
    write_csv(folder / "per_class.csv", ["class", "precision", "recall", "f1", "support"], per_class)
    counts = [[name, *(4 if row == column else 0 for column in range(5))] for row, name in enumerate(CLASSES)]
    counts[0][1:3] = [1, 3]
    write_csv(folder / "confusion.csv", ["true \\ predicted", *CLASSES], counts)
    pairs = [[CLASSES[0], CLASSES[1], 3, 0.75]]
    write_csv(folder / "confused_pairs.csv", ["true", "predicted", "images", "share_of_true"], pairs)
    mistakes = [[name, CLASSES[0], CLASSES[1], 0.9] for name in test[:wrong]]
    write_csv(folder / "mistakes.csv", ["image", "true", "predicted", "probability"], mistakes)
    scalars = [[e, f"layers.{i}", 0.5 + i / 10 + e / 100, 2.0, ""] for e in (1, 2, 3) for i in range(3)]
    write_csv(folder / "scalars.csv", ["epoch", "path", "alpha", "beta", "t"], scalars)
    norms = [[step, f"layers.{i}", step / (i + 1)] for step in (1, 2, 3) for i in range(3)]
    write_csv(folder / "gradients.csv", ["step", "layer", "norm"], norms)
    Image.new("RGB", (60, 40), "navy").save(folder / "mistakes.png")
    right = 1 - wrong / images
    results = {"task": "finetune", "seed": seed, "test_accuracy": right, "test_low": right - 0.1, "test_high": 1.0}
    results |= {"test_n": images, "mistakes": wrong, "worst_class": CLASSES[0], "worst_recall": 0.25, "ece": 0.1}
    results |= {"model": "tiny", "activation": activation, "init": None, "seconds": 12.5, "best_epoch": 3, "epochs": 3}
    results |= {"validation_accuracy": 0.75 + seed / 100, "alphas": 3, "alphas_clamped": 1}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def metatrain_run(folder: Path, accuracy: float = 0.6) -> Path:
    write_start(folder, "meta: {algorithm: maml, steps: 20}\ntask: {ways: 5, shots: 1}\nmodel: {name: conv4}\n")
    (folder / "split.json").write_text(json.dumps({"train_classes": [SCRIPT], "test_classes": ["b"]}))
    header = ["step", "train_loss", "train_accuracy", "validation_accuracy", "seconds"]
    write_csv(folder / "metrics.csv", header, [[10, 1.5, 0.3, 0.4, 1.0], [20, 1.2, 0.5, 0.55, 2.0]])
    results = {"task": "metatrain", "seed": 0, "test_accuracy": accuracy, "test_low": accuracy - 0.02}
    results |= {"test_high": accuracy + 0.02, "test_n": 600, "ways": 5, "shots": 1, "algorithm": "maml"}
    results |= {"accuracy_after_0": 0.2, "accuracy_after_1": 0.5, "accuracy_after_2": accuracy, "model": "conv4"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def verdict(claim: str, word: str, difference: float, half: float, **more: Any) -> dict[str, Any]:
    numbers = {"difference": difference, "low": difference - half, "high": difference + half, "margin": 1.0}
    sentence = f"{claim}: {word}; {difference:+.1f} points."
    return {"claim": claim, "verdict": word, "sentence": sentence, "n": 5, "p": 0.01, "unit": "points"} | numbers | more


def study(folder: Path, activations: int = 3, rates: int = 4, epochs: int = 20, seeds: int = 5) -> Path:
    """Write a study of `activations * rates * seeds` runs."""
    write_start(folder, "study: mnist\nsize: full\n")
    names = ["AReLU", "ReLU", SCRIPT, *(f"activation {number}" for number in range(3, activations))][:activations]
    lrs = [10.0 ** -(number + 1) for number in range(rates)]
    header = ["activation", "lr", "seed", "epoch", "accuracy"]
    rows = [[a, lr, s, e, 50 + e] for a in names for lr in lrs for s in range(seeds) for e in range(1, epochs + 1)]
    write_csv(folder / "runs.csv", header, rows)
    x = list(range(1, epochs + 1))

    def series(place: int) -> dict[str, Any]:
        y = [60 + 30 * (1 - 1 / step) - place for step in x]
        return {"name": names[place], "x": x, "y": y, "low": [v - 1 for v in y], "high": [v + 1 for v in y]}

    curves = [
        {
            "title": f"At {lr:g}",
            "x_label": "epoch",
            "y_label": "accuracy (%)",
            "series": list(map(series, range(len(names)))),
        }
        for lr in lrs
    ]
    z = [[90.0 - 3 * column - row for column in range(rates)] for row in range(len(names))]
    heat = {"title": "Best", "x_label": "learning rate", "y_label": "activation", "x": lrs, "y": names, "z": z}
    table = {
        "title": "Means",
        "columns": ["activation", "accuracy"],
        "rows": [[n, 90.0 + i] for i, n in enumerate(names)],
    }
    Image.new("RGB", (80, 40), "teal").save(folder / "focus.png")
    picture = {"title": "Grad-CAM", "alt": f"Heat on {SCRIPT}", "file": "focus.png"}
    found = [verdict("AReLU is faster", "ahead", 5.0, 1.0), verdict(f"{SCRIPT} is slow", "need more seeds", 0.5, 3.0)]
    found.append(verdict("It is best", "behind", -2.0, 0.5))
    read_with = {
        "headline": f"MNIST-Conv: {', '.join(names[:3])}",
        "notes": [f"2 runs of {SCRIPT} became NaN.", "Read both."],
    }
    content = {"task": "claims", "study": "mnist", "size": "full", "seconds": 99.0, "seeds": list(range(seeds))}
    content |= {"verdicts": found, "tables": [table | {"note": "Means over seeds."}], "curves": curves}
    (folder / "results.json").write_text(json.dumps(content | read_with | {"heatmaps": [heat], "images": [picture]}))
    return folder


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """What makes the folders up: make.finetune(folder), make.metatrain(folder), make.study(folder)."""
    return SimpleNamespace(finetune=finetune_run, metatrain=metatrain_run, study=study, verdict=verdict)
