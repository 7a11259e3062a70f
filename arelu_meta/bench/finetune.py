"""What a whole epoch of fine-tuning costs, from JPEG files to new weights, beside timm's own parts in a plain loop."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from arelu_meta.backbones.networks import suit_layout
from arelu_meta.bench.step import CONTENDERS, MODELS
from arelu_meta.bench.timing import Cases, Contender, Row, cpu_peak_bytes, cuda_peak_bytes, make_row, time_in_turns
from arelu_meta.config import OptimConfig, TrainConfig
from arelu_meta.data.image_io import read_image
from arelu_meta.data.loaders import Batches, InputSpec, build_transform, choose_workers, keep_decoded
from arelu_meta.data.named_datasets import sample_photographs
from arelu_meta.data.splits import ImageSet
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule
from arelu_meta.finetuning.recorders import GradientRecorder
from arelu_meta.finetuning.training_step import TrainingState, train_epoch
from arelu_meta.runs.progress import ProgressBar
from arelu_meta.runs.reproducibility import autocast

PEER = "timm"
BATCHES = 6
"""An epoch's, in each contender's turn."""
_RATE = 1e-4  # so small that a random network stays finite over any number of rounds
_GRADIENTS_EVERY = 50  # steps between two records of the gradients' norms, as in a run


@dataclass(frozen=True)
class Case:
    """A set-up.

    Args:
        model: a timm name.
        side: of the images, in pixels.
        batch_size: images a step.
        precision: float32 or bf16.
    """

    model: str
    side: int
    batch_size: int
    precision: str


def finetune_cases(device: torch.device, rounds: int | None = None) -> Cases:
    """List the cases, with ids as `resnet18/128px/batch32`.

    Args:
        device: where to compute; a GPU has two more, of the size that it is used at.
        rounds: over which medians are taken; default: 3.
    """
    cases = {f"{name}/128px/batch32": Case(name, 128, 32, "float32") for name in MODELS}
    if device.type == "cuda":
        cases |= {f"{name}/224px/batch256/bf16": Case(name, 224, 256, "bf16") for name in MODELS}
    return {name: partial(finetune_rows, name, case, rounds or 3, device) for name, case in cases.items()}


def finetune_rows(name: str, case: Case, rounds: int = 3, device: torch.device | str = "cpu") -> list[Row]:
    """Time an epoch of six batches of JPEG photographs by every contender.

    All of them train every parameter by timm's `sgd` on the same random crops. Ours keeps decoded images in memory, as
    it does by default with a small folder; timm's loader has no such thing and decodes them in every epoch.

    Args:
        name: the case's id.
        case: the set-up.
        rounds: over which medians are taken.
        device: where to compute.

    Returns:
        One row for each contender: `timm` (its model, data set, loader and optimiser in a plain loop, no
        AReLU), ours with `relu` (the model as it came), with `relu-decoding` (likewise, every image decoded in every
        epoch), with `relu-contiguous` (likewise, `train.channels_last` false), with `arelu` and with `preserve`, its
        gates open at 0.1. `median_ms` is an epoch's, `peak_bytes` all memory of torch's tensors in this process while
        it trains, the model and the optimiser's state included.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _rows(name, case, Path(folder), rounds, torch.device(device))


def images_per_second(case: str, milliseconds: float) -> float:
    """Return how many images a second an epoch's time means.

    Args:
        case: its id, as `resnet18/128px/batch32`.
        milliseconds: of an epoch.
    """
    batch_size = int(case.split("/")[2].removeprefix("batch"))
    return 1e3 * BATCHES * batch_size / milliseconds


