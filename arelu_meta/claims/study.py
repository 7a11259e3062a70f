"""One engine for all studies: what is missing of a study's grid is run, each run once; then come verdicts and page."""

import contextlib
import csv
import hashlib
import importlib
import io
import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import yaml

from arelu_meta.claims.tables import Outcome, print_outcome
from arelu_meta.config import ClaimsConfig, DataConfig, TaskConfig
from arelu_meta.data.fewshot import ClassSplits, load_class_splits
from arelu_meta.data.image_folder import class_holders, find_candidates, find_labels, find_root
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError, MissingExtraError, RunError, counted
from arelu_meta.runs.atomic_io import write_json, write_text
from arelu_meta.runs.checkpoints import digest_of
from arelu_meta.runs.environment import environment
from arelu_meta.runs.progress import progress
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.runs.run_folder import check_apart, locked, open_run
from arelu_meta.validation import expanded, flatten, validate

CLAIMS = 2  # that a study judges, fixed before its first run; whatever else it compares is described
Row = dict[str, Any]
"""One read-out of a run: accuracy after an epoch or step; plain values by column."""


# --- The results log


def key_of(trial: Any) -> str:
    """Name a run by all that decides its figures.

    Args:
        trial: a dataclass of plain values.
    """
    return json.dumps(asdict(trial), sort_keys=True)


