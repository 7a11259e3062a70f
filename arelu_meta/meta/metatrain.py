"""The recipe of a meta-training run: from its config to class splits, model and trainer, to its results."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, provenance_of
from arelu_meta.backbones.from_config import (
    Head,
    build_with_head,
    check_forward,
    check_gates,
    check_model_config,
    with_start,
)
from arelu_meta.backbones.given_model import check_given, config_of_given, spec_of_given
from arelu_meta.backbones.networks import PAPER_NETS, is_given, zero_head
from arelu_meta.config import MetatrainConfig, ModelConfig, TaskConfig
from arelu_meta.data.fewshot.benchmarks import load_class_splits
from arelu_meta.data.fewshot.class_splits import ClassSplits, divide_given, note_seen
from arelu_meta.data.fewshot.given_tasks import GivenTasks, TaskSplits, is_dataset, ways_of
from arelu_meta.data.fewshot.task_sampler import unlabelled_images
from arelu_meta.data.image_folder import class_holders
from arelu_meta.data.image_io import Reading
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.named_datasets import GIVEN
from arelu_meta.data.own_datasets import as_image_dataset
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, import_learn2learn, shown
from arelu_meta.finetuning.cross_validation import check_single, member_configs, run_members
from arelu_meta.finetuning.optimizer import activation_parameters, check_optimizer_name, peak_rate
from arelu_meta.meta.algorithms import check_features
from arelu_meta.meta.inner_loop import BASELINES, COMPARING, Inner, InnerLoop, detach_loop, inner_of
from arelu_meta.meta.meta_trainer import MetaTrainer, OnEpoch
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.runs.distributed import Ranks, join
from arelu_meta.runs.reproducibility import prepare
from arelu_meta.runs.run_folder import RunFolder, check_apart, finished_results, open_run
from arelu_meta.validation import validate

_EPISODE_SIZE = 28


@dataclass(frozen=True)
class _Given:
    """What Python code handed over, in place of what the config would make."""

    model: nn.Module | None = None
    tasks: Any = None
    validation: Any = None
    test: Any = None
    on_epoch: OnEpoch | None = None


def metatrain(
    config: MetatrainConfig | None = None,
    model: nn.Module | None = None,
    tasks: Any = None,
    validation: Any = None,
    test: Any = None,
    *,
    head: str | None = None,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Meta-train on few-shot tasks and evaluate on tasks of unseen classes.

    Args:
        config: default: `MetatrainConfig()`, 5-way 1-shot on the embedded digits.
        model: a network of one's own that maps images to logits, as many as a task has classes; it is trained in place,
            and `meta.normalization` changes its batch normalisation. Default: the one that the config names.
        tasks: what to train on instead of the config's data. A data set of (image, label), whose classes are divided
            into those to train, to validate and to test on; or an iterable of tasks. A task is support images, support
            labels, query images and query labels, or images with labels as a learn2learn task set draws them, of which
            the first `task.shots` images of each class are support: tensors as the model takes them, labels from 0
            (`as_task` has every form). All tasks are of one size.
        validation: likewise: what the best weights are chosen by. Default: of a data set, classes are held out; of
            tasks nothing is, and the last weights are kept.
        test: likewise: what is tested on. Default: of a data set, classes are held out; of a list of tasks a fifth; of
            any other iterable those that follow the training's.
        head: the path of the model's head, as `fc`; default: it is found.
        on_epoch: called after each `eval.every` meta-steps with the row of metrics.csv: `step`, `train_loss`,
            `train_accuracy`, `validation_accuracy`.

    Returns:
        What results.json holds: among others `test_accuracy` (mean over tasks, a fraction), `test_low` and `test_high`
        (95 % interval), `test_n` (tasks), `normalization`, `notes`, `folder`. Over several seeds these are their mean
        and its interval.

    Raises:
        InputError: if something does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.

    Example:
        >>> import tempfile, torch
        >>> from arelu_meta import MetatrainConfig, metatrain
        >>> layers = [torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5)]
        >>> net = torch.nn.Sequential(*layers)
        >>> labels = torch.arange(5)
        >>> def draw():
        ...     means = torch.randn(5, 1, 8, 8)
        ...     return means + 0.3 * torch.randn(5, 1, 8, 8), labels, means + 0.3 * torch.randn(5, 1, 8, 8), labels
        >>> config = MetatrainConfig()
        >>> config.run.folder, config.run.pictures = tempfile.mkdtemp() + "/run", False
        >>> config.meta.steps, config.eval.every, config.eval.tasks = 4, 2, 10
        >>> seen = []
        >>> results = metatrain(config, net, [draw() for _ in range(50)], on_epoch=seen.append)  # doctest: +ELLIPSIS
        Sequential (given) ...
        >>> [row["step"] for row in seen], results["test_n"]
        ([2, 4], 10)
    """
    config = MetatrainConfig() if config is None else config
    validate(config, MetatrainConfig)
    if model is not None:
        config = _with_model(config, model, head)
    elif head is not None:
        raise InputError(f"head: {head!r} names the head of a model that is given, and none is; leave it out")
    else:
        check_model_config(config.model)
        config = replace(config, model=with_start(config.model))
    if config.model.activation in ("control:gain", "control:head10"):
        raise InputError(f"model.activation: {config.model.activation!r} is for finetune and claims; leave it out")
    check_optimizer_name(config.optim.name)
    check_read(config)
    config = resolve_head_init(config)
    ranks = join(config.run)
    given = _Given(model, *_read_given(config, tasks, validation, test), on_epoch)
    if given.tasks is not None:
        config = _with_tasks(config, given.tasks)
    if members := member_configs(config):
        _check_repeats(config, given)
        return run_members(
            config, members, partial(_member, ranks=ranks, given=given), ranks, partial(_check_member, given=given)
        )
    return _metatrain(config, ranks, given)


