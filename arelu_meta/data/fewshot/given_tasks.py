"""Tasks that Python code hands over: learn2learn's and easyfsl's, a list, a loader, or one's own generator."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arelu_meta.data.fewshot.tasks import Episode, TaskBatch
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, RunError, shown

_TEST_SHARE = 5  # of a list of tasks without any to test on, every fifth is held out
_FORMS = (
    "give support images, support labels, query images, query labels, or images with labels as learn2learn draws them"
)


def as_task(item: object, number: int, shots: int | None = None, where: str = "tasks") -> Episode:
    """Take one task in any of the forms in which people write them.

    Args:
        item: an `Episode`; or support images, support labels, query images, query labels (a fifth part, as easyfsl's
            true classes, is passed over); or two pairs of images and labels, the support set's and the queries'; or
            these pairs by name (`support` and `query`, or `train` and `test`); or, as learn2learn draws it, images with
            their labels, of each class the first of which are its support images. Tensors or arrays: images of floats
            as the model takes them, one on the first dimension each; one whole number an image for a label.
        number: of the task, for errors.
        shots: how many images of a class are support where a task is images with labels; default: half of them.
        where: what an error starts with.

    Raises:
        InputError: if it has another form.
    """
    if isinstance(item, Episode):
        return item
    parts = _parts_of(item)
    if len(parts) not in (2, 4, 5) or not all(isinstance(part, Tensor | np.ndarray) for part in parts[:4]):
        raise InputError(f"{where}: task {number} is of another form; {_FORMS}")
    tensors = [torch.as_tensor(part) for part in parts[:4]]
    for images, labels in zip(tensors[::2], tensors[1::2], strict=True):
        _check_labelled(images, labels, number, where)
    if len(tensors) == 2:
        return _divided(tensors[0], tensors[1], number, shots, where)
    return Episode(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())


def _parts_of(item: object) -> list[Any]:
    if isinstance(item, Mapping):
        names = ("support", "query") if "support" in item else ("train", "test")
        item = [item[name] for name in names if name in item]
    parts = list(item) if isinstance(item, tuple | list) else []
    if len(parts) == 2 and all(isinstance(part, tuple | list) and len(part) == 2 for part in parts):
        return [*parts[0], *parts[1]]
    return parts


def _check_labelled(images: Tensor, labels: Tensor, number: int, where: str) -> None:
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not whole or images.dim() < 2 or not len(images) == len(labels) > 0:
        raise InputError(
            f"{where}: task {number} has images of shape {tuple(images.shape)} with labels of shape "
            f"{tuple(labels.shape)}, {labels.dtype}; give one int64 label an image"
        )
    if int(labels.min()) < 0:
        raise InputError(f"{where}: task {number} has the label {int(labels.min())}; give labels from 0")
    if not images.is_floating_point():
        raise InputError(f"{where}: task {number} has images of {images.dtype}; give floats, as the model takes them")


def _divided(images: Tensor, labels: Tensor, number: int, shots: int | None, where: str) -> Episode:
    """Take of each class the first images for support, and the others for queries; number the classes from 0."""
    classes, labels = labels.unique(return_inverse=True)
    support, query = [], []
    for label in range(len(classes)):
        of_class = (labels == label).nonzero().flatten()
        count = len(of_class) // 2 if shots is None else shots
        if not 0 < count < len(of_class):
            least = "2: one for support, one to ask" if shots is None else f"more than task.shots, which is {shots}"
            raise InputError(f"{where}: task {number} has a class of {len(of_class)} images; give {least}")
        support.append(of_class[:count])
        query.append(of_class[count:])
    known, asked = torch.cat(support), torch.cat(query)
    return Episode(images[known], labels[known], images[asked], labels[asked])


def iterate_tasks(tasks: Any, where: str = "tasks") -> Iterator[Any]:
    """Go through tasks that have an end.

    Args:
        tasks: an iterable of them, or a learn2learn task set.
        where: what an error starts with.

    Raises:
        InputError: if it is none, or has no end.
    """
    if getattr(tasks, "num_tasks", 1) == -1:  # learn2learn's default
        raise InputError(
            f"{where}: this task set draws tasks without end; give some of them, as itertools.islice(tasks, 16)"
        )
    if isinstance(tasks, str | bytes | Mapping) or not hasattr(tasks, "__iter__"):
        raise InputError(f"{where}: {shown(tasks)} is no iterable of tasks; give a list, a loader or a task set")
    return iter(tasks)


class _Stream:
    """Items of an iterable of unknown length by their numbers, which only grow."""

    def __init__(self, items: Any, where: str) -> None:
        self.items, self.where = items, where
        self._iterator, self._next = iter(items), 0
        self._kept: dict[int, Any] = {}

    def item(self, number: int) -> Any:
        """Read on to an item; one that was let go of begins the iterable anew."""
        if number < self._next and number not in self._kept:
            self._begin_anew()
            self._next, self._kept = 0, {}
        while self._next <= number:
            self._kept[self._next] = self._read()
            self._next += 1
        return self._kept[number]

    def forget_before(self, number: int) -> None:
        """Let go of what came before."""
        self._kept = {key: item for key, item in self._kept.items() if key >= number}

    def _read(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            if self._next:
                self._begin_anew()
            try:
                return next(self._iterator)
            except StopIteration:
                raise InputError(f"{self.where}: none given; give at least one") from None

    def _begin_anew(self) -> None:
        again = iter(self.items)
        if again is self._iterator:
            raise RunError(
                f"{self.where}: it ended after {self._next} tasks and cannot be begun anew; give more, or a list"
            )
        self._iterator = again


class GivenTasks:
    """A run's tasks as they were handed over, by their numbers.

    Of a list, or a learn2learn task set of so many tasks, number i is item i, and after the last comes the first again.
    Any other iterable is read as far as it is needed, and begun anew when it has ended.

    Args:
        tasks: in any form that `as_task` takes.
        shots: see there.
        where: the argument that they were, for errors.

    Raises:
        InputError: if there is no task in it.
    """

    def __init__(self, tasks: Any, shots: int | None = None, where: str = "tasks") -> None:
        self.tasks, self.shots, self.where = tasks, shots, where
        count = _count(tasks)
        if count == 0:
            raise InputError(f"{where}: none given; give at least one")
        if count is None and (isinstance(tasks, str | bytes | Mapping) or not hasattr(tasks, "__iter__")):
            raise InputError(f"{where}: {shown(tasks)} is no iterable of tasks; give a list, a loader or a task set")
        self.numbers = None if count is None else list(range(count))
        self._stream = _Stream(tasks, where) if count is None else None
        self._offset, self._device = 0, torch.device("cpu")
        self.first = self.task(0)

    @property
    def count(self) -> int | None:
        """How many there are before they come again; None where only reading on would tell."""
        return None if self.numbers is None else len(self.numbers)

    def hold_out(self, trained: int, seed: int) -> tuple["GivenTasks", "GivenTasks"]:
        """Part tasks into those to train on and others to test on.

        Args:
            trained: how many the run trains on: where nobody knows how many there are, those after are tested on.
            seed: of the choice from a list, a fifth of which are tested on.

        Raises:
            InputError: if there are too few.
        """
        train, test = copy.copy(self), copy.copy(self)
        if self.numbers is None:
            test._offset = trained
            return train, test
        count = max(2, len(self.numbers) // _TEST_SHARE)
        if len(self.numbers) <= count:
            raise InputError(f"{self.where}: {len(self.numbers)} given; give 3 or more, or others to test on as test")
        order = np.random.default_rng(seed).permutation(self.numbers).tolist()
        train.numbers, test.numbers = sorted(order[count:]), sorted(order[:count])
        return train, test

    def to(self, device: torch.device) -> "GivenTasks":
        """Return the same tasks, to be given on a device."""
        moved = copy.copy(self)
        moved._device = device
        return moved

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Return tasks by their numbers, stacked, float32.

        Raises:
            InputError: if they are not all of one size.
        """
        found = [self.task(number) for number in tasks]
        for number, one in zip(tasks, found, strict=True):
            if (there := sizes_of(one)) != (here := sizes_of(self.first)):
                raise InputError(
                    f"{self.where}: task {number} has support and query images of shapes {there}, and the first of "
                    f"{here}; the tasks of a run are of one size (those of meta_gradient need not be)"
                )
        if self._stream is not None:
            self._stream.forget_before(min(tasks) + self._offset)
        whole = stack(found).to(self._device)
        return replace(whole, support_images=whole.support_images.float(), query_images=whole.query_images.float())

    def task(self, number: int) -> Episode:
        """Return one task.

        Args:
            number: from 0.
        """
        if self._stream is not None:
            number += self._offset
            return as_task(self._stream.item(number), number, self.shots, self.where)
        assert self.numbers is not None
        place = self.numbers[number % len(self.numbers)]
        return as_task(self.tasks[place], place, self.shots, self.where)


