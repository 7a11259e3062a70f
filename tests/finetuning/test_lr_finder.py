import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.config import OptimConfig
from arelu_meta.finetuning.lr_finder import Search, search_rate


class _Net(nn.Module):
    """A head behind a dropout."""

    def __init__(self, inputs: int, classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(drop), nn.Linear(inputs, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(x))
        return logits


def _search(easy: float, optim: OptimConfig | None = None) -> Search:
    """Look for a rate on two batches in turn, one of whose losses is larger by a constant that nothing can learn."""
    torch.manual_seed(0)
    model, images = _Net(8, 3), torch.randn(32, 8)
    labels = images[:, :3].argmax(1)

    def loss_of(one: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(one(inputs), targets) + (easy if len(targets) == 12 else 0.0)

    batches = list(zip(images.split((12, 20)), labels.split((12, 20)), strict=True))
    return search_rate(model, optim or OptimConfig(), batches, loss_of, lambda copied: copied.train())


def test_batches_of_unlike_loss_do_not_choose_the_rate() -> None:
    alike, unlike = _search(0.0), _search(3.0)
    assert unlike.chosen == alike.chosen
    assert alike.chosen > 1e-3  # where a step does something


def test_a_model_that_drops_out_starts_where_it_stood() -> None:
    model = _Net(64, 2, drop=0.5)
    batches = [(torch.randn(16, 64), torch.arange(16) % 2)]
    found = search_rate(
        model, OptimConfig(), batches, lambda one, x, y: F.cross_entropy(one(x), y), lambda copied: copied.train()
    )
    assert max(found.losses[:8]) - min(found.losses[:8]) < 0.01  # rates below 1e-4: the draws are the same


def test_a_rate_is_looked_for_with_the_gradients_clipped_as_in_training() -> None:
    free, clipped = _search(0.0), _search(0.0, OptimConfig(clip_grad=1e-3))
    assert clipped.steepest > 5 * free.steepest
    assert min(clipped.losses) > min(free.losses) + 0.5
    assert free.losses[0] == pytest.approx(clipped.losses[0])