def _check_repeats(config: MetatrainConfig, given: _Given) -> None:
    """Refuse several seeds of a network that is made only once, or on tasks that can be read only once."""
    if given.model is not None:
        raise InputError(
            f"train.repeats: {config.train.repeats} needs a network that is made anew from its name, and one is given; "
            "leave it out"
        )
    if isinstance(given.tasks, GivenTasks) and given.tasks.count is None:
        raise InputError(
            f"train.repeats: {config.train.repeats} seeds each read the tasks from the first on; give a list of them"
        )


def _member(config: MetatrainConfig, ranks: Ranks, given: _Given) -> dict[str, Any]:
    """Do one of several runs, from its own random state."""
    prepare(config.run)
    return _metatrain(config, ranks, given)


def _check_member(folder: RunFolder, config: MetatrainConfig, given: _Given) -> None:
    folder.check_same(lambda _: config)
    folder.check_split(_load_splits(config, given).describe())


def _with_model(config: MetatrainConfig, model: nn.Module, head: str | None) -> MetatrainConfig:
    """Let a config say of a network that was given what it says of one that is made."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {shown(model)} is no torch.nn.Module; give one that maps images to logits")
    untouched = MetatrainConfig().model
    asked = {name: value for name, value in vars(config.model).items() if value != getattr(untouched, name)}
    return replace(config, model=config_of_given(model, ModelConfig(**asked), head))


def _read_given(config: MetatrainConfig, tasks: Any, validation: Any, test: Any) -> tuple[Any, Any, Any]:
    """Read data sets as labelled images; leave tasks as they are."""
    parts = {"tasks": tasks, "validation": validation, "test": test}
    if tasks is None:
        if unread := next((name for name, part in parts.items() if part is not None), None):
            raise InputError(f"{unread}: it goes with tasks to train on, and none are given; give tasks, too")
        return None, None, None
    kinds = {name: is_dataset(part) for name, part in parts.items() if part is not None}
    if odd := next((name for name, kind in kinds.items() if kind != kinds["tasks"]), None):
        what = ("tasks", "a data set of (image, label)")
        raise InputError(f"{odd}: it is {what[kinds[odd]]}, and tasks are {what[kinds['tasks']]}; give both alike")
    if not kinds["tasks"]:
        shots = config.task.shots
        first, second, third = (None if part is None else GivenTasks(part, shots, name) for name, part in parts.items())
        return first, second, third
    reading = Reading.of(config.data)
    found = {name: as_image_dataset(parts[name], name, reading=reading) for name in kinds}
    for name, images in found.items():
        if (images.channels, images.prepared) != (found["tasks"].channels, found["tasks"].prepared):
            raise InputError(f"{name}: its images are of another kind than those of tasks; give both alike")
    return found["tasks"], found.get("validation"), found.get("test")


def _with_tasks(config: MetatrainConfig, tasks: ImageSet | GivenTasks) -> MetatrainConfig:
    """Let a config say that its tasks were given, and of what size they are; refuse what is not read of them."""
    untouched, unread = MetatrainConfig(), ["data.name", "data.root"]
    if isinstance(tasks, GivenTasks):
        unread += ["data.rotations", "data.image_size", "task.split_file", "task.alphabets"]
    elif tasks.prepared:
        unread += ["data.image_size"]
    for path in unread:
        group, name = path.split(".")
        value = getattr(getattr(config, group), name)
        if value != getattr(getattr(untouched, group), name):
            raise InputError(f"{path}: {value!r} is not read where tasks are given; leave it out")
    config = replace(config, data=replace(config.data, name=GIVEN))
    if isinstance(tasks, ImageSet):
        return config
    ways = ways_of(tasks.first)
    counts = {"ways": ways, "shots": len(tasks.first.support_labels) // ways or 1}
    counts["queries"] = len(tasks.first.query_labels) // ways or 1
    for name, count in counts.items():
        asked = getattr(config.task, name)
        if asked not in (count, getattr(untouched.task, name)):
            raise InputError(f"task.{name}: {asked} was asked for, and the tasks given have {count}; leave it out")
    return replace(config, task=TaskConfig(counts["ways"], counts["shots"], counts["queries"]))


def _metatrain(config: MetatrainConfig, ranks: Ranks, given: _Given) -> dict[str, Any]:
    """Do one run, of one seed."""
    folder = open_run(config.run, "metatrain", ranks)
    if folder.finished:
        check_single(folder.path)
    folder.check_same(lambda _: config)
    if folder.finished:
        folder.check_split(_load_splits(config, given).describe())
        return finished_results(folder, "metatrain")
    check_apart(folder, class_holders(config.data))
    if config.meta.engine == "learn2learn":
        import_learn2learn()
    splits, seen = _load_splits(config, given), provenance_of(config.model.pretrained)
    if isinstance(splits, ClassSplits):
        splits = note_seen(splits, seen)
        config = replace(config, data=replace(config.data, range=splits.train.range))
        seen = seen.joined(splits.train, splits.validation, splits.test)
    else:
        seen = replace(seen, complete=False)
    folder.check_split(splits.describe())
    check_patience(config, splits)
    model, spec, notes = make_model(config, splits, given.model)
    splits = replace(splits, notes=(*splits.notes, *notes))
    spec = replace(spec, provenance=seen.as_header())
    ranks.wait()  # before the first of them writes: the others would take its files for an older run
    results = MetaTrainer(config, folder, splits, spec, model.to(ranks.device), ranks, given.on_epoch).fit()
    if given.model is not None:
        detach_loop(given.model)
    return results


def _load_splits(config: MetatrainConfig, given: _Given) -> ClassSplits | TaskSplits:
    """Load what the config names, or divide what was given."""
    if isinstance(given.tasks, GivenTasks):
        trained = config.meta.steps * config.meta.batch_tasks
        return TaskSplits.of(given.tasks, given.validation, given.test, trained, config.run.seed)
    if given.tasks is None:
        return load_class_splits(config.data, config.task, config.run.seed)
    return divide_given(given.tasks, given.validation, given.test, config.task, config.run.seed)


def make_model(
    config: MetatrainConfig, splits: ClassSplits | TaskSplits, own: nn.Module | None = None
) -> tuple[nn.Module, ModelSpec, list[str]]:
    """Build the backbone that meta-learns; what does not go together is said before anything is written.

    Args:
        config: its head_init is resolved.
        splits: the classes; a start that is fitted looks at the training images.
        own: a network that was given, to be trained in the backbone's place.

    Returns:
        The model, on the CPU unless it was given, in training mode as its normalisation asks for; what rebuilds it; and
        what is to be said of a checkpoint's head.

    Raises:
        InputError: if parts of the config contradict each other.
    """
    names = tuple(str(way) for way in range(config.task.ways))
    shape, images = _images_of(splits)
    if shape is None:
        assert isinstance(splits, ClassSplits)
        channels, size = splits.train.channels, config.data.image_size
    else:
        channels, size = shape[0], shape[1]
    if own is None:
        size = size or (_EPISODE_SIZE if config.model.name in PAPER_NETS else None)
        model, spec, head = build_with_head(config.model, names, channels, size, "metatrain", images)
    else:
        model, head = own, Head(new=False)
        spec = spec_of_given(model, config.model, names, channels, size or _own_size(own), "metatrain")
    if shape is not None:
        mean, std = (0.0,) * channels, (1.0,) * channels
        spec = replace(spec, inputs=replace(spec.inputs, channels=channels, mean=mean, std=std, prepared=True))
    if config.model.head_init == "zero" or (config.model.head_init == "auto" and head.new and starts_at_zero(config)):
        zero_head(model)
    check_gates(model, config.optim.open_gates)
    if own is None and shape is None:
        check_forward(model, spec)
    else:
        check_given(model, images(spec.inputs)[0][:2], names, trains=True)
    if config.meta.algorithm in COMPARING:
        check_features(model)
    check_act_lr(model, inner_of(config.meta))
    set_normalization(model, config.meta.normalization)
    train_mode(model, config.meta.normalization)
    if isinstance(splits, ClassSplits):
        spec = replace(spec, inputs=replace(spec.inputs, range=splits.train.range))
    classes = splits.describe()["train_classes"]
    spec = replace(spec, classes=classes, meta=_meta_of(config, splits), config=asdict(config))
    return model, spec, [f"head: new, {head.note}" if head.new else head.note] if head.note else []


def _images_of(splits: ClassSplits | TaskSplits) -> tuple[tuple[int, ...] | None, Callable[[InputSpec], list[Tensor]]]:
    """Return the shape of tensors that are taken as they are, None of images; and some images of the training tasks."""
    if isinstance(splits, TaskSplits):
        first = splits.train.first.support_images.float()
        if first.dim() != 4:
            raise InputError(
                f"tasks: their images are of shape {tuple(first.shape[1:])}; give (channels, height, width)"
            )
        return tuple(first.shape[1:]), lambda _: [first]
    images = partial(unlabelled_images, splits.train, inverted=splits.inverted)
    return tuple(np.asarray(splits.train[0][0]).shape) if splits.train.prepared else None, images


def _own_size(model: nn.Module) -> int | None:
    """Leave the size of a network's images to what it says of them, if it does."""
    says = hasattr(model, "default_cfg") or hasattr(model, "pretrained_cfg") or hasattr(model, "config")
    return None if says else _EPISODE_SIZE


