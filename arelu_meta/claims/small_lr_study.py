"""The study `small-lr`: is an activation ahead at a small learning rate, and still when each has its best one?"""

import csv
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.claims.amounts import amount, epochs
from arelu_meta.claims.inner_matching import matched_inner_rate
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.matching import matched_rate
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import one_thread, probe, side_by_side
from arelu_meta.claims.scratch import run_apart
from arelu_meta.claims.small_lr_tables import MATCHED, ORIGINAL, conclude
from arelu_meta.config import (
    ClaimsConfig,
    EvalConfig,
    FinetuneConfig,
    MetaConfig,
    MetatrainConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from arelu_meta.data.episodes import load_class_splits
from arelu_meta.data.images import load_images
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.finetuning import finetune
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.meta import metatrain
from arelu_meta.wording import counted

_INNER_STEPS = 5
_VALIDATIONS, _VALIDATION_TASKS = 4, 50
_PROBED_TASKS = (2, 8)  # to be judged on; a whole run's hundreds take minutes on a large backbone
_STARTS = ("paper", "preserve", "leak", "open", "nearest", "fit")


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures.

    Args:
        pipeline: finetune or maml.
        data: name or root of the images.
        image_size: in pixels, or None.
        batch_size: images a step.
        per_class: training images a class, or None for all.
        model: name of the backbone.
        pretrained: as model.pretrained.
        contender: `original`, an activation, or `arelu:START`; `matched:CONTENDER` is the original at a rate at which
            its first steps move the logits as far as that contender's.
        optimizer: a name of timm's; of the outer loop in maml.
        lr: learning rate; of the inner loop in maml.
        seed: of split, weights, order and tasks.
        length: epochs, or meta-steps.
        tasks: that maml is judged on.
    """

    pipeline: str
    data: str
    image_size: int | None
    batch_size: int
    per_class: int | None
    model: str
    pretrained: bool | str
    contender: str
    optimizer: str
    lr: float
    seed: int
    length: int
    tasks: int = 0


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, the data is missing, the small rate is not among the rates, or there is
            nothing to choose the best one by.
    """
    trials = list_trials(config)
    small = small_rate(config)
    notes = _notes_on_data(config)
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda ledger, folder: conclude(ledger.of_all(trials), small, config.margin, config.target, notes),
        headline=_headline(config, small),
    )


def _notes_on_data(config: ClaimsConfig) -> tuple[str, ...]:
    """Read the data once before the first run; return what is to be known of how it was divided."""
    if config.pipeline != "maml":
        return load_images(config.data, config.run.seed).notes
    splits = load_class_splits(config.data, MetatrainConfig().task, config.run.seed)
    if splits.validation is None and len(numbers("optim.lr", config.optim.lr)) > 1:
        raise InputError(
            f"optim.lr: the best of {config.optim.lr} is chosen on validation tasks, and this data has too few classes "
            "and images for any; give one rate, or more data"
        )
    return splits.notes


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of everything first; matched ones at the small rate alone.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    contenders = contenders_of(config, bool(config.model.pretrained))
    optimizers, models = names("optim.name", config.optim.name), names("model.name", config.model.name)
    for name in optimizers:
        check_optimizer_name(name)
    if len(optimizers) > 1 or len(models) > 1:
        raise InputError("model.name, optim.name: small-lr takes one backbone and one optimiser a study; give one each")
    for name in contenders:
        check_model_config(model_config(models[0], config.model.pretrained or False, name))
    maml = config.pipeline == "maml"
    first = Trial(
        pipeline=config.pipeline,
        data=config.data.root or config.data.name or "digits",
        image_size=config.data.image_size,
        batch_size=config.data.batch_size,
        per_class=config.data.per_class,
        model=models[0],
        pretrained=config.model.pretrained or False,
        contender=ORIGINAL,
        optimizer=optimizers[0],
        lr=small_rate(config),
        seed=config.run.seed,
        length=(config.meta.steps if maml else config.train.epochs) or 1,
        tasks=(config.meta.tasks or 0) if maml else 0,
    )
    trials = []
    for seed in seeds(config):
        for lr, contender in itertools.product(numbers("optim.lr", config.optim.lr), contenders):
            trials.append(replace(first, contender=contender, lr=lr, seed=seed))
        others = [name for name in contenders if name != ORIGINAL and ORIGINAL in contenders]
        trials += [replace(first, contender=f"{MATCHED}{name}", seed=seed) for name in others]
    return trials