def _rows(name: str, case: Case, folder: Path, rounds: int, device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    photographs = folder / "photographs"
    write_photographs(photographs, BATCHES * case.batch_size)
    images = _read_folder(photographs)
    kept = keep_decoded(images)
    builds = {
        "relu": "relu",
        "relu-decoding": "relu",
        "relu-contiguous": "relu",
        "arelu": "arelu",
        "preserve": "preserve",
    }
    models = {one: CONTENDERS[build](case.model).to(device) for one, build in builds.items()}
    models[PEER] = CONTENDERS["relu"](case.model).to(device)
    epochs = {PEER: _timm_epoch(models[PEER], case, photographs, device)}
    for one in builds:
        channels_last = one != "relu-contiguous" and suit_layout(models[one], device)
        train = TrainConfig(freeze_bn=False, channels_last=channels_last)
        shown = images if one == "relu-decoding" else kept
        epochs[one] = _our_epoch(models[one], case, shown, folder, device, train)
    times = time_in_turns({one: Contender(epoch) for one, epoch in epochs.items()}, rounds, device)
    return [make_row(name, one, PEER, times, _memory(models[one], epochs[one], device)) for one in (PEER, *builds)]


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEGs of 213 × 320 pixels, cut from scikit-learn's two photographs, into a folder with two classes.

    Args:
        folder: made.
        count: of the images.
    """
    photographs = sample_photographs()
    for label in ("even", "odd"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        image, _ = photographs[number % len(photographs)]
        # Each differs: one file decoded again and again would come from the processor's cache.
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 3 else image
        turned.save(folder / ("odd" if number % 2 else "even") / f"{number:04d}.jpg", quality=80 + number % 15)


def _read_folder(folder: Path) -> ImageSet:
    paths = sorted(folder.rglob("*.jpg"))
    labels = np.array([path.parent.name == "odd" for path in paths], dtype=np.int64)
    return ImageSet(("even", "odd"), labels, tuple(map(str, paths)), _read)


def _read(name: str) -> Image.Image:
    return read_image(Path(name))


def _inputs(model: nn.Module, side: int) -> InputSpec:
    known: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return InputSpec(side, 3, known["mean"], known["std"], known["interpolation"])


def _our_epoch(
    model: nn.Module, case: Case, images: ImageSet, folder: Path, device: torch.device, train: TrainConfig
) -> Callable[[object], None]:
    workers = choose_workers("auto", device, len(images))
    transform = build_transform(_inputs(model, case.side), training=True)
    batches = Batches(images, transform, case.batch_size, 0, workers, pinned=device.type == "cuda")
    optim = OptimConfig(lr=_RATE, schedule="constant")
    optimizer = build_optimizer(model, optim)
    schedule = build_schedule(optimizer, optim, 1, BATCHES)
    training = TrainingState(model, optimizer, schedule, device, case.precision, _RATE, train)
    recorder = GradientRecorder(folder, every=_GRADIENTS_EVERY)
    training.before_step = lambda trained: recorder.record(trained, training.updates + 1)

    def epoch(_: object) -> None:
        with ProgressBar("an epoch", len(images), "images") as bar:
            train_epoch(training, batches.epoch(training.updates // BATCHES + 1), bar, "none")

    return epoch


def _timm_epoch(model: nn.Module, case: Case, folder: Path, device: torch.device) -> Callable[[object], None]:
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    inputs = _inputs(model, case.side)
    images = create_dataset("", str(folder))
    loader = create_loader(
        images,
        (3, case.side, case.side),
        case.batch_size,
        is_training=True,
        scale=(0.35, 1.0),  # as ours
        color_jitter=None,
        interpolation=inputs.interpolation,
        mean=inputs.mean,
        std=inputs.std,
        num_workers=(workers := choose_workers("auto", device, len(images))),
        persistent_workers=workers > 0,
        use_prefetcher=device.type == "cuda",
        pin_memory=device.type == "cuda",
        device=device,
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=_RATE, weight_decay=OptimConfig().weight_decay, momentum=0.9)

    def epoch(_: object) -> None:
        model.train()
        losses = AverageMeter()
        for batch, labels in loader:
            batch, labels = batch.to(device), labels.to(device)
            optimizer.zero_grad()
            with autocast(case.precision, device):
                loss = F.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(batch))

    return epoch


def _memory(model: nn.Module, epoch: Callable[[object], None], device: torch.device) -> int:
    """Measure what training takes at its peak: weights, gradients, momentum, activations and all that passes by."""
    peak = cuda_peak_bytes if device.type == "cuda" else cpu_peak_bytes
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model.zero_grad()  # weights and momentum are there before, gradients come and go
    return 2 * weights + sum(buffer.nbytes for buffer in model.buffers()) + peak(partial(epoch, None))
