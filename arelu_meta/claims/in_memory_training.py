"""Training the authors' small networks on images in memory: one network, or many stacked and vectorised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from arelu_meta.activations.registry import PAPER_ACTIVATIONS, create_activation
from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.tensors import Tensors, scaled
from arelu_meta.runs.replay import Replay

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
    return model


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """Give the order of the images in an epoch: the same for every contender of a seed."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


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
    """Say whether stacked networks compute what single ones do: not where chance enters (RReLU)."""
    return trial.activation != "rrelu"


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

    def step(picked: Tensor) -> tuple[Tensor, ...]:
        found, losses = gradients(weights, scaled(data.train_images[picked]), data.train_labels[picked])
        update.step(found)
        return (totals.add_(losses * picked.shape[1]),)

    fast_step = Replay(step)
    for epoch in range(1, first.epochs + 1):
        skeleton.train()
        totals.zero_()
        orders = torch.stack([epoch_order(len(data.train_labels), trial.seed, epoch) for trial in trials]).to(device)
        for picked in orders.split(first.batch_size, dim=1):
            fast_step(picked)
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
        # On the device, where a recorded step finds them: the betas to the power of the steps taken.
        self.powers = torch.ones(2, dtype=torch.float64, device=rates.device)
        self.betas = torch.tensor(BETAS, dtype=torch.float64, device=rates.device)
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        early, late = 1 - self.powers.mul_(self.betas)
        for name, value in self.weights.items():
            gradient = gradients[name]
            first = self.first[name].lerp_(gradient, 1 - BETAS[0])
            second = self.second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size = (second / late).sqrt_().add_(EPSILON)
            value.sub_(first / early / size * _along(self.rates, value))


def _along(rates: Tensor, value: Tensor) -> Tensor:
    return rates.view(-1, *[1] * (value.ndim - 1))
