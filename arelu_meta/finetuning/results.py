"""Write what a test set said of a fine-tuned classifier into its run folder."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import RunError
from arelu_meta.finetuning import metrics, plots
from arelu_meta.finetuning.recorders import GradientRecorder, ScalarRecorder
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.runs.curves import draw_curves
from arelu_meta.statistics import proportion_interval


def write_results(
    folder: Path,
    logits: Tensor,
    labels: Tensor,
    test: ImageSet,
    model: nn.Module | None = None,
    scalars: ScalarRecorder | None = None,
    gradients: GradientRecorder | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Write tables and pictures of a test, and of what was recorded while training.

    Written are per_class.csv, confusion.csv, confused_pairs.csv, mistakes.csv, confusion.png and mistakes.png; with the
    recorders, and rows in them, scalars.png and gradients.png.

    Args:
        folder: of the run; it is there.
        logits: shape (images, classes), float, on the CPU.
        labels: shape (images,), int64, on the CPU.
        test: the images, in the order of the logits.
        model: whose alphas are counted; it is not run.
        scalars: what the run recorded of alpha, beta and t.
        gradients: what the run recorded of the gradients.
        pictures: false writes the tables alone.

    Returns:
        Flat values for results.json: `test_accuracy`, `test_low` and `test_high` (95 % Wilson interval, in which copies
        count once), `test_n`, `top5`, `ece`, `macro_f1`, `mistakes`, `worst_class`, `worst_recall`; with a model
        `alphas` and `alphas_clamped`.

    Raises:
        RunError: if a logit is not finite, or the disk refuses.
    """
    if not logits.isfinite().all():
        first = test.names[int(logits.isfinite().all(1).int().argmin())]
        raise RunError(f"the prediction for {first!r} is NaN or infinite; the test is worth nothing")
    counts, wrong = metrics.confusion(logits, labels), metrics.mistakes(logits, labels)
    rows = metrics.per_class(logits, labels, test.classes)
    right = len(labels) - len(wrong)
    _write_tables(folder, counts, wrong, rows, test)
    if pictures:
        title = f"test accuracy {right / len(labels):.1%} of {len(labels)} images"
        plots.draw_confusion(folder / "confusion.png", counts, test.classes, title)
        plots.draw_mistakes(folder / "mistakes.png", wrong, test)
        plots.draw_scalars(folder / "scalars.png", [] if scalars is None else scalars.rows)
        plots.draw_gradients(folder / "gradients.png", [] if gradients is None else gradients.rows)
    independent = test.independent()
    low, high = proportion_interval(right / len(labels) * independent, independent)
    worst = min((row for row in rows if row["support"]), key=lambda row: row["recall"])
    found: dict[str, Any] = {
        "test_accuracy": right / len(labels),
        "test_low": low,
        "test_high": high,
        "test_n": len(labels),
        "top5": metrics.top_accuracy(logits, labels),
        "ece": metrics.calibration_error(logits, labels),
        "macro_f1": metrics.macro_f1(logits, labels),
        "mistakes": len(wrong),
        "worst_class": worst["class"],
        "worst_recall": worst["recall"],
    }
    if model is not None:
        found["alphas"], found["alphas_clamped"] = metrics.clamped_alphas(model)
    return found


def draw_results(folder: Path, rows: list[dict[str, Any]], spec: ModelSpec, accuracy: float) -> None:
    """Draw accuracy and loss over the epochs: curves.png.

    Args:
        folder: of the run; it is there.
        rows: of metrics.csv.
        spec: of the model.
        accuracy: on the test set.
    """
    draw_curves(
        folder / "curves.png",
        rows,
        "epoch",
        {"accuracy": ["train_accuracy", "validation_accuracy"], "loss": ["train_loss", "validation_loss"]},
        f"{spec.name}, {spec.activation or 'own activation'}: test accuracy {accuracy:.1%}",
    )


def _write_tables(
    folder: Path, counts: metrics.Counts, wrong: list[metrics.Mistake], rows: list[dict[str, Any]], test: ImageSet
) -> None:
    names = test.classes
    _write_csv(folder / "per_class.csv", list(rows[0]), (row.values() for row in rows))
    matrix = ([name, *counts[label].tolist()] for label, name in enumerate(names))
    _write_csv(folder / "confusion.csv", ["true \\ predicted", *names], matrix)
    pairs = metrics.confused_pairs(counts)
    of_class = counts.sum(1).tolist()
    shares = ([names[true], names[other], count, count / of_class[true]] for true, other, count in pairs)
    _write_csv(folder / "confused_pairs.csv", ["true", "predicted", "images", "share_of_true"], shares)
    listed = ([test.names[one.index], names[one.true], names[one.predicted], one.probability] for one in wrong)
    _write_csv(folder / "mistakes.csv", ["image", "true", "predicted", "probability"], listed)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)
