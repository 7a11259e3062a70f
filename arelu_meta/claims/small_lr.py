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

import numpy as np
import torch
from scipy.integrate import trapezoid

from arelu_meta.activations.controls import is_control
from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.claims.controls import (
    HELD,
    ORIGINAL,
    PROBE,
    RIVALS,
    check_contender,
    contender_model,
    explained,
    scalars_learn,
)
from arelu_meta.claims.matched_learning_rate import STEPS, NoMatchError, matched_inner_rate, matched_rate
from arelu_meta.claims.metrics import regret, steps_to, width_within, worth
from arelu_meta.claims.study import (
    CLAIMS,
    Plan,
    Row,
    amount,
    divide_for,
    epochs,
    one_thread,
    probe,
    read_names,
    read_numbers,
    resplit,
    resplit_classes,
    run_apart,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import Anchor, Curves, Heatmap, Outcome, Table, chance, mean_series
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
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError, counted
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.meta.baselines import FEW_SHOT_ANCHORS, few_shot_anchors
from arelu_meta.meta.meta_trainer import make_sampler
from arelu_meta.meta.metatrain import make_model, metatrain
from arelu_meta.statistics import Comparison, area_over_rates, compare, judge


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
    maml = config.pipeline == "maml"
    ratio = (
        resplit_classes(config.data, MetatrainConfig().task, config.run.seed)
        if maml
        else resplit(config.data, config.run.seed)
    )
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda log, folder: conclude(log.of_all(trials), small, config.margin, config.target, notes, ratio),
        headline=_headline(config, small),
    )


def _notes_on_data(config: ClaimsConfig) -> tuple[str, ...]:
    """Read the data before the first run; return what is to be known of how it was divided."""
    if config.pipeline != "maml":
        return load_images(config.data, config.run.seed).notes
    divided = [divide_for(config.data, MetatrainConfig().task, seed) for seed in seeds_of(config)]
    if len(read_numbers("optim.lr", config.optim.lr)) > 1 and any(splits.validation is None for splits in divided):
        raise InputError(
            f"optim.lr: the best of {config.optim.lr} is chosen on validation tasks, and this data has too few classes "
            "and images for any; give one rate, or more data"
        )
    return tuple(dict.fromkeys(note for splits in divided for note in splits.notes))


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
        contender: `original`, an activation, or `arelu:START`; `original:held` is the original with batch normalisation
            held, and `probe` logistic regression on its frozen features; `matched:CONTENDER` is the original at a rate
            at which its first steps move the logits as far as that contender's.
        optimizer: a name of timm's; of the outer loop in maml.
        lr: learning rate; of the inner loop in maml.
        seed: of split, weights, order and tasks.
        length: epochs, or meta-steps.
        tasks: that maml is judged on.
        regime: plain or careful, of finetune; the same for all contenders.
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
    regime: str = "plain"


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of everything first; matched ones at the small rate alone.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    pretrained = bool(config.model.pretrained)
    contenders = contenders_of(config, pretrained)
    optimizers, models = read_names("optim.name", config.optim.name), read_names("model.name", config.model.name)
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
        regime=regime_of(config, pretrained),
    )
    if not maml:
        contenders = with_held(contenders, first)
    trials = []
    for seed in seeds_of(config):
        trials += [] if maml else [replace(first, contender=PROBE, seed=seed)]
        for lr, contender in itertools.product(read_numbers("optim.lr", config.optim.lr), contenders):
            trials.append(replace(first, contender=contender, lr=lr, seed=seed))
        # What begins as the original does would be matched at the original's own rate: the same run again.
        others = [
            name
            for name in contenders
            if ORIGINAL in contenders and name not in (ORIGINAL, HELD, *RIVALS) and not keeps_function(name, pretrained)
        ]
        trials += [replace(first, contender=f"{MATCHED}{name}", seed=seed) for name in others]
    return trials


def regime_of(config: ClaimsConfig, pretrained: bool) -> str:
    """Return how all contenders train: as `--study.regime` says, or carefully where there are features to keep."""
    return config.regime or ("careful" if pretrained else "plain")


def with_held(contenders: Sequence[str], trial: Trial) -> list[str]:
    """Add the original with batch normalisation held, without which the original is a straw man.

    Args:
        contenders: of the study.
        trial: any of it; under the careful regime all hold it, and from random weights there is nothing to hold.
    """
    needed = ORIGINAL in contenders and trial.regime == "plain" and bool(trial.pretrained)
    return [one for name in contenders for one in ([name, HELD] if name == ORIGINAL and needed else [name])]


