"""Plain networks of many layers, how the gradient passes through them, and their training on images in memory."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.registry import create_activation
from arelu_meta.claims.in_memory_training import accuracy, epoch_order, make_optimizer
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.tensors import Tensors, scaled

WIDTH = 64
SMALLEST = -45.0  # decades; the smallest float32 above 0 is 1.4e-45, and a gradient of 0 counts as this
READ_OUTS = 5  # after the one at the start
_LOOKED_AT = 256  # images
_SAMPLES = 4096

PLAIN_NETS = {
    "plain": "PyTorch's initial weights, as the authors' networks have them",
    "plain_even": "initial weights scaled to each activation, so that the signal keeps its size",
}


@dataclass(frozen=True)
class GradientTrial:
    """One run: all that decides its figures.

    Args:
        data: the set's name or root.
        network: of `PLAIN_NETS`.
        depth: hidden layers, at least 2.
        activation: a name of `list_activations()`.
        optimizer: sgd (momentum 0.9) or adam.
        lr: learning rate, constant.
        seed: of the weights and of the order of the images.
        epochs: passes over the training images.
        batch_size: images a step.
    """

    data: str
    network: str
    depth: int
    activation: str
    optimizer: str
    lr: float
    seed: int
    epochs: int
    batch_size: int = 128


class PlainNet(nn.Module):
    """Linear layers of one width, each with its activation, and a linear layer for the classes: no shortcut, no norm.

    Args:
        inputs: values of an image.
        classes: outputs.
        depth: hidden layers.
        activation: a name of `list_activations()`; each layer has its own.
    """

    def __init__(self, inputs: int, classes: int, depth: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH if number else inputs, WIDTH) for number in range(depth))
        self.head = nn.Linear(WIDTH, classes)
        self.activations = nn.ModuleList(create_activation(activation) for _ in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        """Map images of shape (batch, …) to logits of shape (batch, classes)."""
        return self.trace(images)[0]

    def trace(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute logits as `forward` does.

        Args:
            images: shape (batch, …).

        Returns:
            Logits, and what each linear layer hands to its activation, first layer first, each (batch, WIDTH).
        """
        signal, handed = images.flatten(1), []
        for layer, activation in zip(self.layers, self.activations, strict=True):
            handed.append(layer(signal))
            # An activation may work in place: what it gets must stay as it is.
            signal = activation(handed[-1].clone())
        return self.head(signal), handed


def build(trial: GradientTrial, data: Tensors) -> PlainNet:
    """Make a trial's network; all activations of a seed get the same weights, up to the scale in `plain_even`.

    Args:
        trial: network, depth, activation, seed.
        data: its images' size and its classes decide the first and the last layer.
    """
    torch.manual_seed(trial.seed)
    model = PlainNet(data.channels * data.side**2, data.classes, trial.depth, trial.activation)
    if trial.network == "plain_even":
        torch.manual_seed(trial.seed)  # an activation may have drawn its own start
        _scale_evenly(model, gain(trial.activation))
    return model


@torch.no_grad()
def _scale_evenly(model: PlainNet, gained: float) -> None:
    for number, layer in enumerate([*model.layers, model.head]):
        assert isinstance(layer, nn.Linear)
        layer.weight.normal_(0.0, (gained if number else 1.0) / math.sqrt(layer.in_features))
        layer.bias.zero_()


@torch.no_grad()
def gain(activation: str) -> float:
    """Find the factor on weights of variance 1 / inputs with which a normal signal keeps its mean square.

    Args:
        activation: a name of `list_activations()`.

    Returns:
        For ReLU the square root of 2.

    Source: He et al. 2015, section 2.2, for any activation.
    """
    signal = torch.randn(_SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
    return float(create_activation(activation).eval()(signal).square().mean().rsqrt())


def gradient_norms(model: PlainNet, images: Tensor, labels: Tensor) -> list[float]:
    """Measure the gradient of the mean loss by what each hidden layer hands on; the model's own gradients stay.

    All of these have the same shape, so layers compare; the gradient of a layer's weights is this one times the
    layer's input.

    Args:
        model: as it is.
        images: shape (batch, …), floats.
        labels: shape (batch,), int64.

    Returns:
        The decimal logarithm of each layer's norm, first layer first, at least `SMALLEST`; NaN or infinite where the
        gradient is.
    """
    logits, handed = model.trace(images)
    found = torch.autograd.grad(F.cross_entropy(logits, labels), handed)
    norms = [float(one.double().norm()) for one in found]  # in float32 the squares of small ones would be 0
    return [SMALLEST if norm == 0 else max(math.log10(norm), SMALLEST) for norm in norms]  # in this order NaN stays


def train(trial: GradientTrial, data: Tensors) -> list[Row]:
    """Train a network, and look at its gradients before, during and after.

    Args:
        trial: the run.
        data: on the device to compute on.

    Returns:
        One row a read-out and layer: `step`, `layer` (from 1), `log10_norm` (None where it is not finite), and on each
        the network's `accuracy` on the test images at the end (a fraction) and the step at which it `diverged` (or
        None).
    """
    model = build(trial, data).to(data.train_images.device)
    optimizer = make_optimizer(trial.optimizer, trial.lr, model)
    looked_at = epoch_order(len(data.train_labels), trial.seed, 0)[:_LOOKED_AT]
    seen = scaled(data.train_images[looked_at]), data.train_labels[looked_at]
    torch.manual_seed(trial.seed)  # of what an activation draws while it trains, as RReLU does
    batches = [
        picked
        for epoch in range(1, trial.epochs + 1)
        for picked in epoch_order(len(data.train_labels), trial.seed, epoch).split(trial.batch_size)
    ]
    read_at = {round(part * len(batches) / READ_OUTS) for part in range(READ_OUTS + 1)}
    read: dict[int, list[float]] = {}
    diverged = None
    for step in range(len(batches) + 1):
        if step in read_at:
            read[step] = gradient_norms(model, *seen)
            if not all(map(math.isfinite, read[step])):
                diverged = step
                break
        if step < len(batches):
            _step(model, optimizer, scaled(data.train_images[batches[step]]), data.train_labels[batches[step]])
    ends = {"accuracy": accuracy(model, data), "diverged": diverged}
    return [
        {"step": step, "layer": layer, "log10_norm": value if math.isfinite(value) else None, **ends}
        for step, norms in read.items()
        for layer, value in enumerate(norms, 1)
    ]


def _step(model: PlainNet, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
