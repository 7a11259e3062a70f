"""Swapped models in the meta-learning loops of others: learn2learn's wrappers, and functional code as `higher`'s."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from arelu_meta import meta_gradient, swap_activations
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.meta.normalization import set_normalization

WAYS, RATE = 3, 0.01


def network(init: str) -> nn.Module:
    """A timm model that calls some of its activations several times, in float64."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=WAYS)
    swap_activations(model, "arelu", init=init)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            nn.init.constant_(module.t, 0.3)
    set_normalization(model, "transductive")  # gradients are of a size to compare
    return model.double().eval()


def task(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS)
    images = [torch.randn(WAYS, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    return images[0], labels, images[1], labels


def scalars_of(model: nn.Module) -> list[str]:
    homes = {name for name, module in model.named_modules() if isinstance(module, AReLU | GatedAReLU)}
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in homes]


def ours(model: nn.Module, order: int) -> dict[str, Tensor]:
    model.zero_grad()
    meta_gradient(model, [task()], inner_lr=RATE, inner_steps=2, order=order)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], scalars: list[str]) -> None:
    assert found.keys() == expected.keys()
    assert scalars
    assert set(scalars) <= found.keys()
    assert max(found[name].abs().max() for name in scalars) > 0
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("init", ["paper", "preserve"])
@pytest.mark.parametrize("first_order", [False, True])
def test_learn2learns_maml_adapts_a_swapped_models_scalars(init: str, first_order: bool) -> None:
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    model = network(init)
    expected = ours(model, 1 if first_order else 2)
    model.zero_grad()
    known, labels, asked, asked_labels = task()
    learner = l2l.algorithms.MAML(model, lr=RATE, first_order=first_order).clone()
    for _ in range(2):
        learner.adapt(F.cross_entropy(learner(known), labels))
    F.cross_entropy(learner(asked), asked_labels).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    same(found, expected, scalars_of(model))


@pytest.mark.parametrize("init", ["paper", "preserve"])
def test_functional_code_as_highers_differentiates_through_a_swapped_models_steps(init: str) -> None:
    model = network(init)
    expected = ours(model, 2)
    known, labels, asked, asked_labels = task()
    start = dict(model.named_parameters())
    weights: dict[str, Tensor] = dict(start)
    for _ in range(2):
        loss = F.cross_entropy(functional_call(model, weights, (known,)), labels)
        steps = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - RATE * step for (name, w), step in zip(weights.items(), steps, strict=True)}
    loss = F.cross_entropy(functional_call(model, weights, (asked,)), asked_labels)
    found = dict(zip(start, torch.autograd.grad(loss, list(start.values())), strict=True))
    same(found, expected, scalars_of(model))


def test_torch_func_maps_over_the_scalars_of_a_swapped_model() -> None:
    model = network("preserve")
    known, labels, _, _ = task()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (known,)), labels)

    weights = {name: p.detach() for name, p in model.named_parameters() if name in scalars_of(model)}
    stacked = {name: torch.stack([w, w + 0.1]) for name, w in weights.items()}
    together = torch.vmap(torch.func.grad(loss))(stacked)
    for place in range(2):
        alone = torch.func.grad(loss)({name: w[place] for name, w in stacked.items()})
        torch.testing.assert_close({name: w[place] for name, w in together.items()}, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("wrapper", ["MetaSGD", "GBML"])
def test_learn2learns_other_wrappers_take_a_swapped_model(wrapper: str) -> None:
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    model = network("paper")
    known, labels, asked, asked_labels = task()
    if wrapper == "MetaSGD":
        learner = l2l.algorithms.MetaSGD(model, lr=RATE).clone()
    else:
        learner = l2l.algorithms.GBML(model, lambda p: l2l.nn.Scale(p.shape), lr=RATE, adapt_transform=False).clone()
    before = F.cross_entropy(learner(known), labels)
    learner.adapt(before)
    assert F.cross_entropy(learner(known), labels) != before
    F.cross_entropy(learner(asked), asked_labels).backward()
    gradients = dict(model.named_parameters())
    assert all(gradients[name].grad is not None for name in scalars_of(model))
