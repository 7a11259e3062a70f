"""What a meta-training run is put together from, as its config says: model, samplers, and a line that tells it."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.backbones.from_config import build_with_head, check_forward, check_gates
from arelu_meta.backbones.networks import PAPER_NETS, zero_head
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import ClassSplits, Sampler, TensorSampler, load_pool, unlabelled_images
from arelu_meta.data.splits import ImageSet
from arelu_meta.meta.algorithms import check_features
from arelu_meta.meta.inner_loop import COMPARING, inner_of
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.meta.settings import check_act_lr, starts_at_zero
from arelu_meta.runs.distributed import Ranks

_EPISODE_SIZE = 28


def make_model(config: MetatrainConfig, splits: ClassSplits) -> tuple[nn.Module, ModelSpec, list[str]]:
    """Build the backbone that meta-learns; what does not go together is said before anything is written.

    Args:
        config: its head_init is settled.
        splits: the classes; a start that is fitted looks at the training images.

    Returns:
        The model, on the CPU, in training mode as its normalisation asks for; what rebuilds it; and what
        is to be said of a checkpoint's head.

    Raises:
        InputError: if parts of the config contradict each other.
    """
    names = tuple(str(way) for way in range(config.task.ways))
    size = config.data.image_size or (_EPISODE_SIZE if config.model.name in PAPER_NETS else None)
    images = partial(unlabelled_images, splits.train, inverted=splits.inverted)
    model, spec, head = build_with_head(config.model, names, splits.train.channels, size, "metatrain", images)
    if config.model.head_init == "zero" or (config.model.head_init == "auto" and head.new and starts_at_zero(config)):
        zero_head(model)
    check_gates(model, config.optim.open_gates)
    check_forward(model, spec)
    if config.meta.algorithm in COMPARING:
        check_features(model)
    set_normalization(model, config.meta.normalization)
    check_act_lr(model, inner_of(config.meta))
    train_mode(model, config.meta.normalization)
    classes = splits.describe()["train_classes"]
    spec = replace(spec, inputs=replace(spec.inputs, range=splits.train.range))
    spec = replace(spec, classes=classes, meta=_meta_of(config, splits), config=asdict(config))
    return model, spec, [f"head: new, {head.note}" if head.new else head.note] if head.note else []


def _meta_of(config: MetatrainConfig, splits: ClassSplits) -> dict[str, Any]:
    return {
        **asdict(config.task),
        "algorithm": config.meta.algorithm,
        "adapt": config.meta.adapt,
        "inner_lr": config.meta.inner_lr,
        "inner_act_lr": config.meta.inner_act_lr,
        "train_steps": config.meta.inner_steps,
        "inner_steps": config.eval.inner_steps or config.meta.inner_steps,
        "normalization": config.meta.normalization,
        "inverted": splits.inverted,
    }


def make_noise(config: MetatrainConfig, spec: ModelSpec, device: torch.device) -> torch.Tensor:
    """Make noise in the shape of two tasks' images, to try engines on.

    Args:
        config: the ways.
        spec: what the model takes.
        device: where to.

    Returns:
        Shape (2, ways, channels, side, side), float32.
    """
    inputs = spec.inputs
    shape = (2, config.task.ways, inputs.channels, inputs.image_size, inputs.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def make_sampler(
    config: MetatrainConfig,
    spec: ModelSpec,
    splits: ClassSplits,
    part: str,
    device: torch.device,
) -> Sampler:
    """Decode the images of a part, and draw tasks from them: task i of a seed is the same for every engine.

    Args:
        config: the tasks' size, and the seed.
        spec: what the model takes.
        splits: the parts.
        part: train, validation or test; training classes are also turned where data.rotations says so.
        device: where the images lie, if they fit.
    """
    images: ImageSet = getattr(splits, part)
    rotations = part == "train" and config.data.rotations
    pool = load_pool(images, spec.inputs, splits.inverted, rotations)
    return TensorSampler(pool.to(device), config.task, f"{part} {config.run.seed}")


def headline(config: MetatrainConfig, spec: ModelSpec, splits: ClassSplits, engine_note: str, ranks: Ranks) -> str:
    """Say in two lines what is meta-trained, how, and on what.

    Args:
        config: of the run.
        spec: of the model.
        splits: the classes.
        engine_note: what `build_engine` said.
        ranks: the processes.
    """
    described = splits.describe()
    counts = {name: len(described.get(f"{name}_classes", [])) for name in ("train", "validation", "test")}
    task, meta, inner = config.task, config.meta, inner_of(config.meta)
    processes = f", {ranks.processes} processes" if ranks.processes > 1 else ""
    return (
        f"{spec.name} ({spec.activation or 'its own activation'}), {task.ways}-way {task.shots}-shot, "
        f"{meta.algorithm} that adapts {inner.adapted_part}, order {1 if inner.first_order else 2}, "
        f"{meta.normalization} normalisation, "
        f"{engine_note}, on {ranks.device}{processes}\n"
        f"{counts['train']} classes to train on, {counts['validation']} to validate on, "
        f"{counts['test']} unseen to test on"
        + "".join(f"; {note}" for note in splits.notes)
        + (f"; {len(splits.skipped)} files skipped that are not images" if splits.skipped else "")
    )
