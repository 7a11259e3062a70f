"""The recipe of a meta-training run: from its config to class splits, model and trainer, to its results."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import nn

from arelu_meta.backbones.checkpoint import ModelSpec, provenance_of
from arelu_meta.backbones.from_config import build_with_head, check_forward, check_gates, check_model_config, with_start
from arelu_meta.backbones.networks import PAPER_NETS, zero_head
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot.benchmarks import load_class_splits
from arelu_meta.data.fewshot.class_splits import ClassSplits, note_seen
from arelu_meta.data.fewshot.task_sampler import unlabelled_images
from arelu_meta.data.image_folder import class_holders
from arelu_meta.errors import InputError, import_learn2learn
from arelu_meta.finetuning.optimizer import activation_parameters, check_optimizer_name, peak_rate
from arelu_meta.meta.algorithms import check_features
from arelu_meta.meta.inner_loop import BASELINES, COMPARING, Inner, InnerLoop, inner_of
from arelu_meta.meta.meta_trainer import MetaTrainer
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.runs.distributed import join
from arelu_meta.runs.run_folder import check_apart, finished_results, open_run
from arelu_meta.validation import validate


def metatrain(config: MetatrainConfig | None = None) -> dict[str, Any]:
    """Meta-train on few-shot tasks and evaluate on tasks of unseen classes.

    Args:
        config: default: `MetatrainConfig()`, 5-way 1-shot on the embedded digits.

    Returns:
        What results.json holds: among others `test_accuracy` (mean over tasks, a fraction), `test_low` and `test_high`
        (95 % interval), `test_n` (tasks), `normalization`, `notes`, `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.
    """
    config = MetatrainConfig() if config is None else config
    validate(config, MetatrainConfig)
    check_model_config(config.model)
    config = replace(config, model=with_start(config.model))
    if config.model.activation in ("control:gain", "control:head10"):
        raise InputError(f"model.activation: {config.model.activation!r} is for finetune and claims; leave it out")
    check_optimizer_name(config.optim.name)
    check_read(config)
    config = resolve_head_init(config)
    ranks = join(config.run)
    folder = open_run(config.run, "metatrain", ranks)
    folder.check_same(lambda _: config)
    seen = provenance_of(config.model.pretrained)
    if folder.finished:
        folder.check_split(load_class_splits(config.data, config.task, config.run.seed).describe())
        return finished_results(folder, "metatrain")
    check_apart(folder, class_holders(config.data))
    if config.meta.engine == "learn2learn":
        import_learn2learn()
    splits = note_seen(load_class_splits(config.data, config.task, config.run.seed), seen)
    folder.check_split(splits.describe())
    config = replace(config, data=replace(config.data, range=splits.train.range))
    check_patience(config, splits)
    model, spec, notes = make_model(config, splits)
    splits = replace(splits, notes=(*splits.notes, *notes))
    spec = replace(spec, provenance=seen.joined(splits.train, splits.validation, splits.test).as_header())
    ranks.wait()  # before the first of them writes: the others would take its files for an older run
    return MetaTrainer(config, folder, splits, spec, model.to(ranks.device), ranks).go()


_EPISODE_SIZE = 28


def make_model(config: MetatrainConfig, splits: ClassSplits) -> tuple[nn.Module, ModelSpec, list[str]]:
    """Build the backbone that meta-learns; what does not go together is said before anything is written.

    Args:
        config: its head_init is settled.
        splits: the classes; a start that is fitted looks at the training images.

    Returns:
        The model, on the CPU, in training mode as its normalisation asks for; what rebuilds it; and what
        is to be said of a checkpoint's head.

    Raises:
        InputError: if parts of the config contradict each other.
    """
    names = tuple(str(way) for way in range(config.task.ways))
    size = config.data.image_size or (_EPISODE_SIZE if config.model.name in PAPER_NETS else None)
    images = partial(unlabelled_images, splits.train, inverted=splits.inverted)
    model, spec, head = build_with_head(config.model, names, splits.train.channels, size, "metatrain", images)
    if config.model.head_init == "zero" or (config.model.head_init == "auto" and head.new and starts_at_zero(config)):
        zero_head(model)
    check_gates(model, config.optim.open_gates)
    check_forward(model, spec)
    if config.meta.algorithm in COMPARING:
        check_features(model)
    set_normalization(model, config.meta.normalization)
    check_act_lr(model, inner_of(config.meta))
    train_mode(model, config.meta.normalization)
    classes = splits.describe()["train_classes"]
    spec = replace(spec, inputs=replace(spec.inputs, range=splits.train.range))
    spec = replace(spec, classes=classes, meta=_meta_of(config, splits), config=asdict(config))
    return model, spec, [f"head: new, {head.note}" if head.new else head.note] if head.note else []


def _meta_of(config: MetatrainConfig, splits: ClassSplits) -> dict[str, Any]:
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


def check_patience(config: MetatrainConfig, splits: ClassSplits) -> None:
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
        raise InputError(
            f"eval.patience: {patience} would not be read: there are no classes to validate on; name some in "
            "task.split_file, or leave it out"
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
    if model.head_init != "auto" or (isinstance(model.pretrained, str) and not model.reset_head):
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
