import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arelu_meta import AReLU, GatedAReLU
from arelu_meta.finetuning import metrics


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log().float()


# Right with 0.9, wrong with 0.8, right with 0.6, wrong with 0.55.
LOGITS = logits_of([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.25, 0.2, 0.55]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_calibration_error_is_the_weighted_gap_of_each_bin() -> None:
    # Bins of width 1/15: 0.9, 0.8, 0.6 and 0.55 each have one of their own, so the gaps do not cancel.
    wanted = (0.1 + 0.8 + 0.4 + 0.55) / 4
    assert metrics.calibration_error(LOGITS, LABELS) == pytest.approx(wanted, abs=1e-6)
    # In a single bin they do: two of four are right, at a mean probability of 0.7125.
    assert metrics.calibration_error(LOGITS, LABELS, bins=1) == pytest.approx(0.7125 - 0.5, abs=1e-6)


def test_calibration_error_is_zero_for_honest_probabilities() -> None:
    logits = logits_of([[0.75, 0.25]] * 4)
    assert metrics.calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


def test_a_certain_prediction_falls_into_the_last_bin() -> None:
    logits = torch.tensor([[100.0, -100.0], [100.0, -100.0]])
    assert metrics.calibration_error(logits, torch.tensor([0, 1])) == pytest.approx(0.5)


def test_each_class_has_its_precision_recall_and_support() -> None:
    rows = metrics.per_class(LOGITS, LABELS, ("cat", "dog", "accuracy"))
    assert rows[0] == {"class": "cat", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert rows[1]["precision"] == 1.0
    assert rows[1]["recall"] == 0.5
    assert rows[2] == {"class": "accuracy", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_macro_f1_counts_each_class_that_occurs_the_same() -> None:
    assert metrics.macro_f1(LOGITS, LABELS) == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert metrics.macro_f1(LOGITS[:, :2], LABELS) == pytest.approx((0.8 + 2 / 3) / 2)


def test_confusion_counts_true_classes_in_rows() -> None:
    counts = metrics.confusion(LOGITS, LABELS)
    np.testing.assert_array_equal(counts, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert metrics.confused_pairs(counts) == [(0, 2, 1), (1, 0, 1)]


def test_the_most_frequent_confusion_comes_first() -> None:
    assert metrics.confused_pairs(np.array([[5, 1], [3, 9]])) == [(1, 0, 3), (0, 1, 1)]


def test_the_most_confident_mistake_comes_first() -> None:
    found = metrics.mistakes(LOGITS, LABELS)
    assert [(one.index, one.true, one.predicted) for one in found] == [(1, 1, 0), (3, 0, 2)]
    assert found[0].probability == pytest.approx(0.8)


def test_top_accuracy_looks_at_the_k_most_probable() -> None:
    logits, labels = torch.eye(7) + torch.arange(7) / 100, torch.zeros(7, dtype=torch.int64)
    assert metrics.top_accuracy(logits, labels, k=1) == pytest.approx(1 / 7)
    assert metrics.top_accuracy(logits, labels) == pytest.approx(1 / 7)
    assert metrics.top_accuracy(logits, labels + 6) == 1.0
    assert metrics.top_accuracy(logits[:, :3], labels) == 1.0


def test_an_alpha_on_the_edge_is_not_stuck_and_one_beyond_is() -> None:
    shared = AReLU(alpha=1.2)
    model = nn.Sequential(AReLU(alpha=0.99), AReLU(alpha=0.01), shared, shared, GatedAReLU(nn.ReLU(), alpha=-0.1))
    assert metrics.clamped_alphas(model) == (4, 2)
    assert metrics.clamped_alphas(nn.ReLU()) == (0, 0)
