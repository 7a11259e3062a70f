"""The study of starts: which runs there are, each run once, its line in a file, and the tables of what is there."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, save_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from arelu_meta.data.loaders import unlabelled_batches
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.finetuning.finetune import finetune
from experiments.init_study.starts import STARTS, first_step

_LOOKED_AT = 272  # training images that a start may look at
_NO_LIMIT = 1e9  # of gradients
_FIRST_RATES = 2  # of the first seed, before the other seeds at the small rate


@dataclass
class StudyConfig:
    """Which runs a stage of the study has.

    Args:
        results: the file with one JSON line a run; runs that it holds are not run again.
        model: the backbone.
        data: one set after the other: a folder of images, as data.root.
        per_class: training images a class, one number a set.
        image_size: side in pixels.
        optimizers: timm's names.
        rates: learning rates, the same for each optimiser, or one list an optimiser.
        starts: of `STARTS`, the most important first.
        seeds: how many; the first takes every rate, the others the small one and the one chosen on validation images.
        small_rates: the small learning rate, one an optimiser.
        reference: the start that the table pairs the others with, seed by seed.
        epochs: passes over the training images.
        batch_size: images a step.
        table: print the tables of what is there and run nothing.
        markdown: print them as Markdown.
    """

    results: str = "experiments/init_study/results.jsonl"
    model: str = "tf_efficientnet_lite0"
    data: list[str] = field(default_factory=lambda: ["flowers17"])
    per_class: list[int] = field(default_factory=lambda: [20])
    image_size: int = 64
    optimizers: list[str] = field(default_factory=lambda: ["sgd"])
    rates: list[list[float]] = field(default_factory=lambda: [[1e-3, 1e-2, 3e-4, 3e-3, 3e-2, 1e-1]])
    starts: list[str] = field(default_factory=lambda: list(STARTS))
    seeds: int = 1
    small_rates: list[float] = field(default_factory=lambda: [1e-3])
    reference: str = "original"
    epochs: int = 6
    batch_size: int = 34
    table: bool = False
    markdown: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of the study: all that decides its figures."""

    model: str
    data: str
    per_class: int
    image_size: int
    optimizer: str
    start: str
    lr: float
    seed: int
    epochs: int
    batch_size: int

    @property
    def key(self) -> str:
        """Name the run in one word that a file can have."""
        return "-".join(str(value).replace("/", "_") for value in asdict(self).values())


Rows = dict[str, dict[str, Any]]


def study_task(config: StudyConfig) -> None:
    """Run what is missing, or print the tables.

    Args:
        config: a stage of the study.

    Raises:
        InputError: if a start is unknown or the lists do not fit together.
    """
    from experiments.init_study.tables import print_tables

    check(config)
    if not config.table:
        run_missing(config)
    print_tables(config, read_results(Path(config.results)))


def check(config: StudyConfig) -> None:
    """Refuse a study that cannot be run.

    Args:
        config: a stage of the study.

    Raises:
        InputError: naming the field.
    """
    for name in [*config.starts, config.reference]:
        if name not in STARTS:
            raise InputError(f"starts: {name!r} is not known; {nearest_names(name, STARTS)}")
    for what, values, needed in (
        ("per_class", config.per_class, config.data),
        ("rates", config.rates, config.optimizers),
        ("small_rates", config.small_rates, config.optimizers),
    ):
        if len(values) != len(needed):
            raise InputError(f"{what}: {len(values)} values are not allowed; give {len(needed)}, one for each {needed}")


def read_results(path: Path) -> Rows:
    """Read the runs that have ended, by key.

    Args:
        path: of JSON lines; a last line that was cut off is left out.
    """
    rows: Rows = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                rows[Trial(**row["trial"]).key] = row
    return rows


def trials(config: StudyConfig, rows: Rows) -> list[Trial]:
    """List a stage's runs as far as they are known, in the order that makes part of them worth the most.

    The later seeds' second learning rate is known once the first seed has been through all.

    Args:
        config: the stage.
        rows: the runs that have ended.
    """
    first, small, rest, chosen = [], [], [], []
    for data, per_class in zip(config.data, config.per_class, strict=True):
        for optimizer, rates, rate in zip(config.optimizers, config.rates, config.small_rates, strict=True):
            made = partial(trial_of, config, data, per_class, optimizer)
            grid = [made(start, lr, 0) for lr in rates for start in config.starts]
            first += grid[: _FIRST_RATES * len(config.starts)]
            rest += grid[_FIRST_RATES * len(config.starts) :]
            for seed in range(1, config.seeds):
                for start in config.starts:
                    small.append(made(start, rate, seed))
                    best = chosen_rate(config, rows, data, per_class, optimizer, start)
                    if best is not None:
                        chosen.append(made(start, best, seed))
    return list(dict.fromkeys([*first, *small, *rest, *chosen]))


def trial_of(config: StudyConfig, data: str, per_class: int, optimizer: str, start: str, lr: float, seed: int) -> Trial:
    """Make one run of a stage."""
    sizes = (config.epochs, config.batch_size)
    return Trial(config.model, data, per_class, config.image_size, optimizer, start, lr, seed, *sizes)


