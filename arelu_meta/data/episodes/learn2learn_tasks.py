"""Tasks through learn2learn's task sets, one after the other: what its engine trains on."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from arelu_meta.config import TaskConfig
from arelu_meta.data.episodes.pool import Pool
from arelu_meta.data.episodes.tasks import Episode, TaskBatch
from arelu_meta.errors import InputError
from arelu_meta.extras import import_learn2learn


class _Indices(torch.utils.data.Dataset[tuple[int, int]]):
    """What learn2learn samples from: positions and labels; the images are gathered at once afterwards."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.labels[index]


class _WaysWithinGroup:
    """A task transform of learn2learn's kind: as its NWays, but all classes are of one group."""

    def __init__(self, dataset: Any, groups: list[int], ways: int, describe: Callable[[int], Any]) -> None:
        self.indices, self.ways, self.describe = dataset.labels_to_indices, ways, describe
        members: dict[int, list[int]] = {}
        for label, indices in sorted(self.indices.items()):
            members.setdefault(groups[indices[0]], []).append(label)
        self.groups = [labels for labels in members.values() if len(labels) >= ways]
        if not self.groups:
            most = max(map(len, members.values()))
            raise InputError(
                f"task.ways: {ways} is more than the {most} classes of the largest group here; give at most {most}"
            )

    def __call__(self, _: object) -> list[Any]:
        labels = random.sample(random.choice(self.groups), self.ways)
        return [self.describe(index) for label in labels for index in self.indices[label]]


class TaskSampler:
    """Draws tasks from a pool through learn2learn's task sets; task i of a seed is always the same.

    Args:
        pool: the images.
        task: ways, shots, queries.
        seed: of the tasks, any text.

    Raises:
        MissingExtraError: if learn2learn is not installed.
    """

    def __init__(self, pool: Pool, task: TaskConfig, seed: str) -> None:
        l2l = import_learn2learn()
        self.pool, self.task, self.seed = pool, task, seed
        dataset = l2l.data.MetaDataset(_Indices(pool.labels))
        classes = (
            l2l.data.transforms.NWays(dataset, n=task.ways)
            if pool.groups is None
            else _WaysWithinGroup(dataset, pool.groups.tolist(), task.ways, l2l.data.DataDescription)
        )
        transforms = [
            classes,
            l2l.data.transforms.KShots(dataset, k=task.shots + task.queries),
            l2l.data.transforms.LoadData(dataset),
            l2l.data.transforms.RemapLabels(dataset),
            l2l.data.transforms.ConsecutiveLabels(dataset),
        ]
        self.tasks = l2l.data.Taskset(dataset, task_transforms=transforms)

    def sample(self, index: int) -> Episode:
        """Draw task number `index`.

        Args:
            index: at least 0.

        Returns:
            The task, on the CPU. Python's random state is as before.
        """
        state = random.getstate()  # learn2learn draws from Python's global generator
        random.seed(f"{self.seed} {index}")
        try:
            positions, labels = self.tasks.sample()
        finally:
            random.setstate(state)
        per_class = self.task.shots + self.task.queries
        images = self.pool.images(positions)
        images = images.view(self.task.ways, per_class, *images.shape[1:])
        labels = labels.view(self.task.ways, per_class)
        shots = self.task.shots
        return Episode(
            images[:, :shots].flatten(0, 1),
            labels[:, :shots].flatten(),
            images[:, shots:].flatten(0, 1),
            labels[:, shots:].flatten(),
        )

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers, one after the other."""
        episodes = [self.sample(index) for index in tasks]
        return TaskBatch(
            torch.stack([one.support_images for one in episodes]),
            torch.stack([one.support_labels for one in episodes]),
            torch.stack([one.query_images for one in episodes]),
            torch.stack([one.query_labels for one in episodes]),
        )
