"""One config, several runs: a run a seed, or a run a fold of cross-validation, and what they say together."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from arelu_meta.backbones.checkpoint import provenance_of
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.own_datasets import OwnData
from arelu_meta.data.splits import count_tested
from arelu_meta.errors import InputError
from arelu_meta.finetuning.defaults import settle_rates
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.progress import print_table
from arelu_meta.runs.run_folder import RunFolder, finished_results, open_run, report_results
from arelu_meta.statistics import groups_interval

C = TypeVar("C", FinetuneConfig, MetatrainConfig)
_OF_LEARNER = ("normalization", "algorithm", "order", "ways", "shots", "queries", "inner_steps", "inner_lr", "adapt")
_OF_RUN = "test_accuracy_"  # in results.json, before a run's name


def member_configs(config: C) -> dict[str, C]:
    """List the runs that a config asks for.

    Args:
        config: train.repeats, or data.folds without a data.fold.

    Returns:
        A name (`seed-0`, `fold-1`) and a config each, without the folder; none where the config is of one run.
    """
    if config.data.folds is not None and config.data.fold is None:
        return {
            f"fold-{number}": replace(config, data=replace(config.data, fold=number))
            for number in range(1, config.data.folds + 1)
        }
    if config.train.repeats > 1:
        return {
            f"seed-{seed}": replace(config, run=replace(config.run, seed=seed), train=replace(config.train, repeats=1))
            for seed in range(config.run.seed, config.run.seed + config.train.repeats)
        }
    return {}


def run_members(
    config: C,
    members: dict[str, C],
    run: Callable[[C], dict[str, Any]],
    ranks: Ranks,
    check: Callable[[RunFolder, C], None],
) -> dict[str, Any]:
    """Do the runs one after the other, each in a folder of its own, and sum them up.

    Args:
        config: of them all; run.resume auto goes on where it stopped.
        members: what `member_configs` gave.
        run: does one.
        ranks: the processes that do each together.
        check: refuses a run that has ended under another config, or on other images.

    Returns:
        What results.json of the whole holds: the mean test accuracy and its interval, of the runs and of the
        images that they were tested on (folds and seeds share training images, which is not in it).

    Raises:
        InputError: if a run that is there has another config or other images: their mean would be of nothing; or if
            run.resume names a checkpoint, which can be of one run alone.
    """
    if config.run.resume not in ("never", "auto"):
        raise InputError(
            f"run.resume: {config.run.resume!r} is one run's checkpoint, and {len(members)} runs are asked for "
            f"({', '.join(members)}); give auto, which goes on with each where it stopped"
        )
    with ranks.synchronizing():
        folder = open_run(config.run, _task_of(config), ranks)
        whole = folder.finished and _holds_all(folder.path, members)
        for name, member in members.items():
            one = RunFolder(folder.path / name, finished=True)
            if (one.path / "results.json").exists():  # the others look for themselves
                check(one, member)
    if whole:
        return finished_results(folder, _task_of(config))
    resume = "auto" if config.run.resume == "auto" else "never"
    found: list[dict[str, Any]] = []
    for number, (name, member) in enumerate(members.items(), 1):
        print(f"\n[{number}/{len(members)}] {name}")
        place = replace(member.run, folder=str(folder.path / name), resume=resume)
        found.append(run(replace(member, run=place)))
    results = summed_up(config, folder.path, list(members), found)
    _print(list(members), found, results)
    folder.finish(results)
    return results


def _task_of(config: FinetuneConfig | MetatrainConfig) -> str:
    return "metatrain" if isinstance(config, MetatrainConfig) else "finetune"


def check_member(folder: RunFolder, config: FinetuneConfig, given: OwnData | None = None) -> None:
    """Refuse one of several runs that has ended under another config, or on other images.

    Args:
        folder: of the run.
        config: of the run that is asked for.
        given: data sets that Python code handed over.

    Raises:
        InputError: naming the first field or image that differs.
    """
    folder.check_same(partial(settle_rates, config))
    check_ended(folder, config, given)


def check_ended(folder: RunFolder, config: FinetuneConfig, given: OwnData | None = None) -> None:
    """Refuse to repeat the results of a run on other images than it had.

    Args:
        folder: of a run that has ended.
        config: of the run that is asked for.
        given: data sets that Python code handed over.

    Raises:
        InputError: naming the first image that differs.
    """
    seen = provenance_of(config.model.pretrained)
    seed = config.run.seed
    splits = load_images(config.data, seed, seen) if given is None else given.splits(config.data, seed, seen)
    folder.check_split(splits.describe())


def _holds_all(folder: Path, members: Mapping[str, object]) -> bool:
    """Say whether what a folder holds is the mean of all these runs; where it lacks some, they are added.

    Raises:
        InputError: if it is of other runs, or of a single one.
    """
    found = _names_in(folder)
    if found is None:
        return True  # damaged: who reads it next says so
    if not found or not found <= members.keys():
        of = f"the mean of {len(found)} runs" if found else "one run's results"
        raise InputError(
            f"run.folder: {str(folder)!r} holds {of}, which is not of these {len(members)} ({', '.join(members)}); "
            "give another folder"
        )
    return found == members.keys()


def _names_in(folder: Path) -> set[str] | None:
    """Name the runs whose mean a folder holds; none for a single run's results, and None for damaged ones."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return {name.removeprefix(_OF_RUN) for name in results if name.startswith(_OF_RUN)}
    except (OSError, ValueError, TypeError):
        return None


