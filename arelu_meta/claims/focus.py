"""The study `focus`: does a network with an activation look at the object, by Grad-CAM?"""

import base64
import csv
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.claims.controls import HELD, ORIGINAL, PROBE
from arelu_meta.claims.small_lr import (
    Trial,
    contenders_of,
    finetune_config,
    is_ours,
    model_config,
    probe_config,
    regime_of,
    spread,
    start_notes,
    with_held,
)
from arelu_meta.claims.study import (
    CLAIMS,
    Plan,
    Row,
    amount,
    read_names,
    read_numbers,
    resplit,
    run_apart,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import Outcome, Picture, Table
from arelu_meta.config import ClaimsConfig, DataConfig
from arelu_meta.data.image_folder import find_candidates
from arelu_meta.data.image_io import fault_of, read_image
from arelu_meta.data.loaders import InputSpec, build_transform
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.provenance import of_its_run, test_images_of
from arelu_meta.data.splits import ImageSet, Provenance
from arelu_meta.errors import InputError, MissingExtraError, counted
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.runs.checkpoints import digest_of
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.statistics import Comparison, compare, judge
from arelu_meta.validation import expanded

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
        conclude=lambda log, folder: conclude(log.of_all(trials), config.margin, folder, ratio),
        headline=_headline(config, trials),
    )


def list_trials(config: ClaimsConfig) -> list[FocusTrial]:
    """List a resolved config's networks, the first seed of everything first.

    Raises:
        InputError: naming the unknown model, activation, start, optimiser or run, or where nothing is compared.
    """
    models, rates = read_names("model.name", config.model.name), read_numbers("optim.lr", config.optim.lr)
    optimizers = read_names("optim.name", config.optim.name)
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
        regime=regime_of(config, bool(config.model.pretrained)),
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
    contenders = [*with_held(contenders, first), PROBE]
    return [replace(first, contender=name, seed=seed) for seed in seeds_of(config) for name in contenders]


def _of_runs(text: str, first: FocusTrial) -> list[FocusTrial]:
    folders = read_names("focus.runs", text)
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


@dataclass(frozen=True)
class Seen:
    """An image to look at.

    Args:
        name: its path below the folder, or its place in a named set.
        image: decoded.
        label: its class's name, or None where nobody says.
    """

    name: str
    image: Image.Image
    label: str | None


def images_of(config: ClaimsConfig, trial: FocusTrial) -> list[Seen]:
    """Read what a network is to be looked at on: evenly spread over the folder, or over the test images.

    Args:
        config: of the study.
        trial: the network.

    Raises:
        InputError: if the folder is missing or holds no image, or a file is none.
    """
    if trial.images is not None:
        root = expanded(trial.images)
        if not root.is_dir():
            raise InputError(f"focus.images: {trial.images!r} is no folder; give one with images")
        files = find_candidates(root)
        if not files:
            raise InputError(f"focus.images: {trial.images!r} holds no image; give a folder with images")
        return [_read(file, root) for file in (files[place] for place in _spread(len(files), trial.count))]
    test = _tested(config.data, trial)
    return [Seen(name, *_named(test, place)) for place, name in enumerate(test.names)]


def _named(images: ImageSet, place: int) -> tuple[Image.Image, str]:
    image, label = images[place]
    return image, images.classes[label]


def _read(file: Path, root: Path) -> Seen:
    try:
        return Seen(str(file.relative_to(root)), read_image(file), None)
    except OSError as error:
        raise InputError(f"focus.images: {str(file)!r} {fault_of(error)}") from error


