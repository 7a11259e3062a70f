"""Each algorithm, order and normalisation: both engines, and what the algorithms' equations say."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta import create_backbone
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.errors import InputError
from arelu_meta.meta import inner_loop
from arelu_meta.meta.engine import Engine, Inner, Learn2learnEngine, VectorizedEngine, build_engine
from arelu_meta.meta.evaluation import adapted_probabilities
from arelu_meta.meta.inner_loop import attach_loop, head_that_adapts_alone, step_weights
from arelu_meta.meta.normalization import NORMALIZATIONS, set_normalization, train_mode

ALGORITHMS = ("maml", "fomaml", "anil", "metasgd", "mamlpp", "reptile", "protonet")


def _tasks(count: int = 2, ways: int = 3, shots: int = 2, queries: int = 2) -> TaskBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(ways).repeat_interleave(per_class).repeat(count, 1)
        return torch.rand(count, ways * per_class, 1, 16, 16, generator=generator, dtype=torch.float64), labels

    return TaskBatch(*draw(shots), *draw(queries))


def _net(normalization: str = "transductive") -> nn.Module:
    torch.manual_seed(0)
    model = create_backbone("conv4_32", num_classes=3, in_chans=1, img_size=16, activation="arelu").double()
    set_normalization(model, normalization)
    train_mode(model, normalization)
    return model


def _run(
    kind: type[Any], inner: Inner, normalization: str, weights: list[float] | None, **arguments: Any
) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    model = _net(normalization)
    attach_loop(model, inner)
    engine: Engine = kind(model, inner, **arguments)
    engine.step_weights = weights
    measured = engine.meta_gradient(_tasks())
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return measured, gradients, dict(model.named_buffers())


def _assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    largest = max(value.abs().max().item() for value in expected.values() if value is not None)
    assert largest > 0
    for name, value in expected.items():
        mine = found[name]
        if value is None or not value.any():
            assert mine is None or not mine.any(), name
            continue
        # A bias before batch normalisation has a gradient of 0 up to rounding, so the largest of all counts, too.
        assert (mine - value).abs().max().item() <= 1e-8 * max(value.abs().max().item(), 1e-6 * largest), name


CASES: list[tuple[str, bool, str, str, float | None]] = [
    (algorithm, first_order, normalization, "all", None)
    for algorithm, first_order, normalization in itertools.product(ALGORITHMS, (False, True), NORMALIZATIONS)
    if not (first_order and algorithm in {"fomaml", "reptile", "protonet"})  # they have but one order
]
CASES += [("maml", order, "transductive", "activations", None) for order in (False, True)]
CASES += [("maml", False, "support", "all", 0.3), ("metasgd", False, "transductive", "head", 0.3)]
CASES += [("mamlpp", False, "transductive", "activations", None), ("maml", False, "support", "head", None)]


@pytest.mark.parametrize(("algorithm", "first_order", "normalization", "adapt", "act_lr"), CASES)
def test_both_engines_give_the_same_losses_and_meta_gradient(
    algorithm: str, first_order: bool, normalization: str, adapt: str, act_lr: float | None
) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    inner = Inner(0.05, 2, first_order, algorithm, adapt, act_lr)
    weights = step_weights(2, 0.05, 0.1) if algorithm == "mamlpp" else None
    expected_measures, expected, expected_buffers = _run(Learn2learnEngine, inner, normalization, weights)
    # All tasks at once, whatever a CPU is faster with: one at a time is nearly what learn2learn does.
    measures, found, buffers = _run(VectorizedEngine, inner, normalization, weights, task_chunk=2)
    _assert_same(found, expected)
    for one, other in zip(measures, expected_measures, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert buffers.keys() == expected_buffers.keys()
    for name, buffer in expected_buffers.items():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_every_algorithm_that_meta_trains_is_among_the_cases() -> None:
    assert set(ALGORITHMS) == set(inner_loop.ALGORITHMS) - set(inner_loop.BASELINES)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_averages_are_those_of_one_task_after_the_other_whatever_the_chunks(
    algorithm: str, momentum: float | None
) -> None:
    inner, found = Inner(0.05, 2, algorithm=algorithm), []
    for chunk in (1, 2, 3):
        model = _net("running")
        start = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        attach_loop(model, inner)
        VectorizedEngine(model, inner, task_chunk=chunk).meta_gradient(_tasks(3))
        found.append(dict(model.named_buffers()))
    assert all(not torch.equal(buffer, start[name]) for name, buffer in found[0].items())
    for other in found[1:]:
        for name, buffer in found[0].items():
            torch.testing.assert_close(other[name], buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_trying_the_engine_out_leaves_the_running_averages_alone() -> None:
    model, tasks = _net("running"), _tasks(3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    engine, _ = build_engine("auto", model, Inner(0.05, 2), "running", tasks.support_images[:2])
    assert isinstance(engine, VectorizedEngine)
    engine.settle_chunk(tasks)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_meta_batch_in_chunks_whose_last_is_odd_gives_the_whole_ones_gradient(algorithm: str) -> None:
    inner, found = Inner(0.05, 2, algorithm=algorithm), []
    for chunk in (3, 2):
        model = _net()
        attach_loop(model, inner)
        losses, _ = VectorizedEngine(model, inner, task_chunk=chunk).meta_gradient(_tasks(3))
        found.append((losses, {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=0)
    _assert_same(found[1][1], found[0][1])


@pytest.mark.parametrize(
    ("name", "normalization", "algorithm", "gate"),
    [
        ("test_efficientnet", "frozen", "anil", 0.0),
        ("test_byobnet", "transductive", "maml", 0.3),
        ("test_nfnet", "none", "metasgd", 0.3),
        ("test_vit", "none", "fomaml", 0.3),
    ],
)
def test_both_engines_agree_on_timms_backbones_with_a_gated_activation(
    name: str, normalization: str, algorithm: str, gate: float
) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    generator = torch.Generator().manual_seed(1)
    size = 160 if name == "test_vit" else 32
    labels = torch.arange(2).repeat(2, 1)
    images = torch.rand(2, 2, 2, 3, size, size, generator=generator, dtype=torch.float64)
    tasks = TaskBatch(images[0], labels, images[1], labels)
    found = []
    kinds: tuple[Callable[..., Engine], ...] = (Learn2learnEngine, partial(VectorizedEngine, task_chunk=2))
    for kind in kinds:
        torch.manual_seed(0)
        model = create_backbone(name, num_classes=2, activation="arelu", init="preserve").double()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".t"):
                parameter.data.fill_(gate)
            parameter.requires_grad_(not parameter_name.startswith(("stem", "conv_stem", "patch_embed")))
        set_normalization(model, normalization)
        train_mode(model, normalization)
        inner = Inner(0.02, 1, algorithm=algorithm)
        attach_loop(model, inner)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            losses, _ = kind(model, inner).meta_gradient(tasks)
        found.append((losses, {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=0)
    _assert_same(found[1][1], found[0][1])


def _by_hand(model: nn.Module, tasks: TaskBatch, inner: Inner, weights: list[float] | None) -> dict[str, torch.Tensor]:
    """The meta-gradient of what adapts everywhere, in plain autograd."""
    own = [name for name, _ in model.named_parameters() if not name.startswith("inner_loop")]
    adapted = [name for name in own if inner.adapted_part == "all" or name.startswith("head")]
    named = dict(model.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for number in range(len(tasks)):
        task = tasks[number]
        now: dict[str, Any] = {name: named[name] for name in own}
        for step in range(inner.steps):
            loss = F.cross_entropy(functional_call(model, now, (task.support_images,)), task.support_labels)
            gradients = torch.autograd.grad(loss, [now[name] for name in adapted], create_graph=not inner.first_order)
            for name, gradient in zip(adapted, gradients, strict=True):
                rate = model.inner_loop.rate(name, step)  # type: ignore[union-attr, operator]
                now[name] = now[name] - rate * gradient
            weight = weights[step] if weights else float(step == inner.steps - 1)
            logits = functional_call(model, now, (task.query_images,))
            total = total + weight * F.cross_entropy(logits, task.query_labels) / len(tasks)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("algorithm", ["maml", "anil", "metasgd", "mamlpp"])
def test_the_meta_gradient_is_the_one_that_the_equations_give(algorithm: str, first_order: bool) -> None:
    inner = Inner(0.05, 3, first_order, algorithm)
    weights = step_weights(3, 0.02, 0.1) if algorithm == "mamlpp" else None
    model = _net()
    attach_loop(model, inner)
    expected = _by_hand(model, _tasks(), inner, weights)
    _, found, _ = _run(VectorizedEngine, inner, "transductive", weights, task_chunk=2)
    _assert_same(found, expected)


@pytest.mark.parametrize(("algorithm", "shape"), [("metasgd", (3, 32)), ("mamlpp", (2,))])
def test_learned_rates_get_a_gradient_for_every_weight_or_for_every_layer_and_step(
    algorithm: str, shape: tuple[int, ...]
) -> None:
    _, found, _ = _run(VectorizedEngine, Inner(0.05, 2, algorithm=algorithm), "transductive", None, task_chunk=2)
    rate = found["inner_loop.learned.head/weight"]
    assert rate.shape == shape
    assert rate.any()


def test_reptile_moves_the_weights_towards_those_that_gradient_descent_on_the_task_leads_to() -> None:
    model, tasks, rate = _net(), _tasks(1), 0.05
    images = torch.cat([tasks.support_images[0], tasks.query_images[0]])
    labels = torch.cat([tasks.support_labels[0], tasks.query_labels[0]])
    descending = _net()
    optimizer = torch.optim.SGD(descending.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(descending(images), labels).backward()
        optimizer.step()
    VectorizedEngine(model, Inner(rate, 3, algorithm="reptile")).meta_gradient(tasks)
    for (name, start), end in zip(model.named_parameters(), descending.parameters(), strict=True):
        torch.testing.assert_close(start.grad, (start - end).detach(), rtol=1e-8, atol=1e-13, msg=name)


def test_adapting_the_activations_alone_leaves_every_weight_to_the_outer_loop() -> None:
    model = _net()
    loop = attach_loop(model, Inner(0.05, 1, adapt="activations"))
    assert len(loop.names) == 8  # alpha and beta of four layers
    assert all(name.endswith(("alpha", "beta")) for name in loop.names)


def test_what_leaves_nothing_to_adapt_is_refused() -> None:
    plain = create_backbone("conv4_32", num_classes=3, in_chans=1, img_size=16)
    with pytest.raises(InputError, match=r"meta\.adapt: 'activations' leaves nothing .*--model\.activation arelu"):
        attach_loop(plain, Inner(0.05, 1, adapt="activations"))
    with pytest.raises(InputError, match=r"meta\.adapt: 'activations' is not what anil adapts"):
        Inner(0.05, 1, algorithm="anil", adapt="activations")
    with pytest.raises(InputError, match=r"meta\.adapt: reptile .*give all"):
        Inner(0.05, 1, algorithm="reptile", adapt="head")


def test_all_losses_count_alike_at_the_start_and_the_last_alone_when_its_share_is_done() -> None:
    assert step_weights(4, 0.0, 0.1) == [0.25] * 4
    assert step_weights(4, 0.1, 0.1) == step_weights(4, 0.7, 0.1) == [0, 0, 0, 1]
    assert sum(step_weights(5, 0.03, 0.1)) == pytest.approx(1)


@pytest.mark.parametrize("normalization", ["support", "group", "none", "frozen"])
def test_a_query_is_classified_by_itself(normalization: str) -> None:
    model, tasks = _net(normalization).eval(), _tasks()
    alone = TaskBatch(tasks.support_images, tasks.support_labels, tasks.query_images[:, :1], tasks.query_labels[:, :1])
    together = adapted_probabilities(model, tasks, 0.05, 1)
    torch.testing.assert_close(adapted_probabilities(model, alone, 0.05, 1), together[:, :1])


def test_transductive_queries_are_classified_by_each_other() -> None:
    model, tasks = _net("transductive").eval(), _tasks()
    fewer = TaskBatch(tasks.support_images, tasks.support_labels, tasks.query_images[:, :2], tasks.query_labels[:, :2])
    together = adapted_probabilities(model, tasks, 0.05, 1)
    assert not torch.allclose(adapted_probabilities(model, fewer, 0.05, 1), together[:, :2])


@pytest.mark.parametrize(
    ("first_order", "normalization"), [(True, "transductive"), (False, "group"), (False, "support")]
)
@pytest.mark.parametrize("algorithm", ["anil", "mamlpp"])
def test_the_body_sees_each_image_once_a_meta_step_where_the_head_alone_adapts(
    algorithm: str, first_order: bool, normalization: str
) -> None:
    model, tasks = _net(normalization), _tasks(1)
    inner = Inner(0.05, 4, first_order, algorithm, "head")
    attach_loop(model, inner)
    engine = VectorizedEngine(model, inner, task_chunk=1)
    engine.meta_gradient(tasks)  # the first one finds out that the head acts last
    seen: list[int] = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    engine.meta_gradient(tasks)
    assert sum(seen) == tasks.support_images.shape[1] + tasks.query_images.shape[1]


def test_a_head_that_shares_a_weight_with_the_body_or_does_not_act_last_is_adapted_as_a_part_of_the_model() -> None:
    class Net(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.body, self.head, self.tied = nn.Linear(9, 9), nn.Linear(9, 9), tied
            if tied:
                self.body.weight = self.head.weight

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(images.flatten(1)).tanh())
            return logits if self.tied else logits * 2

    images = torch.rand(4, 1, 3, 3)
    for tied in (False, True):
        model = Net(tied)
        loop = attach_loop(model, Inner(0.1, 1, algorithm="anil"))
        assert head_that_adapts_alone(model, loop, images) is None
