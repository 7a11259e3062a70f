"""At which rate should the gates of `preserve` learn? The study of the gates.

Every contender trains alike, as `finetune` does by default on pretrained weights (batch normalisation held, the head
from logistic regression on the frozen features, gradients clipped to 1) and differs in its gates alone. Start it as
often as there are cores to spare: the processes share the runs, and none is run twice. `--table true` prints what is
there and runs nothing.
"""

import contextlib
import fcntl
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser

from arelu_meta import finetune
from arelu_meta.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.exit_status import guarded
from arelu_meta.statistics import area_over_rates, mean_interval


@dataclass(frozen=True)
class Gates:
    """What a contender does with its gates.

    Args:
        says: for the table.
        share: the scalars' rate as a multiple of optim.lr; None leaves the model's own activations.
        rate: the scalars' rate itself, in place of a share.
    """

    says: str
    share: float | None = 1.0
    rate: float | None = None


GATES = {
    "original": Gates("the model's own activations", None),
    "gates-0.01": Gates("preserve, scalars at a hundredth of the rate", 0.01),
    "gates-0.1": Gates("preserve, scalars at a tenth of the rate", 0.1),
    "gates-1": Gates("preserve, scalars at the rate of the weights", 1),
    "gates-10": Gates("preserve, scalars at ten times the rate", 10),
    "gates-100": Gates("preserve, scalars at a hundred times the rate", 100),
    "fixed-0.003": Gates("preserve, scalars at 0.003 whatever the rate", rate=0.003),
    "fixed-0.03": Gates("preserve, scalars at 0.03 whatever the rate", rate=0.03),
}


@dataclass
class GatesConfig:
    """Which runs there are.

    Args:
        results: the file with one JSON line a run.
        data: a folder of images, as data.root.
        per_class: training images a class.
        image_size: side in pixels.
        model: the backbone.
        optimizer: timm's name.
        rates: learning rates of the weights.
        contenders: of `GATES`.
        seeds: the seeds of the splits, the first is through all rates before the next begins.
        epochs: passes over the training images.
        batch_size: images a step.
        table: print the tables of what is there and run nothing.
    """

    results: str = "experiments/gates/results.jsonl"
    data: str = "flowers17"
    per_class: int = 20
    image_size: int = 64
    model: str = "tf_efficientnet_lite0"
    optimizer: str = "sgd"
    rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    contenders: list[str] = field(default_factory=lambda: list(GATES))
    seeds: list[int] = field(default_factory=lambda: [0])
    epochs: int = 6
    batch_size: int = 34
    table: bool = False


@dataclass(frozen=True)
class Trial:
    """One run: all that decides its figures."""

    data: str
    per_class: int
    image_size: int
    model: str
    optimizer: str
    contender: str
    lr: float
    seed: int
    epochs: int
    batch_size: int

    @property
    def key(self) -> str:
        """Name the run in one word that a file can have."""
        return "-".join(str(value).replace("/", "_") for value in asdict(self).values())


def list_trials(config: GatesConfig) -> list[Trial]:
    """List the runs, a seed after the other."""
    sizes = (config.data, config.per_class, config.image_size, config.model, config.optimizer)
    return [
        Trial(*sizes, contender, lr, seed, config.epochs, config.batch_size)
        for seed in config.seeds
        for lr in config.rates
        for contender in config.contenders
    ]


def resolve(trial: Trial, folder: Path) -> FinetuneConfig:
    """Write down a run for `finetune`: contenders differ in model.activation, model.init and optim.act_lr alone."""
    gates = GATES[trial.contender]
    swapped = gates.rate is not None or gates.share is not None
    act_lr = gates.rate if gates.rate is not None else gates.share and gates.share * trial.lr
    return FinetuneConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device="cpu", pictures=False),
        data=DataConfig(
            root=trial.data, per_class=trial.per_class, image_size=trial.image_size, batch_size=trial.batch_size
        ),
        model=ModelConfig(trial.model, True, "arelu" if swapped else None, "preserve" if swapped else None),
        optim=OptimConfig(name=trial.optimizer, lr=trial.lr, act_lr=act_lr if swapped else None, clip_grad=1.0),
        train=TrainConfig(epochs=trial.epochs, freeze_bn=True, keep="one_se", channels_last=True),
    )


