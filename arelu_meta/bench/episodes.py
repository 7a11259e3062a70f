"""How many tasks a second: straight from tensors beside learn2learn's task sets, in the same run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arelu_meta.bench.timing import Contender, Row, make_row, time_in_turns
from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.episodes import TensorSampler, load_pool, load_whole
from arelu_meta.data.images import concatenate
from arelu_meta.data.loading import InputSpec
from arelu_meta.errors import import_learn2learn


@dataclass(frozen=True)
class Case:
    """A set-up.

    Args:
        data: data.name.
        side: of the images, in pixels.
        task: ways, shots, queries.
    """

    data: str
    side: int
    task: TaskConfig


CASES = {
    "mnist-5w1s": Case("mnist", 28, TaskConfig(5, 1, 15)),
    "mnist-5w5s": Case("mnist", 28, TaskConfig(5, 5, 15)),
    "digits-5w1s": Case("digits", 8, TaskConfig(5, 1, 15)),
}
PEER = "learn2learn"
CONTENDERS = ("tensors", "learn2learn", "learn2learn-tensors")
TASKS = 4
"""A contender's turn draws as many tasks; `median_ms` is for all of them."""


def episode_rows(cases: Iterable[str] = tuple(CASES), rounds: int = 5) -> list[Row]:
    """Time the drawing of a few tasks, as normalised images with labels, by every contender in every case.

    Args:
        cases: keys of `CASES`.
        rounds: over which medians are taken.

    Returns:
        One row for each case and contender: `tensors` (ours), `learn2learn` (its `Taskset` over a data set that decodes
        and normalises each image, as its examples do) and `learn2learn-tensors` (the same over tensors that are ready
        in memory).

    Raises:
        MissingExtraError: if learn2learn is not installed.
        InputError: if the data is not there.
    """
    return [row for name in cases for row in _case_rows(name, CASES[name], rounds)]


def _case_rows(name: str, case: Case, rounds: int) -> list[Row]:
    import_learn2learn("bench episodes")
    images = concatenate(load_whole(DataConfig(name=case.data)))
    inputs = InputSpec(case.side, 1, (0.5,), (0.5,))
    pool = load_pool(images, inputs)
    ready = pool.images(range(len(pool.labels)))
    labels = pool.labels.tolist()

    def decode(index: int) -> tuple[Tensor, int]:
        from torchvision.transforms.functional import normalize, to_tensor

        return normalize(to_tensor(images[index][0].convert("L")), [0.5], [0.5]), labels[index]

    ours = TensorSampler(pool, case.task, "bench")
    samplers: dict[str, Callable[[], object]] = {
        "tensors": lambda: ours.batch(range(TASKS)),
        "learn2learn": _taskset(_Items(labels, decode), case.task),
        "learn2learn-tensors": _taskset(_Items(labels, lambda index: (ready[index], labels[index])), case.task),
    }
    # Each draw makes new tasks: nothing is kept for a backward, so that memory is that of the tasks alone.
    times = time_in_turns({key: Contender(partial(_draw, draw)) for key, draw in samplers.items()}, rounds)
    size = case.task.ways * (case.task.shots + case.task.queries)
    kept = TASKS * size * (case.side**2 * 4 + 8)
    return [make_row(name, contender, PEER, times, kept) for contender in CONTENDERS]


def _draw(draw: Callable[[], object], _: object) -> object:
    return draw()


class _Items(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, labels: list[int], read: Callable[[int], tuple[Tensor, int]]) -> None:
        self.targets, self.read = labels, read

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index)


def _taskset(items: _Items, task: TaskConfig) -> Callable[[], object]:
    """Make learn2learn's task set as its examples do; its index of labels is built once, outside the clock."""
    l2l = import_learn2learn("bench episodes")
    indices: dict[int, list[int]] = {}
    for index, label in enumerate(items.targets):
        indices.setdefault(label, []).append(index)
    dataset: Any = l2l.data.MetaDataset(
        items, indices_to_labels=dict(enumerate(items.targets)), labels_to_indices=indices
    )
    transforms = [
        l2l.data.transforms.NWays(dataset, n=task.ways),
        l2l.data.transforms.KShots(dataset, k=task.shots + task.queries),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    tasks = l2l.data.Taskset(dataset, task_transforms=transforms)
    return lambda: [tasks.sample() for _ in range(TASKS)]