def contenders_of(config: ClaimsConfig, pretrained: bool | None = None) -> list[str]:
    """List a resolved config's contenders, each once; those that are the same by construction are merged.

    Args:
        config: of the study.
        pretrained: whether all networks are, which says how an AReLU without a start starts; None where some are.

    Raises:
        InputError: as `check_contender`.
    """
    found = read_names("model.activation", config.model.activation)
    contenders = list(dict.fromkeys(check_contender(name) for name in found))
    if rivals := [name for name in contenders if name in RIVALS and config.pipeline != "maml"]:
        raise InputError(f"model.activation: {rivals[0]!r} is a meta-learner; give --pipeline maml with it")
    contenders = [one for name in contenders for one in with_scalars(name, config.model.alpha, config.model.beta)]
    return contenders if pretrained is None else merged(contenders, pretrained)


def with_scalars(contender: str, alpha: float | str | None, beta: float | str | None) -> list[str]:
    """List a contender once for each start of alpha and beta, where it has such scalars.

    Args:
        contender: as `check_contender` returned it.
        alpha: numbers with commas between, or None for what the contender says itself.
        beta: the same.

    Raises:
        InputError: naming a number that is not allowed.
    """
    if (alpha is None and beta is None) or not contender.startswith(("arelu", "elsa")):
        return [contender]
    given = {"model.alpha": alpha, "model.beta": beta}
    grid = itertools.product(*([None] if text is None else read_numbers(flag, text) for flag, text in given.items()))
    found = ["/".join("" if one is None else f"{one:g}" for one in pair) for pair in grid]
    return [f"{contender}@{scalars}" for scalars in found]


def merged(contenders: Sequence[str], pretrained: bool) -> list[str]:
    """Leave out an AReLU that another contender is already: shut gates that are frozen are the original, for one.

    Args:
        contenders: of the study.
        pretrained: whether the networks are, which says how an AReLU without a start starts.
    """
    start = "preserve" if pretrained else "paper"
    same = {"arelu": f"arelu:{start}", "arelu:frozen": f"arelu:{start}:frozen"}
    found: dict[str, str] = {}
    for name in contenders:
        whole = same.get(name, name)
        found.setdefault(ORIGINAL if whole == "arelu:preserve:frozen" else whole, name)
    return list(found.values())


def small_rate(config: ClaimsConfig) -> float:
    """Return the small learning rate: the smallest, unless optim.small_lr names it.

    Raises:
        InputError: if that is not among the rates.
    """
    rates = read_numbers("optim.lr", config.optim.lr)
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


UNCLIPPED = 1e9  # of all gradients together; left open, the defaults would clip some contenders and not others
_CLIPPED = 1.0  # under the careful regime
_INNER_STEPS = 5
_VALIDATIONS, _VALIDATION_TASKS = 4, 50
_PROBED_TASKS = (2, 8)  # to be judged on; a whole run's hundreds take minutes on a large backbone


def model_config(name: str, pretrained: bool | str, contender: str, regime: str = "plain") -> ModelConfig:
    """Return which model a contender is.

    Args:
        name: of the backbone.
        pretrained: as model.pretrained.
        contender: as in `Trial`.
        regime: plain or careful, which starts the head as the probe.
    """
    bare = contender.startswith(MATCHED) or contender == PROBE
    made = contender_model(name, pretrained, ORIGINAL if bare else contender)
    return replace(made, head_init="probe") if regime == "careful" else made


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
    careful = trial.regime == "careful"
    model = model_config(trial.model, trial.pretrained, trial.contender, trial.regime)
    return FinetuneConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device=config.run.device, pictures=False),
        data=deepcopy(config.data),
        model=model,
        optim=OptimConfig(
            name=trial.optimizer,
            lr=trial.lr,
            act_lr=trial.lr if model.activation and scalars_learn(trial.contender) else None,
            weight_decay=1e-4,
            schedule="cosine",
            clip_grad=_CLIPPED if careful else UNCLIPPED,
        ),
        train=TrainConfig(epochs=trial.length, freeze_bn=careful or trial.contender == HELD, keep="best"),
    )