def contenders_of(config: ClaimsConfig, pretrained: bool | None = None) -> list[str]:
    """List a resolved config's contenders, each once.

    Args:
        config: of the study.
        pretrained: whether all networks are, which says how an AReLU without a start starts; None where some are.

    Raises:
        InputError: as `check_contender`; and if two contenders are one.
    """
    found = names("model.activation", config.model.activation)
    contenders = list(dict.fromkeys(check_contender(name) for name in found))
    default = f"arelu:{'preserve' if pretrained else 'paper'}"
    if pretrained is not None and {"arelu", default} <= {*contenders}:
        raise InputError(f"model.activation: 'arelu' and {default!r} are the same here; leave one of them out")
    return contenders


def check_contender(name: str) -> str:
    """Refuse an unknown activation or start.

    Args:
        name: `original`, an activation, or `arelu:START`.

    Returns:
        It, the activation under the name by which it is listed.

    Raises:
        InputError: with what is allowed.
    """
    if name == ORIGINAL:
        return name
    activation, colon, start = name.partition(":")
    if colon and activation.lower() != "arelu":
        raise InputError(f"model.activation: {name!r} has a start, and only arelu has starts; give {activation}")
    if colon and start not in _STARTS:
        raise InputError(f"model.activation: {name!r} is not known; {nearest_names(start, _STARTS)}")
    from arelu_meta.activations.registry import canonical_name

    return canonical_name(activation, "model.activation") + colon + start


def small_rate(config: ClaimsConfig) -> float:
    """Return the small learning rate: the smallest, unless optim.small_lr names it.

    Raises:
        InputError: if that is not among the rates.
    """
    rates = numbers("optim.lr", config.optim.lr)
    small = config.optim.small_lr
    if small is not None and small not in rates:
        raise InputError(f"optim.small_lr: {small:g} is not one of optim.lr, {config.optim.lr}; give one of them")
    return min(rates) if small is None else small


def _headline(config: ClaimsConfig, small: float) -> str:
    data = config.data.root or config.data.name or "digits"
    maml = config.pipeline == "maml"
    length = counted(config.meta.steps or 0, "meta-step") if maml else f"{amount(config)}, {epochs(config)}"
    rates = "inner learning rates" if maml else "learning rates"
    return (
        f"{config.pipeline} of {config.model.name} on {data}: {config.model.activation}, {config.optim.name}, {rates} "
        f"{config.optim.lr} (the small one is {small:g}), {length}, {config.train.repeats} seeds"
    )


def model_config(name: str, pretrained: bool | str, contender: str) -> ModelConfig:
    """Say which model a contender is.

    Args:
        name: of the backbone.
        pretrained: as model.pretrained.
        contender: as in `Trial`.
    """
    activation, _, start = contender.removeprefix(MATCHED).partition(":")
    original = contender.startswith(MATCHED) or contender == ORIGINAL
    return ModelConfig(
        name=name,
        pretrained=pretrained,
        activation=None if original else activation,
        init=None if original else start or None,  # type: ignore[arg-type]  # checked by check_contender
        reset_head=isinstance(pretrained, str),
        head_init="zero" if pretrained else "random",
    )


def work(config: ClaimsConfig, trials: Sequence[Trial]) -> list[list[Row]]:
    """Run trials, one after the other.

    Args:
        config: of the study; its data and device.
        trials: what to run.

    Returns:
        For each one row a read-out: `step`, `accuracy` (finetune: on validation images; maml: on unseen tasks after so
        many inner steps), and on every row of a run `validation_accuracy`, `test_accuracy`, `rate` (the rate that was
        taken) and `diverged`.
    """
    run = _metatrained if config.pipeline == "maml" else _finetuned
    worst = {"step": 0, "accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0}
    return [run_apart(partial(run, config, trial), worst | {"rate": trial.lr}) for trial in trials]


def finetune_config(config: ClaimsConfig, trial: Trial, folder: Path) -> FinetuneConfig:
    """Make a trial's config: every contender trains alike, whatever the defaults would choose for it."""
    model = model_config(trial.model, trial.pretrained, trial.contender)
    return FinetuneConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device=config.run.device, pictures=False),
        data=deepcopy(config.data),
        model=model,
        optim=OptimConfig(
            name=trial.optimizer,
            lr=trial.lr,
            act_lr=trial.lr if model.activation else None,
            weight_decay=1e-4,
            schedule="cosine",
        ),
        train=TrainConfig(epochs=trial.length, freeze_bn=False, keep="best"),
    )


