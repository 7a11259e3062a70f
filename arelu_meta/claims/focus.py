"""The study `focus`: does a network with an activation look at the object, by Grad-CAM?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.backbones.saving import load_model, read_spec
from arelu_meta.claims.amounts import amount, resplit
from arelu_meta.claims.focus_maps import Seen, import_grad_cam, last_map, look
from arelu_meta.claims.focus_regions import read_regions
from arelu_meta.claims.focus_tables import conclude
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import side_by_side
from arelu_meta.claims.scratch import run_apart
from arelu_meta.claims.small_lr import contenders_of
from arelu_meta.claims.small_lr_runs import Trial, finetune_config, model_config
from arelu_meta.config import ClaimsConfig, DataConfig
from arelu_meta.data.images import ImageSet, find_candidates, load_images
from arelu_meta.data.reading import fault_of, read_image
from arelu_meta.errors import InputError, counted
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.runs.checkpoints import digest_of
from arelu_meta.runs.origin import of_its_run
from arelu_meta.runs.reproducibility import choose_device

_SHOWN = 5  # images in the strip
_WORST: Row = {"image": "", "explained": "", "right": False, "entropy": 1.0, "inside": 0.0, "area": None}


@dataclass(frozen=True)
class FocusTrial(Trial):
    """One network that is looked at: all that decides its figures.

    Args:
        run: the folder of a run, or nothing where the study fine-tunes.
        digest: of that run's weights.
        images: folder of images to look at, or None for test images.
        boxes: as focus.boxes.
        masks: as focus.masks.
        count: images.
    """

    run: str = ""
    digest: str = ""
    images: str | None = None
    boxes: str | None = None
    masks: str | None = None
    count: int = 1


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, a file is missing or no image has an object's place.
        MissingExtraError: without the package grad-cam.
    """
    import_grad_cam()
    trials = list_trials(config)
    _check_images(config, trials)
    own_images = config.focus.runs is None and config.focus.images is None
    ratio = resplit(config.data, config.run.seed) if own_images else 0.0
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda ledger, folder: conclude(ledger.of_all(trials), config.margin, folder, ratio),
        headline=_headline(config, trials),
    )


def list_trials(config: ClaimsConfig) -> list[FocusTrial]:
    """List a resolved config's networks, the first seed of everything first.

    Raises:
        InputError: naming the unknown model, activation, start, optimiser or run, or where nothing is compared.
    """
    models, rates = names("model.name", config.model.name), numbers("optim.lr", config.optim.lr)
    optimizers = names("optim.name", config.optim.name)
    if len(models) > 1 or len(rates) > 1 or len(optimizers) > 1:
        raise InputError("model.name, optim.name, optim.lr: focus takes one of each a study; give one of each")
    first = FocusTrial(
        pipeline="finetune",
        data=config.data.root or config.data.name or "digits",
        image_size=config.data.image_size,
        batch_size=config.data.batch_size,
        per_class=config.data.per_class,
        model=models[0],
        pretrained=config.model.pretrained or False,
        contender="",
        optimizer=optimizers[0],
        lr=rates[0],
        seed=config.run.seed,
        length=config.train.epochs or 1,
        images=config.focus.images,
        boxes=config.focus.boxes,
        masks=config.focus.masks,
        count=config.focus.count or 1,
    )
    if config.focus.runs is not None:
        return _of_runs(config.focus.runs, first)
    contenders = contenders_of(config, bool(config.model.pretrained))
    if len(contenders) < 2:
        raise InputError(f"model.activation: {config.model.activation!r} leaves nothing to compare; give two")
    check_optimizer_name(optimizers[0])
    own = model_config(models[0], first.pretrained, "original")
    model, spec = build_backbone(own, ("a", "b"), 3, config.data.image_size, "finetune")
    last_map(model, spec.inputs)
    return [replace(first, contender=name, seed=seed) for seed in seeds(config) for name in contenders]


def _of_runs(text: str, first: FocusTrial) -> list[FocusTrial]:
    folders = names("focus.runs", text)
    if len(folders) < 2:
        raise InputError(f"focus.runs: {text!r} leaves nothing to compare; give two folders, as a,b")
    trials = []
    for folder in folders:
        file, spec = read_spec(folder, "focus.runs")
        if spec.task != "finetune":
            raise InputError(f"focus.runs: {folder!r} is no fine-tuning run; give a folder of arelu-meta finetune")
        short = sum(Path(other).name == Path(folder).name for other in folders) == 1
        name = Path(folder).name if short else folder
        trials.append(replace(first, contender=name, run=folder, digest=digest_of(file), pretrained=folders[0]))
    return trials