def probe_config(config: ClaimsConfig, trial: Trial, folder: Path) -> FinetuneConfig:
    """Make the config of logistic regression on the frozen features of a trial's original: the anchor of its study."""
    made = finetune_config(config, replace(trial, contender=ORIGINAL), folder)
    model = replace(made.model, head_init="probe")
    return FinetuneConfig(run=made.run, data=made.data, model=model, train=TrainConfig(epochs=1, mode="probe"))


def _finetuned(config: ClaimsConfig, trial: Trial, folder: Path) -> list[Row]:
    if trial.contender == PROBE:
        results = finetune(probe_config(config, trial, folder))
        ends = {name: results[name] for name in ("validation_accuracy", "test_accuracy")}
        return [{"step": 0, "accuracy": results["validation_accuracy"], **ends, "chance": 1 / results["classes"]}]
    made, rate = finetune_config(config, trial, folder), trial.lr
    if trial.contender.startswith(MATCHED):
        try:
            rate = matched_rate(made, finetune_config(config, _matched_by(trial), folder))
        except NoMatchError as reason:
            return [{"refused": str(reason)}]
        made.optim.head_lr = rate
    results = finetune(made)
    metrics = numbers_of(folder / "metrics.csv")
    images = json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"]
    steps = -(-len(images) // trial.batch_size)
    ends = {name: results[name] for name in ("validation_accuracy", "test_accuracy")} | {"images": results["test_n"]}
    return [
        {"step": int(row["epoch"]) * steps, "accuracy": row["validation_accuracy"], **ends, "rate": rate}
        for row in metrics
    ]


def metatrain_config(config: ClaimsConfig, trial: Trial, folder: Path) -> MetatrainConfig:
    """As `finetune_config`, of a trial that meta-learns; its rate is the inner loop's."""
    rival: Any = {"algorithm": RIVALS[trial.contender]} if trial.contender in RIVALS else {}
    return MetatrainConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device=config.run.device, pictures=False),
        data=deepcopy(config.data),
        model=model_config(trial.model, trial.pretrained, trial.contender),
        optim=OptimConfig(name=trial.optimizer, lr=1e-3, weight_decay=0.0, schedule="constant"),
        meta=MetaConfig(inner_lr=trial.lr, inner_steps=_INNER_STEPS, steps=trial.length, batch_tasks=8, **rival),
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
    made = metatrain_config(config, replace(trial, lr=rate), folder)
    results = metatrain(made)
    validation = [float(row["validation_accuracy"] or 0.0) for row in numbers_of(folder / "metrics.csv")]
    ends = {"validation_accuracy": max(validation), "test_accuracy": results["test_accuracy"], "rate": rate}
    ends["images"] = results["test_n"] * results["ways"] * results["queries"]
    if trial.contender == ORIGINAL:
        ends |= _few_shot_anchors(made) | {"chance": 1 / results["ways"]}
    return [{"step": step, "accuracy": results[f"accuracy_after_{step}"], **ends} for step in range(_INNER_STEPS + 1)]


def _few_shot_anchors(config: MetatrainConfig) -> dict[str, float]:
    """Score what needs no meta-training on a run's own tasks."""
    splits = divide_for(config.data, config.task, config.run.seed)
    torch.manual_seed(config.run.seed)
    model, spec, _ = make_model(config, splits)
    sampler = make_sampler(config, spec, splits, "test", torch.device("cpu"))
    return few_shot_anchors(model, sampler, config.eval.tasks)


def _matched_by(trial: Trial) -> Trial:
    return replace(trial, contender=trial.contender.removeprefix(MATCHED))


def numbers_of(file: Path) -> list[dict[str, Any]]:
    """Read a table of a run; an empty cell is None.

    Args:
        file: such as its metrics.csv.
    """
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
        epochs.extend(numbers_of(folder / "times.csv"))
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


MATCHED = "matched:"
OPEN_STARTS = ("arelu:open", "arelu:leak")
FEWEST_RATES = 3  # of which one can be the best without being the largest or the smallest
_TARGET_SHARE = 0.9


