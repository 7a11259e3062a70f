"""The race: recipes of fine-tuning on a person's images, within a time budget; which adapts best, where, and why.

The backbone's frozen features come first, and the probe on them. Recipes and learning rates are then screened by
successive halving on validation images of one split; the leaders alone get further seeds, each with a split of its own,
and only those look at test images. Every run is a line of `race.jsonl`, so that a race goes on where it was stopped.
"""

import contextlib
import copy
import io
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS
from arelu_meta.backbones.checkpoint import ModelSpec, provenance_of
from arelu_meta.backbones.from_config import build_with_head, check_forward, check_model_config
from arelu_meta.backbones.networks import suit_layout
from arelu_meta.claims.race_results import Recipe, Row, conclude, tell
from arelu_meta.claims.study import ResultsLog, check_inputs, describe_seconds, digests_of, write_rows
from arelu_meta.config import FinetuneConfig, ModelConfig, OptimConfig, RaceConfig, RunConfig, TrainConfig
from arelu_meta.data.image_folder import class_holders, find_root
from arelu_meta.data.loaders import Batches, BatchOrder, build_transform, unlabelled_batches
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import ImageSet, Splits
from arelu_meta.errors import InputError, MissingExtraError, RunError, counted
from arelu_meta.finetuning.defaults import settle, settle_rates
from arelu_meta.finetuning.finetune import finetune, make_training
from arelu_meta.finetuning.freezing import set_learning
from arelu_meta.finetuning.linear_probe import (
    FeatureBatches,
    Features,
    fit_probe,
    head_inputs,
    linear_head,
    start_with_probe,
    write_head,
)
from arelu_meta.finetuning.metrics import loss_and_accuracy, predict_logits
from arelu_meta.finetuning.training_step import train_epoch
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.environment import environment
from arelu_meta.runs.progress import ProgressBar, progress
from arelu_meta.runs.reproducibility import choose_device, prepare
from arelu_meta.runs.run_folder import check_apart, locked, open_run
from arelu_meta.validation import flatten, validate

PROBE, ORIGINAL = "probe", "original"
_EVERYTHING = "hold batch normalisation, train everything"
RECIPES: dict[str, Recipe] = {
    PROBE: Recipe("take a probe alone: logistic regression on the frozen features", mode="probe"),
    "head": Recipe("train the head alone", mode="head"),
    "bias": Recipe("train the biases and the head", mode="bias"),
    "norm": Recipe("train scale and shift of normalisation, and the head", mode="norm"),
    "activations": Recipe(
        "swap in AReLU (preserve), train its scalars and the head", "arelu", "preserve", mode="activations"
    ),
    "last stage": Recipe("hold batch normalisation, train the last stage and the head", mode="last-1"),
    ORIGINAL: Recipe(_EVERYTHING),
    **{
        f"preserve, gates at {share:g}": Recipe(
            f"swap in AReLU (preserve, gates at {share:g}), {_EVERYTHING}", "arelu", "preserve", share=share
        )
        for share in (0.01, 0.1, 1.0)
    },
    "open": Recipe(f"swap in AReLU (open), {_EVERYTHING}", "arelu", "open", share=1.0),
    "paper": Recipe(f"swap in AReLU (as published), {_EVERYTHING}", "arelu", "paper", share=1.0),
}
"""What races, the simplest first: of equal ones the first wins."""

_OF_CONTROLS = {
    **{name: Recipe(f"{name}, {_EVERYTHING}", name) for name, one in CONTROLS.items() if name.startswith("control:")},
    "arelu:open:frozen": Recipe(f"swap in AReLU (open, frozen), {_EVERYTHING}", "arelu:frozen", "open"),
}
# A plain loop: statistics move, the head starts at zero, nothing is clipped, all rates are one.
_OF_GAIN = {
    "plain": Recipe("", plain=True),
    "plain, control:gain": Recipe("", "control:gain", plain=True),
    "plain, control:leak": Recipe("", "control:leak", plain=True),
    "plain, open": Recipe("", "arelu", "open", share=1.0, plain=True),
    "plain, statistics held": Recipe("", plain=True, held=True),
}
ALL = RECIPES | _OF_CONTROLS | _OF_GAIN

