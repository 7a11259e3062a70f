"""Fine-tuning from a config: what must hold before anything is written, then one run, or one a seed or a fold."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from arelu_meta.activations.controls import is_control
from arelu_meta.backbones.checkpoint import ModelSpec, provenance_of, read_spec
from arelu_meta.backbones.from_config import (
    Head,
    build_with_head,
    check_forward,
    check_gates,
    check_model_config,
    with_start,
)
from arelu_meta.backbones.given_model import check_given, config_of_given, spec_of_given
from arelu_meta.backbones.initialization import gate_schedule
from arelu_meta.backbones.networks import PAPER_NETS, heads_of, is_stock, suit_layout, zero_head
from arelu_meta.config import LARGEST_IMAGE, DataConfig, FinetuneConfig, OptimConfig, reader_of
from arelu_meta.data.image_folder import class_holders
from arelu_meta.data.image_io import Reading
from arelu_meta.data.loaders import (
    Batches,
    InputSpec,
    build_transform,
    check_augmentation,
    choose_workers,
    keep_decoded,
    note_crop,
    unlabelled_batches,
)
from arelu_meta.data.named_datasets import GIVEN, load_images
from arelu_meta.data.own_datasets import OwnData
from arelu_meta.data.splits import ImageSet, Splits
from arelu_meta.errors import InputError, shown
from arelu_meta.finetuning.cross_validation import check_ended, check_member, check_single, member_configs, run_members
from arelu_meta.finetuning.defaults import new_head_init, scalars_share, settle, settle_rates
from arelu_meta.finetuning.freezing import count_learning, keeps_features, set_drop_rate, set_learning, set_training
from arelu_meta.finetuning.fsdp import Shards, check_sharding
from arelu_meta.finetuning.linear_probe import check_probe, is_plain, start_with_probe
from arelu_meta.finetuning.lr_finder import Search, search_rate
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, check_optimizer_name, peak_rate
from arelu_meta.finetuning.trainer import OnEpoch, Trainer, check_state
from arelu_meta.finetuning.training_step import Mix, TrainingState, mean_loss
from arelu_meta.runs.distributed import Ranks, join
from arelu_meta.runs.reproducibility import prepare
from arelu_meta.runs.run_folder import RunFolder, check_apart, finished_results, open_run
from arelu_meta.runs.tracking import check_trackers, tracker_names
from arelu_meta.validation import describe_type, validate

_DIGITS_SIZE = 64


@dataclass(frozen=True)
class _Given:
    """What Python code handed over, in place of what the config would make."""

    model: nn.Module | None = None
    data: OwnData | None = None
    on_epoch: OnEpoch | None = None


def finetune(
    config: FinetuneConfig | str | Path | None = None,
    *,
    model: nn.Module | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    on_epoch: OnEpoch | None = None,
    head: str | None = None,
) -> dict[str, Any]:
    """Fine-tune a backbone, or a network of one's own, on labelled images, and test it.

    Args:
        config: default: `FinetuneConfig()`, the embedded digits; a text is short for a folder of images (data.root).
        model: any module that maps images to logits, swapped or not; default: the backbone that the config names. It is
            trained in place (on the run's device), and holds the kept epoch's weights in the end. What of it learns is
            train.mode's to say. `load_model`, `evaluate` and `predict` take the run with such a network beside it.
        train: any data set of (image, label) with a length (torchvision's; Hugging Face's, whose `with_transform` is
            kept; a list of paths and labels); default: what the config names. Tensors go to the network as they are;
            images of Pillow's and paths through the config's transform.
        validation: likewise; default: a tenth of train, drawn by the seed (with train's own transform).
        test: likewise; default: a quarter of train, drawn by the seed before that.
        on_epoch: called after each epoch, with its row of metrics.csv.
        head: the path of the head, as `fc`; default: what timm's `get_classifier` gives, else the last linear layer of
            `fc`, `classifier` or `head`, else of the whole network.

    Returns:
        What results.json holds: among others `test_accuracy` (a fraction), `test_low` and `test_high` (95 % interval),
        `test_n` (images), `folder`. Over several seeds or folds these are their mean and its interval.

    Raises:
        InputError: if something that was given does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.

    Example:
        >>> import tempfile, torch
        >>> from arelu_meta import FinetuneConfig, finetune, swap_activations
        >>> images = torch.randn(60, 1, 8, 8)
        >>> labels = [int(image.mean() > 0) for image in images]
        >>> layers = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)]
        >>> net = torch.nn.Sequential(*layers)
        >>> _ = swap_activations(net, "arelu")
        >>> config = FinetuneConfig()
        >>> config.run.folder, config.run.pictures, config.train.epochs = tempfile.mkdtemp() + "/run", False, 2
        >>> dataset = list(zip(images, labels))
        >>> results = finetune(config, model=net, train=dataset, on_epoch=lambda row: print(sorted(row)[0]))
        Sequential (given)...
        >>> results["test_n"]
        15
    """
    for name, value, kind in (("model", model, nn.Module), ("head", head, str), ("on_epoch", on_epoch, Callable)):
        if value is not None and not isinstance(value, kind):  # type: ignore[arg-type]
            raise InputError(f"{name}: {shown(value)} is not allowed; give {describe_type(kind)}")
    if isinstance(config, str | Path) and str(config).strip():
        config = FinetuneConfig(data=DataConfig(root=str(config)))
    config = FinetuneConfig() if config is None else config
    validate(config, FinetuneConfig)
    assert isinstance(config, FinetuneConfig)
    check_augmentation(config.data.augmentation)
    if model is not None:
        config = _with_model(config, model, head)
    elif head is not None:
        raise InputError(f"head: {head!r} names the head of a network that is given; give model= with it")
    _check_read(config)
    if model is None:
        check_model_config(config.model)
        config = replace(config, model=with_start(config.model))
    check_optimizer_name(config.optim.name)
    check_trackers(tracker_names(config.run.trackers))
    data = None
    if train is not None:
        data = OwnData.of(train, validation, test, Reading.of(config.data))
        config = _with_data(config, data)
    elif validation is not None or test is not None:
        missing = "validation" if validation is not None else "test"
        raise InputError(f"train: missing; {missing} is of a data set that is given, give train= with it")
    given = _Given(model, data, on_epoch)
    config = settle(config)
    ranks = join(config.run)
    with ranks.naming_lost_processes():
        _check_sync(config, ranks)
        check_sharding(config, ranks)
        if members := member_configs(config):
            check = partial(check_member, given=data)
            return run_members(config, members, partial(_finetune, ranks=ranks, given=given), ranks, check)
        return _finetune(config, ranks, given)


def _with_model(config: FinetuneConfig, model: nn.Module, head: str | None) -> FinetuneConfig:
    """Let a config say what a network that is given is; refuse what needs one that can be made anew."""
    refused = {
        "train.repeats": config.train.repeats > 1 and config.train.repeats,
        "data.folds": config.data.fold is None and config.data.folds,
        "train.shard": config.train.shard,
    }
    if name := next((name for name, value in refused.items() if value), None):
        raise InputError(
            f"{name}: {refused[name]} needs a network that is made anew from its name, and one is given; leave it out"
        )
    if config.run.save == "adapter":
        raise InputError(
            "run.save: 'adapter' needs a backbone that is made anew from its name, and a network is given; call "
            "arelu_meta.save_adapter(model, FILE) after the run, which trains it in place"
        )
    return replace(config, model=config_of_given(model, config.model, head))


def _with_data(config: FinetuneConfig, given: OwnData) -> FinetuneConfig:
    """Let a config say that its data were given; refuse what is not read of them."""
    data, untouched = config.data, DataConfig()
    unread = ["name", "root"] + (["image_size", "range", "fit", "cache"] if given.train.prepared else [])
    for name in unread:
        if (value := getattr(data, name)) != getattr(untouched, name):
            why = "train is given" if name in ("name", "root") else "train gives tensors, which are taken as they are"
            raise InputError(f"data.{name}: {value!r} is not read where {why}; leave it out")
    augmentation = data.augmentation
    if given.train.prepared and augmentation not in ("auto", "none"):
        raise InputError(
            f"data.augmentation: {augmentation!r} is of images, and train gives tensors; augment in its own transform"
        )
    if augmentation == "auto" and config.train.mode != "probe":
        if given.train.random and (given.train.prepared or keeps_features(config.train.mode)):
            augmentation = GIVEN
        elif given.train.prepared:
            augmentation = "none"
    return replace(config, data=replace(data, name=GIVEN, augmentation=augmentation))


def _check_read(config: FinetuneConfig) -> None:
    """Refuse a value that this run would not read beside its others."""
    if config.train.mode == "probe" and config.optim.lr == "auto":
        raise InputError(f"optim.lr: 'auto' is not read by {reader_of(config)}; leave it out")
    if config.run.save == "adapter":
        _check_adapter(config)
    own = config.model.activation is None or is_control(config.model.activation)
    learned = not own or isinstance(config.model.pretrained, str)
    if config.optim.act_lr is not None and not learned:
        raise InputError(
            f"optim.act_lr: {config.optim.act_lr} is of activations that learn, and the model keeps its own; give "
            "--model.activation arelu with it"
        )


def _check_adapter(config: FinetuneConfig) -> None:
    """Refuse an adapter of what no file holds, or of what is shared out."""
    pretrained = config.model.pretrained
    if not pretrained:
        raise InputError(
            "run.save: 'adapter' is what differs from a pretrained backbone, and model.pretrained is false; give "
            "--run.save model"
        )
    if config.train.shard:
        raise InputError("run.save: 'adapter' does not go with train.shard true; give --run.save model")
    run = pretrained if isinstance(pretrained, str) and not is_stock(pretrained) else None
    if run is not None and read_spec(run, "model.pretrained")[1].task == "metatrain":
        raise InputError(f"run.save: 'adapter' does not go with {run!r}, a meta-learner; give --run.save model")


def _check_sync(config: FinetuneConfig, ranks: Ranks) -> None:
    """Refuse to synchronise statistics that do not move, or that no GPU holds."""
    if not config.train.sync_bn:
        return
    if ranks.device.type != "cuda":
        raise InputError(f"train.sync_bn: true is for GPUs, and this run is on {ranks.device.type}; leave it out")
    if config.train.freeze_bn is True:
        raise InputError(
            "train.sync_bn: true, and batch normalisation stays as it is here; give --train.freeze_bn false with it"
        )


def _finetune(config: FinetuneConfig, ranks: Ranks, given: _Given) -> dict[str, Any]:
    """Do one run, of one seed and one split."""
    with ranks.synchronizing():
        folder = open_run(config.run, "finetune", ranks)
        if folder.finished:
            check_single(folder.path)
        folder.check_same(lambda images: settle_rates(config, images))
        if folder.finished:
            check_ended(folder, config, given.data)
    ranks.same(
        (folder.finished, str(folder.resumed_from)),
        f"run.folder: {str(folder.path)!r} does not hold the same for every process; give one on a disk that all share",
    )
    if folder.finished:
        return finished_results(folder, "finetune")
    # All have looked before the first of them writes: the others would take its files for an older run.
    with ranks.synchronizing():
        splits, model, spec, head = _checked(config, folder, given)
    if head.new and config.model.head_init == "auto":  # whether a checkpoint's fits, only the classes say
        config = replace(config, model=replace(config.model, head_init=new_head_init(config)))
    config = replace(settle_rates(config, len(splits.train)), data=replace(config.data, range=splits.train.range))
    if config.train.sync_bn:
        model = convert_sync_batchnorm(model)  # torch's own conversion would drop activations that a norm holds
    model.to(ranks.device)
    channels_last = suit_layout(model, ranks.device, config.train.channels_last)
    config = replace(config, train=replace(config.train, channels_last=channels_last))
    seen = provenance_of(config.model.pretrained).joined(splits.train, splits.validation, splits.test)
    spec = replace(spec, mirrored=splits.mirrored, config=asdict(config), provenance=seen.as_header())
    splits = replace(
        splits,
        train=keep_decoded(splits.train, config.data.cache, splits.validation),
        validation=keep_decoded(splits.validation, config.data.cache, splits.train),
    )
    notes = [_start_head(config, model, spec, splits, ranks, head)] if folder.resumed is None else []
    if folder.resumed is not None:
        check_state(folder.resumed, folder.resumed_from, config.optim.name)
    batches = make_batches(config, splits, spec.inputs, ranks)
    found = None if folder.resumed is None else folder.resumed["peak_rate"]
    optim, search = choose_rate(config, model, batches[0], found, ranks)
    shards = Shards(model, ranks) if config.train.shard else None
    training = make_training(config, optim, model, splits.train, len(batches[0]), ranks)
    trainer = Trainer(config, folder, splits, spec, batches, training, search, shards, given.on_epoch)
    return trainer.fit([headline(spec, splits, ranks), *_counts(model), *notes])


def _checked(config: FinetuneConfig, folder: RunFolder, given: _Given) -> tuple[Splits, nn.Module, ModelSpec, Head]:
    """Read the images and make the model; whatever does not fit is found here, before anything is written."""
    check_apart(folder, class_holders(config.data))
    load = load_images if given.data is None else given.data.splits
    splits = load(config.data, config.run.seed, provenance_of(config.model.pretrained))
    folder.check_split(splits.describe())
    prepare(config.run)  # each seed and fold from its own state, whatever ran before it
    train, size = splits.train, _image_size(config)
    if train.prepared:
        size = min(np.asarray(train[0][0]).shape[-1], LARGEST_IMAGE)
    if given.model is None:
        looked = partial(unlabelled_batches, train)
        model, spec, head = build_with_head(config.model, train.classes, train.channels, size, "finetune", looked)
    else:
        model, head = given.model, Head(False, "head: as the network has it")
        spec = spec_of_given(model, config.model, train.classes, train.channels, size, "finetune")
    inputs = replace(spec.inputs, range=train.range, fit=config.data.fit)
    if train.prepared:
        colours = train.channels
        inputs = replace(inputs, channels=colours, mean=(0.0,) * colours, std=(1.0,) * colours, prepared=True)
    spec, splits = replace(spec, inputs=inputs), replace(splits, notes=(*splits.notes, *note_crop(train, inputs)))
    set_drop_rate(model, config.model.drop_rate)
    still = keeps_features(config.train.mode) or config.train.freeze_bn is True
    if given.model is None and not train.prepared:
        check_forward(model, spec, None if still else min(config.data.batch_size, len(train)))
    else:
        images, _ = next(
            iter(Batches(train.subset([0, len(train) - 1]), build_transform(inputs, training=False), 2).epoch(0))
        )
        check_given(model, images, train.classes, trains=not still)
    set_learning(model, config.train)
    check_gates(model, config.optim.open_gates)
    check_probe(model, config)
    return splits, model, spec, head


def _image_size(config: FinetuneConfig) -> int | None:
    """Choose 64 px for the embedded digits, which have 8: a pretrained model's own 224 would only take longer."""
    small_images = config.data.root is None and config.data.name in (None, "digits")
    return config.data.image_size or (_DIGITS_SIZE if small_images and config.model.name not in PAPER_NETS else None)


