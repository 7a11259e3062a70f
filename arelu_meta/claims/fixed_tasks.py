"""Few-shot data for a study, the size of whose tasks nobody chooses."""

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.episodes import ClassSplits, load_class_splits
from arelu_meta.errors import InputError, counted


def resplit_classes(config: DataConfig, task: TaskConfig, seed: int) -> float:
    """Return how many test classes there are a training class where every seed divides the classes anew.

    Args:
        config: name and root.
        task: the study's.
        seed: the study's first.

    Returns:
        0 where the test classes are the same for all seeds.
    """
    one, other = (divide_for(config, task, number) for number in (seed, seed + 1))
    if set(one.test.names) == set(other.test.names):
        return 0.0
    return len(set(one.test.labels)) / len(set(one.train.labels))


def divide_for(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    """Divide data as `load_class_splits` does; what is too small is told without the flags that a study has not.

    Args:
        config: name and root.
        task: the study's.
        seed: of the division.

    Returns:
        Training, validation and test classes.

    Raises:
        InputError: if the data is missing or unusable, or has too few classes or images, naming it.
    """
    try:
        return load_class_splits(config, task, seed)
    except InputError as error:
        if not str(error).startswith("task."):
            raise
        flag, given = ("data.name", config.name) if config.root is None else ("data.root", config.root)
        raise InputError(
            f"{flag}: {given!r} is too small for this study's tasks of {task.ways} classes, "
            f"{counted(task.shots, 'image')} to learn from and {task.queries} to be judged on; give at least "
            f"{2 * task.ways} classes of {task.shots + task.queries} images"
        ) from error
