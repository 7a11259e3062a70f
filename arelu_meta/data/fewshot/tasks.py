"""What a task is: support and query images of a few classes; and what draws tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Episode:
    """One task.

    Args:
        support_images: shape (ways * shots, channels, height, width), float32, normalised.
        support_labels: shape (ways * shots,), int64 in [0, ways).
        query_images: shape (ways * queries, channels, height, width), float32, normalised.
        query_labels: shape (ways * queries,), int64 in [0, ways).
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    def to(self, device: torch.device) -> "Episode":
        """Return the task on a device."""
        parts = (self.support_images, self.support_labels, self.query_images, self.query_labels)
        return Episode(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of one size, stacked: every tensor of an `Episode` with a leading dimension of tasks.

    Args:
        support_images: shape (tasks, ways * shots, channels, height, width), float32, normalised.
        support_labels: shape (tasks, ways * shots), int64 in [0, ways).
        query_images: shape (tasks, ways * queries, channels, height, width), float32, normalised.
        query_labels: shape (tasks, ways * queries), int64 in [0, ways).
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.support_images, self.support_labels, self.query_images, self.query_labels

    def __len__(self) -> int:
        return len(self.support_labels)

    def __getitem__(self, number: int) -> Episode:
        """Return one of the tasks."""
        return Episode(*(part[number] for part in self._parts()))

    def split(self, size: int) -> Iterator["TaskBatch"]:
        """Yield batches of at most `size` tasks."""
        for first in range(0, len(self), size):
            yield TaskBatch(*(part[first : first + size] for part in self._parts()))

    def to(self, device: torch.device) -> "TaskBatch":
        """Return the tasks on a device."""
        return TaskBatch(*(part.to(device) for part in self._parts()))


class Sampler(Protocol):
    """Draws tasks; task i of a seed is always the same."""

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers."""
        ...
