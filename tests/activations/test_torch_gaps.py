"""Where torch's own class falls short: the same function, and what was missing."""

import torch
from torch.func import vmap
from torch.nn import functional as F

from arelu_meta.activations.registry import create_activation


def test_random_leaky_relu_draws_its_slopes_in_training_and_uses_their_mean_in_evaluation() -> None:
    module = create_activation("rrelu")
    x = -torch.ones(10_000)
    slopes = -module.train()(x)
    assert 0.125 <= slopes.min() < 0.13
    assert 0.328 < slopes.max() <= 1 / 3
    torch.testing.assert_close(module.eval()(x), torch.full_like(x, -(0.125 + 1 / 3) / 2))


def test_random_leaky_relu_draws_anew_for_each_task_under_vmap() -> None:
    module = create_activation("rrelu").train()
    x = -torch.ones(2, 50)
    first, second = vmap(module, randomness="different")(x)
    assert not torch.equal(first, second)
    first, second = vmap(module, randomness="same")(x)
    assert torch.equal(first, second)
    positive = torch.rand(50)
    assert torch.equal(module(positive), positive)


def test_hard_sigmoid_equals_torchs() -> None:
    x = torch.linspace(-5, 5, 1001, requires_grad=True)
    ours, theirs = create_activation("hard_sigmoid")(x), F.hardsigmoid(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)))
