"""Evaluate a checkpoint: a classifier on images, a meta-learner on tasks of unseen classes."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.backbones.saving import ModelSpec, load_model
from arelu_meta.config import DataConfig, EvaluateConfig, ModelConfig, RunConfig, TaskConfig, validate
from arelu_meta.data.episodes import TensorSampler, check_class_sizes, load_class_splits, load_pool, load_whole
from arelu_meta.data.images import ImageSet, concatenate, find_root, load_images, part_folders, read_folder
from arelu_meta.data.loading import Batches, build_transform
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.finetuning.loop import loss_and_accuracy, predict_logits
from arelu_meta.intervals import mean_interval, proportion_interval
from arelu_meta.meta.evaluation import adaptation_curves, compare, describe_curve, task_accuracies
from arelu_meta.meta.inner import BASELINES, Inner, attach_loop
from arelu_meta.meta.normalization import set_normalization
from arelu_meta.runs.compute import prepare
from arelu_meta.runs.folder import open_run, write_json
from arelu_meta.runs.progress import progress
from arelu_meta.runs.results import report_results


def evaluate(
    checkpoint: str | Path,
    data: DataConfig | None = None,
    run: RunConfig | None = None,
    tasks: int = 600,
    against: str | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model; it is not changed.

    Args:
        checkpoint: a run folder or a model.safetensors.
        data: other images than the run's own test set: for a classifier a set whose classes it knows (its test part,
            or all of it where it has none), for a meta-learner any classes. Default: what the run was tested on.
        run: device and precision.
        tasks: how many tasks, for a meta-learner.
        against: for a meta-learner: what else is judged on the same tasks: a run folder, or centroid, logistic or
            finetune on the backbone that the run started from.

    Returns:
        `task`, `test_accuracy` (a fraction), `test_low`, `test_high` (95 % interval), `test_n`, `seconds` …

    Raises:
        InputError: if the checkpoint or the data does not fit.
    """
    run = run or RunConfig()
    started = time.monotonic()
    model, spec = load_model(checkpoint)
    device = prepare(run)
    model.to(device)
    own = data is None or (data.root is None and data.name is None)
    if spec.task == "metatrain":
        found = _evaluate_tasks(model, spec, None if own else data, device, run, tasks, Path(checkpoint), against)
    elif against is not None:
        raise InputError(f"eval.against: {against!r} is compared task by task; give a meta-learned checkpoint with it")
    else:
        found = _evaluate_images(model, spec, None if own else data, device, run, Path(checkpoint))
    return found | {"model": spec.name, "activation": spec.activation, "seconds": round(time.monotonic() - started, 2)}