def check_single(folder: Path) -> None:
    """Refuse to take the mean of several runs for one run's results.

    Args:
        folder: of a run that has ended.

    Raises:
        InputError: if it holds that of several.
    """
    if found := _names_in(folder):
        raise InputError(
            f"run.folder: {str(folder)!r} holds the mean of {len(found)} runs ({', '.join(sorted(found))}), and one is "
            "asked for; give another folder, or the train.repeats or data.folds that they had"
        )


def summed_up(
    config: FinetuneConfig | MetatrainConfig, folder: Path, names: list[str], found: list[dict[str, Any]]
) -> dict[str, Any]:
    """Sum several runs up.

    Args:
        config: of them all.
        folder: of them all.
        names: one a run.
        found: each run's results.

    Returns:
        Flat values for results.json.
    """
    accuracies = [results["test_accuracy"] for results in found]
    tested = sum(results["test_n"] for results in found)
    # A seed of meta-training draws tasks of its own, and classes of its own where the data leaves that to it.
    if isinstance(config, MetatrainConfig):
        queries = sum(results["test_n"] * results["ways"] * results["queries"] for results in found)
        mean, low, high = groups_interval(accuracies, queries)
        classes = [results["test_classes"] for results in found]
        same: dict[str, Any] = {name: found[0][name] for name in _OF_LEARNER}
        same["test_classes"] = None if None in classes else sum(classes)
    else:
        mean, low, high = groups_interval(accuracies, tested, _distinct(folder, names))
        same = {}
    return {
        "task": _task_of(config),
        "seed": config.run.seed,
        "test_accuracy": mean,
        "test_low": low,
        "test_high": high,
        "test_n": tested,
        "test_seen": _sum_seen([results.get("test_seen") for results in found]),
        "runs": len(found),
        **{f"{_OF_RUN}{name}": accuracy for name, accuracy in zip(names, accuracies, strict=True)},
        **same,
        "model": found[0]["model"],
        "activation": found[0]["activation"],
        "init": found[0]["init"],
        "seconds": round(sum(results["seconds"] for results in found), 2),
        "folder": str(folder),
    }


def _distinct(folder: Path, names: Sequence[str]) -> int:
    """Count the images that any of the runs was tested on: seeds share some of them, or all."""
    splits = [json.loads((folder / name / "split.json").read_text(encoding="utf-8")) for name in names]
    return count_tested(splits)


def _sum_seen(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _print(names: list[str], found: list[dict[str, Any]], results: dict[str, Any]) -> None:
    told = {"test accuracy": ("test_accuracy", ".1%"), "validation": ("validation_accuracy", ".1%")}
    told |= {"epoch kept": ("best_epoch", ""), "meta-steps": ("steps", "")}
    columns = [column for column, (name, _) in told.items() if name in found[0]]
    rows = [
        [name, *(format(one[told[column][0]], told[column][1]) for column in columns)]
        for name, one in zip(names, found, strict=True)
    ]
    print_table("", ["run", *columns], rows)
    report_results(results)