class Runs:
    """Finished runs by contender, learning rate and seed.

    Args:
        rows: one a read-out, those of a run in the order of its steps; a matched run that was refused has one that says
            why.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.refused = {(row["contender"], row["seed"]): row["refused"] for row in rows if row.get("refused")}
        self.anchors = _anchors(rows)
        self.probed = [100 * row["validation_accuracy"] for row in rows if row["contender"] == PROBE]
        """The probe's accuracies on validation images, in per cent."""
        rows = [row for row in rows if not row.get("refused") and row["contender"] != PROBE]
        self.inner = any(row.get("pipeline") == "maml" for row in rows)
        """Whether learning rate and steps are those of an inner loop."""
        self.pretrained = any(row.get("pretrained") for row in rows)
        self.axis = "inner step" if self.inner else "step"
        self.by: dict[tuple[str, float], dict[int, list[Row]]] = {}
        for row in rows:
            self.by.setdefault((row["contender"], row["lr"]), {}).setdefault(row["seed"], []).append(row)
        listed = list(dict.fromkeys(name for name, _ in self.by))
        self.contenders = [name for name in listed if not name.startswith(MATCHED)]
        self.matched = [name for name in listed if name.startswith(MATCHED)]
        self.rates = sorted({lr for name, lr in self.by if name in self.contenders}, reverse=True)

    @property
    def reference(self) -> str:
        """What claims are made against: the original, with batch normalisation held where it is there."""
        return next((name for name in (HELD, ORIGINAL) if name in self.contenders), self.contenders[0])

    @property
    def subject(self) -> str | None:
        """What claims are made of: the first AReLU of the study, else its first contender beside the reference."""
        others = [name for name in self.contenders if name not in (ORIGINAL, HELD, self.reference)]
        return next(filter(is_ours, others), others[0] if others else None)

    def area(self, contender: str) -> dict[int, float]:
        """Return each seed's mean test accuracy over the log-rates, in per cent."""
        tested = {lr: self.test(contender, lr) for lr in self.rates}
        seeds = set.intersection(*map(set, tested.values()))
        return {seed: area_over_rates({lr: tested[lr][seed] for lr in self.rates}) for seed in sorted(seeds)}

    def test(self, contender: str, lr: float) -> dict[int, float]:
        """Return each seed's test accuracy in per cent."""
        return {seed: 100 * run[-1]["test_accuracy"] for seed, run in self.by.get((contender, lr), {}).items()}

    def images(self, contender: str, lr: float) -> int | None:
        """Return on how many images each seed was tested; None where that is not known."""
        found = [run[-1].get("images") for run in self.by.get((contender, lr), {}).values()]
        known = [number for number in found if number is not None]
        return min(known) if known else None

    def means(self, contender: str) -> dict[float, float]:
        """Return the mean test accuracy in per cent at each rate."""
        return {lr: float(np.mean([*self.test(contender, lr).values()])) for lr in self.rates}

    def best_rate(self, contender: str) -> float:
        """Choose the rate by the mean validation accuracy over seeds."""

        def validation(lr: float) -> float:
            return float(np.mean([run[-1]["validation_accuracy"] for run in self.by[contender, lr].values()]))

        return max(self.rates, key=validation)

    def course(self, contender: str, lr: float) -> list[list[Row]]:
        """Return the runs that were not cut short by divergence."""
        runs = self.by.get((contender, lr), {}).values()
        return [run for run in runs if len(run) > 1 or not run[0].get("diverged")]

    def diverged(self, contender: str, lr: float) -> int:
        """Count the runs that became NaN."""
        return sum(bool(run[0].get("diverged")) for run in self.by.get((contender, lr), {}).values())