def _tested(data: DataConfig, trial: FocusTrial) -> ImageSet:
    """Take some of the test images: the study's, or those of the first run."""
    if trial.run:
        spec = read_spec(str(trial.pretrained), "focus.runs")[1]
        seen = Provenance.of_header(spec.provenance)
        test = test_images_of(*of_its_run(spec.config), seen, Path(str(trial.pretrained)))
    else:
        test = load_images(data, trial.seed).test
    return test.subset(_spread(len(test), trial.count))


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
    config_of = probe_config if trial.contender == PROBE else finetune_config
    accuracy = None if trial.run else finetune(config_of(config, trial, folder))["test_accuracy"]
    model, spec = load_model(trial.run or folder)
    shown = _SHOWN if trial.seed == config.run.seed else 0
    model.to(choose_device(config.run.device))
    found = look(model, spec, images_of(config, trial), read_regions(trial.boxes, trial.masks), shown)
    own = trial.run and trial.images is None  # of images of a person's own nothing is known here
    known = Provenance.of_header(spec.provenance).count_seen(_tested(config.data, trial)) if own else 0
    return [{**row, "test_accuracy": accuracy, "images_seen": known} for row in found]


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


_PICTURE_SIDE = 128  # pixels of a picture in the strip
Map = NDArray[np.float32]


def import_grad_cam() -> Any:
    """Import the package grad-cam.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_grad_cam
    except ImportError as error:
        raise MissingExtraError(
            f"grad-cam: cannot be imported ({error}); the study focus needs it: pip install arelu-meta[focus]"
        ) from error
    return pytorch_grad_cam


def last_map(model: nn.Module, inputs: InputSpec) -> nn.Module:
    """Find the module that hands on the last map of features with more than one pixel.

    Args:
        model: a classifier.
        inputs: what it takes.

    Raises:
        InputError: if there is none, as in a transformer or a network of linear layers.
    """
    last: list[nn.Module] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        width = getattr(model, "num_features", None)
        channels_last = output.dim() == 4 and output.shape[-1] == width != output.shape[1]
        if channels_last or (output.dim() == 3 and output.shape[1] > 1):
            last.clear()  # tokens: the maps before them are not what decides
        elif output.dim() == 4 and min(output.shape[2:]) > 1:
            last[:] = [module]

    hooks = [module.register_forward_hook(look) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            size = (1, inputs.channels, inputs.image_size, inputs.image_size)
            model.eval()(torch.zeros(size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise InputError(
            f"model.name: a {type(model).__name__} at {inputs.image_size} px has no map of features of more than one "
            "pixel for Grad-CAM; give a convolutional network, or a larger data.image_size"
        )
    return last[0]


Regions = Callable[[str, Image.Image], Image.Image | None]
"""From an image's name and the image to a grey picture of its size, white where the object is; None if unknown."""


def look(model: nn.Module, spec: ModelSpec, seen: Sequence[Seen], regions: Regions | None, shown: int) -> list[Row]:
    """Measure a classifier's focus on images.

    Args:
        model: on the device to compute on; in evaluation mode afterwards.
        spec: of the model.
        seen: the images.
        regions: where the objects are, or None.
        shown: of how many images to keep pictures.

    Returns:
        One row an image: `image`, `explained` (the class: its own where the model knows it, else the likeliest),
        `right` (whether that is the likeliest; None where the image's own is not known), `entropy` (of the map, as a
        share of an even map's), `inside` (share of the map's energy inside the object) and `area` (of the object in
        what the model sees; both None where it is not known), and for the first ones `picture` and `overlay` (JPEG in
        base64).

    Source: Selvaraju et al. 2017, Grad-CAM, through the package grad-cam.
    """
    package = import_grad_cam()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    transform, device = build_transform(spec.inputs, training=False), next(model.parameters()).device
    plain = replace(spec.inputs, channels=1, mean=(0.0,), std=(1.0,))
    masked = build_transform(plain, training=False)
    model.eval().requires_grad_(True)
    rows = []
    with package.GradCAM(model=model, target_layers=[last_map(model, spec.inputs)]) as cam:
        for number, one in enumerate(seen):
            tensor = transform(one.image)[None].to(device)
            with torch.no_grad():
                likeliest = int(model(tensor).argmax())
            known = one.label in spec.classes
            target = spec.classes.index(str(one.label)) if known else likeliest
            found: Map = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(target)])[0]
            region = None if regions is None else regions(one.name, one.image)
            inside = None if region is None else masked(region)[0].numpy() > 0.5
            row: Row = {
                "image": one.name,
                "explained": spec.classes[target],
                "right": likeliest == target if known else None,
                "entropy": entropy(found),
                **share_inside(found, inside),
            }
            if number < shown:
                row |= _pictures(one.image, spec.inputs, found)
            rows.append(row)
    return rows


