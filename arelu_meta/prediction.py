"""Name the class of images: by a fine-tuned classifier, or few-shot from a support folder."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from PIL import Image
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model
from arelu_meta.backbones.networks import suit_layout
from arelu_meta.config import MOST_PIXELS, DataConfig, PredictConfig, RunConfig
from arelu_meta.data.prediction_inputs import GivenImages, OneImage, Source, centre_crop, gather, tell_skipped
from arelu_meta.errors import InputError, printable, shown
from arelu_meta.meta.few_shot_learner import Learner, guesses, scored_batches
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.reproducibility import prepare
from arelu_meta.runs.run_folder import open_fresh
from arelu_meta.validation import validate


@dataclass(frozen=True)
class Prediction:
    """An image's class, and how sure the model is of it.

    Args:
        path: of the image; of one that came as Pillow's or as a tensor its place in what was given, from 0.
        name: of the likeliest class.
        probability: of that class, in (0, 1].
        ranked: the likeliest classes with their probabilities, as many as were asked for, the likeliest first.

    Example:
        >>> from pathlib import Path
        >>> from arelu_meta import Prediction
        >>> Prediction(Path("photo.jpg"), "tulip", 0.9).name
        'tulip'
    """

    path: Path
    name: str
    probability: float
    ranked: tuple[tuple[str, float], ...] = ()


def predict(
    checkpoint: str | Path,
    images: GivenImages,
    support: str | Path | None = None,
    run: RunConfig | None = None,
    batch_size: int = 32,
    skip_broken: bool = False,
    top_k: int = 1,
    probabilities: bool = False,
    max_pixels: int = MOST_PIXELS,
    *,
    model: nn.Module | None = None,
) -> list[Prediction]:
    """Name the class of every image.

    Args:
        checkpoint: a run folder or a model.safetensors; with a support, also the name of a timm model, whose pretrained
            weights are used as they come.
        images: files, folders that are searched for images, images of Pillow's, or tensors: uint8, or floats from 0 to
            1; of a run that was trained on tensors, such as its data set gave.
        support: few-shot: a folder with a sub-folder a class. A meta-learner adapts to it; a fine-tuned backbone
            compares features with its classes' mean features (nearest centroid by cosine). Required for a meta-learner.
        run: device.
        batch_size: images at a time.
        skip_broken: leave out files that are not images.
        top_k: how many of the likeliest classes each prediction ranks.
        probabilities: rank all classes instead.
        max_pixels: of the largest image that is read, as data.max_pixels.
        model: the network, of a run of one's own; its weights are replaced by the run's.

    Returns:
        One prediction an image, in the order given.

    Raises:
        InputError: if a file is missing or no image, the support does not fit the model, or top_k is above the number
            of classes.
        RunError: if a prediction is NaN or infinite.

    Example:
        >>> import tempfile, torch
        >>> from arelu_meta import FinetuneConfig, finetune, predict
        >>> config, run = FinetuneConfig(), tempfile.mkdtemp() + "/run"
        >>> config.run.folder, config.run.pictures, config.train.epochs = run, False, 1
        >>> config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 8
        >>> results = finetune(config)
        mnist_linear...
        >>> [guess] = predict(run, [torch.zeros(1, 8, 8)])
        >>> guess.name in "0123456789" and 0 < guess.probability <= 1
        True
    """
    given = [images] if isinstance(images, Path | Image.Image | Tensor) else images
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model: {shown(model)} is not allowed; give a Module")
    if not isinstance(given, list | tuple) or not all(isinstance(one, OneImage) for one in given):
        raise InputError(f"images: {shown(images)} is not allowed; give a list of texts (paths), images or tensors")
    listed = [image if isinstance(image, str | Path) else "(in memory)" for image in given]
    read = DataConfig(batch_size=batch_size, skip_broken=skip_broken, max_pixels=max_pixels)
    config = PredictConfig(checkpoint, listed, support, None, top_k, probabilities, data=read)  # type: ignore[arg-type]
    config.run = config.run if run is None else run
    validate(config)
    device = prepare(config.run)
    if model is not None and support is not None:
        raise InputError("model: a network of one's own names its classes by its head; leave support out")
    paths = gather(given)
    if support is not None:
        learner = Learner.load(checkpoint, str(device))
        source = learner.source(paths, skip_broken=skip_broken, max_pixels=max_pixels)
        adapted = learner.adapt(support, skip_broken, max_pixels)
        found = list(adapted.stream(source, batch_size, _how_many(top_k, probabilities, adapted.classes)))
    else:
        net, spec = _load_classifier(checkpoint, model)
        source = Source(paths, spec.inputs, centre_crop(spec.inputs), skip_broken=skip_broken, max_pixels=max_pixels)
        suit_layout(net.to(device), device)
        batches = scored_batches(source, lambda batch: net(batch).softmax(1), device, batch_size)
        found = list(guesses(batches, spec.classes, _how_many(top_k, probabilities, spec.classes)))
    if not found:
        raise InputError("images: none of the files is an image; give image files or folders")
    tell_skipped(len(source) - len(found))
    return [Prediction(_path(paths[one.place], one.place), one.name, one.probability, one.ranked) for one in found]


def _path(image: OneImage, place: int) -> Path:
    return Path(image) if isinstance(image, str | Path) else Path(str(place))


def _how_many(top_k: int, probabilities: bool, classes: Sequence[str]) -> int:
    """Say how many classes to rank."""
    if not 1 <= top_k <= len(classes):
        raise InputError(f"top_k: {top_k} is not allowed; give 1 to {len(classes)}, the number of classes")
    return len(classes) if probabilities else top_k


def predict_task(config: PredictConfig) -> list[Prediction]:
    """Predict from the command line: a table on a terminal, tab-separated lines when piped.

    Args:
        config: checkpoint and images; output, where given, is the CSV to write, and run.folder, where given, receives
            predictions.csv.

    Raises:
        InputError: if the CSV cannot lie where it is to; nothing is predicted then.
    """
    validate(config)
    _check_output(config)
    folder = open_fresh(config.run, "predict").path if config.run.folder else None
    found = predict(
        config.checkpoint,
        config.images,
        config.support,
        config.run,
        config.data.batch_size,
        config.data.skip_broken,
        config.top_k,
        config.probabilities,
        config.data.max_pixels,
    )
    rows = _rows(found, config.top_k)
    written = [row | _by_class(one) for row, one in zip(rows, found, strict=True)] if config.probabilities else rows
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "predictions.csv", lambda file: _write_csv(file, written))
    if config.output is not None:
        write_atomically(Path(config.output), lambda file: _write_csv(file, written))
    if sys.stdout.isatty():
        print_table(f"{len(rows)} images", list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("\n".join("\t".join(map(printable, row.values())) for row in rows))
    return found


def _check_output(config: PredictConfig) -> None:
    if config.probabilities and not (config.output or config.run.folder):
        raise InputError("probabilities: true, and no file to write them to; give --output FILE.csv or --run.folder")
    if config.output is None:
        return
    file = Path(config.output)
    if file.suffix.lower() != ".csv":
        raise InputError(f"output: {config.output!r} is not allowed; give a file that ends in .csv")
    if not file.parent.is_dir():
        raise InputError(f"output: the folder of {config.output!r} does not exist; give a file in a folder that does")
    if file.is_dir() or (file.exists() and not config.overwrite):
        raise InputError(f"output: {config.output!r} is there already; give another, or --overwrite for a file")


def _rows(found: Sequence[Prediction], top_k: int) -> list[dict[str, str]]:
    """Lay predictions out by column: class and probability, then class_2, probability_2, and so on."""
    rows = []
    for one in found:
        row = {"image": str(one.path)}
        for place, (name, probability) in enumerate(one.ranked[:top_k], start=1):
            end = "" if place == 1 else f"_{place}"
            row |= {f"class{end}": name, f"probability{end}": f"{probability:.4f}"}
        rows.append(row)
    return rows


def _by_class(one: Prediction) -> dict[str, str]:
    """Give each class a column, named `p(CLASS)`, in the order of their names."""
    return {f"p({name})": f"{probability:.6f}" for name, probability in sorted(one.ranked)}


def _write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[printable(cell) for cell in line] for line in lines])


def _load_classifier(checkpoint: str | Path, own: nn.Module | None) -> tuple[nn.Module, ModelSpec]:
    """Load a model that knows its classes without a support folder."""
    name = str(checkpoint)
    if not Path(checkpoint).exists() and timm.is_model(name):
        raise InputError(f"support: missing; the backbone {name!r} needs --support FOLDER with a sub-folder a class")
    model, spec = load_model(checkpoint, model=own)
    if spec.task == "metatrain":
        raise InputError("support: missing; a meta-learned model needs --support FOLDER with a sub-folder a class")
    return model, spec