def chosen_rate(config: StudyConfig, rows: Rows, data: str, per_class: int, optimizer: str, start: str) -> float | None:
    """Choose a start's learning rate: the first seed's best on validation images, by accuracy and then by loss.

    Returns:
        The rate; None while a run is missing.
    """
    rates = config.rates[config.optimizers.index(optimizer)]
    found = [rows.get(trial_of(config, data, per_class, optimizer, start, lr, 0).key) for lr in rates]
    known = [row for row in found if row is not None]
    if len(known) < len(rates):
        return None
    best = max(known, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    return float(best["trial"]["lr"])


def run_missing(config: StudyConfig) -> None:
    """Run what the results do not hold yet. Several processes may do so side by side.

    Args:
        config: the stage.
    """
    path = Path(config.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        rows = read_results(path)
        listed = trials(config, rows)
        missing = [trial for trial in listed if trial.key not in rows]
        for trial in missing:
            with _claim(trial) as mine:
                if mine and trial.key not in read_results(path):
                    print(f"{len(listed) - len(missing)}/{len(listed)} runs done; now {trial.key}", flush=True)
                    _append(path, {"trial": asdict(trial), **run(trial)})
                    break
        else:
            return


@contextlib.contextmanager
def _claim(trial: Trial) -> Iterator[bool]:
    """Take a run for this process; the claim goes with the process, however it ends."""
    with (Path(tempfile.gettempdir()) / f"study-{os.getuid()}-{trial.key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")  # one write: lines of several processes do not mix
        file.flush()
        os.fsync(file.fileno())


def run(trial: Trial) -> dict[str, Any]:
    """Run one trial through `finetune`.

    Args:
        trial: what to run.

    Returns:
        Its figures; a run that diverged has accuracies of 0 and says why.
    """
    start = STARTS[trial.start]
    folder = Path(tempfile.mkdtemp(prefix="study-init-"))
    data = DataConfig(
        root=trial.data, per_class=trial.per_class, image_size=trial.image_size, batch_size=trial.batch_size
    )
    try:
        images = load_images(data, trial.seed).train
        torch.manual_seed(trial.seed)
        model, spec, batches, labels = _begin(trial.start, trial, images)
        head = start.head * (_ratio(model, trial, images, batches, labels, start.like) if start.like else 1.0)
        save_model(folder / "start.safetensors", model, spec)
        config = FinetuneConfig(
            run=RunConfig(folder=str(folder / "run"), seed=trial.seed, device="cpu", pictures=False),
            data=data,
            model=ModelConfig(trial.model, str(folder / "start.safetensors"), spec.activation, start.init),
            optim=OptimConfig(
                name=trial.optimizer,
                lr=trial.lr,
                head_lr=None if head == 1 else trial.lr * head,
                act_lr=trial.lr * start.act if start.init else None,
                schedule="cosine",
                weight_decay=1e-4,
                clip_grad=_NO_LIMIT,
            ),
            # Every start trains alike: what the defaults choose for one of them has no part in it.
            train=TrainConfig(epochs=trial.epochs, freeze_bn=False, keep="best", channels_last=False),
        )
        return {"head": head, **_finetuned(config, folder / "run")}
    finally:
        shutil.rmtree(folder)


def _finetuned(config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            results = finetune(config)
    except RunError as error:
        return {"test_accuracy": 0.0, "validation_accuracy": 0.0, "validation_loss": 1e9, "diverged": str(error)}
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    columns = [line.split(",") for line in lines]
    metrics = {name: [float(row[at]) for row in columns[1:]] for at, name in enumerate(columns[0])}
    best = int(results["best_epoch"]) - 1
    return {
        "test_accuracy": results["test_accuracy"],
        "validation_accuracy": results["validation_accuracy"],
        "validation_loss": metrics["validation_loss"][best],
        "by_epoch": [round(value, 5) for value in metrics["validation_accuracy"]],
        "best_epoch": results["best_epoch"],
        "seconds": results["seconds"],
    }


def _begin(name: str, trial: Trial, images: ImageSet) -> tuple[nn.Module, ModelSpec, list[Tensor], Tensor]:
    """Build a start's model, and give the images that it was prepared on."""
    start = STARTS[name]
    order = np.random.default_rng([trial.seed, 7]).permutation(len(images))[:_LOOKED_AT]
    looked_at = images.subset(order)
    config = ModelConfig(trial.model, True, "arelu" if start.init else None, start.init)
    model, spec = build_backbone(
        config,
        images.classes,
        images.channels,
        trial.image_size,
        "finetune",
        lambda inputs: unlabelled_batches(looked_at, inputs),
    )
    batches = unlabelled_batches(looked_at, spec.inputs, len(looked_at), trial.batch_size)
    if start.prepare is not None:
        start.prepare(model, batches)
    return model, spec, batches, torch.from_numpy(looked_at.labels)


def _ratio(
    model: nn.Module, trial: Trial, images: ImageSet, batches: Sequence[Tensor], labels: Tensor, like: str
) -> float:
    """How many times as far the other start's first step on its head moves the logits."""
    signed = trial.optimizer.startswith("adam")
    other, *_ = _begin(like, trial, images)
    return first_step(other, batches, labels, signed) / first_step(model, batches, labels, signed)