def _headline(config: ClaimsConfig, trials: Sequence[FocusTrial]) -> str:
    contenders = ", ".join(dict.fromkeys(trial.contender for trial in trials))
    where = config.focus.images or "test images"
    if trials[0].run:
        return f"Grad-CAM on {where}, {trials[0].count} at the most: {contenders}"
    return (
        f"Grad-CAM on {where}, {trials[0].count} at the most, of {trials[0].model} fine-tuned on {trials[0].data}: "
        f"{contenders}, {amount(config)}, {counted(trials[0].length, 'epoch')}, {config.train.repeats} seeds"
    )


def images_of(config: ClaimsConfig, trial: FocusTrial) -> list[Seen]:
    """Read what a network is to be looked at on: evenly spread over the folder, or over the test images.

    Args:
        config: of the study.
        trial: the network.

    Raises:
        InputError: if the folder is missing or holds no image, or a file is none.
    """
    if trial.images is not None:
        root = Path(trial.images).expanduser()
        if not root.is_dir():
            raise InputError(f"focus.images: {trial.images!r} is no folder; give one with images")
        files = find_candidates(root)
        if not files:
            raise InputError(f"focus.images: {trial.images!r} holds no image; give a folder with images")
        return [_read(file, root) for file in (files[place] for place in _spread(len(files), trial.count))]
    data, seed = _tested(config.data, trial)
    test: ImageSet = load_images(data, seed).test
    places = _spread(len(test), trial.count)
    return [Seen(test.names[place], test[place][0], test.classes[test[place][1]]) for place in places]


def _read(file: Path, root: Path) -> Seen:
    try:
        return Seen(str(file.relative_to(root)), read_image(file), None)
    except OSError as error:
        raise InputError(f"focus.images: {str(file)!r} {fault_of(error)}") from error


def _tested(data: DataConfig, trial: FocusTrial) -> tuple[DataConfig, int]:
    """Say whose test images: the study's, or those of the first run."""
    if not trial.run:
        return data, trial.seed
    return of_its_run(read_spec(str(trial.pretrained), "focus.runs")[1])


def _spread(length: int, count: int) -> list[int]:
    places: list[int] = np.linspace(0, length - 1, min(length, count)).round().astype(int).tolist()
    return places


def _check_images(config: ClaimsConfig, trials: Sequence[FocusTrial]) -> None:
    """Refuse, before the first run, images that cannot be read and places of objects that fit none of them."""
    regions, seen = read_regions(trials[0].boxes, trials[0].masks), images_of(config, trials[0])
    if regions is None:
        return
    trial, others = trials[0], {one.seed: one for one in reversed(trials) if one.seed != trials[0].seed}
    known = [regions(one.name, one.image) is not None for one in seen]
    for other in others.values() if trial.images is None else ():  # a seed has test images of its own
        for one in images_of(config, other):
            regions(one.name, one.image)
    if not any(known):
        flag, value = ("boxes", trial.boxes) if trial.boxes is not None else ("masks", trial.masks)
        raise InputError(
            f"focus.{flag}: {value!r} has none of the images, such as {seen[0].name!r}; name them as they lie below "
            "the folder of images"
        )


def work(config: ClaimsConfig, trials: Sequence[FocusTrial]) -> list[list[Row]]:
    """Fine-tune networks where they are not given, and look at them.

    Args:
        config: of the study; its data and device.
        trials: the networks.

    Returns:
        For each the rows of `focus_maps.look`, with `test_accuracy` (None for a given run); `diverged` where it did.
    """
    return [run_apart(partial(_looked, config, trial), _WORST | {"test_accuracy": 0.0}) for trial in trials]


def _looked(config: ClaimsConfig, trial: FocusTrial, folder: Path) -> list[Row]:
    accuracy = None if trial.run else finetune(finetune_config(config, trial, folder))["test_accuracy"]
    model, spec = load_model(trial.run or folder)
    shown = _SHOWN if trial.seed == config.run.seed else 0
    model.to(choose_device(config.run.device))
    found = look(model, spec, images_of(config, trial), read_regions(trial.boxes, trial.masks), shown)
    return [{**row, "test_accuracy": accuracy} for row in found]


def estimate(config: ClaimsConfig, trials: Sequence[FocusTrial]) -> float:
    """Do the first network in short, and say how long all take one after the other.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    short = replace(trials[-1], length=1)
    started = perf_counter()
    work(config, [short])
    return (perf_counter() - started) * sum(trial.length if not trial.run else 1 for trial in trials)
