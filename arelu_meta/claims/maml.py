"""The study `meta`: does MAML with an activation learn new classes better, read as the authors did and honestly?"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from arelu_meta.activations.controls import is_control
from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.claims.controls import explained
from arelu_meta.claims.in_memory_training import make_network
from arelu_meta.claims.small_lr import spread
from arelu_meta.claims.study import (
    Plan,
    Row,
    activation_names,
    probe,
    read_names,
    read_numbers,
    resplit_classes,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import (
    Anchor,
    Curves,
    Heatmap,
    Outcome,
    Series,
    Table,
    chance,
    described,
    mean_over,
    mean_series,
)
from arelu_meta.config import ClaimsConfig, DataConfig, OptimConfig, TaskConfig
from arelu_meta.data.fewshot import Pool, TensorSampler, load_class_splits, load_pool, load_whole
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import ImageSet, concatenate
from arelu_meta.errors import InputError, RunError, counted, nearest_names
from arelu_meta.finetuning.optimizer import build_optimizer, check_optimizer_name
from arelu_meta.meta.baselines import FEW_SHOT_ANCHORS, few_shot_anchors
from arelu_meta.meta.engine import Inner, build_engine
from arelu_meta.meta.evaluation import adaptation_curves
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.statistics import Comparison, compare, groups_interval, judge

_PROBED = (1, 4)  # meta-steps
_MOST_SHOTS = 100


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name or a number is not allowed, or data is missing or has too few classes or images.
    """
    trials = list_trials(config)
    ratios = {
        (data, shots): resplit_classes(_data(config, data), TaskConfig(WAYS, shots, shots), config.run.seed)
        for data, shots in dict.fromkeys((trial.data, trial.shots) for trial in trials)
    }
    by_cell = {Cell(trial.data, trial.shots, trial.lr): ratios[trial.data, trial.shots] for trial in trials}
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda log, _: conclude(log.of_all(trials), config.margin, by_cell),
        headline=(
            f"MAML of {trials[0].network} on {', '.join(_places(config))}, {WAYS}-way, {config.meta.shots} shots: "
            f"{config.model.activation} as the {config.variant} have them, inner learning rates {config.optim.lr}, "
            f"{counted(config.meta.steps or 0, 'meta-step')} of {BATCH_TASKS} tasks, on all classes and on some with "
            f"{counted(config.meta.tasks or 0, 'task')} of the others, {config.train.repeats} seeds"
        ),
    )


@dataclass(frozen=True)
class MetaTrial:
    """One run: all that decides its figures.

    Args:
        data: name or root of the images.
        network: of `PAPER_NETS`.
        shots: support images a class, and query images as well.
        activation: in the network.
        variant: of the activation: authors or paper.
        optimizer: a name of timm's, of the outer loop; its rate is 0.005.
        lr: of the inner loop.
        seed: of the classes, the weights and the tasks.
        steps: meta-steps.
        classes: `ALL` trains on every class, as the authors did; `DIVIDED` on some, and is judged on the others.
        tasks: of unseen classes at the end; 0 where there are none.
    """

    data: str
    network: str
    shots: int
    activation: str
    variant: str
    optimizer: str
    lr: float
    seed: int
    steps: int
    classes: str
    tasks: int = 0

    @property
    def task(self) -> TaskConfig:
        """What a task is: as many query as support images."""
        return TaskConfig(WAYS, self.shots, self.shots)


def list_trials(config: ClaimsConfig) -> list[MetaTrial]:
    """List a resolved config's runs, the first seed of everything first, and a pair of runs for each activation.

    Raises:
        InputError: naming the unknown network, activation or optimiser, or the number that is not allowed.
    """
    networks = read_names("model.name", config.model.name)
    if len(networks) > 1:
        raise InputError(f"model.name: {config.model.name!r} is not allowed; meta takes one network a study")
    if networks[0] not in PAPER_NETS:
        raise InputError(f"model.name: {networks[0]!r} is not known to meta; {nearest_names(networks[0], PAPER_NETS)}")
    check_optimizer_name(str(config.optim.name))
    activations = activation_names(config)
    return [
        MetaTrial(
            data=data,
            network=networks[0],
            shots=shots,
            activation=name,
            variant=config.variant,
            optimizer=str(config.optim.name),
            lr=lr,
            seed=seed,
            steps=config.meta.steps or 1,
            classes=classes,
            tasks=(config.meta.tasks or 2) if classes == DIVIDED else 0,
        )
        for seed, data, shots, lr, name, classes in itertools.product(
            *(
                seeds_of(config),
                _places(config),
                _shots(config),
                read_numbers("optim.lr", config.optim.lr),
                activations,
            ),
            (ALL, DIVIDED),
        )
    ]