def conclude(
    rows: Sequence[Row],
    small: float,
    margin: float,
    target: float | None,
    notes: Sequence[str] = (),
    resplit: float = 0.0,
) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a read-out, with `contender`, `lr`, `seed`, `step`, `accuracy`, `validation_accuracy`,
            `test_accuracy`, `rate`, `pipeline`.
        small: the small learning rate.
        margin: differences within so many points do not count.
        target: the accuracy that steps are counted to, a fraction; None for 0.9 of the original's best.
        notes: what is to be known of the data.
        resplit: as in `compare`.
    """
    runs = Runs(rows)
    best = {name: runs.best_rate(name) for name in runs.contenders}
    reference = runs.reference
    aim = 100 * target if target is not None else _aim(runs, reference)
    tables = [
        _readings(runs, small, best),
        *([_over_rates(runs, small, best)] if len(runs.rates) > 1 else []),
        _courses(runs, small, aim, target is not None),
        *([_multipliers(runs, small)] if runs.matched else []),
        *([explained(runs.contenders)] if any(map(is_control, runs.contenders)) else []),
    ]
    curves = [
        *([rate_curves(runs)] if len(runs.rates) > 1 else []),
        course_curves(runs, dict.fromkeys([*runs.contenders, *runs.matched], small), f"at {small:g}"),
        course_curves(runs, best, "each at its best rate"),
    ]
    comparisons = list(_comparisons(runs, small, best, margin, resplit))
    said = [*_notes(runs, small, best), *start_notes(runs.contenders), *(f"Of the data: {note}." for note in notes)]
    return Outcome(judge(comparisons), tables, curves, [_map(runs)], notes=said, anchors=runs.anchors)


def _aim(runs: Runs, reference: str) -> float | None:
    """Choose the accuracy that steps are counted to: the probe's, else a share of the reference's best; None if 0."""
    if runs.probed:
        return float(np.mean(runs.probed))
    courses = [run for lr in runs.rates for run in runs.course(reference, lr)]
    highest = max((100 * row["accuracy"] for run in courses for row in run), default=0.0)
    return _TARGET_SHARE * highest if highest > 0 else None


def _anchors(rows: Sequence[Row]) -> list[Anchor]:
    """Average what needed no training of the backbone: the probe's runs, or what a few-shot run says beside its own."""
    known = {
        PROBE: ("test_accuracy", "logistic regression on the frozen features of the original"),
        **{name: (name, about) for name, about in FEW_SHOT_ANCHORS.items()},
    }
    found = []
    for name, (column, about) in known.items():
        of_it = [row for row in rows if row["contender"] == PROBE or name != PROBE]
        values = {row["seed"]: 100 * row[column] for row in of_it if row.get(column) is not None}
        found += [Anchor(name, float(np.mean([*values.values()])), about)] if values else []
    guess = next((row["chance"] for row in rows if row.get("chance")), None)
    return found + ([chance(round(1 / guess))] if guess else [])


def is_ours(contender: str) -> bool:
    """Return True if a contender is an AReLU, by whatever start: what the claims are about."""
    contender = contender.partition("@")[0]
    return contender.partition(":")[0] == "arelu" and not contender.endswith(":frozen")


def _comparisons(
    runs: Runs, small: float, best: dict[str, float], margin: float, resplit: float
) -> Iterator[Comparison]:
    """Read each contender against the reference; the first two readings of the study's subject are its claims."""
    reference = runs.reference
    against = partial(compare, margin=margin, images=runs.images(reference, small), resplit=resplit)
    for name in runs.contenders:
        if name == reference:
            continue
        there = f" ({best[name]:g} and {best[reference]:g})"
        readings = [("over all rates", runs.area(name), runs.area(reference))] * (len(runs.rates) > 1)
        if len(runs.rates) >= FEWEST_RATES:
            tested = (runs.test(one, best[one]) for one in (name, reference))
            readings.append((f"each at its best rate{there}", next(tested), next(tested)))
        readings.append((f"at {small:g}", runs.test(name, small), runs.test(reference, small)))
        for number, (where, ours, theirs) in enumerate(readings):
            claimed = number < CLAIMS and name == runs.subject
            yield against(f"{name} against {reference} {where}", ours, theirs, primary=claimed)
        ours, theirs = runs.test(name, small), runs.test(MATCHED + name, small)
        if len(ours.keys() & theirs.keys()) > 1:
            claim = f"{name} at {small:g} against {ORIGINAL} whose first {runs.axis}s move the logits as far"
            yield against(claim, ours, theirs, primary=False)


def _readings(runs: Runs, small: float, best: dict[str, float]) -> Table:
    chosen = len(runs.rates) >= FEWEST_RATES
    rows = []
    for name in runs.contenders:
        row = [name, *(spread(runs.test(name, lr)) for lr in runs.rates)]
        rows.append([*row, *([f"{best[name]:g}", spread(runs.test(name, best[name]))] if chosen else [])])
    width = len(rows[0])
    for name in runs.matched:
        row = [name, *("" if lr != small else spread(runs.test(name, lr)) for lr in runs.rates)]
        rows.append([*row, *[""] * (width - len(row))])
    columns = ["contender", *(f"{lr:g}" for lr in runs.rates), *(["best rate", "there"] if chosen else [])]
    note = f"Mean ± standard deviation over seeds; the small rate is {small:g}"
    note += "; the best rate is chosen on validation." if chosen else "."
    if runs.matched:
        where = f"its first {runs.axis}s move the logits as far as X's"
        note += f" A row {MATCHED}X is the original at a rate {'' if runs.inner else 'of its head '}where {where}."
    title = "Test accuracy in per cent, over learning rates" + (" and at each one's best" if chosen else "")
    return Table(title, columns, rows, note)


