import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from arelu_meta import create_backbone
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.errors import InputError
from arelu_meta.meta import engine as engine_module
from arelu_meta.meta.engine import (
    Engine,
    Inner,
    Learn2learnEngine,
    VectorizedEngine,
    build_engine,
)
from arelu_meta.meta.evaluation import adapted_probabilities
from arelu_meta.meta.normalization import NORMALIZATIONS, set_normalization, train_mode


def _tasks(count: int = 3, ways: int = 3, shots: int = 2, queries: int = 2, size: int = 28) -> TaskBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(ways).repeat_interleave(per_class).repeat(count, 1)
        images = torch.rand(count, ways * per_class, 1, size, size, generator=generator, dtype=torch.float64) * 0.2
        for image, label in zip(images.flatten(0, 1), labels.flatten().tolist(), strict=True):
            image[:, label * size // 4 : (label + 1) * size // 4] += 0.8  # each class has a bright bar of its own
        return images, labels

    return TaskBatch(*draw(shots), *draw(queries))


def _net(name: str, activation: str | None, size: int) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, num_classes=3, in_chans=1, img_size=size, activation=activation).double()


def _gradients(engine: Engine, model: nn.Module, tasks: TaskBatch) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    engine.meta_gradient(tasks)
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def _assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    # A bias before batch normalisation has a gradient of 0 up to rounding, so the largest of all counts, too.
    largest = max(value.abs().max().item() for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None or not found[name].any(), name
            continue
        assert found[name] is not None, name
        scale = max(value.abs().max().item(), 1e-6 * largest)
        assert (found[name] - value).abs().max().item() <= 1e-8 * scale, name


CASES = [
    ("mnist_conv", None, 28, "transductive"),
    ("mnist_conv", "arelu", 28, "transductive"),
    ("mnist_conv", "gelu", 28, "frozen"),
    ("mnist_linear", "arelu", 8, "transductive"),
    ("conv4_32", "arelu", 16, "transductive"),
    ("conv4_32", "arelu", 16, "frozen"),
]


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("name", "activation", "size", "normalization"), CASES)
def test_both_engines_give_the_same_losses_and_meta_gradient(
    name: str, activation: str | None, size: int, normalization: str, first_order: bool
) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    model, tasks, inner = _net(name, activation, size), _tasks(size=size), Inner(0.05, 3, first_order)
    set_normalization(model, normalization)
    train_mode(model, normalization)
    loop, together = Learn2learnEngine(model, inner), VectorizedEngine(model, inner)
    expected = _gradients(loop, model, tasks)
    _assert_same(_gradients(together, model, tasks), expected)
    for one, other in zip(loop.meta_gradient(tasks), together.meta_gradient(tasks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=0)


def test_second_order_and_first_order_differ() -> None:
    model, tasks = _net("mnist_conv", "arelu", 28), _tasks()
    second = _gradients(VectorizedEngine(model, Inner(0.05, 2)), model, tasks)
    first = _gradients(VectorizedEngine(model, Inner(0.05, 2, first_order=True)), model, tasks)
    assert any(
        not torch.allclose(one, other, rtol=1e-3)
        for one, other in zip(second.values(), first.values(), strict=True)
        if one is not None and other is not None
    )


def test_alphas_outside_their_limits_get_no_gradient_and_those_on_a_limit_do() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    model, tasks, inner = _net("mnist_conv", "arelu", 28), _tasks(), Inner(0.01, 2)
    alphas = [parameter for name, parameter in model.named_parameters() if "alpha" in name]
    for value, parameter in zip((0.99, 2.0, 0.5), alphas, strict=True):
        parameter.data.fill_(value)
    expected = _gradients(Learn2learnEngine(model, inner), model, tasks)
    found = _gradients(VectorizedEngine(model, inner), model, tasks)
    _assert_same(found, expected)
    learning = [value is not None and bool(value.any()) for name, value in found.items() if "alpha" in name]
    assert learning == [True, False, True]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_split_meta_batch_gives_the_same_gradient(chunk: int) -> None:
    model, tasks, inner = _net("mnist_conv", "arelu", 28), _tasks(), Inner(0.05, 2)
    whole = _gradients(VectorizedEngine(model, inner, task_chunk=3), model, tasks)
    _assert_same(_gradients(VectorizedEngine(model, inner, task_chunk=chunk), model, tasks), whole)


def test_little_free_memory_splits_the_meta_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tasks, inner = _net("mnist_conv", None, 28), _tasks(), Inner(0.05, 2)
    roomy, tight = VectorizedEngine(model, inner), VectorizedEngine(model, inner)
    expected = _gradients(roomy, model, tasks)
    monkeypatch.setattr(engine_module, "_free_bytes", lambda device: 1 << 20)
    _assert_same(_gradients(tight, model, tasks), expected)
    assert tight.task_chunk == 1
    assert (roomy.task_chunk or 0) >= 3


def test_tasks_too_large_for_a_processors_cache_are_computed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tasks, inner = _net("mnist_conv", None, 28), _tasks(), Inner(0.05, 2)
    together, apart = VectorizedEngine(model, inner), VectorizedEngine(model, inner)
    expected = _gradients(together, model, tasks)
    monkeypatch.setattr(engine_module, "_LARGE_TASK", 1 << 10)
    _assert_same(_gradients(apart, model, tasks), expected)
    assert apart.task_chunk == 1
    assert (together.task_chunk or 0) >= 3


def test_two_tasks_are_computed_one_at_a_time_on_a_cpu_and_three_together() -> None:
    model, inner = _net("mnist_conv", None, 28), Inner(0.05, 1)
    found = {}
    for count in (2, 3):
        engine = VectorizedEngine(model, inner)
        engine.settle_chunk(_tasks(count))
        found[count] = engine.task_chunk or 0
    assert found[2] == 1
    assert found[3] >= 3


@pytest.mark.parametrize("part", ["features", "head"])
def test_frozen_parameters_get_no_gradient_and_the_rest_is_as_learn2learns(part: str) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    model, tasks, inner = _net("mnist_conv", "arelu", 28), _tasks(), Inner(0.05, 2)
    model.get_submodule(part).requires_grad_(False)
    expected = _gradients(Learn2learnEngine(model, inner), model, tasks)
    found = _gradients(VectorizedEngine(model, inner), model, tasks)
    _assert_same(found, expected)
    assert all((value is None) == name.startswith(part) for name, value in found.items())


def test_biases_that_learn_beside_frozen_weights_are_as_learn2learns() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    model, tasks, inner = _net("mnist_conv", "arelu", 28), _tasks(), Inner(0.05, 2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("weight"))
    expected = _gradients(Learn2learnEngine(model, inner), model, tasks)
    _assert_same(_gradients(VectorizedEngine(model, inner), model, tasks), expected)


class _Depthwise(nn.Module):
    """What timm's backbones have and the small networks lack: strides, dilations, groups, no bias, odd pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4)
        self.same = nn.Conv2d(8, 4, 3, padding="same")
        self.wide = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.pool = nn.MaxPool2d(2)
        self.overlapping = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.tanh(self.depthwise(self.stem(x))))
        x = self.overlapping(self.wide(torch.tanh(self.same(x))))
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y


def test_strides_dilations_groups_and_odd_sizes_are_as_learn2learns() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    torch.manual_seed(0)
    model, tasks, inner = _Depthwise().double(), _tasks(size=17), Inner(0.2, 3)
    expected = _gradients(Learn2learnEngine(model, inner), model, tasks)
    _assert_same(_gradients(VectorizedEngine(model, inner), model, tasks), expected)


def _dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 3)).double()


def test_dropout_is_refused_with_the_engine_that_can() -> None:
    images = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64)
    with pytest.raises(InputError, match=r"^meta\.engine: 'vectorized' cannot .*; give learn2learn, which can$"):
        build_engine("vectorized", _dropping(), Inner(0.1, 1), "transductive", images)


def test_auto_takes_the_vectorized_engine_where_both_are_equal_and_says_why_not_elsewhere() -> None:
    images = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64)
    for normalization in NORMALIZATIONS:
        model = _net("conv4_32", "arelu", 16)
        set_normalization(model, normalization)
        train_mode(model, normalization)
        before = copy.deepcopy(model.state_dict())
        engine, note = build_engine("auto", model, Inner(0.1, 1), normalization, images)
        assert engine.name == "vectorized"
        assert "learn2learn" in note
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    engine, note = build_engine("auto", _dropping(), Inner(0.1, 1), "transductive", images)
    assert engine.name == "learn2learn"
    assert note.startswith("learn2learn engine, since torch.vmap cannot run this model (")


def test_adapted_probabilities_are_the_same_together_and_apart_and_know_the_support_classes() -> None:
    model, tasks = _net("mnist_conv", "arelu", 28).eval(), _tasks(shots=4)
    together = adapted_probabilities(model, tasks, 0.05, 60)
    torch.testing.assert_close(together, adapted_probabilities(model, tasks, 0.05, 60, vectorized=False))
    torch.testing.assert_close(together.sum(2), torch.ones(together.shape[:2], dtype=torch.float64))
    assert (together.argmax(2) == tasks.query_labels).double().mean() > 0.8
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_outside_the_models_outputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels: 3 is outside the model's 3 outputs"):
        VectorizedEngine(_net("mnist_conv", None, 28), Inner(0.1, 1)).meta_gradient(_tasks(ways=4))


@pytest.mark.parametrize("algorithm", ["maml", "mamlpp", "reptile", "protonet"])
@pytest.mark.parametrize("kind", [Learn2learnEngine, VectorizedEngine])
def test_more_support_images_of_one_class_weigh_no_more_than_one_of_another(kind: type[Any], algorithm: str) -> None:
    if kind is Learn2learnEngine:
        pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    tasks, inner = _tasks(shots=1, queries=2), Inner(0.5, 2, algorithm=algorithm)
    if algorithm == "reptile":  # which adapts to the queries, too
        tasks = replace(tasks, query_images=tasks.support_images, query_labels=tasks.support_labels)
    found = []
    for repeats in ([1, 1, 1], [1, 9, 2]):
        which = torch.arange(3).repeat_interleave(torch.tensor(repeats))
        unequal = replace(tasks, support_images=tasks.support_images[:, which], support_labels=which.repeat(3, 1))
        if algorithm == "reptile":
            unequal = replace(unequal, query_images=unequal.support_images, query_labels=unequal.support_labels)
        model = _net("mnist_conv", "arelu", 28)
        found.append(_gradients(kind(model, inner), model, unequal))
    _assert_same(found[1], found[0])
