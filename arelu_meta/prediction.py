"""Name the class of images: by a fine-tuned classifier, or few-shot from a support folder."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.backbones.saving import ModelSpec, load_model
from arelu_meta.config import ModelConfig, PredictConfig, RunConfig, validate
from arelu_meta.data.episodes import TaskBatch
from arelu_meta.data.images import check_encodable, find_candidates, read_folder
from arelu_meta.data.loading import build_transform
from arelu_meta.data.reading import read_image
from arelu_meta.errors import InputError, RunError
from arelu_meta.meta.engines import adapted_probabilities
from arelu_meta.runs.compute import prepare
from arelu_meta.runs.folder import open_run, write_atomically
from arelu_meta.runs.progress import print_table, progress


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
    model, spec = _load(checkpoint, support)
    if spec.task == "metatrain" and support is None:
        raise InputError("support: missing; a meta-learned model needs --support FOLDER with a sub-folder a class")
    paths = _find_images(images)
    device = prepare(run or RunConfig())
    model.to(device)
    tensors, kept = _read(paths, spec, skip_broken)
    if support is None:
        classes, probabilities = spec.classes, _classify(model, tensors.to(device), batch_size)
    else:
        classes, support_images, labels = _read_support(Path(support), spec, skip_broken)
        few_shot = _adapt if spec.task == "metatrain" else _nearest_centroid
        probabilities = few_shot(model, spec, support_images.to(device), labels.to(device), tensors.to(device))
    finite = probabilities.isfinite().all(1)
    if not finite.all():
        first = kept[int(finite.int().argmin())]
        raise RunError(
            f"the prediction for {str(first)!r} is NaN or infinite: check the weights of {str(checkpoint)!r}"
        )
    best = probabilities.max(1)
    return [
        Prediction(path, classes[int(label)], float(probability))
        for path, label, probability in zip(kept, best.indices, best.values, strict=True)
    ]


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


def _load(checkpoint: str | Path, support: str | Path | None) -> tuple[nn.Module, ModelSpec]:
    """Load a checkpoint, or a pretrained backbone by its name in timm: a support set needs no trained head."""
    name = str(checkpoint)
    if Path(checkpoint).exists() or not timm.is_model(name):
        return load_model(checkpoint)
    if support is None:
        raise InputError(f"support: missing; the backbone {name!r} needs --support FOLDER with a sub-folder a class")
    model, spec = build_backbone(ModelConfig(name, pretrained=True), ("any", "other"), 3, None, "finetune")
    return model.eval(), spec


def _find_images(images: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for item in images:
        path = Path(item)
        if path.is_dir():
            below = find_candidates(path)
            if not below:
                raise InputError(f"images: folder {str(path)!r} holds no image; give files or folders with images")
            paths += below
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"images: {str(path)!r} does not exist; give image files or folders")
    for path in paths:
        check_encodable(path, "images")
    return paths


def _read(paths: list[Path], spec: ModelSpec, skip_broken: bool) -> tuple[Tensor, list[Path]]:
    transform = build_transform(spec.inputs, training=False)
    tensors, kept = [], []
    with progress("reading images", len(paths), "images") as bar:
        for path in paths:
            try:
                image = read_image(path, spec.inputs.channels)
            except OSError as error:
                if skip_broken:
                    continue
                raise InputError(
                    f"images: {str(path)!r} is not a whole image; remove it or give --data.skip_broken"
                ) from error
            finally:
                bar.advance(1)
            tensors.append(_as_trained(image, spec) if spec.task == "metatrain" else transform(image))
            kept.append(path)
    if not kept:
        raise InputError("images: none of the files is an image; give image files or folders")
    _tell_skipped(len(paths) - len(kept))
    return torch.stack(tensors), kept


def _tell_skipped(count: int) -> None:
    if count:  # not on standard output, which others read line by line
        print(f"files skipped because they are not images: {count}", file=sys.stderr)


def _as_trained(image: object, spec: ModelSpec) -> Tensor:
    """Prepare an image as episodes do: the whole of it, squeezed to a square, no crop."""
    from arelu_meta.data.episodes import Pool, to_pixels

    pixels = to_pixels(image, spec.inputs)  # type: ignore[arg-type]
    if spec.meta["inverted"]:
        pixels = 255 - pixels
    pool = Pool(pixels[None], torch.zeros(1, dtype=torch.int64), spec.inputs.mean, spec.inputs.std)
    return pool.images([0])[0]


def _read_support(folder: Path, spec: ModelSpec, skip_broken: bool) -> tuple[list[str], Tensor, Tensor]:
    if not folder.is_dir():
        raise InputError(f"support: {str(folder)!r} does not exist; give a folder with one sub-folder a class")
    images = read_folder(folder, folder, skip_broken, "support")
    _tell_skipped(len(images.skipped))
    if spec.task == "metatrain" and len(images.classes) > spec.num_classes:
        raise InputError(
            f"support: {str(folder)!r} has {len(images.classes)} classes, the model was trained for "
            f"{spec.num_classes} ways; give at most that many"
        )
    tensors, _ = _read([folder / name for name in images.names], spec, skip_broken=False)
    return list(images.classes), tensors, torch.from_numpy(images.labels)


@torch.no_grad()
def _classify(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    return torch.cat([model(batch).softmax(1) for batch in images.split(batch_size)]).cpu()


def _adapt(model: nn.Module, spec: ModelSpec, support: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    queries = images
    if spec.meta["normalization"] == "transductive":
        # It was trained on query batches of all classes; one photograph alone has no statistics to be normalised by.
        queries = torch.cat([images, support])
    task = TaskBatch(support[None], labels[None], queries[None], labels.new_zeros(1, len(queries)))
    probabilities = adapted_probabilities(model.eval(), task, spec.meta["inner_lr"], spec.meta["inner_steps"])[0]
    probabilities = probabilities[: len(images)]
    # Fewer classes than ways: the outputs that no support image has stand for nothing.
    shown = probabilities[:, : int(labels.max()) + 1]
    return (shown / shown.sum(1, keepdim=True)).cpu()


@torch.no_grad()
def _nearest_centroid(model: nn.Module, spec: ModelSpec, support: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Softmax over cosine similarities to the classes' mean features, at the temperature of Gidaris and Komodakis."""

    def features(batch: Tensor) -> Tensor:
        hidden = model.forward_features(batch)  # type: ignore[operator]
        return F.normalize(model.forward_head(hidden, pre_logits=True), dim=1)  # type: ignore[operator]

    known = features(support)
    centroids = torch.stack([known[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return (10 * features(images) @ F.normalize(centroids, dim=1).T).softmax(1).cpu()
