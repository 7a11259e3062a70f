"""Small networks that a study trains on images held in memory, and those images, shared by all its processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from arelu_meta.activations.controls import draw_he
from arelu_meta.activations.registry import PAPER_ACTIVATIONS, create_activation
from arelu_meta.backbones.networks import PAPER_NETS, heads_of
from arelu_meta.claims.study import Row
from arelu_meta.claims.tables import Anchor, chance
from arelu_meta.config import DataConfig
from arelu_meta.data.image_io import to_channels
from arelu_meta.data.named_datasets import NAMED_SETS, load_images, load_part, pixels_in_memory
from arelu_meta.data.splits import ImageSet, concatenate
from arelu_meta.finetuning.linear_probe import Features, fit_probe

MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.999), 1e-8
_JUDGED_AT_ONCE = 1000  # test images
Optimizer = str


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures.

    Args:
        data: the set's name.
        network: of `PAPER_NETS`, without batch normalisation.
        activation: a name of `list_activations()`.
        variant: of the activation: authors or paper.
        optimizer: sgd (momentum 0.9) or adam.
        lr: learning rate, constant.
        seed: of the weights and of the order of the images.
        epochs: passes over the training images.
        batch_size: images a step.
    """

    data: str
    network: str
    activation: str
    variant: str
    optimizer: Optimizer
    lr: float
    seed: int
    epochs: int
    batch_size: int = 128


def build(trial: Trial, classes: int, channels: int, side: int) -> nn.Module:
    """Make a trial's network; all activations of a seed get the same weights.

    Args:
        trial: network, activation, variant, seed.
        classes: outputs.
        channels: of an image.
        side: of an image, in pixels.
    """
    return make_network(trial.network, trial.activation, trial.variant, trial.seed, classes, channels, side)


