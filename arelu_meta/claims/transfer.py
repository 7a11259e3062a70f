"""The study `transfer`: which activation lets a network that learned one set of images learn another?"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.claims import small_lr
from arelu_meta.claims.controls import ORIGINAL
from arelu_meta.claims.in_memory_training import (
    Shelf,
    Tensors,
    accuracy,
    as_tensors,
    load_tensors,
    make_optimizer,
    opened,
    scaled,
    shelved,
    train_epoch,
)
from arelu_meta.claims.small_lr import MATCHED, contenders_of, merged, model_config, small_rate
from arelu_meta.claims.small_lr import conclude as conclude_pair
from arelu_meta.claims.study import (
    Plan,
    Row,
    amount,
    epochs,
    one_thread,
    read_names,
    read_numbers,
    resplit,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import Outcome
from arelu_meta.config import ClaimsConfig, DataConfig, Init
from arelu_meta.data.image_folder import class_holders, find_root
from arelu_meta.data.named_datasets import NAMED_SETS, load_images
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.statistics import judge

_SOURCE_EPOCHS = {"quick": 1, "full": 5}
_PROBED = 1024  # images, to measure times on
_OPTIMIZERS = ("sgd", "adam")
Shelves = dict[str, tuple[Shelf, Shelf, Shelf]]
"""By pair: the source, the target with its validation images, the target's test."""


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where backbones compute; small networks stay on the CPU.

    Raises:
        InputError: if a name is unknown, or a set is missing.
    """
    pairs = read_pairs(config.pairs)
    small, large = list_trials(config, pairs)
    with ExitStack() as stack:
        shelves: Shelves = {}
        for pair in dict.fromkeys(trial.pair for trial in small):
            data = load_pair(config, *pairs[pair])
            parts = (stack.enter_context(shelved(part)) for part in (data.source, data.target, data.test))
            shelves[pair] = (next(parts), next(parts), next(parts))
        ratios = {pair: resplit(backbone_config(config, pairs[pair][1]).data, config.run.seed) for pair in large}
        grouped = _grouped(small) + [[trial] for trials in large.values() for trial in trials]
        of_pair = {pair: [one for one in small if one.pair == pair] for pair in shelves} | large
        yield Plan(
            groups=grouped,
            work=partial(work, config, shelves),
            processes=side_by_side(config.processes, device),
            seconds=partial(estimate, config, shelves),
            conclude=lambda log, folder: conclude(
                {pair: log.of_all(trials) for pair, trials in of_pair.items()},
                small_rate(config),
                config.margin,
                ratios,
            ),
            headline=_headline(config, small_rate(config)),
            inputs=inputs_of(config),
            image_folders=[
                place for _, target in pairs.values() for place in class_holders(backbone_config(config, target).data)
            ],
        )


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures.

    Args:
        pair: as `mnist-to-mnist-m`.
        network: of `PAPER_NETS`.
        contender: `original`, an activation, or `arelu:START`.
        optimizer: sgd (momentum 0.9) or adam, on the target.
        lr: learning rate on the target, constant.
        seed: of the weights and of the order of the images.
        source_epochs: passes over the source, at 1e-2.
        length: epochs on the target.
        per_class: training images a class of the target, or None for all.
        batch_size: target images a step.
        pipeline: what the conclusion reads.
    """

    pair: str
    network: str
    contender: str
    optimizer: str
    lr: float
    seed: int
    source_epochs: int
    length: int
    per_class: int | None
    batch_size: int
    pipeline: str = "transfer"


def inputs_of(config: ClaimsConfig) -> dict[str, Path]:
    """List the folders that pairs name: as `study.inputs_of`.

    Args:
        config: resolved, and planned without an error.
    """
    return {
        f"pairs: {pair!r}": find_root(root)
        for pair, (_, target) in read_pairs(config.pairs).items()
        if (root := backbone_config(config, target).data.root) == target
    }


