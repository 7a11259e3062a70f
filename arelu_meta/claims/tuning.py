"""The study `tuning`: how far do the smallest sets of parameters get, and what does each cost?"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.claims import small_lr
from arelu_meta.claims.controls import PROBE
from arelu_meta.claims.small_lr import Runs, edge_notes, rate_curves, spread
from arelu_meta.claims.study import (
    CLAIMS,
    Plan,
    Row,
    amount,
    epochs,
    one_thread,
    read_names,
    resplit,
    run_apart,
    side_by_side,
)
from arelu_meta.claims.tables import Curves, Outcome, Series, Table
from arelu_meta.config import MODE, MODES, ClaimsConfig, FinetuneConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.freezing import count_learning, set_learning, set_training
from arelu_meta.statistics import Comparison, compare, judge

SUBJECT, SMALLER, LARGER = "activations", "head", "full"
_PROBED_RATE = 1e-2
_COSTS = {
    "parameters": "parameters that learn",
    "bytes": "bytes of the adapter",
    "seconds": "seconds an epoch",
    "memory": "MB a step keeps",
}


@dataclass(frozen=True)
class Trial(small_lr.Trial):
    """One run: its contender is what is trained, as in train.mode.

    Args:
        activation: in all contenders' networks.
    """

    activation: str = "arelu:preserve"


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, the data is missing, or a rate has nothing to be chosen among.
    """
    trials, notes = list_trials(config)
    notes += [f"Of the data: {note}." for note in load_images(config.data, config.run.seed).notes]
    ratio = resplit(config.data, config.run.seed)
    modes = list(dict.fromkeys(trial.contender for trial in trials if trial.contender != PROBE))
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda log, _: conclude(log.of_all(trials), config.margin, ratio, notes),
        headline=(
            f"fine-tuning {', '.join(modes)} of {config.model.name} with {config.model.activation} on "
            f"{config.data.root or config.data.name or 'digits'}: {config.optim.name}, learning rates "
            f"{config.optim.lr}, {amount(config)}, {epochs(config)}, {config.train.repeats} seeds"
        ),
    )


def list_trials(config: ClaimsConfig) -> tuple[list[Trial], list[str]]:
    """List a resolved config's runs, the first seed of everything first, and say what is left out.

    Raises:
        InputError: naming the unknown mode, model, activation or optimiser.
    """
    modes = read_names("train.modes", config.train.modes)
    for mode in modes:
        if mode == PROBE or not re.fullmatch(MODE, mode):
            raise InputError(f"train.modes: {mode!r} is not known; give some of {MODES.replace('probe or ', '')}")
    found = small_lr.list_trials(config)
    activations = list(dict.fromkeys(one.contender for one in found if not one.contender.startswith(small_lr.MATCHED)))
    if len(activations) > 2:  # the probe is one
        raise InputError(f"model.activation: {config.model.activation!r} is not allowed; tuning takes one")
    missing = "lora" in modes and importlib.util.find_spec("peft") is None
    kept = [mode for mode in modes if not (missing and mode == "lora")]
    notes = ["lora is left out: it needs the package peft, pip install 'arelu-meta[peft]'."] if missing else []
    trials = []
    for one in found:
        for mode in [PROBE] if one.contender == PROBE else kept:
            values = {**vars(one), "contender": mode, "activation": activations[-1]}
            trials.append(Trial(**values))
    return trials, notes


def tuning_config(config: ClaimsConfig, trial: Trial, folder: Path) -> FinetuneConfig:
    """Make a trial's config: contenders differ in train.mode alone.

    Args:
        config: of the study.
        trial: not the probe.
        folder: of the run.
    """
    made = small_lr.finetune_config(config, replace(trial, contender=trial.activation), folder)
    made.train.mode = trial.contender
    if trial.contender == SMALLER:
        made.optim.act_lr = None  # refused where activations do not learn
    if trial.pretrained:
        made.run.save = "adapter"
    return made


