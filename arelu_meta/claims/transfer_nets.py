"""Small networks that learn one set of digits and then another, as the AReLU authors ran transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.claims.in_memory_training import accuracy, make_optimizer, train_epoch
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.small_lr_tables import ORIGINAL
from arelu_meta.claims.tensors import Tensors, scaled
from arelu_meta.claims.transfer_data import PairData

SOURCE_RATE, SOURCE_BATCH = 1e-2, 128
_LOOKED_AT = 256  # images that the start `fit` may look at


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures.

    Args:
        pair: as `mnist-to-mnist-m`.
        network: of `PAPER_NETS`.
        contender: `original`, an activation, or `arelu:START`.
        optimizer: sgd (momentum 0.9) or adam, on the target.
        lr: learning rate on the target, constant.
        seed: of the weights and of the order of the images.
        source_epochs: passes over the source, at 1e-2.
        length: epochs on the target.
        per_class: training images a class of the target, or None for all.
        batch_size: target images a step.
        pipeline: what the conclusion reads.
    """

    pair: str
    network: str
    contender: str
    optimizer: str
    lr: float
    seed: int
    source_epochs: int
    length: int
    per_class: int | None
    batch_size: int
    pipeline: str = "transfer"


@dataclass(frozen=True)
class _Pass:
    """What an epoch's order and batches depend on."""

    seed: int
    batch_size: int


def build(trial: Trial, data: Tensors) -> nn.Module:
    """Make a trial's network; all contenders of a seed get the same weights.

    Args:
        trial: network, contender, seed.
        data: whose images it takes.
    """
    torch.manual_seed(trial.seed)
    model: nn.Module = PAPER_NETS[trial.network](num_classes=data.classes, in_chans=data.channels, img_size=data.side)
    if trial.contender != ORIGINAL:
        activation, _, start = trial.contender.partition(":")
        init = start or ("paper" if activation == "arelu" else None)
        shown = [scaled(data.train_images[:_LOOKED_AT])] if init == "fit" else None
        example = torch.zeros(2, data.channels, data.side, data.side)
        swap_activations(model, activation, init=init, example=example, data=shown)
    return model.to(memory_format=torch.channels_last)


def transfer(trials: Sequence[Trial], data: PairData) -> list[list[Row]]:
    """Train one network on the source, and go on from it on the target in each of several ways.

    Args:
        trials: that differ in the optimiser and learning rate on the target alone.
        data: of their pair.

    Returns:
        For each trial a row an epoch, the first before any step on the target: `step`, `accuracy` (on the target's
        validation images, a fraction), and on every row `validation_accuracy`, `test_accuracy` (at the end),
        `source_accuracy` and `rate`.
    """
    first = trials[0]
    model = build(first, data.source)
    optimizer = make_optimizer("sgd", SOURCE_RATE, model)
    for epoch in range(1, first.source_epochs + 1):
        train_epoch(model.train(), optimizer, _Pass(first.seed, SOURCE_BATCH), data.source, epoch)
    known = {name: value.clone() for name, value in model.state_dict().items()}
    on_source = accuracy(model, data.source)
    found = []
    for trial in trials:
        model.load_state_dict(known)
        found.append(_on_target(model, trial, data, on_source))
    return found


def _on_target(model: nn.Module, trial: Trial, data: PairData, on_source: float) -> list[Row]:
    optimizer = make_optimizer(trial.optimizer, trial.lr, model)
    steps = -(-len(data.target.train_labels) // trial.batch_size)
    courses = [(0, accuracy(model, data.target))]
    diverged = ""
    for epoch in range(1, trial.length + 1):
        loss = train_epoch(model.train(), optimizer, _Pass(trial.seed, trial.batch_size), data.target, epoch)
        if loss != loss:
            diverged = f"the loss became nan in epoch {epoch}"
            break
        courses.append((epoch * steps, accuracy(model, data.target)))
    ends: Row = {"source_accuracy": on_source, "rate": trial.lr}
    if diverged:
        return [{"step": 0, "accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0, **ends,
                 "diverged": diverged}]  # fmt: skip
    ends |= {"validation_accuracy": courses[-1][1], "test_accuracy": accuracy(model, data.test)}
    return [{"step": step, "accuracy": value, **ends} for step, value in courses]