def list_trials(
    config: ClaimsConfig, pairs: dict[str, tuple[str, str]]
) -> tuple[list[Trial], dict[str, list[small_lr.Trial]]]:
    """List a resolved config's runs, the first seed of everything first.

    Args:
        config: resolved.
        pairs: source and target by pair.

    Returns:
        Those of small networks, and by pair those of pretrained backbones.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    contenders = contenders_of(config)
    optimizers = read_names("optim.name", config.optim.name)
    if len(contenders) < 2 or len(optimizers) > 1:
        raise InputError(
            "model.activation, optim.name: transfer compares activations; give two or more, and one optimiser"
        )
    networks = [name for name in read_names("model.name", config.model.name) if name in PAPER_NETS]
    backbones = [name for name in read_names("model.name", config.model.name) if name not in PAPER_NETS]
    _check_models(pairs, networks, backbones, contenders, optimizers[0])
    small, large = [], {}
    rates = read_numbers("optim.lr", config.optim.lr)
    for pair, (source, target) in pairs.items():
        if source == PRETRAINED:
            listed = small_lr.list_trials(backbone_config(config, target))
            large[pair] = [trial for trial in listed if not trial.contender.startswith(MATCHED)]
            continue
        runs = itertools.product(seeds_of(config), merged(contenders, pretrained=False), rates)
        small += [
            Trial(
                pair=pair,
                network=networks[0],
                contender=contender,
                optimizer=optimizers[0],
                lr=lr,
                seed=seed,
                source_epochs=_SOURCE_EPOCHS[config.size],
                length=config.train.epochs or 1,
                per_class=config.data.per_class,
                batch_size=config.data.batch_size,
            )
            for seed, contender, lr in runs
        ]
    return small, large


def _check_models(
    pairs: dict[str, tuple[str, str]], networks: list[str], backbones: list[str], contenders: list[str], optimizer: str
) -> None:
    pretrained = [source == PRETRAINED for source, _ in pairs.values()]
    for needed, found, what in (
        (not all(pretrained), networks, f"small network, as {next(iter(PAPER_NETS))}"),
        (any(pretrained), backbones, "pretrained backbone, as tf_efficientnet_lite0"),
    ):
        if needed and len(found) != 1:
            raise InputError(f"model.name: {', '.join(found)!r} is not allowed for these pairs; give one {what}")
    if not all(pretrained) and optimizer not in _OPTIMIZERS:
        raise InputError(
            f"optim.name: {optimizer!r} is not known to small networks; {nearest_names(optimizer, _OPTIMIZERS)}"
        )
    check_optimizer_name(optimizer)
    for name in contenders if any(pretrained) else []:
        check_model_config(model_config(backbones[0], True, name))


def _grouped(trials: Sequence[Trial]) -> list[list[Any]]:
    """Put together what goes on from the same network."""
    groups: dict[Any, list[Any]] = {}
    for trial in trials:
        groups.setdefault((trial.seed, trial.pair, trial.contender), []).append(trial)
    return list(groups.values())


def work(config: ClaimsConfig, shelves: Shelves, trials: Sequence[Any]) -> list[list[Row]]:
    """Run trials that belong together.

    Args:
        config: of the study.
        shelves: where the small sets lie.
        trials: of one group.

    Returns:
        What `transfer` or the study `small-lr` returns.
    """
    if isinstance(trials[0], Trial):
        return transfer(trials, PairData(*(opened(shelf, "cpu") for shelf in shelves[trials[0].pair])))
    return small_lr.work(backbone_config(config, trials[0].data), trials)


def estimate(config: ClaimsConfig, shelves: Shelves, trials: Sequence[Any]) -> float:
    """Measure a little of each kind of run, and say how long all take one after the other.

    Args:
        config: of the study.
        shelves: where the small sets lie.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    total = 0.0
    small = [trial for trial in trials if isinstance(trial, Trial)]
    for group in _grouped(small):
        data = PairData(*(opened(shelf, "cpu") for shelf in shelves[group[0].pair]))
        images = group[0].source_epochs * len(data.source.train_labels)
        images += sum(trial.length for trial in group) * len(data.target.train_labels)
        total += images * _seconds_an_image(group[0], data)
    others: dict[str, list[small_lr.Trial]] = {}
    for trial in trials:
        if not isinstance(trial, Trial):
            others.setdefault(trial.data, []).append(trial)
    return total + sum(small_lr.estimate(backbone_config(config, target), some) for target, some in others.items())


_measured: dict[tuple[str, str], float] = {}


@dataclass(frozen=True)
class PairData:
    """What a pair of sets trains on and is judged on.

    Args:
        source: to begin with.
        target: its training images, with the validation images in the test's place.
        test: the target's test images; the training images are not used.
    """

    source: Tensors
    target: Tensors
    test: Tensors