def work(config: ClaimsConfig, trials: Sequence[Trial]) -> list[list[Row]]:
    """Run trials, one after the other.

    Args:
        config: of the study; its data and device.
        trials: what to run.

    Returns:
        For each the rows of the study `small-lr`, with `parameters` (that learn), `bytes` (of the adapter), `seconds`
        (an epoch) and `memory` (MB that a training step keeps).
    """
    worst = {"step": 0, "accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0}
    return [run_apart(partial(_tuned, config, trial), worst | {"rate": trial.lr}) for trial in trials]


def _tuned(config: ClaimsConfig, trial: Trial, folder: Path) -> list[Row]:
    if trial.contender == PROBE:
        return small_lr.work(config, [trial])[0]
    made = tuning_config(config, trial, folder)
    results = finetune(made)
    ends = {name: results[name] for name in ("validation_accuracy", "test_accuracy")} | {
        "images": results["test_n"],
        "rate": trial.lr,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "seconds": float(np.mean([row["seconds"] for row in small_lr.numbers_of(folder / "times.csv")])),
        **_cost(made),
    }
    return [
        {"step": int(row["epoch"]), "accuracy": row["validation_accuracy"], **ends}
        for row in small_lr.numbers_of(folder / "metrics.csv")
    ]


_counted: dict[str, dict[str, float]] = {}  # the same for all seeds and rates


def _cost(config: FinetuneConfig) -> dict[str, float]:
    key = repr((config.model, config.data, config.train))
    if key not in _counted:
        _counted[key] = cost_of(config)
    return _counted[key]


def cost_of(config: FinetuneConfig) -> dict[str, float]:
    """Count what a mode trains, and what one step of it keeps in memory beside the network.

    Args:
        config: of the run.

    Returns:
        `parameters`, and `memory`: megabytes that the backward pass keeps of one batch, with a gradient and a momentum
        for each parameter that learns. What a mode that keeps its features trains on, it has computed once.
    """
    images = load_images(config.data, config.run.seed).train
    made = replace(config.model, pretrained=False, head_init="random", reset_head=False)
    model, spec = build_backbone(made, images.classes, images.channels, config.data.image_size, "finetune")
    set_learning(model, config.train)
    set_training(model, config.train)
    learning = sum(learn for _, learn in count_learning(model).values())
    inputs = torch.zeros(config.data.batch_size, spec.inputs.channels, *(2 * [spec.inputs.image_size]))
    return {"parameters": learning, "memory": (kept_bytes(model, inputs) + 8 * learning) / 1e6}


def kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Count the bytes that a forward pass keeps for the backward pass, the network's own tensors left out.

    Args:
        model: with what learns set.
        inputs: a batch.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}  # held until the end: an address of a tensor that is gone is given away again

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(inputs)
    del output
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def estimate(config: ClaimsConfig, trials: Sequence[Trial]) -> float:
    """Do one short run of each mode, and say how long all take one after the other.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    by_mode: dict[str, list[Trial]] = {}
    for trial in trials:
        by_mode.setdefault(trial.contender, []).append(trial)
    return sum(_seconds(config, some[0]) * len(some) for some in by_mode.values())


def _seconds(config: ClaimsConfig, trial: Trial) -> float:
    """Time a run of one epoch, and add the epochs that it does not have."""
    with one_thread():
        started = perf_counter()
        rows = work(config, [replace(trial, length=1)])[0]
        whole = perf_counter() - started
    return whole + (trial.length - 1) * float(rows[-1].get("seconds", 0.0))


def conclude(rows: Sequence[Row], margin: float, resplit: float = 0.0, notes: Sequence[str] = ()) -> Outcome:
    """Judge finished runs.

    Args:
        rows: as `work` returns them, with the trial's columns.
        margin: differences within so many points do not count.
        resplit: as in `compare`.
        notes: what is to be known beside.
    """
    runs = Runs(rows)
    best = {name: runs.best_rate(name) for name in runs.contenders}
    tested = {name: runs.test(name, best[name]) for name in runs.contenders}
    costs = {name: _costs([row for row in rows if row["contender"] == name]) for name in runs.contenders}
    images = runs.images(runs.contenders[0], best[runs.contenders[0]])
    comparisons = list(_comparisons(tested, margin, images, resplit))
    curves = [_pareto(tested, costs), *([rate_curves(runs)] if len(runs.rates) > 1 else [])]
    said = [
        "Every set of parameters is read at the rate that is best for it on validation images; the head learns in all.",
        *(edge_notes(runs, best) if len(runs.rates) > 2 else []),
        *notes,
    ]
    return Outcome(judge(comparisons), [_table(runs, best, costs)], curves, notes=said, anchors=runs.anchors)


def _costs(rows: Sequence[Row]) -> dict[str, float]:
    """Average what a contender's runs cost; nothing where all of them diverged."""
    known = [row for row in rows if "parameters" in row]
    return {name: float(np.mean([row[name] for row in known])) for name in _COSTS} if known else {}


def _comparisons(
    tested: dict[str, dict[int, float]], margin: float, images: int | None, resplit: float
) -> Iterator[Comparison]:
    """Compare each set with all others; the claims: the activations against the head alone, and against everything."""
    subject = SUBJECT if SUBJECT in tested else next(iter(tested))
    claimed = [name for name in (SMALLER, LARGER) if name in tested and name != subject][:CLAIMS]
    for name, theirs in tested.items():
        if name != subject:
            yield compare(
                f"{subject} against {name}, each at its best rate",
                tested[subject],
                theirs,
                margin,
                images=images,
                resplit=resplit,
                primary=name in claimed,
            )


def _table(runs: Runs, best: dict[str, float], costs: dict[str, dict[str, float]]) -> Table:
    rows: list[list[Any]] = []
    for name in runs.contenders:
        figures = [costs[name].get(column) for column in _COSTS]
        shown = [None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in figures]
        rows.append([name, spread(runs.test(name, best[name])), f"{best[name]:g}", *shown])
    return Table(
        "The smallest sets of parameters, each at its best rate",
        ["what is trained", "test accuracy (%)", "best rate", *_COSTS.values()],
        rows,
        "Mean ± standard deviation over seeds. The adapter is the file of --run.save adapter: what differs from the "
        "backbone, with the head. A step keeps what its backward pass needs of a batch, and a gradient and a momentum "
        "of each parameter that learns. head computes its features once, so that its epochs are short.",
    )


def _pareto(tested: dict[str, dict[int, float]], costs: dict[str, dict[str, float]]) -> Curves:
    """Draw accuracy over the number of parameters, and the line of those that none beats with as few."""
    points = [
        (costs[name]["parameters"], float(np.mean([*values.values()])), name)
        for name, values in tested.items()
        if costs[name]
    ]
    points.sort(key=lambda one: (one[0], -one[1]))
    front: list[tuple[float, float, str]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    series = [Series(name, [count], [accuracy]) for count, accuracy, name in points]
    if len(front) > 1:
        line = Series("nobody does better with as few", [one[0] for one in front], [one[1] for one in front])
        series.append(replace(line, dashed=True))
    title = "Accuracy by the number of parameters that learn"
    return Curves(title, "parameters that learn", "test accuracy (%)", series, log_x=True)
