"""The runs of the study `small-lr`, by fine-tuning or by MAML, and how long they take."""

import csv
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from arelu_meta.claims.inner_matching import matched_inner_rate
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.matched_learning_rate import NoMatchError, matched_rate
from arelu_meta.claims.running import one_thread, probe
from arelu_meta.claims.scratch import run_apart
from arelu_meta.claims.small_lr_tables import MATCHED, ORIGINAL
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
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.meta.metatrain import metatrain

UNCLIPPED = 1e9  # of all gradients together; left open, the defaults would clip some contenders and not others
_INNER_STEPS = 5
_VALIDATIONS, _VALIDATION_TASKS = 4, 50
_PROBED_TASKS = (2, 8)  # to be judged on; a whole run's hundreds take minutes on a large backbone


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
        many inner steps), and on every row of a run `validation_accuracy`, `test_accuracy`, `images` (tested on; of
        tasks, their query images), `rate` (the rate that was taken) and `diverged`. A matched run that has no rate: one
        row that says why in `refused`.
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
            clip_grad=UNCLIPPED,
        ),
        train=TrainConfig(epochs=trial.length, freeze_bn=False, keep="best"),
    )


def _finetuned(config: ClaimsConfig, trial: Trial, folder: Path) -> list[Row]:
    rate = trial.lr
    if trial.contender.startswith(MATCHED):
        like = _matched_by(trial)
        try:
            rate = matched_rate(finetune_config(config, trial, folder), finetune_config(config, like, folder))
        except NoMatchError as reason:
            return [{"refused": str(reason)}]
    results = finetune(finetune_config(config, replace(trial, lr=rate), folder))
    metrics = _numbers(folder / "metrics.csv")
    images = json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"]
    steps = -(-len(images) // trial.batch_size)
    ends = {name: results[name] for name in ("validation_accuracy", "test_accuracy")} | {"images": results["test_n"]}
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
        try:
            rate = matched_inner_rate(metatrain_config(config, trial, folder), metatrain_config(config, like, folder))
        except NoMatchError as reason:
            return [{"refused": str(reason)}]
    results = metatrain(metatrain_config(config, replace(trial, lr=rate), folder))
    validation = [float(row["validation_accuracy"] or 0.0) for row in _numbers(folder / "metrics.csv")]
    ends = {"validation_accuracy": max(validation), "test_accuracy": results["test_accuracy"], "rate": rate}
    ends["images"] = results["test_n"] * results["ways"] * results["queries"]
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
