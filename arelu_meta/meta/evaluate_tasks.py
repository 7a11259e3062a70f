"""A saved meta-learner on tasks of classes that it has not seen, alone or beside others on the same tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.backbones.networks import zero_head
from arelu_meta.config import DataConfig, RunConfig, TaskConfig, UnseenTaskConfig
from arelu_meta.data.fewshot.benchmarks import BENCHMARKS, load_class_splits, load_whole, name_of
from arelu_meta.data.fewshot.class_splits import check_class_sizes, keep_to_alphabets, present_classes
from arelu_meta.data.fewshot.omniglot import ALPHABETS, is_of_alphabets
from arelu_meta.data.fewshot.task_sampler import TensorSampler, load_pool, unlabelled_images
from arelu_meta.data.image_folder import find_root
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.provenance import check_unchanged, of_its_run, start_of_its_run
from arelu_meta.data.splits import ImageSet, Provenance, concatenate, note_copies
from arelu_meta.errors import InputError
from arelu_meta.meta.baselines import RawPixels
from arelu_meta.meta.evaluation import (
    adaptation_curves,
    curve_results,
    describe_curve,
    task_accuracies,
    with_lr_backoff,
)
from arelu_meta.meta.inner_loop import BASELINES, Inner, attach_loop, saved_loop
from arelu_meta.meta.normalization import set_normalization
from arelu_meta.runs.progress import progress
from arelu_meta.statistics import Difference, groups_interval, paired_tasks

PIXELS = "pixels"


@dataclass(frozen=True)
class Asked:
    """What an evaluation is asked for.

    Args:
        data: other images than the run's own, or None.
        task: how tasks differ from the run's.
        tasks: how many.
        inner_steps: gradient steps a task, or None for the run's.
        against: what else is judged on the same tasks, with commas between, or None.
    """

    data: DataConfig | None
    task: UnseenTaskConfig
    tasks: int
    inner_steps: int | None
    against: str | None


def evaluate_tasks(
    model: nn.Module, spec: ModelSpec, asked: Asked, device: torch.device, run: RunConfig, checkpoint: Path
) -> dict[str, Any]:
    """Judge a meta-learner on tasks, and what it is compared with on the same ones; print both.

    Args:
        model: on the device; it is not changed.
        spec: of the model.
        asked: on which tasks, and against what.
        device: where to compute.
        run: precision.
        checkpoint: where the model comes from.

    Returns:
        As `evaluate`.

    Raises:
        InputError: if the data or a rival does not fit.
    """
    steps = asked.inner_steps or spec.meta["inner_steps"]
    rivals = [] if asked.against is None else _names(asked.against)
    loaded = [_rival(rival, spec) for rival in rivals]
    _, seed = of_its_run(spec.config)
    images, task, notes = _images_and_task(spec, asked, checkpoint)
    notes += [note for rival in rivals if rival not in (*BASELINES, PIXELS) for note in _note_rival(rival, images)]
    pool = load_pool(images, spec.inputs, spec.meta["inverted"]).to(device)
    sampler = TensorSampler(pool, task, f"test {seed}")
    numbers = range(asked.tasks)
    with progress("evaluating on unseen classes", asked.tasks, "tasks") as bar:
        curves = adaptation_curves(model, sampler, numbers, spec.meta["inner_lr"], steps, device, run.precision, bar)
    accuracies = [row[-1] for row in curves]
    print("\n".join([describe_curve(curves, spec.meta["normalization"]), *notes]))
    compared: dict[str, Any] = {}
    queries, different = task.ways * task.queries, len(images.distinct())
    for number, (name, (other, its_steps)) in enumerate(zip(rivals, loaded, strict=True), 1):
        judged, its_rate = _judge(name, other.to(device), sampler, numbers, its_steps, device, run.precision)
        suffix = "" if number == 1 else f"_{number}"
        compared |= _compared(name, paired_tasks(accuracies, judged, queries, different), judged, suffix)
        compared |= {} if its_rate is None else {f"against_inner_lr{suffix}": its_rate}
    mean, low, high = groups_interval(accuracies, asked.tasks * queries, different)
    return compared | {
        "task": "metatrain",
        "seed": seed,
        "test_accuracy": mean,
        "test_low": low,
        "test_high": high,
        "test_n": asked.tasks,
        "normalization": spec.meta["normalization"],
        "ways": task.ways,
        "shots": task.shots,
        "queries": task.queries,
        "inner_steps": steps,
        **curve_results(curves),
        "notes": "; ".join(notes),
        "test_seen": _classes_seen(images, spec, asked.data is not None),
        "test_classes": len(present_classes(images)),
        "skipped": len(images.skipped),
    }


def _judge(
    name: str,
    model: nn.Module,
    sampler: TensorSampler,
    tasks: Sequence[int],
    steps: int,
    device: torch.device,
    precision: str,
) -> tuple[list[float], float | None]:
    """Return a rival's accuracies and, of fine-tuning, the inner rate that it took."""

    def judge() -> list[float]:
        with progress(f"evaluating {name}", len(tasks), "tasks") as bar:
            return task_accuracies(model, sampler, tasks, 0.01, steps, device, precision, bar)

    if name != "finetune":
        return judge(), None
    lr = saved_loop(model, 0.01, steps).inner.lr
    judged, backoff = with_lr_backoff(model, sampler, tasks, lr, steps, device, precision, judge)
    if str(backoff):
        print(backoff)
    return judged, backoff.rate


