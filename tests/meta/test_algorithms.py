import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("learn2learn", reason="learn2learn is not installed")

from arelu_meta import create_backbone
from arelu_meta.data.fewshot import Episode
from arelu_meta.errors import InputError
from arelu_meta.meta.algorithms import adapt, build_maml, query_loss


def _episode(ways: int = 3, shots: int = 2, queries: int = 4, size: int = 28) -> Episode:
    generator = torch.Generator().manual_seed(1)

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(ways).repeat_interleave(per_class)
        images = torch.rand(ways * per_class, 1, size, size, generator=generator, dtype=torch.float64) * 0.2
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, label * 7 : label * 7 + 7] += 0.8  # each class has a bright bar at a height of its own
        return images, labels

    return Episode(*draw(shots), *draw(queries))


def _net(activation: str | None = "arelu") -> nn.Module:
    torch.manual_seed(0)
    return create_backbone("mnist_conv", num_classes=3, in_chans=1, img_size=28, activation=activation).double()


def _by_hand(model: nn.Module, episode: Episode, lr: float, steps: int, second_order: bool) -> list[torch.Tensor]:
    """MAML's meta-gradient written out with functional_call: an independent reference."""
    names = [name for name, _ in model.named_parameters()]
    start = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    weights: list[torch.Tensor] = list(start)
    for _ in range(steps):
        logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), episode.support_images)
        loss = F.cross_entropy(logits, episode.support_labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=second_order)
        weights = [w - lr * g for w, g in zip(weights, gradients, strict=True)]
    logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), episode.query_images)
    return list(torch.autograd.grad(F.cross_entropy(logits, episode.query_labels), start))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_mamls(first_order: bool, steps: int) -> None:
    model, episode = _net(), _episode()
    expected = _by_hand(model, episode, 0.1, steps, second_order=not first_order)
    loss, _ = query_loss(build_maml(model, 0.1, first_order).clone(), episode, steps)
    loss.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)


def test_second_order_differs_from_first_order() -> None:
    model, episode = _net(), _episode()
    second = _by_hand(model, episode, 0.1, 2, second_order=True)
    first = _by_hand(model, episode, 0.1, 2, second_order=False)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(first, second, strict=True))


def test_adapting_lowers_the_support_loss_and_leaves_the_model_as_it_was() -> None:
    model, episode = _net(), _episode()
    before = copy.deepcopy(model.state_dict())
    learner = build_maml(model, 0.1, first_order=True).clone()
    start = F.cross_entropy(learner(episode.support_images), episode.support_labels).item()
    adapt(learner, episode.support_images, episode.support_labels, 5)
    assert F.cross_entropy(learner(episode.support_images), episode.support_labels).item() < start
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_parameters_stay_and_the_rest_adapts() -> None:
    model, episode = _net(), _episode()
    for parameter in model.features.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    learner = build_maml(model, 0.1, first_order=False).clone()
    adapt(learner, episode.support_images, episode.support_labels, 1)
    after = dict(learner.module.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(after[name], parameter) == name.startswith("features"), name


def test_labels_outside_the_models_outputs_are_refused() -> None:
    learner = build_maml(_net(), 0.1, first_order=True).clone()
    episode = _episode(ways=4)
    with pytest.raises(InputError, match=r"labels: 3 is outside the model's 3 outputs"):
        adapt(learner, episode.support_images, episode.support_labels, 1)