@dataclass(frozen=True)
class TaskSplits:
    """Tasks that were handed over, to train, to validate and to test on; `ClassSplits` are the same of images.

    Args:
        train: tasks to meta-train on.
        validation: tasks to choose the best checkpoint by, or None.
        test: tasks to test on.
        notes: what a reader of the results should know.
    """

    train: GivenTasks
    validation: GivenTasks | None
    test: GivenTasks
    notes: tuple[str, ...] = ()
    inverted: bool = False
    skipped: tuple[str, ...] = ()
    test_seen: int | None = None

    @classmethod
    def of(
        cls, train: GivenTasks, validation: GivenTasks | None, test: GivenTasks | None, trained: int, seed: int
    ) -> "TaskSplits":
        """Take what was handed over; without tasks to test on, some are held out.

        Args:
            train: to train on.
            validation: to choose the best checkpoint by, or None.
            test: to test on, or None.
            trained: see `GivenTasks.hold_out`.
            seed: likewise.

        Raises:
            InputError: if they do not go together.
        """
        what = "were handed over"
        if test is None:
            what = "are of the training tasks' source, held out"
            train, test = train.hold_out(trained, seed)
        for other in (validation, test):
            if other is not None and _ways_and_shape(other.first) != _ways_and_shape(train.first):
                raise InputError(
                    f"{other.where}: its tasks are of {_words(other.first)}, and those to train on of "
                    f"{_words(train.first)}; give tasks alike"
                )
        return cls(train, validation, test, (f"the test tasks {what}: whether their classes are unseen is not known",))

    def describe(self) -> dict[str, Any]:
        """Say what is known of every part, for split.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "notes": list(self.notes),
            "skipped": [],
            "train_classes": [],
            "train": [],
            "test": [],
            **{f"{name}_tasks": part.numbers for name, part in parts.items() if part is not None},
        }


def _ways_and_shape(task: Episode) -> tuple[int, tuple[int, ...]]:
    return ways_of(task), tuple(task.support_images.shape[1:])


def _words(task: Episode) -> str:
    ways, shape = _ways_and_shape(task)
    return f"{ways} classes of images of shape {shape}"


def is_dataset(data: Any) -> bool:
    """Return True for a data set of (image, label), False for whatever else might be tasks.

    Args:
        data: anything.
    """
    if isinstance(data, ImageSet):
        return True
    if hasattr(data, "num_tasks") or not _count(data):
        return False
    item = data[0]
    if isinstance(item, Mapping):
        return not item.keys() & {"support", "train"}
    if not isinstance(item, tuple | list) or len(item) != 2:
        return False
    label = item[1]
    return isinstance(label, str | int | np.generic) or (isinstance(label, Tensor | np.ndarray) and label.ndim == 0)


def ways_of(task: Episode) -> int:
    """Count a task's classes, by its largest label."""
    return int(max(task.support_labels.max(), task.query_labels.max())) + 1


def _count(tasks: Any) -> int | None:
    """Count tasks that go by numbers; None for what can only be read on."""
    if hasattr(tasks, "num_tasks"):  # learn2learn's: -1 for one without end
        return tasks.num_tasks if tasks.num_tasks > 0 else None
    if isinstance(tasks, str | bytes | Mapping) or not (hasattr(tasks, "__len__") and hasattr(tasks, "__getitem__")):
        return None
    return len(tasks)


def sizes_of(task: Episode) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a task's support and query images."""
    return tuple(task.support_images.shape), tuple(task.query_images.shape)


def stack(tasks: Sequence[Episode]) -> TaskBatch:
    """Stack tasks of one size.

    Args:
        tasks: at least one.
    """
    parts = ((one.support_images, one.support_labels, one.query_images, one.query_labels) for one in tasks)
    return TaskBatch(*(torch.stack(part) for part in zip(*parts, strict=True)))