def _counts(model: nn.Module) -> list[str]:
    parts = [f"{name} {learning:,} of {whole:,}" for name, (whole, learning) in count_learning(model).items()]
    return ["parameters that learn: " + ", ".join(parts)]


def _start_head(
    config: FinetuneConfig, model: nn.Module, spec: ModelSpec, splits: Splits, ranks: Ranks, head: Head
) -> str:
    """Start a new head as model.head_init asks; return what was done, in words."""
    why = f"; {head.note}" if head.new and head.note else ""
    asked = config.model.head_init
    if config.train.mode == "probe":
        return "head: logistic regression on the frozen features, and nothing else"
    if asked == "auto":  # a checkpoint's
        return head.note
    if asked == "probe":
        balanced = config.train.class_weights == "balanced"
        precision = config.run.precision
        strength = start_with_probe(
            model, spec.inputs, splits.train, splits.validation, ranks.device, precision, balanced
        )
        if strength is not None:
            return f"head: logistic regression on the frozen features (C {strength:g}, by validation){why}"
        asked = "zero"
    if asked == "zero":
        zero_head(model)
    for module in (module for head in heads_of(model) for module in head.modules()):
        if asked == "random" and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return f"head: {asked}{why}"


def make_batches(
    config: FinetuneConfig, splits: Splits, inputs: InputSpec, ranks: Ranks
) -> tuple[Batches, Batches, Batches]:
    """Make the batches of training, validation and test images.

    Args:
        config: augmentation, batch size, workers, seed.
        splits: the images.
        inputs: what the model takes.
        ranks: the processes; each gets its share of what is trained on and validated.
    """
    policy = config.data.augmentation
    evaluation = build_transform(inputs, training=False)
    training = build_transform(
        inputs,
        training=not is_plain(config),
        mirrored=splits.mirrored,
        policy=None if policy in ("auto", "none", "crop", GIVEN) else policy,
    )
    size, share, pinned = config.data.batch_size, ranks.share, ranks.device.type == "cuda"
    workers = choose_workers(config.data.workers, ranks.device, len(splits.train))
    return (
        Batches(splits.train, training, size, config.run.seed, workers, share, pinned),
        Batches(splits.validation, evaluation, size, None, min(workers, 2), share, pinned),
        Batches(splits.test, evaluation, size),
    )