def _over_rates(runs: Runs, small: float, best: dict[str, float]) -> Table:
    """List what each contender's accuracies over the rates say as a whole."""
    theirs = {lr: runs.test(runs.reference, lr) for lr in runs.rates}
    rows = []
    for name in runs.contenders:
        means, tested = runs.means(name), {lr: runs.test(name, lr) for lr in runs.rates}
        paired = name != runs.reference and bool(set.intersection(*map(set, theirs.values())) & set(tested[small]))
        rows.append(
            [
                *(name, spread(runs.area(name)), f"{means[best[name]]:.1f} at {best[name]:g}"),
                *(worth(tested, theirs, small).words if paired else "", f"{width_within(means):.1f}"),
                f"{regret(means):.1f}",
            ]
        )
    columns = ["contender", "over all rates", "peak", f"worth at {small:g}", "width (decades)", "regret"]
    return Table(
        "What a learning rate that nobody tuned costs",
        columns,
        rows,
        "Over all rates: the area under accuracy over the log-rate, by its width. Worth: how many times as fast "
        f"{runs.reference} would have to learn to be as accurate (95 % interval by bootstrap over seeds). Width: "
        "decades of rates within 90 % of the best accuracy. Regret: what a rate drawn from these costs on average.",
    )


def spread(values: dict[int, float]) -> str:
    """Write mean and standard deviation over seeds.

    Args:
        values: by seed.
    """
    found = list(values.values())
    if not found:
        return ""
    return f"{np.mean(found):.1f}" + (f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else "")


def _courses(runs: Runs, small: float, aim: float | None, given: bool) -> Table:
    rows = []
    for name in [*runs.contenders, *runs.matched]:
        courses = runs.course(name, small)
        areas = {number: _area(run) for number, run in enumerate(courses)}
        rows.append([name, spread(areas), *_reaching(courses, aim), runs.diverged(name, small)])
    goal = "a target" if aim is None else f"{aim:.1f} %"
    goal += " (the probe)" * (aim is not None and bool(runs.probed) and not given)
    return Table(
        f"The course at {small:g}",
        ["contender", "mean accuracy over the course", f"{runs.axis}s to {goal}", "runs that reach it", "diverged"],
        rows,
        "The mean over the course is the area under accuracy against steps, divided by the steps.",
    )


def _reaching(courses: Sequence[Sequence[Row]], aim: float | None) -> list[str]:
    """Say after how many steps runs reach the target, and how many of them do."""
    if aim is None:
        return ["", ""]
    read = [[(int(row["step"]), 100 * row["accuracy"]) for row in run] for run in courses]
    reached = [step for run in read if (step := steps_to(run, aim)) is not None]
    return [f"{np.mean(reached):.0f}" if reached else "never", f"{len(reached)} of {len(courses)}"]


def _area(run: Sequence[Row]) -> float:
    steps, accuracies = [row["step"] for row in run], [100 * row["accuracy"] for row in run]
    width = steps[-1] - steps[0]
    return float(trapezoid(accuracies, steps) / width) if width else accuracies[-1]


def _multipliers(runs: Runs, small: float) -> Table:
    rows = []
    for name in runs.matched:
        factors = [run[-1]["rate"] / small for run in runs.course(name, small)]
        mean = f"{np.exp(np.mean(np.log(factors))):.3g}" if factors else "it became NaN"
        rows.append([name.removeprefix(MATCHED), mean])
    who = "the original" if runs.inner else "the original's head"
    how = (
        "the inner learning rate multiplied, before meta-training"
        if runs.inner
        else "the head's learning rate multiplied"
    )
    return Table(
        f"How many times as fast {who} has to learn at {small:g} for its first {runs.axis}s to go as far",
        ["as", "times (geometric mean over seeds)"],
        rows,
        f"By the root mean square of the change of the logits after {STEPS} {runs.axis}s, {how}.",
    )