def run(trial: Trial) -> dict[str, Any]:
    """Run one trial; one that diverged has an accuracy of 0 and says why."""
    folder = Path(tempfile.mkdtemp(prefix="gates-"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            results = finetune(resolve(trial, folder / "run"))
        kept = pd.read_csv(folder / "run" / "metrics.csv").iloc[max(int(results["best_epoch"]) - 1, 0)]
        found = {name: results[name] for name in ("test_accuracy", "validation_accuracy", "best_epoch", "seconds")}
        return {**found, "validation_loss": float(kept["validation_loss"]), **_gates(folder / "run")}
    except RunError as error:
        return {"test_accuracy": 0.0, "validation_accuracy": 0.0, "validation_loss": 1e9, "diverged": str(error)}
    finally:
        shutil.rmtree(folder)


def _gates(folder: Path) -> dict[str, float]:
    """How far the gates of the model that was kept are open."""
    from safetensors.numpy import load_file

    opened = [np.abs(value) for name, value in load_file(folder / "model.safetensors").items() if name.endswith(".t")]
    return {"mean_t": float(np.mean(opened)), "largest_t": float(np.max(opened))} if opened else {}


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Read the runs that have ended, by key; a last line that was cut off is left out."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows[Trial(**row["trial"]).key] = row
    return rows


@contextlib.contextmanager
def _claim(trial: Trial) -> Iterator[bool]:
    """Take a run for this process; the claim goes with the process, however it ends."""
    with (Path(tempfile.gettempdir()) / f"gates-{trial.key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_missing(config: GatesConfig) -> None:
    """Run what the results do not hold yet."""
    path, trials = Path(config.results), list_trials(config)
    for number, trial in enumerate(trials):
        with _claim(trial) as mine:
            if mine and trial.key not in read_rows(path):
                print(f"{number}/{len(trials)} {trial.key}", flush=True)
                line = json.dumps({"trial": asdict(trial), **run(trial)}) + "\n"
                with path.open("a", encoding="utf-8") as file:
                    file.write(line)


def tables(config: GatesConfig) -> str:
    """Put the runs that are there into tables: accuracy by rate, then each contender against the original."""
    rows = read_rows(Path(config.results))
    known = [rows[one.key] for one in list_trials(config) if one.key in rows]
    if not known:
        return "no run of this stage has ended yet"
    frame = pd.DataFrame([{**row["trial"], **{k: v for k, v in row.items() if k != "trial"}} for row in known])
    said = [
        f"**{config.data}, {config.per_class} a class, {config.image_size} px, {config.model}, {config.optimizer}**"
    ]
    for part in ("validation", "test"):
        grid = frame.pivot_table(f"{part}_accuracy", "contender", "lr", sort=False) * 100
        said += [f"{part} accuracy (%), mean over the seeds", _markdown(grid.round(1).reset_index())]
    if "mean_t" in frame:
        said += [
            "mean |t| of the kept model",
            _markdown(frame.pivot_table("mean_t", "contender", "lr").map("{:.2g}".format).reset_index()),
        ]
    said += ["against the original, in points", _markdown(_against_original(known, config))]
    return "\n\n".join(said)


def _markdown(frame: pd.DataFrame) -> str:
    rows = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    rows += [[str(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _against_original(rows: list[dict[str, Any]], config: GatesConfig) -> pd.DataFrame:
    by_run: dict[tuple[str, int], dict[float, tuple[float, float]]] = {}
    for row in rows:
        trial, figures = row["trial"], (row["validation_accuracy"], row["test_accuracy"])
        by_run.setdefault((trial["contender"], trial["seed"]), {})[trial["lr"]] = figures
    lines = []
    for name in config.contenders:
        pairs = [
            (by_run[name, seed], by_run["original", seed])
            for seed in config.seeds
            if len(by_run.get((name, seed), {})) == len(by_run.get(("original", seed), {})) == len(config.rates)
        ]
        if not pairs or name == "original":
            continue
        line: dict[str, Any] = {"contender": name, "seeds": len(pairs)}
        for at, part in enumerate(("validation", "test")):
            areas = [100 * (_area(one, at) - _area(other, at)) for one, other in pairs]
            line[f"area ({part})"] = _with_interval(areas)
        # The peak's rate is chosen on validation images, then read off the test images.
        line["peak (test)"] = _with_interval([100 * (_peak(one) - _peak(other)) for one, other in pairs])
        lines.append(line)
    return pd.DataFrame(lines)


def _area(accuracies: dict[float, tuple[float, float]], at: int) -> float:
    return area_over_rates({lr: both[at] for lr, both in accuracies.items()})


def _peak(accuracies: dict[float, tuple[float, float]]) -> float:
    return max(accuracies.values())[1]


def _with_interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    mean, low, high = mean_interval(values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def gates_task(config: GatesConfig) -> None:
    """Run what is missing and print the tables.

    Raises:
        InputError: if a contender is unknown.
    """
    for name in config.contenders:
        if name not in GATES:
            raise InputError(f"contenders: {name!r} is not known; {nearest_names(name, GATES)}")
    if not config.table:
        run_missing(config)
    print(tables(config))


def main() -> int:
    """Parse, and run or print.

    Returns:
        The exit status: 0 done, 2 bad input, 3 a run could not go on, 130 interrupted.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with the stage")
    parser.add_class_arguments(GatesConfig)
    arguments = parser.parse_args()
    arguments.pop("config", None)
    return guarded(lambda: gates_task(GatesConfig(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
