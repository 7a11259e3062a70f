"""Evaluate a checkpoint: a classifier on images, a meta-learner on tasks of unseen classes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec
from arelu_meta.backbones.networks import suit_layout
from arelu_meta.config import (
    ON_IMAGES,
    ON_TASKS,
    DataConfig,
    EvalConfig,
    EvaluateConfig,
    RunConfig,
    UnseenTaskConfig,
    reader_of,
)
from arelu_meta.data.image_folder import find_root, part_folders, read_folder
from arelu_meta.data.image_io import Reading, compose
from arelu_meta.data.labels_file import read_labels
from arelu_meta.data.loaders import Batches, build_transform
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.own_datasets import as_image_dataset
from arelu_meta.data.prediction_inputs import OneImage, tell_skipped
from arelu_meta.data.provenance import of_its_run, test_images_of
from arelu_meta.data.splits import ImageSet, Provenance, note_tested_copies
from arelu_meta.errors import InputError, RunError, nearest_names, shown
from arelu_meta.finetuning.metrics import loss_and_accuracy, predict_logits
from arelu_meta.meta.evaluate_tasks import Asked, evaluate_tasks
from arelu_meta.meta.few_shot_learner import Learner
from arelu_meta.runs.atomic_io import write_json
from arelu_meta.runs.progress import progress
from arelu_meta.runs.reproducibility import prepare
from arelu_meta.runs.run_folder import open_fresh, report_results
from arelu_meta.statistics import proportion_interval
from arelu_meta.validation import check_read, validate


def evaluate(
    checkpoint: str | Path,
    data: Any = None,
    run: RunConfig | None = None,
    tasks: int = 600,
    against: str | None = None,
    *,
    support: str | Path | None = None,
    query: str | Path | None = None,
    task: UnseenTaskConfig | None = None,
    inner_steps: int | None = None,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model; it is not changed.

    Args:
        checkpoint: a run folder or a model.safetensors; with a support, also the name of a timm model.
        data: other images than the run's own test set: for a classifier a set whose classes it knows (its test part,
            or all of it where it has none), for a meta-learner any classes. Default: what the run was tested on. A
            `DataConfig`, or for a classifier a data set of (image, label), as `finetune` takes.
        run: device and precision.
        tasks: how many tasks, for a meta-learner.
        against: for a meta-learner: what else is judged on the same tasks: run folders, or centroid, logistic or
            finetune on the backbone that the run started from; several with commas between.
        support: a folder with a sub-folder a class to learn from, and be judged on `query`.
        query: a folder of the same classes.
        task: other tasks than the run's, for a meta-learner.
        inner_steps: gradient steps on a task's support set, for a meta-learner; default: the run's.
        model: the network, of a run of one's own; its weights are replaced by the run's.

    Returns:
        `task`, `test_accuracy` (a fraction), `test_low`, `test_high` (95 % interval), `test_n`, `seconds`; for a
        meta-learner also `normalization`, `accuracy_after_0`, … and, of what it is compared with, `against`,
        `against_accuracy`, `difference`, `difference_low`, `difference_high` (with `_2`, `_3` … behind further ones').

    Raises:
        InputError: if the checkpoint or the data does not fit.

    Example:
        >>> import tempfile
        >>> from arelu_meta import FinetuneConfig, evaluate, finetune
        >>> config, run = FinetuneConfig(), tempfile.mkdtemp() + "/run"
        >>> config.run.folder, config.run.pictures, config.train.epochs = run, False, 1
        >>> config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 8
        >>> results = finetune(config)
        mnist_linear...
        >>> evaluate(run)["test_accuracy"] == results["test_accuracy"]
        True
    """
    asked_of = EvalConfig(tasks=tasks, inner_steps=inner_steps, against=against)
    config = EvaluateConfig(checkpoint, eval=asked_of, support=support, query=query)  # type: ignore[arg-type]
    is_set = hasattr(data, "__getitem__") and not isinstance(data, str | bytes | dict | type)
    if data is not None and not is_set and not isinstance(data, DataConfig):
        raise InputError(f"data: {shown(data)} is not allowed; give a DataConfig or a data set of (image, label)")
    images = None if data is None or isinstance(data, DataConfig) else as_image_dataset(data, "data")
    data = data if images is None else None
    for name, part in (("run", run), ("data", data), ("task", task)):
        if part is not None:
            setattr(config, name, part)
    validate(config)
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model: {shown(model)} is not allowed; give a Module")
    run = config.run
    started = time.monotonic()
    device = prepare(run)
    own = data is None or (data.root is None and data.name is None)
    data = data or DataConfig()
    if support is not None or query is not None:
        if model is not None or images is not None:
            what = "data: a data set" if model is None else "model: a network"
            raise InputError(f"{what} of one's own is not read with support and query; leave it out")
        found = _evaluate_folders(checkpoint, support, query, device, data)
        return found | {"seconds": round(time.monotonic() - started, 2)}
    model, spec = load_model(checkpoint, model=model)
    model.to(device)
    if data.range == "auto":
        data = replace(data, range=spec.inputs.range)  # as its training images were read
    if spec.task == "metatrain":
        if images is not None:
            raise InputError("data: a data set is for a classifier; give a DataConfig with a meta-learned checkpoint")
        asked = Asked(None if own else data, task or UnseenTaskConfig(), tasks, inner_steps, against)
        found = evaluate_tasks(model, spec, asked, device, run, Path(checkpoint))
    elif against is not None:
        raise InputError(f"eval.against: {against!r} is compared task by task; give a meta-learned checkpoint with it")
    else:
        found = _evaluate_images(model, spec, images or (None if own else data), device, run, Path(checkpoint))
    return found | {"model": spec.name, "activation": spec.activation, "seconds": round(time.monotonic() - started, 2)}


