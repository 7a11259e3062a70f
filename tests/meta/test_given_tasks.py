"""Tasks in the forms in which people write them, for `meta_gradient` and for `metatrain`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta import meta_gradient, swap_activations
from arelu_meta.data.fewshot.given_tasks import GivenTasks, as_task
from arelu_meta.data.fewshot.tasks import Episode, TaskBatch
from arelu_meta.errors import InputError, RunError

WAYS, SHOTS, QUERIES = 3, 2, 4
Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def parts_of(seed: int, dtype: torch.dtype = torch.float64) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(WAYS * count, 1, 6, 6, generator=generator, dtype=dtype) for count in (SHOTS, QUERIES)]
    labels = [torch.arange(WAYS).repeat_interleave(count) for count in (SHOTS, QUERIES)]
    return images[0], labels[0], images[1], labels[1]


def drawn_whole(parts: Parts) -> tuple[Tensor, Tensor]:
    """Lay a task out as learn2learn draws it: class by class, support images first."""
    known, _, asked, _ = parts
    by_class = torch.cat([known.unflatten(0, (WAYS, SHOTS)), asked.unflatten(0, (WAYS, QUERIES))], 1)
    return by_class.flatten(0, 1), torch.arange(WAYS).repeat_interleave(SHOTS + QUERIES)


FORMS: dict[str, Callable[[Parts], Any]] = {
    "four tensors": lambda parts: parts,
    "a list of arrays": lambda parts: [part.numpy() for part in parts],
    "labels of another type": lambda parts: (parts[0], parts[1].int(), parts[2], parts[3].to(torch.uint8)),
    "easyfsl's five": lambda parts: (*parts, [7, 1, 4]),
    "two pairs": lambda parts: (parts[:2], parts[2:]),
    "support and query": lambda parts: {"support": parts[:2], "query": parts[2:]},
    "train and test": lambda parts: {"train": list(parts[:2]), "test": list(parts[2:])},
    "an episode": lambda parts: Episode(*parts),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, WAYS)
    )
    swap_activations(net, "arelu", init="paper", example=torch.zeros(2, 1, 6, 6))
    return net.double()


def gradients(net: nn.Module, tasks: Any, **options: Any) -> tuple[Tensor, list[Tensor]]:
    net.zero_grad()
    losses, _ = meta_gradient(net, tasks, **{"inner_lr": 0.3, "inner_steps": 3, **options})
    return losses, [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def learn2learns(net: nn.Module, tasks: Sequence[Parts], order: int) -> tuple[Tensor, list[Tensor]]:
    """Write the meta-step as learn2learn's own examples do."""
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    net.zero_grad()
    maml, losses = l2l.algorithms.MAML(net, lr=0.3, first_order=order == 1), []
    for known, labels, asked, asked_labels in tasks:
        learner = maml.clone()
        for _ in range(3):
            learner.adapt(F.cross_entropy(learner(known), labels))
        losses.append(F.cross_entropy(learner(asked), asked_labels))
        (losses[-1] / len(tasks)).backward()
    found = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    return torch.stack(losses).detach(), found


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradient_is_learn2learns_to_eight_digits(order: int) -> None:
    net, tasks = network(), [parts_of(seed) for seed in range(4)]
    losses, found = gradients(net, tasks, order=order)
    theirs, expected = learn2learns(net, tasks, order)
    assert len(found) == len(expected) == len(list(net.parameters()))
    torch.testing.assert_close(losses, theirs, rtol=0, atol=1e-8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert max(gradient.abs().max() for gradient in found) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_meta_gradient_takes_tasks_in_every_form(form: str) -> None:
    net, tasks = network(), [parts_of(seed) for seed in range(3)]
    expected = gradients(net, TaskBatch(*(torch.stack(part) for part in zip(*tasks, strict=True))))
    found = gradients(net, (FORMS[form](parts) for parts in tasks))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_learn2learn_task_set_is_taken_as_it_comes() -> None:
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    images, labels = torch.randn(48, 1, 6, 6, dtype=torch.float64), torch.arange(8).repeat(6)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    kinds = l2l.data.transforms
    transforms = [kinds.NWays(dataset, WAYS), kinds.KShots(dataset, 4), kinds.LoadData(dataset)]
    transforms += [kinds.RemapLabels(dataset), kinds.ConsecutiveLabels(dataset)]
    limited = l2l.data.Taskset(dataset, transforms, num_tasks=5)
    losses, _ = gradients(network(), limited)
    assert losses.shape == (5,)
    endless = l2l.data.Taskset(dataset, transforms)
    assert gradients(network(), itertools.islice(endless, 2))[0].shape == (2,)
    with pytest.raises(InputError, match=r"^tasks: this task set draws tasks without end; give some of them"):
        meta_gradient(network(), endless, 0.1)
    task = as_task(limited[0], 0)
    assert task.support_labels.bincount().tolist() == task.query_labels.bincount().tolist() == [2] * WAYS


def test_of_images_with_labels_the_first_of_each_class_are_support() -> None:
    parts = parts_of(0)
    images, labels = drawn_whole(parts)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).sort(stable=True).values
    task = as_task((images[order], 10 * labels[order]), 0, SHOTS)
    torch.testing.assert_close(task, Episode(*parts), rtol=0, atol=0)