def evaluate_task(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate from the command line: print the accuracy, and write results.json where run.folder is given.

    Args:
        config: the checkpoint and what to evaluate it on.
    """
    validate(config)
    folder = open_run(config.run, "evaluate") if config.run.folder else None
    results = evaluate(config.checkpoint, config.data, config.run, config.eval.tasks, config.eval.against)
    if folder is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        results["folder"] = str(folder.path)
        write_json(folder.path / "results.json", results)
    report_results(results)
    return results


def _evaluate_images(
    model: nn.Module, spec: ModelSpec, data: DataConfig | None, device: torch.device, run: RunConfig, checkpoint: Path
) -> dict[str, Any]:
    own, seed = _of_its_run(spec)
    images = relabel(load_images(own, seed).test if data is None else _test_images(data), spec.classes)
    if data is None:
        _check_unchanged(checkpoint, images)
    batches = Batches(images, build_transform(spec.inputs, training=False), (data or own).batch_size)
    with progress("evaluating", len(images), "images") as bar:
        logits, labels = predict_logits(model, _counted(batches.epoch(0), bar), device, run.precision)
    if not logits.isfinite().all():
        raise RunError(
            "the checkpoint's predictions are NaN or infinite: its weights are, or the images lead them there"
        )
    loss, accuracy = loss_and_accuracy(logits, labels)
    low, high = proportion_interval(int((logits.argmax(1) == labels).sum()), len(labels))
    return {
        "task": "finetune",
        "seed": seed,
        "test_accuracy": accuracy,
        "test_low": low,
        "test_high": high,
        "test_n": len(labels),
        "test_loss": loss,
        "skipped": len(images.skipped),
    }


def _of_its_run(spec: ModelSpec) -> tuple[DataConfig, int]:
    """Read the data and the seed of the run that wrote a checkpoint."""
    try:
        run = EvaluateConfig("its own", RunConfig(seed=spec.config["run"]["seed"]), DataConfig(**spec.config["data"]))
        validate(run)
        return run.data, run.run.seed
    except (KeyError, TypeError, InputError) as error:
        raise InputError(
            f"checkpoint: it does not say what its run was tested on ({error}); it was not written by a run"
        ) from error


def _check_unchanged(checkpoint: Path, images: ImageSet) -> None:
    """Refuse a test set that is not the run's any more: the split falls otherwise, into what was trained on."""
    file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "split.json"
    try:
        then = json.loads(file.read_text(encoding="utf-8"))["test"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a model file that was taken out of its run's folder
    if then != list(images.names):
        raise InputError(
            f"checkpoint: the images of its run have changed since ({len(then)} to test on then, {len(images)} now, or "
            "other ones); give --data.root FOLDER with images that it was not trained on"
        )


def _counted(batches: Any, bar: Any) -> Any:
    for images, labels in batches:
        yield images, labels
        bar.advance(len(labels))


def _test_images(data: DataConfig) -> ImageSet:
    """Take the test part of a folder that has one, all of a folder that has none."""
    if (data.name or "folder").lower() != "folder" or data.root is None:
        return load_images(data, 0).test
    root = find_root(data.root)
    parts = part_folders(root)
    folder = parts.get("test") or parts.get("validation") or parts.get("train") or root
    return read_folder(folder, root, data.skip_broken)


def relabel(images: ImageSet, classes: list[str]) -> ImageSet:
    """Number a set's classes as a model does.

    Args:
        images: whose classes are some of the model's.
        classes: the model's classes, in its order.

    Raises:
        InputError: naming a class that the model does not know.
    """
    position = {name: label for label, name in enumerate(classes)}
    for name in images.classes:
        if name not in position:
            raise InputError(f"data: class {name!r} is not one of the checkpoint's; {nearest_names(name, classes)}")
    labels = np.array([position[images.classes[label]] for label in images.labels], dtype=np.int64)
    return replace(images, classes=tuple(classes), labels=labels)


def _evaluate_tasks(
    model: nn.Module,
    spec: ModelSpec,
    data: DataConfig | None,
    device: torch.device,
    run: RunConfig,
    tasks: int,
    checkpoint: Path,
    against: str | None,
) -> dict[str, Any]:
    meta = spec.meta
    rival = None if against is None else _rival(against, spec)
    own, seed = _of_its_run(spec)
    task = TaskConfig(ways=meta["ways"], shots=meta["shots"], queries=meta["queries"])
    if data is None:
        images = load_class_splits(own, task, seed).test
        _check_unchanged(checkpoint, images)
    else:
        images = concatenate(load_whole(data))
        check_class_sizes(images, task)
    sampler = TensorSampler(load_pool(images, spec.inputs, meta["inverted"]), task, f"test {seed}")
    with progress("evaluating on unseen classes", tasks, "tasks") as bar:
        curves = adaptation_curves(
            model, sampler, range(tasks), meta["inner_lr"], meta["inner_steps"], device, run.precision, bar
        )
    accuracies = [row[-1] for row in curves]
    print(describe_curve(curves, meta["normalization"]))
    compared: dict[str, Any] = {}
    if rival is not None:
        other, steps = rival
        judged = task_accuracies(other.to(device), sampler, range(tasks), 0.01, steps, device, run.precision)
        found = compare(accuracies, judged)
        compared = {
            "against": against,
            "against_accuracy": sum(judged) / len(judged),
            "difference": found.difference,
            "difference_low": found.low,
            "difference_high": found.high,
        }
        print(
            f"on the same tasks {against}: {compared['against_accuracy']:.1%}; difference {found.difference:+.1%} "
            f"(95 % interval {found.low:+.1%} to {found.high:+.1%})"
        )
    mean, low, high = mean_interval(accuracies)
    return compared | {
        "task": "metatrain",
        "seed": seed,
        "test_accuracy": mean,
        "test_low": low,
        "test_high": high,
        "test_n": tasks,
        "normalization": meta["normalization"],
        "ways": task.ways,
        "shots": task.shots,
        "queries": task.queries,
        "inner_steps": meta["inner_steps"],
        "skipped": len(images.skipped),
    }


def _rival(against: str, spec: ModelSpec) -> tuple[nn.Module, int]:
    """Load what a meta-learner is compared with, and say how many inner steps it takes.

    Raises:
        InputError: if there is no such run or baseline, or it is for tasks of other ways or images.
    """
    meta = spec.meta
    if against in BASELINES:
        classes = tuple(str(way) for way in range(meta["ways"]))
        start = ModelConfig(**spec.config["model"])
        model, _ = build_backbone(start, classes, spec.inputs.channels, spec.inputs.image_size, "metatrain")
        set_normalization(model, meta["normalization"])
        attach_loop(model, Inner(meta["inner_lr"], meta["inner_steps"], algorithm=against))
        return model.eval(), meta["inner_steps"]
    if not Path(against).exists():
        raise InputError(f"eval.against: {against!r} does not exist; give a run folder, centroid, logistic or finetune")
    model, other = load_model(against, "eval.against")
    if other.task != "metatrain" or other.num_classes != spec.num_classes or other.inputs != spec.inputs:
        raise InputError(f"eval.against: {against!r} is no meta-learner for the same ways and images; give one that is")
    return model, other.meta["inner_steps"]
