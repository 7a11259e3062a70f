"""What a test set says of a classifier beyond its accuracy: numbers only; `results.py` writes them.

Throughout, `logits` are float tensors of shape (images, classes) on the CPU, and `labels` int64 of shape (images,).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from arelu_meta.activations.arelu import ALPHA_MAX, ALPHA_MIN, AReLU, GatedAReLU
from arelu_meta.runs.reproducibility import autocast

CALIBRATION_BINS = 15
TOP = 5

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    Args:
        index: its position in the test set.
        true: its label.
        predicted: the label that it was given.
        probability: of that label.
    """

    index: int
    true: int
    predicted: int
    probability: float


def per_class(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Judge each class by itself.

    Args:
        logits: see the module.
        labels: see the module.
        classes: the classes' names; two may have the same.

    Returns:
        One row a class: `class`, `precision`, `recall`, `f1` (fractions; 0 where there is nothing to divide by) and
        `support`, its number of test images. These are the columns of scikit-learn's classification report, which
        itself is keyed by names and would lose a class that is called "accuracy".
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels.numpy(), logits.argmax(1).numpy(), labels=range(len(classes)), zero_division=0.0
    )
    names = ("precision", "recall", "f1", "support")
    return [
        {"class": name, **{column: values[label].item() for column, values in zip(names, columns, strict=True)}}
        for label, name in enumerate(classes)
    ]


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Average F1 over the classes that occur among the labels or the predictions, each class counting the same."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels.numpy(), logits.argmax(1).numpy(), average="macro", zero_division=0.0))


def confusion(logits: Tensor, labels: Tensor) -> Counts:
    """Count how often each class was taken for each.

    Returns:
        Shape (classes, classes); row: the true class, column: the predicted one.
    """
    from sklearn.metrics import confusion_matrix

    counts: Counts = confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), labels=range(logits.shape[1]))
    return counts


def confused_pairs(counts: Counts) -> list[tuple[int, int, int]]:
    """List what was taken for what, the most frequent first.

    Args:
        counts: of `confusion`.

    Returns:
        (true label, predicted label, images), where there is at least one.
    """
    wrong = counts - np.diag(np.diag(counts))
    pairs = [(int(true), int(predicted), int(wrong[true, predicted])) for true, predicted in np.argwhere(wrong)]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: how far probabilities are from frequencies.

    Images are sorted into `bins` intervals of equal width by the probability of the class that they were given. With
    n images in all, n_b of them in bin b, acc_b the share of these that is right and conf_b their mean probability,
    `ECE = sum over b of n_b / n * |acc_b - conf_b|`.

    Args:
        logits: see the module.
        labels: see the module.
        bins: intervals (0, 1/bins], (1/bins, 2/bins] …

    Returns:
        A fraction; 0 is best.

    Source: Guo et al. 2017, equations 2 and 3, with their 15 bins.
    """
    probability, predicted = logits.double().softmax(1).max(1)
    # The right end belongs to a bin, so a probability of 1 is in the last.
    chosen = (probability * bins).ceil().long().clamp(1, bins) - 1
    # n_b / n * |acc_b - conf_b| is the bin's sum of (right - probability), over n.
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, chosen, (predicted == labels).double() - probability)
    return (gaps.abs().sum() / len(labels)).item()


def top_accuracy(logits: Tensor, labels: Tensor, k: int = TOP) -> float:
    """Compute the share of images whose class is among the k most probable (1 where there are only k)."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).double().mean().item()


def mistakes(logits: Tensor, labels: Tensor) -> list[Mistake]:
    """List every image taken for another class, the most confident mistake first."""
    probability, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probability[wrong].argsort(descending=True, stable=True)]
    return [
        Mistake(index, int(labels[index]), int(predicted[index]), float(probability[index])) for index in order.tolist()
    ]


def clamped_alphas(model: nn.Module) -> tuple[int, int]:
    """Count the AReLUs of a model, and those whose alpha is stuck.

    Args:
        model: any module; a shared activation counts once.

    Returns:
        How many AReLUs there are, and how many have an alpha outside [0.01, 0.99]: it is clamped, gets no gradient,
        and so never comes back.
    """
    alphas = [module.alpha for module in model.modules() if isinstance(module, AReLU | GatedAReLU)]
    return len(alphas), sum(is_clamped(alpha) for alpha in alphas)


def is_clamped(alpha: Tensor) -> bool:
    """Say whether an alpha lies where it gets no gradient; compared in its own precision, as the forward pass does."""
    return bool(((alpha < ALPHA_MIN) | (alpha > ALPHA_MAX)).any())


@torch.no_grad()
def predict_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Run a model over every batch in eval mode.

    Args:
        model: left in eval mode.
        batches: images and labels, or what stands for images in the model.
        device: where to compute.
        precision: float32, bf16 or fp16.

    Returns:
        Logits of shape (images, classes), float32, and labels of shape (images,), int64, both on the CPU.
    """
    model.eval()
    logits, labels = [], []
    for images, targets in batches:
        with autocast(precision, device):
            logits.append(model(images.to(device)).float().cpu())
        labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy.

    Args:
        logits: shape (images, classes).
        labels: shape (images,), int64.
    """
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()