X, Y = torch.zeros(4, 1, 6, 6), torch.tensor([0, 0, 1, 1])
WRONG: dict[str, tuple[Any, str]] = {
    "no iterable": (5, "5 is no iterable of tasks"),
    "a text": ("tasks", "'tasks' is no iterable of tasks"),
    "nothing": ([], "none given; give at least one"),
    "three parts": ([(X, Y, X)], "task 0 is of another form; give support images"),
    "lists": ([(X, Y, X, Y), ([1], [1], [1], [1])], "task 1 is of another form"),
    "a mapping of one": ([{"support": (X, Y)}], "task 0 is of another form"),
    "fewer labels": ([(X, Y[:3], X, Y)], "task 0 has images of shape (4, 1, 6, 6) with labels of shape (3,)"),
    "labels of floats": ([(X, Y.float(), X, Y)], "torch.float32; give one int64 label an image"),
    "bytes": ([(X.byte(), Y, X, Y)], "task 0 has images of torch.uint8; give floats"),
    "a negative label": ([(X, Y, X, Y - 1)], "task 0 has the label -1; give labels from 0"),
    "one image of a class": ([(X[:3], torch.tensor([0, 0, 1]))], "task 0 has a class of 1 images; give 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tasks_of_another_form_are_told_in_a_sentence(case: str) -> None:
    tasks, sentence = WRONG[case]
    with pytest.raises(InputError) as caught:
        meta_gradient(network().float(), tasks, 0.1)
    assert str(caught.value).startswith("tasks: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": 3}, "order: 3 is not allowed; give 1 or 2"),
        ({"inner_steps": 0}, "inner_steps: 0 is not allowed; give at least 1"),
        ({"model": "resnet18"}, "model: 'resnet18' is no torch.nn.Module; give one that maps images to logits"),
    ],
)
def test_other_arguments_are_told_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        meta_gradient(**{"model": network(), "tasks": [parts_of(0)], "inner_lr": 0.1, **options})
    assert str(caught.value) == sentence


@pytest.mark.parametrize("part", [1, 3])
def test_a_label_beyond_the_models_outputs_is_told_in_a_sentence(part: int) -> None:
    task = list(parts_of(0))
    task[part] = task[part] + 1
    with pytest.raises(InputError, match=r"^labels: 3 is outside the model's 3 outputs$"):
        meta_gradient(network(), [task], 0.1)


# A run's tasks, by their numbers


def numbered(number: int) -> Parts:
    x, y = torch.full((2, 1, 1, 1), float(number)), torch.arange(2)
    return x, y, x, y


def numbers_of(tasks: GivenTasks, which: Sequence[int]) -> list[int]:
    return tasks.batch(which).support_images[:, 0, 0, 0, 0].long().tolist()


def endless() -> Iterator[Parts]:
    return map(numbered, itertools.count())


def test_after_the_last_task_of_a_list_comes_the_first() -> None:
    tasks = GivenTasks([numbered(number) for number in range(5)])
    assert tasks.count == 5
    assert numbers_of(tasks, range(3, 8)) == [3, 4, 0, 1, 2]


def test_a_loader_is_begun_anew_and_a_generator_that_ended_says_so() -> None:
    dataset: Any = [numbered(number) for number in range(3)]
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=None)
    assert numbers_of(GivenTasks(loader), range(7)) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(RunError, match=r"^tasks: it ended after 3 tasks and cannot be begun anew; give more"):
        GivenTasks(map(numbered, range(3))).batch(range(4))


def test_a_generator_keeps_no_more_than_what_was_asked_for_last() -> None:
    tasks = GivenTasks(endless())
    assert numbers_of(tasks, range(4, 8)) == numbers_of(tasks, range(4, 8)) == [4, 5, 6, 7]
    assert tasks._stream is not None
    assert len(tasks._stream._kept) == 4
    with pytest.raises(RunError, match="cannot be begun anew"):
        tasks.batch([3])


def test_a_fifth_of_a_list_is_held_out_and_of_a_generator_what_follows() -> None:
    train, test = GivenTasks([numbered(number) for number in range(20)]).hold_out(100, seed=3)
    drawn = [set(numbers_of(part, range(40))) for part in (train, test)]
    assert [len(part) for part in drawn] == [16, 4]
    assert drawn[0] | drawn[1] == set(range(20))
    train, test = GivenTasks(endless()).hold_out(6, seed=3)
    assert numbers_of(train, range(3)) == [0, 1, 2]
    assert numbers_of(test, range(3)) == [6, 7, 8]
    with pytest.raises(InputError, match=r"^tasks: 2 given; give 3 or more, or others to test on as test$"):
        GivenTasks([numbered(0), numbered(1)]).hold_out(6, seed=3)


def test_tasks_of_different_sizes_make_no_run() -> None:
    larger = [torch.cat([part, part]) for part in numbered(1)]
    with pytest.raises(InputError, match=r"^tasks: task 1 has support and query images of shapes \(\(4, 1, 1, 1\)"):
        GivenTasks([numbered(0), larger]).batch(range(2))
    assert np.isfinite(meta_gradient(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), [numbered(0), larger], 0.1)[0]).all()