def _places(config: ClaimsConfig) -> list[str]:
    """List the sets: names with commas between, or one folder."""
    if config.data.name is None:
        return [str(config.data.root)]
    return read_names("data.name", config.data.name)


def _data(config: ClaimsConfig, place: str) -> DataConfig:
    return replace(config.data, name=None if config.data.name is None else place)


def _shots(config: ClaimsConfig) -> list[int]:
    found = []
    for number in read_numbers("meta.shots", config.meta.shots):
        if number != int(number) or number > _MOST_SHOTS:
            raise InputError(f"meta.shots: {number:g} is not allowed; give whole numbers from 1 to {_MOST_SHOTS}")
        found.append(int(number))
    return sorted(found)


def work(config: ClaimsConfig, trials: Sequence[MetaTrial]) -> list[list[Row]]:
    """Run trials, one after the other.

    Args:
        config: of the study; its data and device.
        trials: what to run.

    Returns:
        For each what `meta_runs.run` returns.
    """
    device = choose_device(config.run.device)
    return [run(trial, _data(config, trial.data), device) for trial in trials]


def estimate(config: ClaimsConfig, trials: Sequence[MetaTrial]) -> float:
    """Do a few meta-steps of one run a set, division and number of shots, and say how long all take one by one.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    total = 0.0
    for kind in dict.fromkeys((trial.data, trial.classes, trial.shots) for trial in trials):
        alike = [trial for trial in trials if (trial.data, trial.classes, trial.shots) == kind]
        short = replace(alike[-1], tasks=min(BATCH_TASKS, alike[-1].tasks))
        seconds = probe(partial(_of_length, config, short), _PROBED)
        a_step = seconds(2) - seconds(1)
        # The end: half a step a batch of unseen tasks, which are adapted to and not differentiated through.
        total += sum(seconds(one.steps) + a_step * one.tasks / BATCH_TASKS / 2 for one in alike)
    return total


def _of_length(config: ClaimsConfig, trial: MetaTrial, steps: int) -> list[list[Row]]:
    return work(config, [replace(trial, steps=steps)])


WAYS, INNER_STEPS, BATCH_TASKS = 5, 5, 32  # as the authors' launcher has them, and the rate below
_OUTER_LR = 0.005
_MEAN, _STD = 0.1307, 0.3081  # likewise, of MNIST's pixels
_SIDE = 28
_NORMALIZATION = "transductive"
_KEPT = 4  # sets in memory
ALL, DIVIDED = "all", "divided"


def run(trial: MetaTrial, data: DataConfig, device: torch.device) -> list[Row]:
    """Meta-train, and judge on unseen classes where there are any.

    Args:
        trial: the run.
        data: where its images lie.
        device: where to compute.

    Returns:
        `ALL`: a row a meta-step, `step` and `accuracy` (mean over the query images, before the step). `DIVIDED`:
        one row, `step`, `accuracy` (mean over tasks of unseen classes), `low`, `high` (95 % interval over these) and
        `curve` (that accuracy after 0, 1, … inner steps). A run that diverged: one row of accuracy 0 that says how in
        `diverged`. Accuracies are fractions.
    """
    pools = _pools(trial, data)
    anchors: dict[str, float] = {}
    if trial.classes == DIVIDED:
        anchors = few_shot_anchors(new_model(trial, pools[0]).to(device), _unseen(trial, pools[1], device), trial.tasks)
    try:
        model, batches = meta_train(trial, pools[0], device)
        if trial.classes == ALL:
            return [{"step": step, "accuracy": accuracy} for step, accuracy in enumerate(batches, 1)]
        unseen = _unseen(trial, pools[1], device)
        curves = adaptation_curves(model, unseen, range(trial.tasks), trial.lr, INNER_STEPS, device)
    except RunError as error:
        return [{"step": 0, "accuracy": 0.0, "low": 0.0, "high": 0.0, "curve": [], "diverged": str(error)} | anchors]
    mean, low, high = groups_interval([curve[-1] for curve in curves], len(curves) * WAYS * trial.shots)
    course = np.asarray(curves, dtype=np.float64).mean(0).tolist()
    return [{"step": trial.steps, "accuracy": mean, "low": low, "high": high, "curve": course, **anchors}]


def _unseen(trial: MetaTrial, pool: Pool, device: torch.device) -> TensorSampler:
    return TensorSampler(pool.to(device), trial.task, f"test {trial.seed}")


def new_model(trial: MetaTrial, pool: Pool) -> nn.Module:
    """Make a trial's network, in the mode that its normalisation asks for.

    Args:
        trial: network, activation, seed.
        pool: images of the size that it takes.
    """
    _, channels, side, _ = pool.pixels.shape
    model = make_network(trial.network, trial.activation, trial.variant, trial.seed, WAYS, channels, side)
    set_normalization(model, _NORMALIZATION)
    train_mode(model, _NORMALIZATION)
    return model


def meta_train(trial: MetaTrial, pool: Pool, device: torch.device) -> tuple[nn.Module, list[float]]:
    """Meta-train a network with the authors' settings, with no look at other tasks on the way.

    Args:
        trial: network, activation, rates, seed and length.
        pool: the images of the training tasks.
        device: where to compute.

    Returns:
        The network after the last step, and the mean query accuracy of every meta-batch, before its step.

    Raises:
        RunError: if a loss becomes NaN or infinite.

    Source: Chen et al. 2020, section 4.3; the authors' published code.
    """
    _, channels, side, _ = pool.pixels.shape
    model = new_model(trial, pool).to(device)
    noise = torch.randn(2, WAYS, channels, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    engine, _ = build_engine("auto", model, Inner(trial.lr, INNER_STEPS), _NORMALIZATION, noise)
    # The authors' code divides the query loss, a mean already, by the number of query images once more.
    engine.step_weights = [0.0] * (INNER_STEPS - 1) + [1 / (WAYS * trial.shots)]
    optimizer = build_optimizer(model, OptimConfig(trial.optimizer, _OUTER_LR, weight_decay=0.0))
    sampler = TensorSampler(pool.to(device), trial.task, f"train {trial.seed}")
    batches = []
    for step in range(trial.steps):
        optimizer.zero_grad(set_to_none=True)
        tasks = sampler.batch(range(step * BATCH_TASKS, (step + 1) * BATCH_TASKS)).to(device)
        losses, accuracies = engine.meta_gradient(tasks)
        if not losses.isfinite().all():
            raise RunError(f"a query loss became NaN or infinite at step {step + 1}")
        optimizer.step()
        batches.append(accuracies.mean().item())
    return model, batches


_loaded: dict[tuple[object, ...], list[Pool]] = {}  # a process decodes a set once for all activations


def _pools(trial: MetaTrial, data: DataConfig) -> list[Pool]:
    """Decode what a trial trains on and, where classes are divided, the unseen ones."""
    key = (data.name, data.root, data.image_size, trial.classes, trial.shots, trial.seed * (trial.classes == DIVIDED))
    if key not in _loaded:
        while len(_loaded) >= _KEPT:
            del _loaded[next(iter(_loaded))]
        splits = load_class_splits(data, trial.task, trial.seed)
        parts = [_all_classes(data)] if trial.classes == ALL else [splits.train, splits.test]
        channels = splits.train.channels
        inputs = InputSpec(data.image_size or _SIDE, channels, (_MEAN,) * channels, (_STD,) * channels)
        _loaded[key] = [load_pool(part, inputs, splits.inverted) for part in parts]
    return _loaded[key]


def _all_classes(data: DataConfig) -> ImageSet:
    """Take the training images of every class, as the authors did; all images where the parts hold other classes."""
    parts = load_whole(data)
    together = concatenate(parts)
    return parts[0] if set(parts[0].classes) == set(together.classes) else together


OURS, STANDARD, CONTROL = "arelu", "relu", "relu:gain"
THEIRS, HONEST = "by the best training batch", "on unseen classes"


class Cell(NamedTuple):
    """A set, the shots, and the inner learning rate."""

    data: str
    shots: int
    lr: float

    def __str__(self) -> str:
        return f"{self.data}, {counted(self.shots, 'shot')}, {self.lr:g}"


@dataclass
class Course:
    """An activation's two runs with one seed; accuracies are in per cent.

    Args:
        batches: accuracy of each meta-batch of the run on all classes, in the order of the steps.
        unseen: of the run on some classes, the mean over tasks of the others.
        half: half the width of that mean's 95 % interval over tasks.
        adaptation: accuracy on the other classes after 0, 1, … inner steps; empty for a run that diverged.
        diverged: how many of the two did.
        tasks: of the other classes.
        queries: of all these tasks; None where no run has ended.
    """

    batches: list[float] = field(default_factory=list)
    unseen: float = 0.0
    half: float = 0.0
    adaptation: list[float] = field(default_factory=list)
    diverged: int = 0
    tasks: int = 0
    queries: int | None = None


Runs = dict[Cell, dict[str, dict[int, Course]]]
"""By cell, activation and seed."""


def read_runs(rows: Sequence[Row]) -> Runs:
    """Sort read-outs into runs.

    Args:
        rows: as `meta_runs.run` returns them, with the trial's columns, those of a run in the order of its steps.
    """
    runs: Runs = {}
    for row in rows:
        seeds = runs.setdefault(Cell(row["data"], row["shots"], row["lr"]), {}).setdefault(row["activation"], {})
        course = seeds.setdefault(row["seed"], Course())
        course.diverged += bool(row.get("diverged"))
        if row["classes"] == ALL:
            course.batches.append(100 * row["accuracy"])
        else:
            course.unseen, course.half = 100 * row["accuracy"], 50 * (row["high"] - row["low"])
            course.adaptation, course.tasks = [100 * value for value in row["curve"]], row["tasks"]
            course.queries = course.tasks * WAYS * row["shots"] or None
    return runs


def reading(seeds: dict[int, Course], which: str) -> dict[int, float]:
    """Give each seed's accuracy in per cent by one of the two readings; a run that diverged counts as 0.

    Args:
        seeds: courses.
        which: `THEIRS` or `HONEST`.
    """
    return {seed: max(course.batches) if which == THEIRS else course.unseen for seed, course in seeds.items()}


def conclude(rows: Sequence[Row], margin: float, resplit: Mapping[Cell, float] | None = None) -> Outcome:
    """Judge finished runs.

    Args:
        rows: as `read_runs` takes them.
        margin: differences within so many points do not count.
        resplit: by cell, as in `compare`, where classes are divided.
    """
    runs = read_runs(rows)
    pairs = list(_comparisons(runs, margin, resplit or {}))
    stated = [one for one in pairs if one.primary]
    tables = [_readings(runs)]
    if len(pairs) > len(stated):
        tables.append(described(pairs, "AReLU against every other activation"))
    names = list(dict.fromkeys(row["activation"] for row in rows))
    tables += [explained(names)] if any(map(is_control, names)) else []
    curves = [*_adaptation(runs), *_courses(runs)]
    return Outcome(judge(stated), tables, curves, list(_maps(runs)), notes=_notes(runs), anchors=_anchors(rows))


def _comparisons(runs: Runs, margin: float, resplit: Mapping[Cell, float]) -> Iterator[Comparison]:
    """Compare AReLU with every other activation by each reading.

    The claims, over all sets, shots and rates: on unseen classes against ReLU, and against ReLU times AReLU's slope.
    """
    by_which = {
        which: {cell: {name: reading(seeds, which) for name, seeds in one.items()} for cell, one in runs.items()}
        for which in (HONEST, THEIRS)
    }
    queries = min((one.queries for one in _courses_of(runs) if one.queries), default=None)
    where = f"over {len(runs)} cells" if len(runs) > 1 else str(next(iter(runs)))
    ratio = max((resplit.get(cell, 0.0) for cell in runs), default=0.0)
    claimed = [name for name in (STANDARD, CONTROL) if all({OURS, name} <= one.keys() for one in runs.values())]
    for name in claimed:
        ours, theirs = (mean_over(one[who] for one in by_which[HONEST].values()) for who in (OURS, name))
        if len(ours.keys() & theirs.keys()) > 1:
            claim = f"AReLU against {name} {HONEST} ({where})"
            yield compare(claim, ours, theirs, margin, images=queries, resplit=ratio)
    for which, found in by_which.items():
        for cell, by_name in found.items():
            ours, honest = by_name.get(OURS, {}), which == HONEST
            for name, theirs in by_name.items():
                same = honest and len(runs) == 1 and name in claimed
                if name != OURS and not same and len(ours.keys() & theirs.keys()) > 1:
                    yield compare(
                        f"AReLU against {name} {which} ({cell})",
                        ours,
                        theirs,
                        margin,
                        images=queries if honest else None,
                        resplit=resplit.get(cell, 0.0) if honest else 0.0,
                        primary=False,
                    )


def _courses_of(runs: Runs) -> Iterator[Course]:
    for contenders in runs.values():
        for seeds in contenders.values():
            yield from seeds.values()


def _anchors(rows: Sequence[Row]) -> list[Anchor]:
    """Average over seeds what no meta-training was needed for, by set and shots."""
    found = []
    for data, shots in dict.fromkeys((row["data"], row["shots"]) for row in rows):
        where = f"{data}, {counted(shots, 'shot')}"
        for name, about in FEW_SHOT_ANCHORS.items():
            alike = [one for one in rows if (one["data"], one["shots"]) == (data, shots) and one.get(name) is not None]
            values = [100 * one[name] for one in alike if one["activation"] == alike[0]["activation"]]
            found += [Anchor(name, float(np.mean(values)), about, where)] if values else []
        found.append(chance(WAYS, where))
    return found


def _readings(runs: Runs) -> Table:
    rows: list[list[Any]] = []
    for cell, contenders in runs.items():
        for name, seeds in contenders.items():
            theirs, honest = reading(seeds, THEIRS), reading(seeds, HONEST)
            rows.append(
                [
                    cell.data,
                    cell.shots,
                    f"{cell.lr:g}",
                    name,
                    spread(theirs),
                    spread(honest),
                    _pooled([*seeds.values()]),
                    f"{np.mean([*theirs.values()]) - np.mean([*honest.values()]):+.1f}",
                    sum(course.diverged for course in seeds.values()),
                ]
            )
    columns = ["data", "shots", "inner rate", "activation", "best training batch", "unseen classes"]
    tasks = next(course.tasks for found in runs.values() for seeds in found.values() for course in seeds.values())
    return Table(
        "Accuracy in per cent: the authors' reading beside the honest one",
        [*columns, "95 % over tasks", "their reading is higher by", "diverged"],
        rows,
        "Best training batch: the authors' number, the best meta-batch of a run on all classes. Unseen classes: a run "
        f"on some classes, after its last step on {tasks:,} tasks a seed of the others. Mean ± standard deviation over "
        "seeds; the interval is over the tasks of these seeds alone.",
    )


def _pooled(courses: Sequence[Course]) -> str:
    """Give the 95 % interval over tasks of the mean over seeds: the seeds' tasks are drawn apart."""
    mean = float(np.mean([course.unseen for course in courses]))
    half = math.sqrt(sum(course.half**2 for course in courses)) / len(courses)
    return f"{mean - half:.1f} to {mean + half:.1f}"