def _meta_of(config: MetatrainConfig, splits: ClassSplits | TaskSplits) -> dict[str, Any]:
    return {
        **asdict(config.task),
        "algorithm": config.meta.algorithm,
        "adapt": config.meta.adapt,
        "inner_lr": config.meta.inner_lr,
        "inner_act_lr": config.meta.inner_act_lr,
        "train_steps": config.meta.inner_steps,
        "inner_steps": config.eval.inner_steps or config.meta.inner_steps,
        "normalization": config.meta.normalization,
        "inverted": splits.inverted,
    }


def check_read(config: MetatrainConfig) -> None:
    """Refuse what meta-training does not read beside its other settings.

    Args:
        config: validated.

    Raises:
        InputError: naming the field, its value, and who reads it.
    """
    peak_rate(config.optim)
    if config.meta.engine == "learn2learn" and config.meta.algorithm in BASELINES:
        raise InputError(
            f"meta.engine: 'learn2learn' cannot do {config.meta.algorithm}, which takes no meta-steps; leave it out"
        )
    if config.meta.algorithm in COMPARING and config.meta.adapt != "all":
        raise InputError(
            f"meta.adapt: {config.meta.adapt!r} would not be read: {config.meta.algorithm} compares features and takes "
            "no inner steps; leave it out"
        )
    model = config.model
    if model.head_init == "probe":
        raise InputError(
            "model.head_init: 'probe' is read by arelu-meta finetune alone (each task has classes of its own); "
            "give zero or random"
        )
    if model.head_init == "random" and isinstance(model.pretrained, str) and not model.reset_head:
        raise InputError(
            f"model.head_init: 'random' is for a new head, and {model.pretrained!r} brings its own; give "
            "--model.reset_head true with it"
        )