def entropy(found: Map) -> float:
    """Give a map's entropy as a share of that of an even map: 0 is a single point, 1 is everywhere.

    Args:
        found: at least 0; an empty map shows no place before another and counts as even.
    """
    total = float(found.sum(dtype=np.float64))
    if total <= 0:
        return 1.0
    shares = found.astype(np.float64).ravel() / total
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(found.size)))


def share_inside(found: Map, inside: NDArray[np.bool_] | None) -> dict[str, float | None]:
    """Give the share of a map's energy inside the object, and the object's area, which an even map would have.

    Args:
        found: at least 0; an empty map counts as even.
        inside: of the same shape; None or empty where the object is not known or not in sight.
    """
    if inside is None or not inside.any():
        return {"inside": None, "area": None}
    area, total = float(inside.mean()), float(found.sum(dtype=np.float64))
    return {"inside": float(found[inside].sum(dtype=np.float64)) / total if total > 0 else area, "area": area}


def _pictures(image: Image.Image, inputs: InputSpec, found: Map) -> dict[str, str]:
    """Draw what the model sees, and the map over it."""
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image

    as_seen = build_transform(replace(inputs, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3), training=False)
    pixels = as_seen(image).permute(1, 2, 0).clamp(0, 1).numpy()
    over = show_cam_on_image(pixels, found, use_rgb=True, colormap=cv2.COLORMAP_INFERNO)
    return {"picture": _encoded((pixels * 255).astype(np.uint8)), "overlay": _encoded(over)}


def _encoded(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_PICTURE_SIDE, _PICTURE_SIDE)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


_COLUMNS = ("image", "x0", "y0", "x1", "y1")


def read_regions(boxes: str | None, masks: str | None) -> Regions | None:
    """Read where the objects are.

    Args:
        boxes: a CSV with the columns image, x0, y0, x1, y1, in pixels.
        masks: a folder of pictures.

    Returns:
        None where neither is given.

    Raises:
        InputError: if both are given, or a file is missing or is not what it should be.
    """
    if boxes is not None and masks is not None:
        raise InputError(f"focus.masks: {masks!r} does not go with focus.boxes; give one of them")
    if boxes is not None:
        return _of_boxes(expanded(boxes))
    return None if masks is None else _of_masks(expanded(masks))


def _of_boxes(path: Path) -> Regions:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"focus.boxes: {str(path)!r} has no column {missing[0]!r}; give the columns {','.join(_COLUMNS)}"
                )
            by_image: dict[str, list[tuple[float, ...]]] = {}
            for number, row in enumerate(reader, 2):
                by_image.setdefault(_key(str(row["image"])), []).append(_box(path, number, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"focus.boxes: {str(path)!r} cannot be read as a CSV ({error}); give another") from error

    def region(name: str, image: Image.Image) -> Image.Image | None:
        found = by_image.get(_key(name))
        if found is None:
            return None
        drawn = Image.new("L", image.size)
        for x0, y0, x1, y1 in found:
            if x0 >= image.width or y0 >= image.height:
                raise InputError(
                    f"focus.boxes: {x0:g},{y0:g},{x1:g},{y1:g} in {str(path)!r} lies outside {name!r} of "
                    f"{image.width} x {image.height} pixels; give boxes in pixels of the images as they lie there"
                )
            # Pillow counts the last pixel in; a box ends before it.
            corners = (round(x0), round(y0), max(round(x0), round(x1) - 1), max(round(y0), round(y1) - 1))
            ImageDraw.Draw(drawn).rectangle(corners, fill=255)
        return drawn

    return region


def _box(path: Path, line: int, row: dict[str, str]) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in _COLUMNS[1:])
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = math.nan
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        shown = ",".join(str(row[name]) for name in _COLUMNS[1:])
        raise InputError(
            f"focus.boxes: {shown!r} in line {line} of {str(path)!r} is no box; give 0 <= x0 < x1 and 0 <= y0 < y1"
        )
    return x0, y0, x1, y1


