"""What an evaluation reads of its config; what it does not read is refused."""

from pathlib import Path

from arelu_meta.backbones.saving import read_spec
from arelu_meta.checking import flatten
from arelu_meta.config import EvaluateConfig
from arelu_meta.errors import InputError

_FOLDERS, _TASKS, _IMAGES = "with a support and a query folder", "of a meta-learner on tasks", "of a classifier"
_OTHERS = ("data.root", "data.name")  # other images than the run's
_OF_OTHERS = ("data.skip_broken", "data.download", "data.rotations")
_READ = {
    _FOLDERS: {"data.batch_size", "data.skip_broken"},
    _TASKS: {*_OTHERS, *_OF_OTHERS, "eval.tasks", "eval.inner_steps", "eval.against"}
    | {"task.shots", "task.queries", "task.alphabets"},
    _IMAGES: {*_OTHERS, "data.batch_size", "data.skip_broken", "data.download", "eval.against"},
}


def check_read(config: EvaluateConfig) -> None:
    """Refuse what an evaluation does not read: whoever gave it believes that it does something.

    Args:
        config: validated.

    Raises:
        InputError: naming the field, its value, and what does read it; or if the checkpoint cannot be read.
    """
    kind = _kind(config)
    given, plain = flatten(config), flatten(EvaluateConfig(config.checkpoint))
    changed = [name for name in given if given[name] != plain[name]]
    for name in changed:
        if name.startswith(("data.", "eval.", "task.")) and name not in _READ[kind]:
            readers = [other for other, names in _READ.items() if name in names]
            who = f"an evaluation {' or '.join(readers)} reads it" if readers else "it belongs to training"
            raise InputError(f"{name}: {given[name]!r} is not read by an evaluation {kind}, {who}; leave {name} out")
        if name == "run.precision" and kind == _FOLDERS:
            raise InputError(f"{name}: {given[name]!r} is not read by an evaluation {kind}; leave {name} out")
        if name in _OF_OTHERS and kind != _FOLDERS and not any(given[other] for other in _OTHERS):
            raise InputError(
                f"{name}: {given[name]!r} is read of other images than the run's own; give --data.root or --data.name "
                f"with it, or leave {name} out"
            )


def _kind(config: EvaluateConfig) -> str:
    if config.support is not None or config.query is not None:
        return _FOLDERS
    return _TASKS if read_spec(Path(config.checkpoint))[1].task == "metatrain" else _IMAGES