_GRIDS = ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-3, 1e-2, 1e-1))
_CORE = (ORIGINAL, "preserve, gates at 0.1", "norm", "open", "head")
_MIDDLE = 1e-2  # rates are tried from here outwards
_SMALL_RATE = 1e-3  # of the plain loop whose gain is taken apart
_UNCLIPPED = 1e9
_SCREENED, _FINAL, _TAKEN_APART = 0.42, 0.76, 0.88  # of the budget, by when each part ends
_MOST_EPOCHS = 50
_LENGTHS = ((100, 20), (40, 3), (10, 2))  # steps and epochs of a whole run: the most, enough, and the fewest
_MOST_IMAGES = (200, 2000)  # to train on, by the budget: two a second of it; more would take all the time
_SHRUNK = 1.5  # of the side: what is kept in memory of an image, for crops
_LEAST_SECONDS = 5.0
_PAGE_SECONDS = 7.0
_MOST_SEEDS = 30
_SLOWEST = 5.0  # times as slow as was measured: more is an accident, and not the machine


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures beside the race's plan.

    Args:
        recipe: a name of `ALL`.
        lr: the learning rate; 0 for the probe.
        seed: of the split, the order and the head.
        epochs: of the run.
        phase: screen (validated), final or gain (tested, too).
    """

    recipe: str
    lr: float
    seed: int
    epochs: int
    phase: str


@dataclass(frozen=True)
class Plan:
    """What a race does, chosen once, by what a step takes here.

    Args:
        image_size: side in pixels.
        per_class: training images a class, or None for all.
        epochs: of a whole run.
        rates: that are screened.
        recipes: that are screened.
        most: training, validation and test images at the most.
        steps: seconds of a step by kind.
        an_image: seconds to look at one image.
        steps_an_epoch: of the training images.
        images: training, validation and test images.
        whole: validation and test images that the winner's own run looks at, which does not thin them.
        seconds: that it took to find out.
    """

    image_size: int
    per_class: int | None
    epochs: int
    rates: list[float]
    recipes: list[str]
    most: list[int]
    steps: dict[str, float]
    an_image: float
    steps_an_epoch: int
    images: list[int]
    whole: list[int]
    seconds: float

    def predict(self, trial: Trial) -> float:
        """Say how long a run takes."""
        if trial.recipe == PROBE:  # the first of a seed: its features are computed for it
            return 1.0 + sum(self.images) * self.an_image
        looked = self.images[1] + (self.images[2] if trial.phase != "screen" else 0)
        a_step = self.steps.get(kind_of(trial.recipe), 0.0)
        return 0.1 + trial.epochs * self.steps_an_epoch * a_step + looked * self.an_image

    @property
    def lengths(self) -> list[int]:
        """Return the epochs of each round of the screening."""
        return sorted({max(1, self.epochs // 4), max(1, self.epochs // 2), self.epochs})


def kind_of(name: str) -> str:
    """Say with which other recipes a recipe shares how long its steps take."""
    recipe = ALL[name]
    if recipe.mode in ("head", "probe"):
        return "head"
    size = "full" if recipe.mode == "full" else "last" if recipe.mode.startswith("last") else "small"
    return f"{size}, {'own' if recipe.keeps_activations else 'swapped'}"


class _TimeIsUpError(Exception):
    """The budget has ended in the middle of a run."""


class _Silent(ProgressBar):
    """Says nothing."""

    def __init__(self) -> None:
        super().__init__("", 1, "images")

    def advance(self, count: int, **metrics: float) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class _Kept:
    pixels: Mapping[str, NDArray[np.uint8]]

    def __call__(self, name: str) -> Image.Image:
        return Image.fromarray(self.pixels[name])


class Track:
    """The images, the frozen features and the backbones of a race, each made once.

    Args:
        config: of the race.
        device: where to compute.
        image_size: side in pixels.
        per_class: training images a class, or None for all.
        most: training, validation and test images at the most.
    """

    def __init__(
        self,
        config: RaceConfig,
        device: torch.device,
        image_size: int,
        per_class: int | None,
        most: Sequence[int] = (2000, 500, 1000),
    ) -> None:
        self.config, self.device, self.most = config, device, most
        self.data = replace(config.data, image_size=image_size, per_class=per_class)
        self.seen = provenance_of(config.model.pretrained)
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._features: dict[int, Tensor] = {}
        self._splits: dict[int, Splits] = {}
        self._models: dict[tuple[str | None, str | None, int, bool], tuple[nn.Module, ModelSpec]] = {}
        self._heads: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: tuple[nn.Module, ModelSpec] | None = None
        self.whole = [0, 0]

    @property
    def careful(self) -> bool:
        """Whether there is something pretrained to be careful with."""
        return bool(self.config.model.pretrained)

    def splits(self, seed: int) -> Splits:
        """Divide the images by a seed, as fine-tuning does; only the latest split is kept."""
        if seed not in self._splits:
            found = load_images(self.data, seed, self.seen)
            self.whole = [len(found.validation), len(found.test)]
            train, validation, test = (
                self._keep(_at_most(part, most))
                for part, most in zip((found.train, found.validation, found.test), self.most, strict=True)
            )
            self._splits = {seed: replace(found, train=train, validation=validation, test=test)}
            self._models = {key: one for key, one in self._models.items() if key[2] == seed}
        return self._splits[seed]

    def _keep(self, images: ImageSet) -> ImageSet:
        """Keep a set's images in memory, each decoded once and no larger than crops need."""
        if images.prepared:
            return images
        digests = images.digests().tolist()
        side = math.ceil(_SHRUNK * (self.data.image_size or 1))
        for name, digest in zip(images.names, digests, strict=True):
            if digest not in self._pixels:
                image = images.read(name)
                scale = side / min(image.size)
                if scale < 1:
                    image = image.resize([max(1, round(scale * one)) for one in image.size], Image.Resampling.BICUBIC)
                self._pixels[digest] = np.asarray(image)
        held = {name: self._pixels[digest] for name, digest in zip(images.names, digests, strict=True)}
        return replace(images, read=_Kept(held))

    def settings(self, trial: Trial, folder: str = "race") -> FinetuneConfig:
        """Return the config with which `arelu-meta finetune` does a run."""
        recipe, race = ALL[trial.recipe], self.config
        probing, scalars = recipe.mode == "probe", recipe.activation == "arelu"
        held = recipe.held or (self.careful and not recipe.plain)
        model = ModelConfig(
            name=race.model.name,
            pretrained=race.model.pretrained,
            activation=recipe.activation,
            init=recipe.init,  # type: ignore[arg-type]  # of INITS
            reset_head=isinstance(race.model.pretrained, str),
            head_init="probe" if probing or (held and not recipe.plain) else "zero" if self.careful else "random",
        )
        if probing:
            model = replace(model, head_init="auto")
            optim, train = OptimConfig(), TrainConfig(epochs=1, mode="probe", freeze_bn=held)
        else:
            optim = OptimConfig(
                lr=trial.lr,
                act_lr=(recipe.share or 1.0) * trial.lr if scalars else None,
                clip_grad=1.0 if self.careful and not recipe.plain else _UNCLIPPED,
            )
            train = TrainConfig(epochs=trial.epochs, mode=recipe.mode, freeze_bn=held, keep="last")
            if recipe.mode == "head":
                optim = replace(optim, act_lr=None)
        run = RunConfig(folder=folder, seed=trial.seed, device=race.run.device)
        whole = FinetuneConfig(run, self.data, model, optim, train)
        return settle_rates(settle(whole), len(self.splits(trial.seed).train))

    def _build(self, model: ModelConfig, seed: int) -> tuple[nn.Module, ModelSpec]:
        splits = self.splits(seed)
        prepare(RunConfig(seed=seed, device=self.config.run.device))
        images = partial(unlabelled_batches, splits.train)
        size = self.data.image_size
        built, spec, _ = build_with_head(model, splits.train.classes, splits.train.channels, size, "finetune", images)
        spec = replace(spec, inputs=replace(spec.inputs, range=splits.train.range, fit=self.data.fit))
        suit_layout(built.to(self.device), self.device, "auto")
        return built, spec

    def own(self) -> tuple[nn.Module, ModelSpec]:
        """Return the backbone as it came, whose frozen features are computed once.

        Raises:
            InputError: if its head is not one linear layer, or it cannot take the images.
        """
        if self._own is None:
            seed = self.config.run.seed
            model, spec = self._build(self.settings(Trial(PROBE, 0.0, seed, 0, "screen")).model, seed)
            if linear_head(model) is None:
                raise InputError(
                    f"model.name: {self.config.model.name!r} has no head that is one linear layer, and a race is held "
                    "against a probe; give another"
                )
            check_forward(copy.deepcopy(model).cpu(), spec)
            self._own = model, spec
        return self._own

    def features(self, images: ImageSet) -> Features:
        """Return the frozen features of images, each computed once in a race."""
        digests = images.digests().tolist()
        missing = [n for n, digest in enumerate(digests) if digest not in self._features]
        if missing:
            model, spec = self.own()
            batches = Batches(images.subset(missing), build_transform(spec.inputs, training=False), 64)
            found = head_inputs(model, batches.epoch(0), self.device, total=len(missing))
            if found is None:
                raise InputError(f"model.name: the head of {self.config.model.name!r} does not act last; give another")
            self._features |= {digests[n]: value for n, value in zip(missing, found.values, strict=True)}
        return Features(torch.stack([self._features[one] for one in digests]), torch.from_numpy(images.labels))

    def head(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the probe."""
        if seed not in self._heads:
            splits = self.splits(seed)
            fitted = fit_probe(self.features(splits.train), self.features(splits.validation), len(splits.train.classes))
            self._heads[seed] = fitted[:2]
        return self._heads[seed]

    def model(self, trial: Trial, settings: FinetuneConfig) -> tuple[nn.Module, ModelSpec]:
        """Return a fresh copy of a run's model, its head started."""
        recipe = ALL[trial.recipe]
        key = (recipe.activation, recipe.init, trial.seed, recipe.plain)
        if key not in self._models:
            model, spec = self._build(settings.model, trial.seed)
            splits = self.splits(trial.seed)
            if settings.model.head_init == "probe" and recipe.keeps_features:
                write_head(linear_head(model), *self.head(trial.seed))  # type: ignore[arg-type]  # `own` has seen it
            elif settings.model.head_init == "probe":
                start_with_probe(model, spec.inputs, splits.train, splits.validation, self.device)
            self._models[key] = model, spec
        model, spec = self._models[key]
        return copy.deepcopy(model), spec

    def run(self, trial: Trial, between: Callable[[], object] = lambda: None) -> Row:
        """Do one run.

        Args:
            trial: which.
            between: called after each step.

        Returns:
            `validation_accuracy`, `validation_loss`, `test_accuracy` (None in the screening), `test_n`, `seconds`,
            `diverged` where it became NaN.
        """
        started = time.monotonic()
        try:
            found = self._run(trial, between)
        except RunError as error:
            found = {"validation_accuracy": 0.0, "validation_loss": 1e9, "diverged": str(error).split(";")[0]}
            found |= {"test_accuracy": 0.0 if trial.phase != "screen" else None}
        return found | {"test_n": len(self.splits(trial.seed).test), "seconds": round(time.monotonic() - started, 3)}

    def _run(self, trial: Trial, between: Callable[[], object]) -> Row:
        splits, settings = self.splits(trial.seed), self.settings(trial)
        parts = [splits.validation] + ([splits.test] if trial.phase != "screen" else [])
        if trial.recipe == PROBE:
            weight, bias = self.head(trial.seed)
            judged = [(part.values @ weight.T + bias, part.labels) for part in map(self.features, parts)]
            return _judged(judged)
        model, spec = self.model(trial, settings)
        set_learning(model, settings.train)
        prepare(settings.run)
        size, on_features = settings.data.batch_size, settings.train.mode == "head"
        batches: Any
        forward = linear_head(model) if on_features else model
        if on_features:
            order = BatchOrder(len(splits.train), size, trial.seed, (0, 1))
            batches = FeatureBatches(self.features(splits.train), order)
        else:
            batches = Batches(splits.train, build_transform(spec.inputs, True, splits.mirrored), size, trial.seed)
        training = make_training(settings, settings.optim, model, splits.train, len(batches), Ranks(self.device))
        training.forward = forward  # type: ignore[assignment]
        for number in range(1, trial.epochs + 1):
            train_epoch(training, batches.epoch(number), _Silent(), "none", None, between)
        evaluation = build_transform(spec.inputs, training=False)
        judged = []
        for part in parts:
            looked = [vars(self.features(part))] if on_features else None
            given: Any = (
                [(one["values"], one["labels"]) for one in looked] if looked else Batches(part, evaluation, 64).epoch(0)
            )
            judged.append(predict_logits(forward, given, self.device))  # type: ignore[arg-type]
        if not math.isfinite(loss_and_accuracy(*judged[0])[0]):
            raise RunError("the validation loss is no number")
        return _judged(judged)

    def time_steps(self, names: Sequence[str]) -> tuple[dict[str, float], float, list[str]]:
        """Take the time of a step of each kind of recipe.

        Args:
            names: of recipes.

        Returns:
            Seconds by kind, seconds to look at an image, and the recipes that this backbone can run.
        """
        taken: dict[str, float] = {"head": 0.002}
        able = []
        an_image = 0.0
        for name in names:
            trial = Trial(name, _SMALL_RATE, self.config.run.seed, 4, "screen")  # an epoch may be one step
            if (kind := kind_of(name)) in taken:
                try:
                    set_learning(self.model(trial, settings := self.settings(trial))[0], settings.train)
                    able.append(name)
                except InputError:
                    pass  # such as mode norm without a norm
                continue
            ticks = [time.monotonic()]

            def tick(ticks: list[float] = ticks) -> None:
                ticks.append(time.monotonic())
                if len(ticks) > 3:
                    raise _TimeIsUpError

            try:
                self._run(trial, tick)
            except _TimeIsUpError:
                pass
            except (InputError, RunError):
                continue
            able.append(name)
            between = np.diff(ticks[1:])
            taken[kind] = float(np.median(between)) if len(between) else ticks[-1] - ticks[0]
            if not an_image:
                an_image = self._time_a_look(trial)
        return taken, an_image, able

    def _time_a_look(self, trial: Trial) -> float:
        model, spec = self.own()
        images = self.splits(trial.seed).validation
        images = images.subset(np.arange(min(16, len(images))))
        batches = Batches(images, build_transform(spec.inputs, training=False), 64)
        started = time.monotonic()
        predict_logits(model, batches.epoch(0), self.device)
        return (time.monotonic() - started) / len(images)


def _judged(parts: Sequence[tuple[Tensor, Tensor]]) -> Row:
    loss, accuracy = loss_and_accuracy(*parts[0])
    tested = loss_and_accuracy(*parts[1])[1] if len(parts) > 1 else None
    return {"validation_accuracy": accuracy, "validation_loss": loss, "test_accuracy": tested}


def _at_most(images: ImageSet, most: int) -> ImageSet:
    """Thin a set, of every class its share."""
    if len(images) <= most:
        return images
    order = np.argsort(images.labels, kind="stable")
    return images.subset(np.sort(order[np.linspace(0, len(order) - 1, most).round().astype(int)]))


class Race:
    """A race from its plan to its results.

    Args:
        track: the images and models.
        plan: what is to be done.
        log: of the runs.
        until: when the budget ends, by `clock`.
        budget: in seconds.
        clock: tells the time.
    """

    def __init__(
        self,
        track: Track,
        plan: Plan,
        log: ResultsLog,
        until: float,
        budget: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.track, self.plan, self.log, self.until, self.budget, self.clock = track, plan, log, until, budget, clock
        self.slower = 1.0  # than was predicted
        self.best = 0.0
        self.seed = track.config.run.seed

    def rows(self) -> list[Row]:
        """Return all runs so far."""
        return [
            {**json.loads(key), **row} for key, rows in self.log.rows.items() for row in rows
        ]  # in the order in which they were done

    def _by(self, share: float) -> float:
        """Return when a part of the budget ends; the model and the page have their time behind it."""
        plan = self.plan
        a_model = 1.6 * plan.predict(Trial(ORIGINAL, _MIDDLE, self.seed, plan.epochs, "final"))
        a_model += plan.an_image * ((plan.epochs + 1) * plan.whole[0] + plan.whole[1])
        behind = max(1.0, self.slower) * a_model + _PAGE_SECONDS
        return self.until - max((1 - share) * self.budget, min(behind, 0.6 * self.budget))

    def done(self, trial: Trial, by: float, bar: ProgressBar) -> bool:
        """Do a run unless it is done; return False if there is no time for it."""
        if trial in self.log:
            return True
        predicted = self.plan.predict(trial)
        started = self.clock()
        if started + self.slower * predicted > by:
            return False

        def between() -> None:
            if self.clock() > max(by, started + 3 * self.slower * predicted):
                raise _TimeIsUpError

        try:
            row = self.track.run(trial, between)
        except _TimeIsUpError:
            self.slower = max(self.slower, min(_SLOWEST, (self.clock() - started) / predicted))
            return False
        self.log.append(trial, [row])
        if trial.recipe != PROBE and predicted > 0.3:
            self.slower = 0.7 * self.slower + 0.3 * min(_SLOWEST, row["seconds"] / predicted)
        if row["validation_accuracy"] > self.best:
            self.best = row["validation_accuracy"]
            at = f" at {trial.lr:g}" if trial.lr else ""
            bar.line(f"  {trial.phase}: {trial.recipe}{at}: validation accuracy {self.best:.1%}, the best so far")
        bar.advance(max(1, round(self.clock() - started)), best=self.best)
        return True

    def go(self, more: bool = False) -> None:
        """Run what there is time for."""
        with progress("race", max(1, round(self.until - self.clock())), "s") as bar:
            self.done(Trial(PROBE, 0.0, self.seed, 0, "screen"), math.inf, bar)
            if not more:
                self.screen(bar)
            # Without one test of the probe there is no answer, and it costs seconds.
            self.done(Trial(PROBE, 0.0, self.seed + 1, 0, "final"), math.inf, bar)
            self.finals(bar)
            self.take_apart(bar)

    def screen(self, bar: ProgressBar) -> None:
        """Screen recipes and rates by successive halving on the validation images of the first seed."""
        cells = [(name, lr) for lr in _outwards(self.plan.rates) for name in self.plan.recipes]
        for number, epochs in enumerate(self.plan.lengths, 1):
            trials = [Trial(name, lr, self.seed, epochs, "screen") for name, lr in cells]
            if not all(self.done(trial, self._by(_SCREENED), bar) for trial in trials):
                return
            scores = {(trial.recipe, trial.lr): self._score(trial) for trial in trials}
            cells = halve(scores, max(4, len(cells) // (3 if number == 1 else 2)))

    def _score(self, trial: Trial) -> tuple[float, float]:
        row = self.log.rows[_key(trial)][0]
        return row["validation_accuracy"], -row["validation_loss"]

    def screened(self) -> dict[tuple[str, float], tuple[float, float]]:
        """Return what validation says of recipe and rate, from the longest run of each recipe."""
        found: dict[tuple[str, float], tuple[float, float]] = {}
        longest: dict[str, int] = {}
        rows = [row for row in self.rows() if row["phase"] == "screen" and row["recipe"] != PROBE]
        for row in rows:
            longest[row["recipe"]] = max(longest.get(row["recipe"], 0), row["epochs"])
        for row in rows:
            if row["epochs"] == longest[row["recipe"]]:
                found[row["recipe"], row["lr"]] = (row["validation_accuracy"], -row["validation_loss"])
        return found

    def finalists(self) -> dict[str, float]:
        """Return the leaders with their rates: the original, the best AReLU, the best of the others."""
        chosen: dict[str, float] = {}
        for name, lr in halve(self.screened(), 1):
            chosen.setdefault(name, lr)
        return chosen

    def finals(self, bar: ProgressBar) -> None:
        """Add seeds to the leaders, with test images; rates around the best where there is time for a curve."""
        leaders = self.finalists()
        if not leaders:
            return
        by = self._by(_FINAL)
        costs = {
            name: self.slower * self.plan.predict(Trial(name, lr, 0, self.plan.epochs, "final"))
            for name, lr in leaders.items()
        }
        a_seed, left = sum(costs.values()), by - self.clock()
        done = sorted({row["seed"] for row in self.rows() if row["phase"] == "final"})
        curved = [name for name in leaders if name == ORIGINAL or ALL[name].is_ours]
        reach = next((n for n in (2, 1) if 3 * a_seed + 4 * n * sum(costs[one] for one in curved) <= left), 0)
        rates = sorted({one for name in curved for one in _around(leaders[name], reach)})
        known = {(row["recipe"], row["lr"]) for row in self.rows() if row["phase"] == "final"}
        curve = [(n, lr) for n in curved for lr in rates if lr != leaders[n]]
        curve += sorted(known - {*curve, *leaders.items(), (PROBE, 0.0)})
        order: list[tuple[int, bool]] = []
        first = self.seed + 1
        for seed in range(first, first + _MOST_SEEDS + len(done)):
            order += [(seed, False)] + [(seed - 1, True)] * (seed > first)
        for seed, curves in order:
            # The probe is cheap, so that it would have a seed that nobody else has time for; the first seed needs it.
            bests = [(PROBE, 0.0), *leaders.items()] if seed == first else [*leaders.items(), (PROBE, 0.0)]
            cells = curve if curves else bests
            trials = [Trial(name, lr, seed, self.plan.epochs if lr else 0, "final") for name, lr in cells]
            late = seed == first and not curves  # without one seed there is no answer
            if not all(self.done(trial, self._by(1.0) if late else by, bar) for trial in trials):
                return

    def take_apart(self, bar: ProgressBar) -> None:
        """Run a plain loop beside its controls at a small rate: where the gain comes from."""
        seeds = sorted({row["seed"] for row in self.rows() if row["phase"] == "final"})
        names = list(_OF_GAIN) if self.track.careful else []
        for seed in seeds:
            trials = [Trial(name, _SMALL_RATE, seed, self.plan.epochs, "gain") for name in names]
            missing = [trial for trial in trials if trial not in self.log]
            if self.clock() + self.slower * sum(map(self.plan.predict, missing)) > self._by(_TAKEN_APART):
                return
            if not all(self.done(trial, self._by(1.0), bar) for trial in trials):
                return


def _key(trial: Trial) -> str:
    return json.dumps(asdict(trial), sort_keys=True)


def _outwards(rates: Sequence[float]) -> list[float]:
    return sorted(rates, key=lambda lr: abs(math.log(lr / _MIDDLE)))


def _around(lr: float, reach: int) -> list[float]:
    """Return the half-decades around a rate."""
    known = [*_GRIDS[0], 3e-1, 1.0]
    place = min(range(len(known)), key=lambda n: abs(math.log(known[n] / lr)))
    return known[max(0, place - reach) : place + reach + 1]


def halve(scores: Mapping[tuple[str, float], tuple[float, float]], most: int) -> list[tuple[str, float]]:
    """Keep the best cells of recipe and rate, and the best of the original, of AReLU and of the others in any case.

    Args:
        scores: accuracy and minus the loss, by cell.
        most: how many, beside those.
    """
    simple = list(ALL)
    ranked = sorted(scores, key=lambda cell: (*(-part for part in scores[cell]), simple.index(cell[0])))
    groups: dict[str, tuple[str, float]] = {}
    for cell in ranked:
        name = cell[0]
        group = ORIGINAL if name == ORIGINAL else "ours" if ALL[name].is_ours else "others"
        groups.setdefault(group, cell)
    kept = {*ranked[:most], *groups.values()} if most > 1 else {*groups.values()}
    return [cell for cell in ranked if cell in kept]


def read_duration(text: str) -> float:
    """Read a time such as 1h30m.

    Args:
        text: hours, minutes and seconds, each a whole number with its letter.

    Returns:
        Seconds.

    Raises:
        InputError: if it is too short to race in.
    """
    seconds, number = 0.0, ""
    for letter in text:
        if letter.isdigit():
            number += letter
        else:
            seconds, number = seconds + int(number) * {"h": 3600, "m": 60, "s": 1}[letter], ""
    if seconds < _LEAST_SECONDS:
        raise InputError(f"race.budget: {text!r} is not allowed; give at least {_LEAST_SECONDS:g}s, as 15m")
    return seconds


def race(config: RaceConfig | None = None) -> dict[str, Any]:
    """Race recipes of fine-tuning on labelled images within a time budget.

    Args:
        config: default: `RaceConfig()`, the embedded digits.

    Returns:
        What results.json holds: among others `sentence`, `winner`, `learning_rate`, `test_accuracy` (a fraction),
        `test_low`, `test_high`, `test_n`, `probe_accuracy`, `model` (the winner's run folder), `command` (which makes
        it again), `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the disk refuses.
    """
    started = time.monotonic()
    config = RaceConfig() if config is None else config
    validate(config, RaceConfig)
    budget = read_duration(config.race.budget)
    check_model_config(ModelConfig(name=config.model.name, pretrained=config.model.pretrained))
    device = choose_device(config.run.device)
    run = replace(config.run, resume="auto") if config.race.more else config.run
    folder = open_run(run, "race")
    if config.race.more and not folder.finished:
        raise InputError("race.more: true adds seeds to a finished race; give the --run.folder of one")
    if folder.finished:
        results = _finished(folder.path, config)
        if not config.race.more:
            print(f"finished already: {folder.path}\n{results['sentence']}")
            print("--race.more true adds seeds to it", flush=True)
            return results
    check_apart(folder, class_holders(config.data))
    inputs = _inputs(config)
    plan, track = _old_plan(folder.path, config, device)
    if plan is None:
        plan, track = make_plan(config, device, budget, started)
    with locked(folder.path):
        log = ResultsLog(folder.path / "race.jsonl")
        found = digests_of(inputs)
        found = check_inputs(found, folder.path) if log.rows else found
        _start(folder.path, config, plan, found)
        held = Race(track, plan, log, 0.0, budget)
        spent = 0.0 if config.race.more else sum(row["seconds"] for row in held.rows())
        held.until = max(started + budget - spent, time.monotonic() + min(0.1 * budget, 60.0))
        print("\n".join(announce(held, track.splits(config.run.seed))), flush=True)
        try:
            held.go(config.race.more)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{counted(len(log.rows), 'run')} of the race are kept; the same command with --run.resume auto goes on"
            ) from None
        return _conclude(held, config, folder.path, started)


def _inputs(config: RaceConfig) -> dict[str, Path]:
    if config.data.root is None or config.data.name not in (None, "folder"):
        return {}
    return {f"data.root: {config.data.root!r}": find_root(config.data.root)}


def _finished(folder: Path, config: RaceConfig) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        task, _ = results["task"], results["sentence"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"run.folder: {str(folder)!r} holds no finished race ({error!r}); give another") from error
    if task != "race":
        raise InputError(f"run.folder: {str(folder)!r} holds {task}, not a race; give another")
    _check_same(folder, config)
    return results | {"folder": str(folder)}


def _check_same(folder: Path, config: RaceConfig) -> None:
    """Refuse to go on with a race of other images or another backbone."""
    try:
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return
    now = asdict(config)
    for group in ("data", "model"):
        for name, value in now[group].items():
            old = (before.get(group) or {}).get(name)
            if old != value:
                raise InputError(
                    f"{group}.{name}: {value!r}, and the race in {str(folder)!r} had {old!r}; give another run.folder"
                )
    if before.get("run", {}).get("seed") != config.run.seed:
        raise InputError(f"run.seed: {config.run.seed} is not the seed of the race in {str(folder)!r}")


def _old_plan(folder: Path, config: RaceConfig, device: torch.device) -> tuple[Plan | None, Any]:
    """Take up the plan of a race that was stopped: with another one its runs would not be comparable."""
    path = folder / "plan.json"
    if not path.is_file():
        return None, None
    _check_same(folder, config)
    try:
        plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error}); give another folder") from error
    return plan, Track(config, device, plan.image_size, plan.per_class, plan.most)


def _start(folder: Path, config: RaceConfig, plan: Plan, inputs: Mapping[str, str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / "results.json").unlink()
    command = shlex.join(sys.argv)
    content = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", f"# {command}\n{content}")
    write_json(folder / "environment.json", environment() | {"command": command})
    write_json(folder / "inputs.json", dict(inputs))
    write_json(folder / "plan.json", asdict(plan))


def make_plan(config: RaceConfig, device: torch.device, budget: float, started: float) -> tuple[Plan, Track]:
    """Look at the images, time a step of each kind, and choose size, length and grid so that they fit the budget.

    Args:
        config: of the race.
        device: where to compute.
        budget: in seconds.
        started: by the clock, when the budget began.
    """
    size = config.data.image_size or (64 if budget <= 1200 else 96 if budget <= 7200 else 128)
    whole = load_images(config.data, config.run.seed).train
    per_class = config.data.per_class
    fewest, largest = _MOST_IMAGES
    room = int(min(largest, max(fewest, 2 * budget)))
    limits = [room, max(100, room // 4), max(200, room // 2)]
    if per_class is None and len(whole) > room:
        fewest = int(np.bincount(whole.labels, minlength=len(whole.classes)).min())
        per_class = min(fewest, max(1, room // len(whole.classes)))
    track = Track(config, device, size, per_class, limits)
    splits = track.splits(config.run.seed)
    track.own()
    track.head(config.run.seed)
    names = [name for name in RECIPES if name != PROBE] + (list(_OF_CONTROLS) if config.race.controls else [])
    if budget < 60:
        names = [name for name in names if name in _CORE]
    steps, an_image, able = track.time_steps([ORIGINAL, *(name for name in names if name != ORIGINAL)])
    able = [name for name in names if name in able]
    batches = -(-len(splits.train) // config.data.batch_size)
    parts = [len(splits.train), len(splits.validation), len(splits.test)]
    taken = time.monotonic() - started

    def planned(epochs: int, rates: Sequence[float], recipes: Sequence[str]) -> Plan:
        return Plan(
            size,
            per_class,
            epochs,
            [*rates],
            [*recipes],
            limits,
            steps,
            an_image,
            batches,
            parts,
            track.whole,
            round(taken, 1),
        )

    left = _SCREENED * budget - taken
    core = [name for name in able if name in _CORE or name in _OF_CONTROLS]
    few = [name for name in able if name in _CORE[:2]]
    grids = [(rates, able) for rates in _GRIDS] + [(rates, core) for rates in _GRIDS[1:]] + [(_GRIDS[-1], few)]
    most, good, least = (min(_MOST_EPOCHS, max(fewest, math.ceil(n / batches))) for n, fewest in _LENGTHS)
    for shortest in (good, least):
        for rates, recipes in grids:
            for epochs in range(most, shortest - 1, -1):
                plan = planned(epochs, rates, recipes)
                if screening_seconds(plan) <= left:
                    return plan, track
    return planned(least, _GRIDS[-1], few), track


def screening_seconds(plan: Plan) -> float:
    """Say how long the screening takes."""
    cells = len(plan.rates) * len(plan.recipes)
    total = 0.0
    for number, epochs in enumerate(plan.lengths, 1):
        each = [plan.predict(Trial(name, _MIDDLE, 0, epochs, "screen")) for name in plan.recipes]
        total += cells * float(np.mean(each))
        cells = max(4, cells // (3 if number == 1 else 2))
    return total


def announce(held: Race, splits: Splits) -> list[str]:
    """Say what will be done, and how long it takes.

    Args:
        held: the race.
        splits: of the first seed.
    """
    plan = held.plan
    left = held.until - held.clock()
    cells = len(plan.recipes) * len(plan.rates)
    final = held.plan.predict(Trial(ORIGINAL, _MIDDLE, 0, plan.epochs, "final"))
    room = max(0.0, (_FINAL - _SCREENED) * held.budget)
    lines = [
        f"{len(splits.train.classes)} classes; {plan.images[0]} training, {plan.images[1]} validation and "
        f"{plan.images[2]} test images, split anew for each seed; {plan.image_size} px on {held.track.device}",
        *(f"  {note}" for note in splits.notes),
        f"screening: {counted(len(plan.recipes), 'recipe')} at {counted(len(plan.rates), 'learning rate')}, in "
        f"{counted(len(plan.lengths), 'round')} of {', '.join(map(str, plan.lengths))} epochs ({cells} runs first), "
        f"about {describe_seconds(screening_seconds(plan))}",
        f"finals: the leaders with further seeds, on test images, about {describe_seconds(room)} "
        f"({describe_seconds(final)} a run); then where the gain comes from, the winner's model and the page",
        f"{describe_seconds(left)} in all, by race.budget {held.track.config.race.budget}; Ctrl-C keeps every run",
    ]
    if plan.per_class is not None and held.track.config.data.per_class is None:
        lines.insert(1, f"  {plan.per_class} training images a class are taken, so that there is time for recipes")
    return lines


def _conclude(held: Race, config: RaceConfig, folder: Path, started: float) -> dict[str, Any]:
    track, rows = held.track, held.rows()
    splits = track.splits(config.run.seed)
    name = Path(config.data.root).name if config.data.root else config.data.name or "digits"
    facts = {
        "data": name,
        "classes": len(splits.train.classes),
        "images": sum(held.plan.images),
        "resplit": 0.0 if splits.own_test else held.plan.images[2] / held.plan.images[0],
        "chance": max(np.bincount(splits.test.labels)) / len(splits.test),
        "test_n": len(splits.test),
    }
    results = conclude(rows, facts, ALL)
    winner, lr = results["winner"], results["learning_rate"]
    trial = Trial(winner, lr, config.run.seed, held.plan.epochs if lr else 0, "final")
    settings = track.settings(trial, str(folder / "model"))
    results |= _make_model(settings, folder / "model")
    results |= {
        "command": shlex.join(command_of(replace(settings, run=replace(settings.run, folder="my-model")))),
        "seed": config.run.seed,
        "runs": len(rows),
        "notes": [*(f"Of the data: {note}." for note in splits.notes), *results["notes"]],
        "budget": config.race.budget,
        "seconds": round(time.monotonic() - started, 1),
        "folder": str(folder),
    }
    results["next"] = [
        f"arelu-meta predict {shlex.quote(str(folder / 'model'))} IMAGE …",
        f"arelu-meta export {shlex.quote(str(folder / 'model'))}",
        shlex.join(again_of(config, folder)),
    ]
    write_rows(folder / "race.csv", rows)
    tell(results, folder)
    write_json(folder / "results.json", results)
    try:
        from arelu_meta.report import write_report

        write_report([folder], folder / "report.html")
        print(f"open {folder / 'report.html'}; {folder / 'card.png'} is for a slide", flush=True)
    except MissingExtraError as error:
        print(f"no report.html: {error}", flush=True)
    return results


def _make_model(settings: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """Fine-tune the winner as the command does that is told, unless its folder holds just that."""
    wanted = yaml.safe_load(yaml.safe_dump(asdict(settings)))
    with contextlib.suppress(OSError, yaml.YAMLError, ValueError):
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        same = all(before[group] == wanted[group] for group in ("model", "train")) and (
            before["optim"]["lr"] == wanted["optim"]["lr"]
        )
        if same and (folder / "model.safetensors").is_file():
            return {"model": str(folder), "model_test_accuracy": found["test_accuracy"]}
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        found = finetune(settings)
    return {"model": str(folder), "model_test_accuracy": found["test_accuracy"]}


def again_of(config: RaceConfig, folder: Path) -> list[str]:
    """Write the command that adds seeds to a race: the same images and backbone, or it would be refused.

    Args:
        config: of the race.
        folder: its run folder.
    """
    more = replace(config.race, more=True)
    run = replace(config.run, folder=str(folder), resume="never")
    return ["arelu-meta", "race", *_flags(replace(config, run=run, race=more), RaceConfig())]


def command_of(settings: FinetuneConfig) -> list[str]:
    """Write the command that does a fine-tuning run.

    Args:
        settings: what differs from the defaults becomes a flag.
    """
    return ["arelu-meta", "finetune", *_flags(settings, FinetuneConfig())]


def _flags(config: FinetuneConfig | RaceConfig, untouched: FinetuneConfig | RaceConfig) -> list[str]:
    """Write what differs from the defaults as words of a command."""
    defaults = flatten(untouched)
    words = [config.data.root] if config.data.root is not None else []
    for name, value in flatten(config).items():
        if value == defaults[name] or name == "data.root" or value is None:
            continue
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        words += [f"--{name}", shown.lower() if isinstance(value, bool) else shown]
    return words
