"""The starts that the study compares: how a swapped backbone begins, and the learning rates of its parts.

A start is a checkpoint: the backbone is built, changed and saved, and `finetune` begins from that file. So whatever a
start does, the training is the one that everybody gets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.calibration import reestimate_batch_norm
from arelu_meta.config import Init
from experiments.init_study.before_head import open_last_gates

Prepare = Callable[[nn.Module, Sequence[Tensor]], object]


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Args:
        says: what it does, for the table.
        init: model.init; None keeps the model's own activations.
        act: the scalars' learning rate, as a multiple of optim.lr.
        head: the head's learning rate, as a multiple of optim.lr.
        like: move the head's rate so that the first step changes the logits as much as this start's first step does.
        prepare: changes the swapped model, after a look at unlabelled images.
    """

    says: str
    init: Init | None = None
    act: float = 1.0
    head: float = 1.0
    like: str | None = None
    prepare: Prepare | None = None


def _open_last(
    t: float = 1.0, beta: float | None = None, others: float = 0.0
) -> Callable[[nn.Module, Sequence[Tensor]], None]:
    def prepare(model: nn.Module, batches: Sequence[Tensor]) -> None:
        _set_gates(model, t=others)
        for module in open_last_gates(model, batches[0][:2], t):
            if beta is not None:
                nn.init.constant_(module.beta, beta)
        if others:
            reestimate_batch_norm(model, batches)

    return prepare


def _open_all(
    t: float, alpha: float | None = None, beta: float | None = None
) -> Callable[[nn.Module, Sequence[Tensor]], None]:
    def prepare(model: nn.Module, batches: Sequence[Tensor]) -> None:
        _set_gates(model, t=t, alpha=alpha, beta=beta)
        reestimate_batch_norm(model, batches)

    return prepare


def _set_gates(model: nn.Module, **values: float | None) -> None:
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            for name, value in values.items():
                if value is not None:
                    nn.init.constant_(module.get_parameter(name), value)


STARTS: dict[str, Start] = {
    "original": Start("the model's own activations"),
    "paper": Start("AReLU at alpha 0.9, beta 2 everywhere", "paper"),
    "preserve": Start("act(x) + t ELSA(x), t = 0, learned at the same rate", "preserve"),
    "preserve-30": Start("preserve, scalars at 30 times the rate", "preserve", act=30),
    "preserve-30-10": Start("preserve, scalars at 30 times the rate, head at 10 times", "preserve", act=30, head=10),
    "preserve-10": Start("preserve, head at 10 times the rate", "preserve", head=10),
    "last": Start("preserve, but t = 1 where only the new head follows", "preserve", prepare=_open_last()),
    "last-30": Start("last, scalars at 30 times the rate", "preserve", act=30, prepare=_open_last()),
    "last-3": Start("last with t = 3", "preserve", prepare=_open_last(3.0)),
    "last-negative": Start("last with beta = -6: negative side alone", "preserve", prepare=_open_last(beta=-6.0)),
    "last-some": Start("last, every other t = 0.1, BatchNorm re-estimated", "preserve", prepare=_open_last(others=0.1)),
    "open-0.2": Start("every t = 0.2, BatchNorm re-estimated", "preserve", prepare=_open_all(0.2)),
    "open-0.2-10": Start("open-0.2, head at 10 times the rate", "preserve", head=10, prepare=_open_all(0.2)),
    "open-0.1-10": Start("open-0.2-10 with t = 0.1", "preserve", head=10, prepare=_open_all(0.1)),
    "open-0.4-10": Start("open-0.2-10 with t = 0.4", "preserve", head=10, prepare=_open_all(0.4)),
    "negative-0.2-10": Start(
        "open-0.2-10, negative side alone", "preserve", head=10, prepare=_open_all(0.2, beta=-6.0)
    ),
    "negative-0.2": Start("negative-0.2-10, head at the same rate", "preserve", prepare=_open_all(0.2, beta=-6.0)),
    "leak-slow": Start(
        "negative-0.2, scalars at a hundredth of the rate", "preserve", act=0.01, prepare=_open_all(0.2, beta=-6.0)
    ),
    "leak-slow-10": Start(
        "leak-slow, head at 10 times the rate", "preserve", act=0.01, head=10, prepare=_open_all(0.2, beta=-6.0)
    ),
    "paper-slow": Start("paper, scalars at a hundredth of the rate", "paper", act=0.01),
    "negative-0.1": Start(
        "every t = 0.1, negative side alone, BatchNorm re-estimated", "preserve", prepare=_open_all(0.1, beta=-6.0)
    ),
    "nearest": Start("nearest, BatchNorm re-estimated", "nearest", prepare=reestimate_batch_norm),
    "fit": Start("fit, BatchNorm re-estimated", "fit", prepare=reestimate_batch_norm),
    "paper-bn": Start("paper, BatchNorm re-estimated", "paper", prepare=reestimate_batch_norm),
    "head-10": Start("control: original, head at 10 times the rate", head=10),
    "bn-10": Start(
        "control: original, BatchNorm re-estimated, head at 10 times the rate", head=10, prepare=reestimate_batch_norm
    ),
    "head-like-paper": Start("control: original, head's first step as large as paper's", like="paper"),
    "head-like-last": Start("control: original, head's first step as large as last's", like="last"),
    "head-like-last-3": Start("control: original, head's first step as large as last-3's", like="last-3"),
    "head-like-leak": Start("control: original, head's first step as large as leak-slow's", like="leak-slow"),
    "paper-like-original": Start(
        "control: paper, head's first step as small as the original's", "paper", like="original"
    ),
    "last-10": Start("last, head at 10 times the rate", "preserve", head=10, prepare=_open_last()),
}


def first_step(model: nn.Module, batches: Sequence[Tensor], labels: Tensor, signed: bool) -> float:
    """Say how far one step on the head alone moves the logits, per unit of learning rate, from a head at zero.

    With features F, one row an image, and G the gradient of the loss by the logits, SGD moves the head's weights by
    `-G'F` and the logits by `-F F'G`; AdamW's first step takes the sign of the weights' gradient.

    Args:
        model: in training mode, as in the first step; its running statistics are left as they were.
        batches: images of shape (batch, channels, height, width).
        labels: of all images, shape (images,), int64.
        signed: whether the optimiser steps by the gradient's sign.

    Returns:
        The root mean square of the change.
    """
    features = torch.cat(_features(model, batches)).double()
    features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)  # the bias
    classes = int(labels.max()) + 1
    by_logits = (1 / classes - nn.functional.one_hot(labels, classes).double()) / len(labels)
    by_weights = by_logits.T @ features
    change = features @ (by_weights.sign() if signed else by_weights).T
    return float(change.square().mean().sqrt())


@torch.no_grad()
def _features(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    mode = model.training
    model.train()
    try:
        return [
            model.forward_head(model.forward_features(batch), pre_logits=True)  # type: ignore[operator]
            for batch in batches
        ]
    finally:
        model.train(mode)
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