def course_curves(runs: Runs, rates: dict[str, float], where: str) -> Curves:
    """Draw accuracy against steps.

    Args:
        runs: finished.
        rates: the learning rate of each contender that is drawn.
        where: the end of the title.
    """
    series = []
    for name, lr in rates.items():
        courses = runs.course(name, lr)
        if courses:
            steps = [float(row["step"]) for row in max(courses, key=len)]
            accuracies = [[100 * row["accuracy"] for row in run] for run in courses]
            shown = f"{name}, {lr:g}" if len(set(rates.values())) > 1 else name
            series.append(mean_series(shown, accuracies, steps))
    what = "accuracy on unseen tasks (%)" if runs.inner else "validation accuracy (%)"
    return Curves(f"Accuracy by {runs.axis}, {where}", runs.axis, what, series)


def rate_curves(runs: Runs) -> Curves:
    """Draw test accuracy over the learning rate, a line a contender.

    Args:
        runs: finished, at two or more rates.
    """
    rates = sorted(runs.rates)
    series = []
    for name in runs.contenders:
        tested = [runs.test(name, lr) for lr in rates]
        seeds = set.intersection(*map(set, tested))
        series.append(mean_series(name, [[one[seed] for one in tested] for seed in sorted(seeds)], rates))
    axis = "inner learning rate" if runs.inner else "learning rate"
    return Curves(f"Test accuracy over the {axis}", axis, "test accuracy (%)", series)


def _map(runs: Runs) -> Heatmap:
    values: list[list[float | None]] = [
        [float(np.mean([*runs.test(name, lr).values()])) for lr in runs.rates] for name in runs.contenders
    ]
    rate = "inner learning rate" if runs.inner else "learning rate"
    return Heatmap("Test accuracy (%)", rate, "contender", [f"{lr:g}" for lr in runs.rates], runs.contenders, values)


def _notes(runs: Runs, small: float, best: dict[str, float]) -> list[str]:
    others = [f"the rate at which {ORIGINAL} is as accurate"] * (len(runs.rates) > 1)
    others += ["what is left with the steps matched"] * bool(runs.matched)
    read = f"read {' and '.join(others)} as well" if others else "other rates were not tried"
    notes = [f"A contender can be ahead at the small rate and still not be the best choice: {read}."]
    if 1 < len(runs.rates) < FEWEST_RATES:
        notes.append(f"Of {len(runs.rates)} rates none is called the best: that takes {FEWEST_RATES}.")
    kept = [name for name in runs.contenders if keeps_function(name, runs.pretrained)]
    if kept and ORIGINAL in runs.contenders:
        notes.append(f"{', '.join(kept)} begins as the original does: no rate has to be matched.")
    for (name, seed), reason in runs.refused.items():
        notes.append(f"{name}, seed {seed}, is refused: {reason}.")
    if any(runs.diverged(name, lr) for name in [*runs.contenders, *runs.matched] for lr in runs.rates):
        notes.append("Runs that became NaN count as accuracy 0.")
    return notes + (edge_notes(runs, best) if len(runs.rates) >= FEWEST_RATES else [])


def keeps_function(contender: str, pretrained: bool) -> bool:
    """Return True if a contender begins as the original's function.

    Args:
        contender: `original`, an activation, or `arelu:START`.
        pretrained: whether it starts from pretrained weights, which says how an AReLU without a start starts.
    """
    contender = contender.partition("@")[0]
    if contender in ("control:gain", "control:head10"):
        return True
    return contender.removesuffix(":frozen") == "arelu:preserve" or (
        contender in ("arelu", "arelu:frozen") and pretrained
    )


def start_notes(contenders: Sequence[str]) -> list[str]:
    """Say on which images a contender's start was once chosen, where that makes it look better than it is.

    Args:
        contenders: of the study.
    """
    found = [name for name in contenders if name in OPEN_STARTS]
    return [
        f"{name} opens its gates to 0.2, which was chosen on test images of flowers17 (seed 0): its figures there are "
        "too good, and cifar10-subset, which had no part in it, is the better witness."
        for name in found
    ]


def edge_notes(runs: Runs, best: dict[str, float]) -> list[str]:
    """Say whose best learning rate is the largest or the smallest that was tried: a better one may lie beyond.

    Who diverged at every rate has no best one.

    Args:
        runs: finished.
        best: each contender's best rate.
    """
    edges = {max(runs.rates): "largest", min(runs.rates): "smallest"} if len(runs.rates) > 1 else {}
    at_edge = {
        edge: [name for name, lr in best.items() if lr == rate and runs.course(name, lr)]
        for rate, edge in edges.items()
    }
    return [
        f"The best rate of {', '.join(found)} is the {edge} that was tried; a better one may lie beyond it."
        for edge, found in at_edge.items()
        if found
    ]