def _seconds_an_image(trial: Trial, data: PairData) -> float:
    key = (trial.pair, trial.contender)
    if key not in _measured:
        few = data.source.share(min(1.0, _PROBED / len(data.source.train_labels)))
        short = replace(trial, source_epochs=1, length=0)
        with one_thread():
            run: Callable[[], object] = partial(transfer, [short], PairData(few, few.share(0.1), few.share(0.1)))
            run()
            started = perf_counter()
            run()
            _measured[key] = (perf_counter() - started) / len(few.train_labels)
    return _measured[key]


def _headline(config: ClaimsConfig, small: float) -> str:
    return (
        f"transfer {config.pairs}: {config.model.activation}, {config.optim.name}, learning rates {config.optim.lr} "
        f"(the small one is {small:g}), {amount(config)}, {epochs(config)}, {config.train.repeats} seeds"
    )


PRETRAINED = "imagenet"
_SIDE = 28
_SVHN_SIDE = 32  # the authors cut the 28 pixels in the middle out of it


def read_pairs(text: str | None) -> dict[str, tuple[str, str]]:
    """Read which sets are learned one after the other.

    Args:
        text: as `mnist-to-mnist-m,imagenet-to-flowers17`.

    Returns:
        Source and target by pair.

    Raises:
        InputError: if a source or target is unknown.
    """
    found = {}
    for pair in read_names("pairs", text):
        source, to, target = pair.partition("-to-")
        if not (source and to and target):
            raise InputError(f"pairs: {pair!r} is not allowed; give SOURCE-to-TARGET, as mnist-to-mnist-m")
        known = [PRETRAINED, *_small_sets()]
        if source not in known:
            raise InputError(f"pairs: the source {source!r} of {pair!r} is not known; {nearest_names(source, known)}")
        if source != PRETRAINED and target not in _small_sets():
            raise InputError(
                f"pairs: the target {target!r} of {pair!r} is not known; {nearest_names(target, _small_sets())}"
            )
        found[pair] = (source, target)
    return found


def _small_sets() -> list[str]:
    return ["digits", "mnist-m", *NAMED_SETS]


def backbone_config(config: ClaimsConfig, target: str) -> ClaimsConfig:
    """Return the study of a pretrained backbone on a target: a set that goes by its name, or a folder."""
    found = deepcopy(config)
    found.model.pretrained = True
    found.model.name = next((one for one in read_names("model.name", config.model.name) if one not in PAPER_NETS), None)
    if target.lower() in _small_sets():
        found.data.name = target
    else:
        found.data.name, found.data.root = None, target
    return found


def load_pair(config: ClaimsConfig, source: str, target: str) -> PairData:
    """Load both sets of a pair at one size and with the same channels; grey digits are repeated to three.

    Args:
        config: its data.root, per_class and download; the split is the first seed's.
        source: name of a set.
        target: name of a set.

    Raises:
        InputError: if a set is missing, or the two have not as many classes.
    """
    of_target = replace(deepcopy(config.data), name=target)
    of_source = replace(deepcopy(config.data), name=source, per_class=None)
    splits = load_images(of_target, config.run.seed)
    channels = max(splits.train.channels, load_images(of_source, config.run.seed).train.channels)
    side = _SVHN_SIDE if target == "svhn" else _SIDE
    train, validation, test = (
        _centre(*as_tensors(part, side, channels)) for part in (splits.train, splits.validation, splits.test)
    )
    classes = len(splits.train.classes)
    learned = _load_source(of_source, config.run.seed, channels)
    if learned.classes != classes:
        raise InputError(
            f"pairs: {source!r} has {learned.classes} classes and {target!r} {classes}; the head is kept, give sets "
            "with as many"
        )
    return PairData(learned, Tensors(*train, *validation, classes), Tensors(train[0][:1], train[1][:1], *test, classes))


def _load_source(config: DataConfig, seed: int, channels: int) -> Tensors:
    found = load_tensors(config, seed, _SVHN_SIDE if config.name == "svhn" else _SIDE, channels)
    train = _centre(found.train_images, found.train_labels)
    test = _centre(found.test_images, found.test_labels)
    return Tensors(*train, *test, found.classes)