def _adaptation(runs: Runs) -> Iterator[Curves]:
    for cell, contenders in runs.items():
        series = []
        for name, seeds in contenders.items():
            whole = [course.adaptation for course in seeds.values() if course.adaptation]
            if whole:
                series.append(mean_series(name, whole, [float(step) for step in range(len(whole[0]))]))
        yield Curves(f"{cell}: adapting to unseen classes", "inner step", "accuracy (%)", series)


def _courses(runs: Runs) -> Iterator[Curves]:
    for cell, contenders in runs.items():
        series = [one for name, seeds in contenders.items() if (one := _course(name, seeds)) is not None]
        yield Curves(f"{cell}: accuracy of each meta-batch of all classes", "meta-step", "accuracy (%)", series)


def _course(name: str, seeds: dict[int, Course]) -> Series | None:
    whole = [course.batches for course in seeds.values() if len(course.batches) > 1 or not course.diverged]
    return mean_series(name, whole, [float(step + 1) for step in range(len(whole[0]))]) if whole else None


def _maps(runs: Runs) -> Iterator[Heatmap]:
    activations = list(dict.fromkeys(name for contenders in runs.values() for name in contenders))
    for which in (HONEST, THEIRS):
        found = [[[*reading(runs[cell].get(name, {}), which).values()] for cell in runs] for name in activations]
        values = [[float(np.mean(one)) if one else None for one in row] for row in found]
        yield Heatmap(f"Accuracy (%) {which}", "task", "activation", [str(cell) for cell in runs], activations, values)


def _notes(runs: Runs) -> list[str]:
    notes = [
        "The best training batch is a maximum over as many looks as there were meta-steps, at classes that were "
        "trained on: it says how well tasks were fitted, not how well new classes are learned.",
        "Both runs of a pair differ in their classes alone: weights, settings and number of steps are the same. Of ten "
        "digits the honest run trains on five. The authors published no table of these runs to set beside ours.",
    ]
    lost = sum(course.diverged for found in runs.values() for seeds in found.values() for course in seeds.values())
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as accuracy 0."] if lost else notes