def _of_masks(folder: Path) -> Regions:
    if not folder.is_dir():
        raise InputError(f"focus.masks: {str(folder)!r} is no folder; give one with a picture an image")
    files = {_key(str(path.relative_to(folder).with_suffix(""))): path for path in find_candidates(folder)}

    def region(name: str, image: Image.Image) -> Image.Image | None:
        file = files.get(_key(str(PurePath(name).with_suffix(""))))
        if file is None:
            return None
        try:
            mask = read_image(file, 1)
        except OSError as error:
            raise InputError(f"focus.masks: {str(file)!r} {fault_of(error)}") from error
        if mask.size != image.size:
            raise InputError(
                f"focus.masks: {str(file)!r} has {mask.size[0]} x {mask.size[1]} pixels and its image "
                f"{image.size[0]} x {image.size[1]}; give masks of the images' size"
            )
        values = np.asarray(mask)
        return Image.fromarray(((values * 2.0 > values.max()) * 255).astype(np.uint8))

    return region


def _key(name: str) -> str:
    return PurePath(name.replace("\\", "/")).as_posix()


_STRIP = "focus.png"
_PANEL = 1.5  # inches
INSIDE, SPREAD = "inside", "entropy"


class Runs:
    """Networks by contender and seed.

    Args:
        rows: one an image, those of a network in the same order for all contenders of a seed.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.by: dict[str, dict[int, list[Row]]] = {}
        for row in rows:
            self.by.setdefault(row["contender"], {}).setdefault(row["seed"], []).append(row)
        self.contenders = list(self.by)
        self.given = bool(rows[0]["run"])  # by a person, so there is one of each, and the images are the pairs
        self.boxed = any(row["inside"] is not None and not row.get("diverged") for row in rows)

    def focus(self, contender: str) -> dict[int, float]:
        """Give the number that is judged, larger for a better focus, in per cent: by image or else by seed."""
        name, sign = (INSIDE, 100.0) if self.boxed else (SPREAD, -100.0)
        runs = self.by[contender]
        if self.given:
            rows = next(iter(runs.values()))
            return {place: sign * row[name] for place, row in enumerate(rows) if row[name] is not None}
        return {seed: sign * value for seed, rows in runs.items() if (value := mean_of(rows, name)) is not None}

    def means(self, contender: str, name: str) -> dict[int, float]:
        """Give each seed's mean over images in per cent."""
        found = {seed: mean_of(rows, name) for seed, rows in self.by[contender].items()}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Average a column over the images that have it.

    Args:
        rows: of one network.
        name: of the column.
    """
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def conclude(rows: Sequence[Row], margin: float, folder: Path, resplit: float = 0.0) -> Outcome:
    """Judge finished networks, and draw their strip into the folder.

    Args:
        rows: as `focus_study.work` returns them, with the trial's columns.
        margin: differences within so many points do not count.
        folder: of the study.
        resplit: as in `compare`.
    """
    runs = Runs(rows)
    reference = next((name for name in (HELD, ORIGINAL) if name in runs.contenders), runs.contenders[0])
    comparisons = list(_comparisons(runs, reference, margin, resplit))
    strip = _strip(runs, folder)
    return Outcome(judge(comparisons), [_table(runs)], images=strip, notes=_notes(runs))


def _comparisons(runs: Runs, reference: str, margin: float, resplit: float) -> Iterator[Comparison]:
    what = "energy inside the object" if runs.boxed else "entropy (less is ahead)"
    others = [name for name in runs.contenders if name not in (reference, PROBE)]
    claimed = (others if runs.given else [name for name in others if is_ours(name)] or others)[:CLAIMS]
    for name in runs.contenders:
        ours, theirs = runs.focus(name), runs.focus(reference)
        if name != reference and len(set(ours) & set(theirs)) > 1:
            found = compare(
                f"Grad-CAM of {name} against {reference}, {what}",
                ours,
                theirs,
                margin,
                resplit=resplit,
                primary=name in claimed,
            )
            yield replace(found, runs="images") if runs.given else found


def _table(runs: Runs) -> Table:
    rows: list[list[Any]] = []
    for name in runs.contenders:
        images = max(len(found) for found in runs.by[name].values())
        cells: list[Any] = [name, *(spread(runs.means(name, column)) for column in (INSIDE, "area", SPREAD, "right"))]
        rows.append([*cells, spread(runs.means(name, "test_accuracy")), images])
    columns = ["network", "energy inside", "area of the object", "entropy", "right on these images", "test accuracy"]
    return Table(
        "How the networks' Grad-CAM is focused, in per cent",
        [*columns, "images"],
        rows,
        "Energy inside: the share of the map inside the object, which for a map that is even everywhere is the "
        "object's area. Entropy: of the map, as a share of an even map's; lower is more focused, wherever that is. "
        "Means over images, ± standard deviation over seeds.",
    )


def _strip(runs: Runs, folder: Path) -> list[Picture]:
    """Draw the first seed's images, a row each: as the networks see it, then each network's map."""
    first = {name: [row for row in next(iter(runs.by[name].values())) if "overlay" in row] for name in runs.contenders}
    drawn = {name: rows for name, rows in first.items() if rows}
    if not drawn:
        return []
    from matplotlib.figure import Figure

    images, names = next(iter(drawn.values())), list(drawn)
    figure = Figure(figsize=(_PANEL * (len(names) + 1), _PANEL * len(images) + 0.4), layout="constrained")
    axes = figure.subplots(len(images), len(names) + 1, squeeze=False)
    for place, image in enumerate(images):
        pictures = [image["picture"], *(drawn[name][place]["overlay"] for name in names)]
        for column, (title, picture) in enumerate(zip(["image", *names], pictures, strict=True)):
            axis = axes[place][column]
            axis.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))))
            axis.set_axis_off()
            if place == 0:
                axis.set_title(title, fontsize=8, parse_math=False)
    figure.savefig(folder / _STRIP, dpi=110)
    told = "; ".join(f"{row['image']}, explained as {row['explained']}" for row in images)
    alt = (
        f"A row an image ({told}); a column each for the image and the Grad-CAM of {', '.join(names)}, bright is high."
    )
    return [Picture("Grad-CAM side by side", alt, _STRIP)]


def _notes(runs: Runs) -> list[str]:
    pairs = (
        "The pairs are images of one network each: that another training would do alike is not said."
        if runs.given
        else "The pairs are seeds, each the mean over its images; a run's own class is explained where it is known."
    )
    notes = [
        pairs,
        *start_notes(runs.contenders),
        "A map shows what moves the class's score; that it lies on the object does not prove a right reason.",
        "An image without colours over it has an empty map, since nothing raises the score; it counts as even.",
    ]
    if not runs.boxed:
        notes.append(
            "Without boxes or masks nobody knows where the object is: low entropy is a small spot, right or not."
        )
    for name, found in runs.by.items():
        rows = next(iter(found.values()))
        if known := rows[0].get("images_seen"):
            notes.append(f"{known} of {len(rows)} images were trained or validated on by {name}.")
    lost = sum(bool(rows[0].get("diverged")) for found in runs.by.values() for rows in found.values())
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as the worst."] if lost else notes