def _centre(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    edge = (images.shape[-1] - _SIDE) // 2
    return images[..., edge : edge + _SIDE, edge : edge + _SIDE].contiguous(), labels


SOURCE_RATE, SOURCE_BATCH = 1e-2, 128
_LOOKED_AT = 256  # images that the start `fit` may look at


@dataclass(frozen=True)
class _Pass:
    """What an epoch's order and batches depend on."""

    seed: int
    batch_size: int


def build(trial: Trial, data: Tensors) -> nn.Module:
    """Make a trial's network; all contenders of a seed get the same weights.

    Args:
        trial: network, contender, seed.
        data: whose images it takes.
    """
    torch.manual_seed(trial.seed)
    model: nn.Module = PAPER_NETS[trial.network](num_classes=data.classes, in_chans=data.channels, img_size=data.side)
    if trial.contender != ORIGINAL:
        activation, _, start = trial.contender.partition(":")
        init = start or ("paper" if activation == "arelu" else None)
        shown = [scaled(data.train_images[:_LOOKED_AT])] if init == "fit" else None
        example = torch.zeros(2, data.channels, data.side, data.side)
        swap_activations(model, activation, init=cast(Init | None, init), example=example, data=shown)
    return model.to(memory_format=torch.channels_last)


def transfer(trials: Sequence[Trial], data: PairData) -> list[list[Row]]:
    """Train one network on the source, and go on from it on the target in each of several ways.

    Args:
        trials: that differ in the optimiser and learning rate on the target alone.
        data: of their pair.

    Returns:
        For each trial a row an epoch, the first before any step on the target: `step`, `accuracy` (on the target's
        validation images, a fraction), and on every row `validation_accuracy`, `test_accuracy` (at the end),
        `source_accuracy` and `rate`.
    """
    first = trials[0]
    model = build(first, data.source)
    optimizer = make_optimizer("sgd", SOURCE_RATE, model)
    for epoch in range(1, first.source_epochs + 1):
        train_epoch(model.train(), optimizer, _Pass(first.seed, SOURCE_BATCH), data.source, epoch)
    known = {name: value.clone() for name, value in model.state_dict().items()}
    on_source = accuracy(model, data.source)
    found = []
    for trial in trials:
        model.load_state_dict(known)
        found.append(_on_target(model, trial, data, on_source))
    return found


def _on_target(model: nn.Module, trial: Trial, data: PairData, on_source: float) -> list[Row]:
    optimizer = make_optimizer(trial.optimizer, trial.lr, model)
    steps = -(-len(data.target.train_labels) // trial.batch_size)
    courses = [(0, accuracy(model, data.target))]
    diverged = ""
    for epoch in range(1, trial.length + 1):
        loss = train_epoch(model.train(), optimizer, _Pass(trial.seed, trial.batch_size), data.target, epoch)
        if loss != loss:
            diverged = f"the loss became nan in epoch {epoch}"
            break
        courses.append((epoch * steps, accuracy(model, data.target)))
    ends: Row = {"source_accuracy": on_source, "rate": trial.lr}
    if diverged:
        return [{"step": 0, "accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0, **ends,
                 "diverged": diverged}]  # fmt: skip
    ends |= {"validation_accuracy": courses[-1][1], "test_accuracy": accuracy(model, data.test)}
    return [{"step": step, "accuracy": value, **ends} for step, value in courses]


def conclude(
    rows: Mapping[str, Sequence[Row]], small: float, margin: float, resplit: Mapping[str, float] | None = None
) -> Outcome:
    """Judge finished runs.

    Args:
        rows: by pair, one a read-out, as the study `small-lr` has them.
        small: the small learning rate on the target.
        margin: differences within so many points do not count.
        resplit: by pair, as in `compare`.

    Returns:
        What `small-lr` concludes of each pair; the claims are those of the first pair that is named.
    """
    first = next(iter(rows))
    whole = Outcome(notes=["Learning rates are those on the target; every network learned its source at the same one."])
    if len(rows) > 1:
        whole.notes.append(
            f"The study's claims are of {first}, the pair that is named first; the others are described."
        )
    by_pair = {
        pair: conclude_pair(some, small, margin, None, resplit=(resplit or {}).get(pair, 0.0))
        for pair, some in rows.items()
    }
    shared = [note for note in next(iter(by_pair.values())).notes if all(note in one.notes for one in by_pair.values())]
    whole.notes += shared
    for pair, found in by_pair.items():
        whole.comparisons += [
            replace(one, claim=f"{pair}: {one.claim}", primary=one.primary and pair == first)
            for one in found.comparisons
        ]
        whole.anchors += [replace(one, where=f"{pair}:") for one in found.anchors]
        for name in ("tables", "curves", "heatmaps"):
            titled = [replace(one, title=f"{pair}: {one.title}") for one in getattr(found, name)]
            setattr(whole, name, getattr(whole, name) + titled)
        whole.notes += [f"{pair}: {note}" for note in found.notes if note not in shared]
    whole.comparisons = judge(whole.comparisons)
    return whole
