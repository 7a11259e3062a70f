"""Where a forward in training may call other activations than in evaluation."""

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.backbones.modes import tells_training_apart


class Plain(nn.Module):
    """Holds an activation; what its forward reads of the mode is each subclass's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.1)
        self.extra = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.act(x))
        return y


class HandsRate(Plain):
    def forward(self, x: Tensor) -> Tensor:
        q = self.act(x)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.drop.p if self.training else 0.0)


class HandsModeToDropout(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.act(x), 0.1, training=self.training)


class TellsAnother(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.drop.train(self.training)
        return super().forward(x)


class AsksFlag(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x)
        if self.training and self.extra:
            y = self.act(y)
        return y


class AsksFlagItSets(AsksFlag):
    def forward(self, x: Tensor) -> Tensor:
        self.extra = True
        y: Tensor = self.act(x)
        if self.training and self.extra:
            y = self.act(y)
        return y


class Branches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x) if self.training else x
        return y


class KeepsRate(Plain):
    def forward(self, x: Tensor) -> Tensor:
        rate = self.drop.p if self.training else 0.0
        y: Tensor = self.act(x) if rate else x
        return y


class AsksAnswer(Plain):
    def learns(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x) if self.learns() else x
        return y


@pytest.mark.parametrize("kind", [Plain, HandsRate, HandsModeToDropout, TellsAnother, AsksFlag])
def test_a_mode_that_reaches_a_dropout_or_a_flag_that_is_off_makes_no_difference(kind: type[Plain]) -> None:
    assert not tells_training_apart(kind())


@pytest.mark.parametrize("kind", [AsksFlagItSets, Branches, KeepsRate, AsksAnswer])
def test_a_mode_on_which_a_call_may_depend_makes_one(kind: type[Plain]) -> None:
    assert tells_training_apart(kind())


def test_a_flag_that_is_on_makes_one() -> None:
    model = nn.Sequential(AsksFlag(), AsksFlag())
    assert isinstance(model[1], AsksFlag)
    model[1].extra = True
    assert tells_training_apart(model)