def _compared(name: str, found: Difference, judged: list[float], suffix: str) -> dict[str, Any]:
    accuracy = sum(judged) / len(judged)
    print(
        f"on the same tasks {name}: {accuracy:.1%}; difference {found.mean:+.1%} "
        f"(95 % interval {found.low:+.1%} to {found.high:+.1%})"
    )
    values = {"against": name, "against_accuracy": accuracy, "difference": found.mean}
    values |= {"difference_low": found.low, "difference_high": found.high}
    return {key + suffix: value for key, value in values.items()}


def _images_and_task(spec: ModelSpec, asked: Asked, checkpoint: Path) -> tuple[ImageSet, TaskConfig, list[str]]:
    """Load what is tested on, and say what tasks look like."""
    own, seed = of_its_run(spec.config)
    if spec.inputs.prepared:
        raise InputError(
            "checkpoint: its run was trained on tensors that were handed over, and does not know how they were made of "
            "images; adapt it to such tensors in Python: Learner.load(run).adapt((images, labels))"
        )
    task = _task_of(spec)
    task = replace(task, shots=asked.task.shots or task.shots, queries=asked.task.queries or task.queries)
    wanted = asked.task.alphabets
    if wanted is not None:
        task = replace(task, alphabets="one-in-test" if wanted == "one" else "mixed")
    if asked.data is None:
        splits = load_class_splits(own, replace(task, alphabets=_task_of(spec).alphabets), seed)
        check_unchanged(checkpoint, splits.test, Provenance.of_header(spec.provenance))
        if wanted is not None:
            splits = load_class_splits(own, task, seed)
        return splits.test, task, list(splits.notes) if wanted == "one" else []
    images = _other_images(asked.data, own, seed)
    notes = [*note_copies([images])]
    if task.alphabets != "mixed":
        images, left_out = keep_to_alphabets(images, task, "test")
        notes += left_out
    check_class_sizes(images, task)
    return images, task, notes


def _classes_seen(images: ImageSet, spec: ModelSpec, other: bool) -> int | None:
    """Count the classes that are not unseen, by their names or their images; None where nobody knows.

    Args:
        images: that are tested on.
        spec: of the model.
        other: whether they are other images than its run's own, whose names of classes then count in a file of 0.1.
    """
    seen = Provenance.of_header(spec.provenance)
    if seen.complete:
        return len(seen.classes_seen(images))
    named = set(present_classes(images)) & set(spec.classes) if other else set()
    return len(named) or None


def _note_rival(rival: str, images: ImageSet) -> list[str]:
    """Say how many test classes are not unseen to a run that a meta-learner is compared with."""
    spec = read_spec(rival, "eval.against")[1]
    seen, classes = _classes_seen(images, spec, other=True), len(present_classes(images))
    if seen is None:
        return [f"not known: how many of the {classes} test classes {rival} was trained on, from before version 0.2"]
    return [f"{seen} of {classes} test classes were seen by {rival}"] if seen else []


def _other_images(data: DataConfig, own: DataConfig, seed: int) -> ImageSet:
    """Load a set whole, or a benchmark's test part; a folder of alphabets as one where the run's data was such."""
    if name_of(data) in BENCHMARKS:
        return load_class_splits(data, TaskConfig(2, 1, 1), seed).test
    of_characters = name_of(own) in ALPHABETS or name_of(own) == "omniglot"
    if data.name is None and data.root is not None and of_characters and is_of_alphabets(find_root(data.root)):
        data = replace(data, name="alphabets")
    return concatenate(load_whole(data))


def _names(against: str) -> list[str]:
    names = [name.strip() for name in against.split(",")]
    if not all(names):
        raise InputError(f"eval.against: {against!r} has a comma with no name beside it; leave it out")
    return names


def _rival(against: str, spec: ModelSpec) -> tuple[nn.Module, int]:
    """Load what a meta-learner is compared with, and say how many inner steps it takes.

    Raises:
        InputError: if there is no such run or baseline, or it is for tasks of other ways or images.
    """
    if against == PIXELS:
        model: nn.Module = RawPixels()
        attach_loop(model, Inner(spec.meta["inner_lr"], 1, algorithm="centroid"))
        return model.eval(), 1
    if against in BASELINES:
        model, meta = _backbone_of_start(spec), spec.meta
        set_normalization(model, meta["normalization"])
        attach_loop(model, Inner(meta["inner_lr"], meta["inner_steps"], algorithm=against))
        return model.eval(), meta["inner_steps"]
    if not Path(against).exists():
        raise InputError(
            f"eval.against: {against!r} does not exist; give a run folder, pixels, centroid, logistic or finetune"
        )
    model, other = load_model(against, "eval.against")
    if other.task != "metatrain" or other.num_classes != spec.num_classes or other.inputs != spec.inputs:
        raise InputError(f"eval.against: {against!r} is no meta-learner for the same ways and images; give one that is")
    return model, other.meta["inner_steps"]


def _backbone_of_start(spec: ModelSpec) -> nn.Module:
    """Build the backbone that a run started from: weights drawn by its seed, a start fitted on its training images."""
    start, (own, seed) = start_of_its_run(spec.config), of_its_run(spec.config)

    def images(inputs: InputSpec) -> list[Tensor]:
        splits = load_class_splits(own, _task_of(spec), seed)
        return unlabelled_images(splits.train, inputs, splits.inverted)

    classes = tuple(str(way) for way in range(spec.meta["ways"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _ = build_backbone(start, classes, spec.inputs.channels, spec.inputs.image_size, "metatrain", images)
    if start.head_init == "zero":
        zero_head(model)
    return model


def _task_of(spec: ModelSpec) -> TaskConfig:
    """Read what a run's tasks look like."""
    meta = spec.meta
    return TaskConfig(
        meta["ways"], meta["shots"], meta["queries"], meta.get("split_file"), meta.get("alphabets", "mixed")
    )