def make_network(
    network: str, activation: str, variant: str, seed: int, classes: int, channels: int, side: int
) -> nn.Module:
    """Make one of the papers' networks with an activation; all activations of a seed get the same weights.

    Args:
        network: of `PAPER_NETS`.
        activation: a name of `list_activations()`.
        variant: of the activation: authors or paper; read where there are both.
        seed: of the weights.
        classes: outputs.
        channels: of an image.
        side: of an image, in pixels.
    """
    torch.manual_seed(seed)
    model = PAPER_NETS[network](num_classes=classes, in_chans=channels, img_size=side)
    options = {"variant": variant} if activation in PAPER_ACTIVATIONS else {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(module, name, create_activation(activation, **options))
    if activation == "relu:he":
        draw_he(model)
    return model


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """Give the order of the images in an epoch: the same for every contender of a seed."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


@dataclass(frozen=True)
class Tensors:
    """A whole set.

    Args:
        train_images: shape (images, channels, side, side), uint8.
        train_labels: shape (images,), int64.
        test_images: as train_images.
        test_labels: as train_labels.
        classes: how many.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def side(self) -> int:
        """Side of an image, in pixels."""
        return self.train_images.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """What a network is made for: classes, channels and side."""
        return self.classes, self.channels, self.side

    def share(self, share: float) -> "Tensors":
        """Return the first part of the training and of the test images, to measure times on.

        Args:
            share: of either, above 0 and at most 1.
        """
        train, test = (max(1, round(share * len(labels))) for labels in (self.train_labels, self.test_labels))
        return Tensors(
            *(self.train_images[:train], self.train_labels[:train]),
            *(self.test_images[:test], self.test_labels[:test]),
            self.classes,
        )

    def to(self, device: torch.device) -> "Tensors":
        """Return the set on a device."""
        parts = {part: getattr(self, part).to(device) for part in _PARTS}
        return Tensors(**parts, classes=self.classes)


def train_one(trial: Trial, data: Tensors) -> list[Row]:
    """Train a network and test it after every epoch.

    Args:
        trial: the run.
        data: on the CPU.

    Returns:
        One row an epoch: `epoch` (from 1), `train_loss` (mean over the epoch), `accuracy` (on the test images, a
        fraction), `images` (tested).
    """
    model = build(trial, data.classes, data.channels, data.side).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(trial.optimizer, trial.lr, model)
    torch.manual_seed(trial.seed)  # of what an activation draws while it trains, as RReLU does
    rows = []
    for epoch in range(1, trial.epochs + 1):
        loss = train_epoch(model.train(), optimizer, trial, data, epoch)
        tested = {"accuracy": accuracy(model, data), "images": len(data.test_labels)}
        rows.append({"epoch": epoch, "train_loss": loss, **tested})
    return rows


_PROBED = 5000  # training images


@torch.no_grad()
def probe_accuracy(model: nn.Module, train: Tensors, test: Tensors) -> float:
    """Fit logistic regression on what a network's head gets, and test it: what training the network has to beat.

    Args:
        model: left in evaluation mode.
        train: of its training images the first 5,000 are taken, a fifth of them to choose the strength by.
        test: its test images are used.

    Returns:
        The share of right answers.
    """
    chosen = torch.randperm(len(train.train_labels), generator=torch.Generator().manual_seed(0))[:_PROBED]
    parts = [
        _head_inputs(model.eval(), train.train_images[some], train.train_labels[some])
        for some in chosen.split([len(chosen) - len(chosen) // 5, len(chosen) // 5])
    ]
    weight, bias, _ = fit_probe(parts[0], parts[1], train.classes)
    tested = _head_inputs(model, test.test_images, test.test_labels)
    right = (tested.values @ weight.T + bias).argmax(1) == tested.labels
    return float(right.float().mean())


def _head_inputs(model: nn.Module, images: Tensor, labels: Tensor) -> Features:
    seen: list[Tensor] = []
    hook = heads_of(model)[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        for some in images.split(_JUDGED_AT_ONCE):
            model(scaled(some))
    finally:
        hook.remove()
    return Features(torch.cat(seen).flatten(1), labels)


def anchors_of(data: Tensors, untrained: nn.Module) -> list[Anchor]:
    """Return what all networks on a set are read against.

    Args:
        data: the set.
        untrained: the first contender's network, as it starts.
    """
    about = "logistic regression on the untrained features of the study's first network"
    data = data.to(torch.device("cpu"))
    return [Anchor("probe", 100 * probe_accuracy(untrained.cpu(), data, data), about), chance(data.classes)]


def make_optimizer(name: Optimizer, lr: float, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a network that trains alone.

    Args:
        name: sgd (momentum 0.9) or adam.
        lr: learning rate.
        model: all its parameters are trained.
    """
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=lr, betas=BETAS, eps=EPSILON)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)


class Shuffled(Protocol):
    """What an epoch's order and batches depend on."""

    @property
    def seed(self) -> int:
        """Of the order."""

    @property
    def batch_size(self) -> int:
        """Images a step."""


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, trial: Shuffled, data: Tensors, epoch: int
) -> float:
    """Train a network on every image once.

    Args:
        model: in training mode; changed in place.
        optimizer: of its parameters.
        trial: the seed and the batch size.
        data: its training images are used.
        epoch: from 1; with the seed it decides the order.

    Returns:
        The mean loss over the images, as they were met.
    """
    order = epoch_order(len(data.train_labels), trial.seed, epoch)
    total = torch.zeros(())
    for picked in order.split(trial.batch_size):
        images = scaled(data.train_images[picked]).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(images), data.train_labels[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(picked)
    return float(total) / len(order)


@torch.no_grad()
def accuracy(model: nn.Module, data: Tensors) -> float:
    """Test a network.

    Args:
        model: left in evaluation mode.
        data: its test images are used.

    Returns:
        The share of right answers, a fraction.
    """
    model.eval()
    right = 0
    for images, labels in _test_batches(data):
        inputs = scaled(images).contiguous(memory_format=torch.channels_last)
        right += int((model(inputs).argmax(1) == labels).sum())
    return right / len(data.test_labels)


def _test_batches(data: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(data.test_images.split(_JUDGED_AT_ONCE), data.test_labels.split(_JUDGED_AT_ONCE), strict=True)


def stackable(trial: Trial) -> bool:
    """Return True if stacked networks compute what single ones do: no chance (RReLU) and no buffers enter."""
    return trial.activation not in ("rrelu", "arelu:frozen")


def train_stacked(trials: Sequence[Trial], data: Tensors) -> list[list[Row]]:
    """Train networks that differ in seed and learning rate alone, all at once: what a GPU is fast at.

    Args:
        trials: of one network, activation, optimiser, batch size and number of epochs.
        data: on the device to compute on.

    Returns:
        For each trial what `train_one` returns, to float tolerance.
    """
    first, device = trials[0], data.train_images.device
    models = [build(trial, data.classes, data.channels, data.side).to(device) for trial in trials]
    parameters, buffers = stack_module_state(models)
    skeleton = models[0]

    def loss_of(weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (weights, {}), (images,)), labels)

    def logits_of(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(skeleton, (weights, {}), (images,))  # type: ignore[no-any-return]

    assert not buffers, "networks with running statistics are not stacked"
    weights = {name: value.detach() for name, value in parameters.items()}
    gradients, logits = vmap(grad_and_value(loss_of)), vmap(logits_of, in_dims=(0, None))
    rates = torch.tensor([trial.lr for trial in trials], device=device)
    update = _StackedAdam(weights, rates) if first.optimizer == "adam" else _StackedSGD(weights, rates)
    rows: list[list[Row]] = [[] for _ in trials]
    totals = torch.zeros(len(trials), device=device)

    for epoch in range(1, first.epochs + 1):
        skeleton.train()
        totals.zero_()
        orders = torch.stack([epoch_order(len(data.train_labels), trial.seed, epoch) for trial in trials]).to(device)
        for picked in orders.split(first.batch_size, dim=1):
            found, losses = gradients(weights, scaled(data.train_images[picked]), data.train_labels[picked])
            update.step(found)
            totals += losses * picked.shape[1]
        skeleton.eval()
        right = torch.zeros(len(trials), device=device)
        with torch.no_grad():
            for images, labels in _test_batches(data):
                right += (logits(weights, scaled(images)).argmax(2) == labels).sum(1)
        means = (totals / orders.shape[1]).tolist()
        for row, loss, hits in zip(rows, means, right.tolist(), strict=True):
            tested = {"accuracy": hits / len(data.test_labels), "images": len(data.test_labels)}
            row.append({"epoch": epoch, "train_loss": loss, **tested})
    return rows


class _StackedSGD:
    """`torch.optim.SGD` with momentum, each network at its own rate."""

    def __init__(self, weights: dict[str, Tensor], rates: Tensor) -> None:
        self.weights, self.rates = weights, rates
        self.velocity = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        for name, value in self.weights.items():
            velocity = self.velocity[name].mul_(MOMENTUM).add_(gradients[name])
            value.sub_(velocity * _along(self.rates, value))


class _StackedAdam:
    """`torch.optim.Adam`, each network at its own rate."""

    def __init__(self, weights: dict[str, Tensor], rates: Tensor) -> None:
        self.weights, self.rates = weights, rates
        self.steps = 0
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        self.steps += 1
        early, late = (1 - beta**self.steps for beta in BETAS)
        for name, value in self.weights.items():
            gradient = gradients[name]
            first = self.first[name].lerp_(gradient, 1 - BETAS[0])
            second = self.second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size = (second / late).sqrt_().add_(EPSILON)
            value.sub_(first / early / size * _along(self.rates, value))


def _along(rates: Tensor, value: Tensor) -> Tensor:
    return rates.view(-1, *[1] * (value.ndim - 1))


_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Shelf:
    """Where a set lies on disk, for processes that start with nothing; they share its pages.

    Args:
        folder: one .npy a tensor.
        classes: how many.
    """

    folder: str
    classes: int

    def open(self) -> Tensors:
        """Map the set into memory."""
        arrays = {part: np.load(Path(self.folder) / f"{part}.npy", mmap_mode="c") for part in _PARTS}
        return Tensors(**{part: torch.from_numpy(array) for part, array in arrays.items()}, classes=self.classes)


@contextmanager
def shelved(tensors: Tensors) -> Iterator[Shelf]:
    """Lay a set on disk while the block runs: shared memory would be 64 MB small in a container."""
    with TemporaryDirectory(prefix="arelu-meta-") as folder:
        for part in _PARTS:
            np.save(Path(folder) / f"{part}.npy", getattr(tensors, part).numpy())
        yield Shelf(folder, tensors.classes)


_opened: dict[str, Tensors] = {}  # by folder and device: a process opens each set once


def opened(shelf: Shelf, device: str) -> Tensors:
    """Return a set that may have been opened in this process before.

    Args:
        shelf: where it lies.
        device: where it is to be.
    """
    place = f"{shelf.folder} {device}"
    if place not in _opened:
        _opened[place] = shelf.open().to(torch.device(device))
    return _opened[place]


def load_tensors(config: DataConfig, seed: int, side: int | None = None, channels: int | None = None) -> Tensors:
    """Load a whole set: all training images (nothing is chosen by validation) and the test images.

    Args:
        config: name and root.
        seed: of the split, where the data has none.
        side: pixels to scale to; default: as the first image is.
        channels: 1 or 3; default: the set's own.

    Raises:
        InputError: if the data is missing or unusable.
    """
    spec = NAMED_SETS.get((config.name or "").lower())
    if spec is not None and spec.test is not None and config.per_class is None:
        name = str(config.name).lower()
        train, test = (load_part(name, part, config) for part in (spec.train, spec.test))
    else:
        splits = load_images(config, seed)
        train, test = concatenate([splits.train, splits.validation]), splits.test
    side = side or train[0][0].size[0]
    channels = channels or train.channels
    return Tensors(*as_tensors(train, side, channels), *as_tensors(test, side, channels), len(train.classes))


def as_tensors(images: ImageSet, side: int, channels: int) -> tuple[Tensor, Tensor]:
    """Decode a whole set.

    Args:
        images: the set.
        side: pixels to scale to.
        channels: 1 or 3.

    Returns:
        Images of shape (images, channels, side, side), uint8, and labels of shape (images,), int64.
    """
    held = pixels_in_memory(images) if images.channels == channels else None
    if held is not None and held.shape[1:3] == (side, side):
        pixels = held[:, None] if channels == 1 else np.ascontiguousarray(held.transpose(0, 3, 1, 2))
    else:
        pixels = np.empty((len(images), channels, side, side), dtype=np.uint8)
        for number in range(len(images)):
            pixels[number] = _pixels(images[number][0], side, channels)
    return torch.from_numpy(pixels), torch.from_numpy(np.asarray(images.labels, dtype=np.int64))


def _pixels(image: Image.Image, side: int, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    found = np.asarray(to_channels(image, channels), dtype=np.uint8)
    return found[None] if channels == 1 else found.transpose(2, 0, 1)


def scaled(images: Tensor, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Tensor:
    """Turn 8-bit images into floats: [0, 1] first, then normalised.

    Args:
        images: shape (…, channels, side, side), uint8.
        mean: one value a channel, or one for all.
        std: the same.
    """
    values = images.float().div_(255)
    if tuple(mean) == (0.0,) and tuple(std) == (1.0,):
        return values
    shape = (-1, 1, 1)
    return values.sub_(values.new_tensor(mean).view(shape)).div_(values.new_tensor(std).view(shape))