def check_patience(config: MetatrainConfig, splits: ClassSplits | TaskSplits) -> None:
    """Refuse to stop early by validations that there are none of.

    Args:
        config: validated.
        splits: the classes.

    Raises:
        InputError: naming eval.patience and what would let it be read.
    """
    patience, algorithm = config.eval.patience, config.meta.algorithm
    if patience is None:
        return
    if algorithm in BASELINES:
        raise InputError(f"eval.patience: {patience} would not be read: {algorithm} takes no meta-steps; leave it out")
    if splits.validation is None:
        given = isinstance(splits, TaskSplits)
        what, how = ("tasks", "give validation") if given else ("classes", "name some in task.split_file")
        raise InputError(
            f"eval.patience: {patience} would not be read: there are no {what} to validate on; {how}, or leave it out"
        )


def resolve_head_init(config: MetatrainConfig) -> MetatrainConfig:
    """Say how the head starts, where model.head_init leaves it open.

    A new head on pretrained features starts at zero: after one inner step from there it compares with the classes'
    means, while a random one first has to forget its noise in every task. Where it takes no inner steps, zeros would
    leave nothing to adapt to.

    Args:
        config: validated; left as it is.

    Returns:
        The config with model.head_init settled; auto stays where a checkpoint may bring its head.

    Source: Ye and Chao 2022, "How to Train Your MAML to Excel in Few-Shot Learning": heads that start alike.
    """
    model = config.model
    own = is_given(model.name) or (isinstance(model.pretrained, str) and not model.reset_head)
    if own or model.head_init != "auto":
        return config
    return replace(config, model=replace(model, head_init="zero" if starts_at_zero(config) else "random"))


def starts_at_zero(config: MetatrainConfig) -> bool:
    """Return True if a new head is to start at zero where model.head_init leaves it open.

    Args:
        config: its model, and what adapts.
    """
    return bool(config.model.pretrained) and config.meta.adapt != "activations"


def check_act_lr(model: nn.Module, inner: Inner) -> None:
    """Refuse a rate for scalars that take no inner step.

    Args:
        model: the backbone.
        inner: the inner loop.

    Raises:
        InputError: naming meta.inner_act_lr and what would read it.
    """
    if inner.act_lr is None:
        return
    scalars = {id(parameter) for parameter in activation_parameters(model)}
    adapted = set(InnerLoop(model, inner).names)
    if any(id(parameter) in scalars for name, parameter in model.named_parameters() if name in adapted):
        return
    reason = (
        f"{inner.algorithm} that adapts {inner.adapted_part} takes no inner step with the activations' scalars"
        if scalars
        else "this model has no activation with scalars of its own; give --model.activation arelu"
    )
    raise InputError(f"meta.inner_act_lr: {inner.act_lr} would not be read: {reason}; or leave it out")