def choose_rate(
    config: FinetuneConfig, model: nn.Module, train: Batches, found: float | None, ranks: Ranks
) -> tuple[OptimConfig, Search | None]:
    """Take optim.lr, or the one that the resumed run had found, or look for one.

    Args:
        config: of the run.
        model: on the device; left as it is.
        train: the training images.
        found: what the run that is resumed had found.
        ranks: the processes.

    Returns:
        The optimiser's config with a number for its rate, and the search where there was one.
    """
    optim = config.optim
    if optim.lr != "auto":
        return optim, None
    # What optim.act_lr leaves open waits for the rate, and is searched with as it will be trained with.
    share = scalars_share(config) if optim.act_lr is None else None

    def at(rate: float) -> OptimConfig:
        return replace(optim, lr=rate, act_lr=optim.act_lr if share is None else share * rate)

    if found is not None:
        return at(found), None
    search = search_rate(
        model,
        optim,
        train.epoch(0),
        lambda copied, images, labels: mean_loss(copied, images, labels, ranks.device, config),
        lambda copied: set_training(copied, config.train),
        share or 1.0,
    )
    # Each process saw its own images; they must not train at different rates.
    search = ranks.gather(search)[0]
    return at(search.chosen), search


def make_training(
    config: FinetuneConfig, optim: OptimConfig, model: nn.Module, train: ImageSet, batches: int, ranks: Ranks
) -> TrainingState:
    """Make the state of a run's training: optimiser, schedule, gates, mixup, running average.

    Args:
        config: of the run.
        optim: likewise, its rate chosen.
        model: on the device; what learns of it in any epoch is set to.
        train: the training images, for their classes.
        batches: of them, an epoch.
        ranks: the processes.
    """
    optimizer = build_optimizer(model, optim)
    steps, epochs = -(-batches // optim.accumulate), config.train.epochs
    training = TrainingState(
        model,
        optimizer,
        build_schedule(optimizer, optim, epochs, steps),
        ranks.device,
        config.run.precision,
        peak_rate(optim),
        config.train,
        ranks,
        gates=gate_schedule(model, optim.open_gates),
        all_updates=epochs * steps,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        mix=_mix(config, len(train.classes)),
        class_weights=None if config.train.class_weights == "none" else _class_weights(train).to(ranks.device),
    )
    if config.train.ema is not None:
        from timm.utils import ModelEmaV3

        training.average = ModelEmaV3(model, decay=config.train.ema, use_warmup=True)
    return training


def _class_weights(images: ImageSet) -> Tensor:
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight("balanced", classes=np.arange(len(images.classes)), y=images.labels)
    return torch.tensor(weights, dtype=torch.float32)


def _mix(config: FinetuneConfig, classes: int) -> Mix | None:
    """Make torchvision's mixup, cutmix, or a choice of them for each batch."""
    from torchvision.transforms import v2

    mixes: list[Any] = []
    if config.train.mixup:
        mixes.append(v2.MixUp(alpha=config.train.mixup, num_classes=classes))
    if config.train.cutmix:
        mixes.append(v2.CutMix(alpha=config.train.cutmix, num_classes=classes))
    if not mixes:
        return None
    return mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)  # type: ignore[no-any-return]


def headline(spec: ModelSpec, splits: Splits, ranks: Ranks) -> str:
    """Say in two lines what is trained on what.

    Args:
        spec: of the model.
        splits: the images.
        ranks: the processes.
    """
    parts = f"{len(splits.train)} training, {len(splits.validation)} validation and "
    parts += f"{len(splits.test)} test images of {len(splits.train.classes)} classes"
    notes = "".join(f"; {note}" for note in splits.notes)
    if splits.skipped:
        notes += f"; {len(splits.skipped)} files skipped that are not images"
    name = f"{spec.name} ({spec.activation or 'its own activation'}"
    name += f", {spec.init})" if spec.init else ")"
    where = f"{spec.inputs.image_size} px on {ranks.device}"
    where += f", {ranks.processes} processes" if ranks.processes > 1 else ""
    return f"{name}, {where}\n{parts}{notes}"