def evaluate_task(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate from the command line: print the accuracy, and write results.json where run.folder is given.

    Args:
        config: the checkpoint and what to evaluate it on.
    """
    validate(config, EvaluateConfig)
    _check_read(config)
    folder = open_fresh(config.run, "evaluate") if config.run.folder else None
    results = evaluate(
        config.checkpoint,
        config.data,
        config.run,
        config.eval.tasks,
        config.eval.against,
        support=config.support,
        query=config.query,
        task=config.task,
        inner_steps=config.eval.inner_steps,
    )
    if folder is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        results["folder"] = str(folder.path)
        write_json(folder.path / "results.json", results)
    report_results(results)
    tell_skipped(results.get("skipped", 0))
    return results


def _check_read(config: EvaluateConfig) -> None:
    """Refuse what an evaluation does not read, which the checkpoint decides."""
    if reader_of(config):
        return  # as `validate` has done
    check_read(config, ON_TASKS if read_spec(Path(config.checkpoint))[1].task == "metatrain" else ON_IMAGES)
    if config.data.root is None and config.data.name is None:
        for name in ("skip_broken", "download", "rotations", "range", "max_pixels"):
            if (value := getattr(config.data, name)) != getattr(DataConfig(), name):
                raise InputError(
                    f"data.{name}: {value} is read of other images than the run's own; give --data.root or --data.name "
                    f"with it, or leave data.{name} out"
                )


def _evaluate_folders(
    checkpoint: str | Path, support: str | Path | None, query: str | Path | None, device: torch.device, data: DataConfig
) -> dict[str, Any]:
    """Learn from one folder, and be judged on another one of the same classes."""
    if support is None or query is None:
        missing = "support" if support is None else "query"
        raise InputError(f"{missing}: missing; give --support FOLDER and --query FOLDER together")
    learner = Learner.load(checkpoint, str(device))
    for where, place in (("support", support), ("query", query)):
        if not Path(place).is_dir():
            raise InputError(f"{where}: {str(place)!r} does not exist; give a folder with one sub-folder a class")
    reading = Reading(data.skip_broken, learner.spec.inputs.range, data.max_pixels)
    images = read_folder(Path(query), Path(query), reading, "query", may_lack=True)
    # A timm model says nothing of what it was trained on, and nobody expects it to.
    seen = Provenance.of_header(learner.spec.provenance) if Path(checkpoint).exists() else Provenance()
    adapted = learner.adapt(support, data.skip_broken, data.max_pixels)
    judged = relabel(images, adapted.classes, "query", "of the support's")
    learned_from = read_folder(Path(support), Path(support), reading, "support")
    shared = np.isin(images.digests(), learned_from.digests())
    if shared.any():
        raise InputError(
            f"query: {str(Path(query) / images.names[int(shared.argmax())])!r} and {int(shared.sum()) - 1} more are "
            f"among the support images in {str(support)!r}; give other ones to be judged on"
        )
    paths: list[OneImage] = [Path(query) / name for name in images.names]
    guesses = adapted.stream(learner.source(paths, "query", max_pixels=data.max_pixels), data.batch_size)
    right = sum(guess.name == judged.classes[judged.labels[guess.place]] for guess in guesses)
    low, high = _interval(right / len(images), images)
    return {
        "task": "few-shot",
        "seed": 0,
        "test_accuracy": right / len(images),
        "test_low": low,
        "test_high": high,
        "test_n": len(images),
        "test_seen": seen.count_seen(images),
        "normalization": learner.normalization,
        "method": learner.method,
        "ways": len(adapted.classes),
        "support_images": adapted.support_size,
        "skipped": len(images.skipped),
        "model": learner.spec.name,
        "activation": learner.spec.activation,
    }


def _evaluate_images(
    model: nn.Module,
    spec: ModelSpec,
    data: DataConfig | ImageSet | None,
    device: torch.device,
    run: RunConfig,
    checkpoint: Path,
) -> dict[str, Any]:
    own, seed = of_its_run(spec.config)
    seen = Provenance.of_header(spec.provenance)
    if isinstance(data, ImageSet):
        found, size = data, own.batch_size
        if found.prepared != spec.inputs.prepared:
            kinds = ("images", "tensors of floats")
            raise InputError(
                f"data: it gives {kinds[found.prepared]}, and the run was trained on {kinds[spec.inputs.prepared]}; "
                "give what the run had"
            )
    else:
        found = test_images_of(own, seed, seen, checkpoint) if data is None else _test_images(data, seen)
        size = (data or own).batch_size
    images = relabel(found, spec.classes)
    batches = Batches(images, build_transform(spec.inputs, training=False), size)
    suit_layout(model, device)
    with progress("evaluating", len(images), "images") as bar:
        logits, labels = predict_logits(model, _counted(batches.epoch(0), bar), device, run.precision)
    if not logits.isfinite().all():
        raise RunError(
            "the checkpoint's predictions are NaN or infinite: its weights are, or the images lead them there"
        )
    loss, accuracy = loss_and_accuracy(logits, labels)
    low, high = _interval(accuracy, images)
    return {
        "task": "finetune",
        "seed": seed,
        "test_accuracy": accuracy,
        "test_low": low,
        "test_high": high,
        "test_n": len(labels),
        "test_loss": loss,
        "test_seen": seen.count_seen(found),
        "skipped": len(images.skipped),
    }


def _interval(accuracy: float, images: ImageSet) -> tuple[float, float]:
    """Return an accuracy's interval; of copies that it counts once it says so."""
    for note in note_tested_copies(images):
        print(note)
    independent = images.independent()
    return proportion_interval(accuracy * independent, independent)


def _counted(batches: Any, bar: Any) -> Any:
    for images, labels in batches:
        yield images, labels
        bar.advance(len(labels))


def _test_images(data: DataConfig, seen: Provenance) -> ImageSet:
    """Take the test part of a folder that has one, all of a folder that has none; of digits what was not seen."""
    if data.labels is not None and (data.name or "folder").lower() == "folder":
        parts = read_labels(data)
        return next(parts[part] for part in ("test", "validation", "train", "") if part in parts)
    if (data.name or "folder").lower() != "folder" or data.root is None:
        return load_images(data, 0, seen).test
    root = find_root(data.root)
    folders = part_folders(root)
    folder = folders.get("test") or folders.get("validation") or folders.get("train") or root
    return read_folder(folder, root, Reading.of(data), may_lack=True)


def relabel(images: ImageSet, classes: list[str], where: str = "data", owner: str = "of the checkpoint's") -> ImageSet:
    """Number a set's classes as a model does.

    Args:
        images: whose classes are some of the model's.
        classes: the model's classes, in its order.
        where: the flag that named the images, for errors.
        owner: whose classes they should be, for errors.

    Raises:
        InputError: naming a class that the model does not know.
    """
    position = {compose(name): label for label, name in enumerate(classes)}
    for name in images.classes:
        if name not in position:
            raise InputError(f"{where}: class {name!r} is not one {owner}; {nearest_names(name, classes)}")
    labels = np.array([position[images.classes[label]] for label in images.labels], dtype=np.int64)
    return replace(images, classes=tuple(classes), labels=labels)