class ResultsLog:
    """Finished runs by key, on disk.

    Args:
        path: of the JSON lines; made at the first run.
        flag: what named it, for errors.

    Raises:
        InputError: if the file is damaged, other than by a last line that was cut off, which is dropped.
    """

    def __init__(self, path: Path, flag: str = "run.folder") -> None:
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        self._whole = 0  # bytes up to the end of the last whole line
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            if not line.endswith(b"\n"):
                break  # the process was killed while it wrote
            try:
                entry = json.loads(line)
                self.rows[json.dumps(entry["trial"], sort_keys=True)] = entry["rows"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{flag}: {str(path)!r} is damaged ({error!r}); remove it to run the study again"
                ) from error
            self._whole += len(line)

    def __contains__(self, trial: Any) -> bool:
        return key_of(trial) in self.rows

    def of(self, trial: Any) -> list[Row]:
        """Return a finished run's rows, each with the trial's own columns before its read-outs."""
        return [{**asdict(trial), **row} for row in self.rows[key_of(trial)]]

    def of_all(self, trials: Iterable[Any]) -> list[Row]:
        """Return the rows of several finished runs as `of` does, one run behind the other.

        Args:
            trials: each in the log.
        """
        return [row for trial in trials for row in self.of(trial)]

    def append(self, trial: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note a finished run: it is on disk when this returns.

        Args:
            trial: the run.
            rows: its read-outs.

        Raises:
            RunError: if the disk refuses; the runs before it are intact.
        """
        line = json.dumps({"trial": asdict(trial), "rows": list(rows)}, sort_keys=True) + "\n"
        try:
            with self.path.open("a+b") as file:
                file.seek(self._whole)
                unread = file.read()  # whole lines of a process beside this one stay; a line that was cut off goes
                file.truncate(self._whole + unread.rfind(b"\n") + 1)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
                self._whole = file.tell()
        except OSError as error:
            raise RunError(
                f"{self.path}: could not be written ({error.strerror}); the runs before are intact"
            ) from error
        self.rows[key_of(trial)] = [dict(row) for row in rows]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write read-outs as a table for other programs.

    Args:
        path: of the CSV.
        rows: by column; a column that some lack stays empty there.
    """
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_text(path, text.getvalue())


# --- Running


Work = Callable[[Sequence[Any]], list[list[Row]]]
"""Runs trials together and returns each one's rows; it must be picklable."""


@dataclass
class Plan:
    """The runs of a study, how to do them, and how to conclude from them.

    Args:
        groups: trials that run together; most groups hold one.
        work: runs a group.
        processes: groups at once.
        seconds: about how long trials take, one after the other in one process; measured on this machine.
        conclude: judges the finished runs; given the results log and the study's folder, for pictures.
        headline: what is compared on what, in a line.
        inputs: folders and files that its runs are made from, by flag and value; default: what `inputs_of` finds.
        image_folders: where it looks for images; default: what `image_folders` finds.
    """

    groups: list[list[Any]]
    work: Work
    processes: int
    seconds: Callable[[Sequence[Any]], float]
    conclude: Callable[[ResultsLog, Path], Outcome]
    headline: str
    inputs: dict[str, Path] | None = None
    image_folders: list[Path] | None = None

    @property
    def trials(self) -> list[Any]:
        """All runs in their order."""
        return [trial for group in self.groups for trial in group]


_MODULES = {
    "mnist": "arelu_meta.claims.mnist",
    "small-lr": "arelu_meta.claims.small_lr",
    "gradients": "arelu_meta.claims.gradients",
    "transfer": "arelu_meta.claims.transfer",
    "architectures": "arelu_meta.claims.architectures",
    "meta": "arelu_meta.claims.maml",
    "focus": "arelu_meta.claims.focus",
    "tuning": "arelu_meta.claims.tuning",
}


_NOTHING_JUDGED = (
    "No claim is judged: that takes two contenders with two values in common; mnist, gradients and meta judge arelu "
    "against relu."
)


def claims_task(config: ClaimsConfig) -> dict[str, Any]:
    """Run a study, or what is left of it, and judge its claims.

    Args:
        config: which study, and what of its recipe is changed.

    Returns:
        What results.json holds: `task`, `study`, `size`, `seeds`, `seconds`, `verdicts`, `tables`, `curves`,
        `heatmaps`, `images`, `notes`, `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the disk refuses, or a process was killed; finished runs are kept.
    """
    validate(config, ClaimsConfig)
    config = resolve(config)
    device = choose_device(config.run.device)
    folder = open_run(config.run, f"claims-{config.study}")
    if folder.finished and (found := _finished(folder.path, config)) is not None:
        return found
    study = importlib.import_module(_MODULES[config.study])
    with study.plan(thinned(config), device) as plan:
        check_apart(folder, image_folders(config) if plan.image_folders is None else plan.image_folders)
        with locked(folder.path):
            log = ResultsLog(folder.path / "runs.jsonl")
            inputs = digests_of(inputs_of(config) if plan.inputs is None else plan.inputs)
            _start(folder.path, config, check_inputs(inputs, folder.path) if log.rows else inputs)
            return _run(config, plan, log, folder.path)


def _run(config: ClaimsConfig, plan: Plan, log: ResultsLog, folder: Path) -> dict[str, Any]:
    started = monotonic()
    missing = [trial for trial in plan.trials if trial not in log]
    print(plan.headline, flush=True)
    if missing:
        print(f"trying a few short runs, to say how long {counted(len(missing), 'run')} will take", flush=True)
    try:
        seconds = plan.seconds(missing) if missing else 0.0
    except KeyboardInterrupt:  # what the run says that was measured is of a folder that is gone
        done = len(plan.trials) - len(missing)
        raise KeyboardInterrupt(
            f"while the time was being estimated; {done} of {len(plan.trials)} runs are finished; the same command "
            "with --run.resume auto goes on"
        ) from None
    announce(len(missing), len(plan.trials), seconds, plan.processes)
    run_missing(log, plan.groups, plan.work, plan.processes)
    outcome = plan.conclude(log, folder)
    outcome.complete()
    if not outcome.claims:
        outcome.notes.insert(0, _NOTHING_JUDGED)
    write_rows(folder / "runs.csv", log.of_all(plan.trials))
    results = _results(config, plan, outcome, folder, monotonic() - started)
    write_json(folder / "results.json", results)
    print_outcome(outcome, folder)
    _write_page(folder)
    return results


def _start(folder: Path, config: ClaimsConfig, inputs: dict[str, str]) -> None:
    import shlex
    import sys

    try:
        # What ended here before had other flags; left there, it would pass for this study's end if this one is stopped.
        (folder / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"run.folder: {str(folder)!r} cannot be written ({error.strerror})") from error
    command = shlex.join(sys.argv)
    content = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", f"# {command}\n{content}")
    write_json(folder / "environment.json", environment() | {"command": command})
    write_json(folder / "inputs.json", inputs)


def _results(config: ClaimsConfig, plan: Plan, outcome: Outcome, folder: Path, seconds: float) -> dict[str, Any]:
    return {
        "task": "claims",
        "study": config.study,
        "size": config.size,
        "headline": plan.headline,
        "seed": config.run.seed,
        "seeds": sorted({trial.seed for trial in plan.trials}),
        "runs": len(plan.trials),
        "seconds": round(seconds, 1),
        **outcome.as_results(),
        "folder": str(folder),
    }


def _finished(folder: Path, config: ClaimsConfig) -> dict[str, Any] | None:
    """Return a finished study's results; None if it was another: its runs count all the same where they fit."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        found = f"{results['task']} {results['study']}"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"run.folder: {str(folder)!r} holds no finished study ({error!r}); give another") from error
    if found != f"claims {config.study}":
        raise InputError(f"run.folder: {str(folder)!r} holds {found}, not claims {config.study}; give another")
    now = asdict(config)
    for mapping in (before, now):
        mapping.pop("run", None)
        mapping.pop("processes", None)
    if before != now or results["seed"] != config.run.seed:
        return None
    print(f"finished already: {folder}")
    for verdict in results["verdicts"]:
        print(verdict["sentence"])
    if not (folder / "report.html").exists():
        _write_page(folder)
    return results  # type: ignore[no-any-return]


def _write_page(folder: Path) -> None:
    """Write the study's page; where what draws it is missing, say so: the study itself is done."""
    try:
        from arelu_meta.report import write_report

        write_report([folder], folder / "report.html")
    except MissingExtraError as error:
        print(f"no report.html: {error}", flush=True)
        return
    print(f"open {folder / 'report.html'}", flush=True)


# --- Recipes


# --- Recipes


def resolve(config: ClaimsConfig) -> ClaimsConfig:
    """Fill what was left out with the study's recipe.

    Args:
        config: as a person gave it; it is not changed.

    Returns:
        A copy in which all that the study reads is set.

    Raises:
        InputError: naming a flag whose value it cannot have.
    """
    filled, given = deepcopy(config), flatten(config)
    for name, value in recipe(config).items():
        if given[name] is None and not _brings(config, name):
            _set(filled, name, value)
    repeats = filled.train.repeats
    if repeats is not None and repeats < 2:
        raise InputError(f"train.repeats: {repeats} is not allowed; give at least 2: one run has no interval")
    return filled


def _brings(config: ClaimsConfig, name: str) -> bool:
    """Whether a person names data of their own: the recipe's name, size and number of images are not for it.

    Runs that are looked at bring the images that they were trained on.
    """
    own = config.data.root is not None or config.data.name is not None or config.focus.runs is not None
    return own and name in {"data.name", "data.root", "data.per_class"}


def _set(config: ClaimsConfig, name: str, value: Any) -> None:
    group, _, field_name = name.rpartition(".")
    setattr(getattr(config, group) if group else config, field_name, value)


def recipe(config: ClaimsConfig) -> dict[str, Any]:
    """Read what a study's flags are where a person leaves them out: the YAML files beside this one.

    Args:
        config: its study, pipeline and size.

    Returns:
        Values by their flags' names.
    """
    name = f"{config.study}-maml" if config.pipeline == "maml" else config.study
    text = files("arelu_meta.claims").joinpath("recipes", f"{name}-{config.size}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for key, value in yaml.safe_load(text).items():
        found |= {f"{key}.{field}": one for field, one in value.items()} if isinstance(value, dict) else {key: value}
    return found


def read_names(flag: str, text: str | None) -> list[str]:
    """Read names with commas between.

    Args:
        flag: where they stand, for errors.
        text: as `relu,selu`.

    Returns:
        Each once, in order.

    Raises:
        InputError: if there is none, or an empty one.
    """
    found = [part.strip() for part in (text or "").split(",")]
    if not all(found):
        raise InputError(f"{flag}: {text!r} is not allowed; give names with commas between, as one,two")
    return list(dict.fromkeys(found))


def activation_names(config: ClaimsConfig) -> list[str]:
    """List a resolved config's activations, each once, by the name under which tables and claims know it.

    Raises:
        InputError: naming one that is unknown.
    """
    from arelu_meta.activations.registry import canonical_name

    found = read_names("model.activation", config.model.activation)
    return list(dict.fromkeys(canonical_name(name, "model.activation") for name in found))


def read_numbers(flag: str, text: float | str | None) -> list[float]:
    """Read numbers above 0 with commas between.

    Args:
        flag: where they stand, for errors.
        text: as `1e-2,1e-3`, or a single number.

    Returns:
        Each once, from large to small.

    Raises:
        InputError: if one of them is no number, or not above 0.
    """
    found = []
    for part in str(text).split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{flag}: {part.strip()!r} is not allowed; give numbers above 0, with commas between")
        found.append(value)
    return sorted(set(found), reverse=True)


def seeds_of(config: ClaimsConfig) -> list[int]:
    """List the seeds of a resolved config."""
    return list(range(config.run.seed, config.run.seed + (config.train.repeats or 0)))


# --- The data that a study reads


# --- The data that a study reads


_FEWEST = 5  # training images a class that the quick size may leave


def thinned(config: ClaimsConfig) -> ClaimsConfig:
    """Keep the quick size quick on a person's own images: as many of each class as the recipe takes, or as there are.

    Args:
        config: resolved.

    Returns:
        It, or a copy with `data.per_class`; a class of fewer than 5 training images asks for all there are.

    Raises:
        InputError: if the images cannot be read.
    """
    trained = config.study in ("architectures", "focus", "small-lr", "tuning") and config.focus.runs is None
    if config.size != "quick" or not trained or config.pipeline == "maml" or config.data.per_class is not None:
        return config
    images = load_images(config.data, config.run.seed).train  # how many there are of a class is the same in every split
    smallest = int(np.bincount(images.labels, minlength=len(images.classes)).min())
    if smallest < _FEWEST:
        return config
    filled = deepcopy(config)
    filled.data.per_class = min(smallest, recipe(config)["data.per_class"])
    return filled


def resplit(config: DataConfig, seed: int) -> float:
    """Return how many test images there are a training image where every seed splits the data anew.

    Args:
        config: of the study; how much of the training images it takes does not count, for seeds share those they
            might have taken as well.
        seed: the study's first.

    Returns:
        0 where the test set is the same for all seeds.
    """
    one, other = (load_images(replace(config, per_class=None), number) for number in (seed, seed + 1))
    return 0.0 if set(one.test.names) == set(other.test.names) else len(one.test) / len(one.train)


def resplit_classes(config: DataConfig, task: TaskConfig, seed: int) -> float:
    """Return how many test classes there are a training class where every seed divides the classes anew.

    Args:
        config: name and root.
        task: the study's.
        seed: the study's first.

    Returns:
        0 where the test classes are the same for all seeds.
    """
    one, other = (divide_for(config, task, number) for number in (seed, seed + 1))
    if set(one.test.names) == set(other.test.names):
        return 0.0
    return len(set(one.test.labels)) / len(set(one.train.labels))


def divide_for(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    """Divide data as `load_class_splits` does; what is too small is told without the flags that a study has not.

    Args:
        config: name and root.
        task: the study's.
        seed: of the division.

    Returns:
        Training, validation and test classes.

    Raises:
        InputError: if the data is missing or unusable, or has too few classes or images, naming it.
    """
    try:
        return load_class_splits(config, task, seed)
    except InputError as error:
        if not str(error).startswith("task."):
            raise
        flag, given = ("data.name", config.name) if config.root is None else ("data.root", config.root)
        raise InputError(
            f"{flag}: {given!r} is too small for this study's tasks of {task.ways} classes, "
            f"{counted(task.shots, 'image')} to learn from and {task.queries} to be judged on; give at least "
            f"{2 * task.ways} classes of {task.shots + task.queries} images"
        ) from error


def amount(config: ClaimsConfig) -> str:
    """Say how many training images there are of each class."""
    return f"{'all' if config.data.per_class is None else config.data.per_class} training images a class"


def epochs(config: ClaimsConfig) -> str:
    """Say how long a study trains."""
    return counted(config.train.epochs or 0, "epoch")  # a resolved config has a number


def inputs_of(config: ClaimsConfig) -> dict[str, Path]:
    """List the folders and files that a study reads and its runs are not named by: a path stays, its content may not.

    Args:
        config: resolved, and planned without an error.

    Returns:
        Paths by flag and value.
    """
    given = {f"focus.{name}": getattr(config.focus, name) for name in ("images", "boxes", "masks")}
    paths = {f"{flag}: {value!r}": expanded(value) for flag, value in given.items() if value is not None}
    if config.data.root is not None and config.data.name in (None, "folder"):
        paths[f"data.root: {config.data.root!r}"] = find_root(config.data.root)
    if config.data.labels is not None:
        paths[f"data.labels: {config.data.labels!r}"] = find_labels(config.data)
    return paths


def image_folders(config: ClaimsConfig) -> list[Path]:
    """List the folders in which a study looks for images: what is written there would be taken for some of them.

    Args:
        config: resolved, and planned without an error.
    """
    given = [expanded(one) for one in (config.focus.images, config.focus.masks) if one is not None]
    return [*class_holders(config.data), *given]


def digests_of(inputs: dict[str, Path]) -> dict[str, str]:
    """Digest folders, by their images' paths and sizes, and files.

    Args:
        inputs: by flag and value.
    """
    return {flag: _digest(path) for flag, path in inputs.items()}


def _digest(path: Path) -> str:
    if path.is_file():
        return digest_of(path)
    listed = sorted((one.relative_to(path).as_posix(), one.stat().st_size) for one in find_candidates(path))
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def check_inputs(now: dict[str, str], folder: Path) -> dict[str, str]:
    """Refuse to go on where a folder or file holds something else than when the study's runs were made.

    Args:
        now: as `digests_of` gives it.
        folder: of the study, which holds finished runs.

    Returns:
        What is to be remembered: of before and of now.

    Raises:
        InputError: naming the flag that has other content behind it.
    """
    try:
        before = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        known = {str(flag): str(digest) for flag, digest in before.items()}
    except (OSError, ValueError, AttributeError):
        known = {}  # of a study begun before this was noted
    for flag, digest in now.items():
        if known.get(flag, digest) != digest:
            raise InputError(
                f"{flag} does not hold what it held when the runs in {str(folder)!r} were made; give another run.folder"
            )
    return known | now


# --- Running


_LOOK = 0.5  # seconds between two looks at whether the study is still there


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(asked: int | None, device: torch.device) -> int:
    """Say how many runs go side by side: one a core of a CPU, and one alone on a GPU.

    Args:
        asked: processes, which counts on a CPU; None leaves it open.
        device: where runs compute.
    """
    return (asked or cores()) if device.type == "cpu" else 1


def run_missing(log: ResultsLog, groups: Sequence[Sequence[Any]], work: Work, processes: int) -> None:
    """Run what the log does not hold, and note every run as soon as it has ended.

    Args:
        log: of the study.
        groups: trials that run together; the first are begun first.
        work: runs a group.
        processes: how many groups at once; 1 runs them in this process.

    Raises:
        KeyboardInterrupt: with how to go on; the runs that had ended are kept.
        RunError: if a process was killed, such as for its memory.
    """
    missing = [left for group in groups if (left := [trial for trial in group if trial not in log])]
    total, done = sum(map(len, groups)), sum(trial in log for group in groups for trial in group)
    if not missing:
        return
    try:
        with progress("study", total - done, "runs") as bar:
            for group, found in _as_they_end(missing, work, min(processes, len(missing))):
                for trial, rows in zip(group, found, strict=True):
                    log.append(trial, rows)
                    bar.advance(1, **_metric(rows))
    except KeyboardInterrupt:
        finished = sum(trial in log for group in groups for trial in group)
        raise KeyboardInterrupt(
            f"{finished} of {total} runs are finished and kept; the same command with --run.resume auto goes on"
        ) from None
    except BrokenProcessPool as error:
        raise RunError(
            "a process of the study was killed, perhaps for its memory; the runs that had ended are kept: go on with "
            "--run.resume auto and fewer --processes"
        ) from error


def _metric(rows: Sequence[Row]) -> dict[str, float]:
    found = [float(row["accuracy"]) for row in rows if row.get("accuracy") is not None]
    return {"accuracy": found[-1]} if found else {}


def _as_they_end(
    groups: Sequence[Sequence[Any]], work: Work, processes: int
) -> Iterator[tuple[Sequence[Any], list[list[Row]]]]:
    """Yield each group with its trials' rows, in the order in which they end."""
    if processes == 1:
        with one_thread():
            for group in groups:
                yield group, work(group)
        return
    pool = ProcessPoolExecutor(
        processes, torch.multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        waiting: dict[Future[list[list[Row]]], Sequence[Any]] = {pool.submit(work, group): group for group in groups}
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                yield waiting.pop(future), future.result()
    except BaseException:
        # A run takes minutes: do not wait for those that are under way.
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, as in a process of a pool: the sums are the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(parent: int) -> None:
    """Set up a process of the pool: one thread; the parent alone answers Ctrl-C; without the parent it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def run_apart(run: Callable[[Path], list[Row]], worst: Row) -> list[Row]:
    """Do a run in a folder of its own, which is removed, and let it print nothing.

    Args:
        run: writes into the folder, which is not there yet, and returns its rows.
        worst: the one row of a run that could not go on; `diverged` is added and says why.
    """
    parent = Path(tempfile.mkdtemp(prefix="arelu-meta-"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return run(parent / "run")
    except RunError as error:
        return [{**worst, "diverged": str(error).split(";")[0]}]
    finally:
        shutil.rmtree(parent)


def probe(run: Callable[[int], object], lengths: tuple[int, int] = (1, 2)) -> Callable[[int], float]:
    """Measure a run of two lengths in one thread, as in a process of a pool, and say what any length takes.

    Args:
        run: does a run of some length, in epochs or steps.
        lengths: a short and a longer one.

    Returns:
        Seconds by length.
    """
    short, longer = lengths
    times = []
    with one_thread():
        run(short)  # the first call loads the data and prepares kernels
        for length in lengths:
            started = time.perf_counter()
            run(length)
            times.append(time.perf_counter() - started)
    more = max(0.0, times[1] - times[0]) / (longer - short)
    return lambda length: times[0] + more * max(0, length - short)


def announce(missing: int, total: int, seconds: float, processes: int) -> None:
    """Say how many runs there are and about how long they take.

    Args:
        missing: runs to do.
        total: runs of the study.
        seconds: of all missing runs one after the other in one process.
        processes: how many at once.
    """
    left = f"{missing} of {counted(total, 'run')} to do" if missing < total else counted(total, "run")
    print(f"{left}, {processes} at once: about {describe_seconds(seconds / max(1, processes))}", flush=True)


def describe_seconds(seconds: float) -> str:
    """Say a time in the unit that a person would use."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} seconds"
