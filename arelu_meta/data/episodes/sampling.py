"""Tasks straight from a pool's tensors, a whole meta-batch at once."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arelu_meta.config import TaskConfig
from arelu_meta.data.episodes.pool import Pool
from arelu_meta.data.episodes.tasks import Episode, TaskBatch
from arelu_meta.data.images import Labels
from arelu_meta.errors import InputError

Floats = np.ndarray[Any, np.dtype[np.float64]]


class TensorSampler:
    """Draws a whole meta-batch of tasks at once, straight from a pool's tensors; it needs no learn2learn.

    A task's random numbers are a function of the seed and the task's number alone, so task i of a seed is the same in
    any batch, order and process. Classes, and images of a class, are drawn uniformly without replacement.

    Args:
        pool: the images; batches lie on the device of its pixels.
        task: ways, shots, queries.
        seed: of the tasks, any text.

    Raises:
        InputError: if there are fewer classes than ways, or a class has fewer images than shots plus queries.
    """

    def __init__(self, pool: Pool, task: TaskConfig, seed: str) -> None:
        self.pool, self.task = pool, task
        labels = pool.labels.cpu().numpy()
        self._order = np.argsort(labels, kind="stable")
        _, self._first, self._sizes = np.unique(labels[self._order], return_index=True, return_counts=True)
        self._groups = (
            None if pool.groups is None else _Groups(pool.groups.cpu().numpy()[self._order[self._first]], task)
        )
        if len(self._sizes) < task.ways:
            raise InputError(
                f"task.ways: {task.ways} is more than the {len(self._sizes)} classes here; "
                f"give at most {len(self._sizes)}"
            )
        if self._sizes.min() < task.shots + task.queries:
            raise InputError(
                f"task.shots + task.queries: {task.shots} + {task.queries} is more than the smallest class has "
                f"({self._sizes.min()} images); give at most that many"
            )
        self._key = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))

    def positions(self, tasks: Sequence[int]) -> Labels:
        """Draw which images make up tasks.

        Args:
            tasks: their numbers, each at least 0.

        Returns:
            Shape (tasks, ways, shots + queries), int64: places in the pool.
        """
        ways, per_class = self.task.ways, self.task.shots + self.task.queries
        numbers = np.asarray(tasks, dtype=np.uint64)
        count = ways * (1 + per_class)
        draws = _uniform(self._key, numbers, count + 1)
        if self._groups is None:
            classes = _without_replacement(draws[:, :ways], np.array(len(self._sizes)))
        else:
            classes = self._groups.classes(draws[:, count], draws[:, :ways])
        members = _without_replacement(draws[:, ways:count].reshape(-1, ways, per_class), self._sizes[classes])
        found: Labels = self._order[self._first[classes][..., None] + members]
        return found

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers and gather their images at once."""
        ways, shots = self.task.ways, self.task.shots
        positions = torch.from_numpy(self.positions(tasks)).to(self.pool.pixels.device)

        def gather(part: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.arange(ways, device=part.device).repeat_interleave(part.shape[2])
            return self.pool.images(part.flatten(1)), labels.repeat(len(part), 1)

        return TaskBatch(*gather(positions[:, :, :shots]), *gather(positions[:, :, shots:]))

    def sample(self, index: int) -> Episode:
        """Draw task number `index`."""
        return self.batch([index])[0]


class _Groups:
    """Classes by group, such as characters by alphabet; groups with fewer classes than ways are never drawn.

    Args:
        groups: each class's, shape (classes,), int64.
        task: ways.

    Raises:
        InputError: if no group has enough classes.
    """

    def __init__(self, groups: Labels, task: TaskConfig) -> None:
        self._order = np.argsort(groups, kind="stable")
        _, first, sizes = np.unique(groups[self._order], return_index=True, return_counts=True)
        if sizes.max() < task.ways:
            raise InputError(
                f"task.ways: {task.ways} is more than the {sizes.max()} classes of the largest group here; "
                f"give at most {sizes.max()}"
            )
        self._first, self._sizes = first[sizes >= task.ways], sizes[sizes >= task.ways]

    def classes(self, which: Floats, draws: Floats) -> Labels:
        """Draw each task's group and classes from numbers in [0, 1), shape (tasks,) and (tasks, ways)."""
        group = (which * len(self._sizes)).astype(np.int64)
        found: Labels = self._order[self._first[group][:, None] + _without_replacement(draws, self._sizes[group])]
        return found


def _uniform(key: np.uint64, tasks: np.ndarray[Any, np.dtype[np.uint64]], draws: int) -> Floats:
    """Hash (key, task, draw) to numbers in [0, 1), shape (tasks, draws).

    Source: SplitMix64's finaliser, Steele, Lea and Flood 2014, applied once for the task and once for the draw.
    """
    stream = _mix(key + tasks * np.uint64(0x9E3779B97F4A7C15))
    counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    return np.ldexp((_mix(stream[:, None] + counters) >> np.uint64(11)).astype(np.float64), -53)


def _mix(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _without_replacement(draws: Floats, counts: Labels) -> Labels:
    """Turn uniform numbers (…, k) into k different places below `counts` (…), every ordered choice equally likely."""
    chosen: list[Labels] = []  # ascending
    places = []
    for number in range(draws.shape[-1]):
        place = (draws[..., number] * (counts - number)).astype(np.int64)
        for earlier in chosen:  # skip what is taken: the place counts those that are left
            place = place + (place >= earlier)
        places.append(place)
        chosen = _insert(chosen, place)
    return np.stack(places, -1)


def _insert(ascending: list[Labels], new: Labels) -> list[Labels]:
    result = []
    for value in ascending:
        result.append(np.minimum(value, new))
        new = np.maximum(value, new)
    return [*result, new]