def _finetuned(config: ClaimsConfig, trial: Trial, folder: Path) -> list[Row]:
    rate = trial.lr
    if trial.contender.startswith(MATCHED):
        like = _matched_by(trial)
        rate = matched_rate(finetune_config(config, trial, folder), finetune_config(config, like, folder))
    results = finetune(finetune_config(config, replace(trial, lr=rate), folder))
    metrics = _numbers(folder / "metrics.csv")
    images = json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"]
    steps = -(-len(images) // trial.batch_size)
    ends = {name: results[name] for name in ("validation_accuracy", "test_accuracy")}
    return [
        {"step": int(row["epoch"]) * steps, "accuracy": row["validation_accuracy"], **ends, "rate": rate}
        for row in metrics
    ]


def metatrain_config(config: ClaimsConfig, trial: Trial, folder: Path) -> MetatrainConfig:
    """As `finetune_config`, of a trial that meta-learns; its rate is the inner loop's."""
    return MetatrainConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device=config.run.device, pictures=False),
        data=deepcopy(config.data),
        model=model_config(trial.model, trial.pretrained, trial.contender),
        optim=OptimConfig(name=trial.optimizer, lr=1e-3, weight_decay=0.0, schedule="constant"),
        meta=MetaConfig(inner_lr=trial.lr, inner_steps=_INNER_STEPS, steps=trial.length, batch_tasks=8),
        eval=EvalConfig(
            tasks=trial.tasks,
            every=max(1, trial.length // _VALIDATIONS),
            validation_tasks=_validation_tasks(trial.tasks),
        ),
    )


def _validation_tasks(tasks: int) -> int:
    """Validations together take as many tasks as the test, and no more than choosing a rate needs."""
    return min(_VALIDATION_TASKS, -(-tasks // _VALIDATIONS))


def _metatrained(config: ClaimsConfig, trial: Trial, folder: Path) -> list[Row]:
    rate = trial.lr
    if trial.contender.startswith(MATCHED):
        like = _matched_by(trial)
        rate = matched_inner_rate(metatrain_config(config, trial, folder), metatrain_config(config, like, folder))
    results = metatrain(metatrain_config(config, replace(trial, lr=rate), folder))
    validation = [float(row["validation_accuracy"] or 0.0) for row in _numbers(folder / "metrics.csv")]
    ends = {"validation_accuracy": max(validation), "test_accuracy": results["test_accuracy"], "rate": rate}
    return [{"step": step, "accuracy": results[f"accuracy_after_{step}"], **ends} for step in range(_INNER_STEPS + 1)]


def _matched_by(trial: Trial) -> Trial:
    return replace(trial, contender=trial.contender.removeprefix(MATCHED))


def _numbers(file: Path) -> list[dict[str, Any]]:
    """Read a table of a run; an empty cell is None."""
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return [{name: float(value) if value else None for name, value in row.items()} for row in rows]


def estimate(config: ClaimsConfig, trials: Sequence[Trial]) -> float:
    """Do one of the trials in short, and say how long all take one after the other.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    like = next((one for one in trials if not one.contender.startswith(MATCHED)), trials[0])
    if config.pipeline == "maml":
        return _estimate_maml(config, like, trials)
    whole, an_epoch = _time_one_epoch(config, replace(like, length=1))
    return sum(whole + (trial.length - 1) * an_epoch for trial in trials)


def _time_one_epoch(config: ClaimsConfig, trial: Trial) -> tuple[float, float]:
    """Do a run of one epoch in one thread, as in a process of a pool: the seconds of it all, and of its epoch."""
    epochs: list[Row] = []

    def run(folder: Path) -> list[Row]:
        finetune(finetune_config(config, trial, folder))
        epochs.extend(_numbers(folder / "times.csv"))
        return []

    with one_thread():
        started = time.perf_counter()
        run_apart(run, {})
        whole = time.perf_counter() - started
    return whole, epochs[0]["seconds"] if epochs else whole  # one that became NaN has no epoch


def _estimate_maml(config: ClaimsConfig, like: Trial, trials: Sequence[Trial]) -> float:
    """As `estimate`, from one and two steps and few tasks; so short runs validate after each step."""
    few, more = (min(count, like.tasks) for count in _PROBED_TASKS)

    def run(length: int, tasks: int = few) -> object:
        return work(config, [replace(like, length=length, tasks=tasks)])

    seconds = probe(run)
    one, two = seconds(1), seconds(2)
    checked = _validation_tasks(few)
    a_task = 0.0
    if more > few:
        with one_thread():
            started = time.perf_counter()
            run(1, more)
            further = more - few + _validation_tasks(more) - checked
            a_task = max(0.0, time.perf_counter() - started - one) / further
    a_step = max(0.0, two - one - checked * a_task)
    start = max(0.0, one - a_step - (few + checked) * a_task)
    judged = like.tasks + _VALIDATIONS * _validation_tasks(like.tasks)
    return sum(start + trial.length * a_step + judged * a_task for trial in trials)
