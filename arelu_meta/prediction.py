"""Name the class of images: by a fine-tuned classifier, or few-shot from a support folder."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import nn

from arelu_meta.backbones.saving import ModelSpec, load_model
from arelu_meta.checking import validate
from arelu_meta.config import PredictConfig, RunConfig
from arelu_meta.data.given import Source, centre_crop, gather, tell_skipped
from arelu_meta.errors import InputError
from arelu_meta.meta.learner import Learner, guesses, scored_batches
from arelu_meta.runs.compute import prepare
from arelu_meta.runs.folder import open_run, write_atomically
from arelu_meta.runs.progress import print_table


@dataclass(frozen=True)
class Prediction:
    """An image's class, and how sure the model is of it."""

    path: Path
    name: str
    probability: float


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    support: str | Path | None = None,
    run: RunConfig | None = None,
    batch_size: int = 32,
    skip_broken: bool = False,
) -> list[Prediction]:
    """Name the class of every image.

    Args:
        checkpoint: a run folder or a model.safetensors; with a support, also the name of a timm model, whose pretrained
            weights are used as they come.
        images: files, or folders that are searched for images.
        support: few-shot: a folder with a sub-folder a class. A meta-learner adapts to it; a fine-tuned backbone
            compares features with its classes' mean features (nearest centroid by cosine). Required for a meta-learner.
        run: device.
        batch_size: images at a time.
        skip_broken: leave out files that are not images.

    Returns:
        One prediction an image, in the order given.

    Raises:
        InputError: if a file is missing or no image, or the support does not fit the model.
        RunError: if a prediction is NaN or infinite.
    """
    device = prepare(run or RunConfig())
    paths = gather([Path(image) for image in images])
    if support is not None:
        learner = Learner.load(checkpoint, str(device))
        source = learner.source(paths, skip_broken=skip_broken)
        found = list(learner.adapt(support, skip_broken).stream(source, batch_size))
    else:
        model, spec = _load_classifier(checkpoint)
        source = Source(paths, spec.inputs, centre_crop(spec.inputs), skip_broken=skip_broken)
        model.to(device)
        batches = scored_batches(source, lambda batch: model(batch).softmax(1), device, batch_size)
        found = list(guesses(batches, spec.classes))
    if not found:
        raise InputError("images: none of the files is an image; give image files or folders")
    tell_skipped(len(source) - len(found))
    return [Prediction(Path(str(paths[one.place])), one.name, one.probability) for one in found]


def predict_task(config: PredictConfig) -> list[Prediction]:
    """Predict from the command line: a table on a terminal, tab-separated lines when piped.

    Args:
        config: checkpoint and images; run.folder, where given, receives predictions.csv.
    """
    validate(config)
    folder = open_run(config.run, "predict") if config.run.folder else None
    found = predict(
        config.checkpoint, config.images, config.support, config.run, config.data.batch_size, config.data.skip_broken
    )
    rows = [[str(one.path), one.name, f"{one.probability:.4f}"] for one in found]
    if folder is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.path / "predictions.csv", lambda temporary: _write_csv(temporary, rows))
    if sys.stdout.isatty():
        print_table(f"{len(rows)} images", ["image", "class", "probability"], rows)
    else:
        print("\n".join("\t".join(row) for row in rows))
    return found


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "class", "probability"], *rows])


def _load_classifier(checkpoint: str | Path) -> tuple[nn.Module, ModelSpec]:
    """Load a model that knows its classes without a support folder."""
    name = str(checkpoint)
    if not Path(checkpoint).exists() and timm.is_model(name):
        raise InputError(f"support: missing; the backbone {name!r} needs --support FOLDER with a sub-folder a class")
    model, spec = load_model(checkpoint)
    if spec.task == "metatrain":
        raise InputError("support: missing; a meta-learned model needs --support FOLDER with a sub-folder a class")
    return model, spec
