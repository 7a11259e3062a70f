"""A model that learns new classes from a few images of each: `Learner.load(run).adapt(support).predict(images)`."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import timm
import torch
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import MOST_PIXELS, ModelConfig
from arelu_meta.data.image_folder import read_folder
from arelu_meta.data.image_io import Reading, find_broken
from arelu_meta.data.prediction_inputs import (
    GivenImages,
    OneImage,
    Source,
    centre_crop,
    gather,
    in_colour,
    tell_skipped,
    whole_image,
)
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.meta.algorithms import features
from arelu_meta.meta.baselines import class_means, fit_logistic, nearest_centroid, prototype_logits
from arelu_meta.meta.engine import VmappedModel, Weights
from arelu_meta.meta.inner_loop import head_inputs, head_that_adapts_alone, saved_loop
from arelu_meta.meta.normalization import (
    Statistics,
    given_statistics,
    noting_statistics,
    uses_batch_statistics,
    uses_support_statistics,
)
from arelu_meta.runs.progress import progress
from arelu_meta.runs.reproducibility import choose_device
from arelu_meta.validation import checked

__all__ = ["AdaptedLearner", "Guess", "Learner", "Method", "Support", "guesses", "scored_batches"]

Method = Literal["maml", "protonet", "centroid", "logistic"]
Support = str | Path | Mapping[str, GivenImages] | tuple[Tensor, Tensor]
_MOST_REFERENCE = 128  # query images that a transductive model takes its statistics of, beside the support set
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Guess:
    """What a model takes an image for.

    Args:
        name: of the class.
        probability: how sure it is, in (0, 1].
        place: of the image among those given, from 0.
        ranked: the likeliest classes with their probabilities, as many as were asked for, the likeliest first.
    """

    name: str
    probability: float
    place: int
    ranked: tuple[tuple[str, float], ...] = ()


class Learner:
    """A model before it has seen the classes that it is to tell apart; make one with `Learner.load`.

    Example:
        >>> from arelu_meta import Learner
        >>> flowers = Learner.load("tf_efficientnet_lite0").adapt("support")  # doctest: +SKIP
        >>> [(guess.name, guess.probability) for guess in flowers.predict(["photo.jpg"])]  # doctest: +SKIP

    Args:
        model: on the device, in eval mode; never changed.
        spec: says what it takes and how it was trained.
        method: maml (inner gradient steps), protonet, centroid, or logistic.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, method: Method) -> None:
        self.model, self.spec, self.method = model.eval(), spec, method
        self.device = next(model.parameters()).device

    @classmethod
    @checked
    def load(
        cls, name: str | Path, device: str = "auto", method: Method | None = None, model: nn.Module | None = None
    ) -> "Learner":
        """Load a model to learn with.

        Args:
            name: a run folder or a model.safetensors of `metatrain` or `finetune`; or a timm model, whose pretrained
                weights are used as they come.
            device: auto, cpu, cuda, cuda:1 …
            method: centroid (compare features with each class's mean) or logistic (regression on them), for any model;
                default: the way in which it was meta-trained, centroid for one that was not.
            model: the network, of a run of one's own; its weights are replaced by the run's.

        Raises:
            InputError: if there is no such run or model, or it cannot learn so.
        """
        if Path(name).exists():
            model, spec = load_model(name, model=model)
        elif not timm.is_model(str(name)):
            nearest = nearest_names(str(name), timm.list_models())
            raise InputError(f"checkpoint: {str(name)!r} is no run folder, model.safetensors or timm model; {nearest}")
        elif model is not None:
            raise InputError(f"model: it goes with a run of one's own network, and {str(name)!r} is none; leave it out")
        else:
            model, spec = build_backbone(ModelConfig(str(name), pretrained=True), ("any", "other"), 3, None, "finetune")
        trained = spec.meta.get("algorithm", "maml") if spec.task == "metatrain" else "centroid"
        own: Method = next((way for way in get_args(Method) if way == trained), "maml")
        allowed: set[Method] = {own, "centroid", "logistic"}
        if method is not None and method not in allowed:
            raise InputError(
                f"method: {method!r} is not what {str(name)!r} was trained for; {nearest_names(method, allowed)}"
            )
        chosen = method or own
        if chosen != "maml" and not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise InputError(f"method: {chosen!r} needs a model with features, which {spec.name!r} has not; give maml")
        return cls(model.to(choose_device(device)), spec, chosen)

    @property
    def normalization(self) -> str:
        """What batch normalisation does, by name; a model that was not meta-trained keeps its running averages."""
        return str(self.spec.meta.get("normalization", "frozen"))

    @checked
    def adapt(self, support: Support, skip_broken: bool = False, max_pixels: int = MOST_PIXELS) -> "AdaptedLearner":
        """Learn classes from a few images of each; the learner itself does not change.

        Each class weighs the same, however many images it has. Where batch normalisation takes its statistics of the
        support set, these are of all its images.

        Args:
            support: a folder with a sub-folder a class; or the images of each class by its name (paths, Pillow images,
                tensors); or a tensor of images (images, channels, height, width) with labels (images,), int64 from 0,
                whose classes are then called "0", "1" …  Files and Pillow images may have any size; tensors must have
                the model's, uint8 or floats from 0 to 1.
            skip_broken: leave out files that are not images.
            max_pixels: of the largest image that is read, as data.max_pixels.

        Returns:
            What tells these classes apart.

        Raises:
            InputError: if there are fewer than 2 classes, one without an image, more than the model has outputs for,
                or images that do not fit.
        """
        classes, source, labels = self._read(support, Reading(skip_broken, self.spec.inputs.range, max_pixels))
        if self.method == "maml" and len(classes) > self.spec.num_classes:
            raise InputError(
                f"support: it has {len(classes)} classes, the model was trained for {self.spec.num_classes} ways; "
                "give at most that many"
            )
        images = torch.stack([image for place in range(len(source)) if (image := source.read(place)) is not None])
        return AdaptedLearner(self, classes, images.to(self.device), labels.to(self.device))

    def source(
        self,
        images: GivenImages,
        where: str = "images",
        skip_broken: bool = False,
        max_pixels: int = MOST_PIXELS,
    ) -> Source:
        """Make images ready to be read as this model takes them.

        Args:
            images: files, folders, Pillow images or tensors.
            where: the flag or argument that named them, for errors.
            skip_broken: leave out files that are not images.
            max_pixels: of the largest image that is read, as data.max_pixels.
        """
        meta_trained = self.spec.task == "metatrain"
        inputs = self.spec.inputs
        prepare = whole_image(inputs, self.spec.meta["inverted"]) if meta_trained else centre_crop(inputs)
        return Source(gather(images, where), inputs, prepare, where, skip_broken, max_pixels)

    def _read(self, support: Support, reading: Reading) -> tuple[list[str], Source, Tensor]:
        if isinstance(support, str | Path):
            folder = Path(support)
            if not folder.is_dir():
                raise InputError(f"support: {str(folder)!r} does not exist; give a folder with one sub-folder a class")
            found = read_folder(folder, folder, reading, "support")
            tell_skipped(len(found.skipped))
            paths = [folder / name for name in found.names]
            self._tell_colour(paths, reading.max_pixels)
            return (
                list(found.classes),
                self.source(paths, "support", max_pixels=reading.max_pixels),
                torch.from_numpy(found.labels),
            )
        if isinstance(support, tuple) and [isinstance(part, Tensor) for part in support] == [True, True]:
            images, labels = support
            _check_labels(images, labels)
            names = [str(number) for number in range(int(labels.max()) + 1)]
            return names, self.source(images, "support"), labels.long().cpu()
        if not isinstance(support, Mapping):
            raise InputError(
                f"support: a {type(support).__name__}; give a folder, the images of each class by its name, or a "
                "tensor with labels"
            )
        by_class = {str(name): _whole_ones(images, str(name), reading) for name, images in support.items()}
        if len(by_class) < 2:
            raise InputError(f"support: {len(by_class)} classes; give the images of at least 2")
        counts = torch.tensor([len(images) for images in by_class.values()])
        items = [image for images in by_class.values() for image in images]
        source = self.source(items, "support", max_pixels=reading.max_pixels)
        return list(by_class), source, torch.arange(len(by_class)).repeat_interleave(counts)

    def _tell_colour(self, paths: list[Path], max_pixels: int) -> None:
        """Say that a grey model does not see colours, which may be all that tells classes apart."""
        if self.spec.inputs.channels == 1 and (count := sum(in_colour(path, max_pixels) for path in paths)):
            print(
                f"support: {count} images are in colour; the model takes grey ones and sees none of it", file=sys.stderr
            )


def _whole_ones(images: GivenImages, name: str, reading: Reading) -> tuple[OneImage, ...]:
    """List a class's images, without files that are not images where these are to be left out."""
    given = gather(images, f"support: class {name!r}")
    files = [image for image in given if isinstance(image, Path)]
    broken = set(find_broken(files, reading.max_pixels)) if reading.skip_broken else set()
    found = tuple(image for image in given if not isinstance(image, Path) or image not in broken)
    tell_skipped(len(broken))
    if not found:
        raise InputError(f"support: class {name!r} has no image; every class needs at least one")
    return found


def _check_labels(images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or labels.dim() != 1 or len(images) != len(labels):
        raise InputError(
            f"support: images of shape {tuple(images.shape)} with labels of shape {tuple(labels.shape)}; give "
            "(images, channels, height, width) and (images,)"
        )
    present = labels.unique().tolist()
    if len(present) < 2 or present != list(range(len(present))):
        raise InputError(f"support: labels {present}; give at least two classes, numbered 0, 1, … without a gap")


class AdaptedLearner:
    """A learner that has seen a support set; made by `Learner.adapt`.

    Args:
        learner: stays as it is.
        classes: their names.
        images: the support set, prepared, shape (images, channels, height, width).
        labels: shape (images,), int64: indices into `classes`.
    """

    def __init__(self, learner: Learner, classes: list[str], images: Tensor, labels: Tensor) -> None:
        self.learner, self.classes, self._images, self._labels = learner, classes, images, labels
        self._score = self._learn()

    @property
    def support_size(self) -> int:
        """How many images it has learned from."""
        return len(self._images)

    @checked
    def predict(self, images: GivenImages, batch_size: int = 32, skip_broken: bool = False) -> list[Guess]:
        """Say which class each image is of.

        Args:
            images: a file, a folder, a Pillow image or a tensor, or several. No more than a batch is held in memory.
            batch_size: images at a time; it does not change what is predicted.
            skip_broken: leave out files that are not images.

        Returns:
            One guess an image that could be read, in the order given. Under `transductive` normalisation a guess
            depends on the other images (on up to 128 of them, evenly spread, and on the support set).

        Raises:
            InputError: if a path does not exist, a file is no image, or a tensor does not fit the model.
            RunError: if a prediction is NaN or infinite.
        """
        return list(self.stream(self.learner.source(images, skip_broken=skip_broken), batch_size))

    @checked
    def probabilities(self, images: GivenImages, batch_size: int = 32) -> Tensor:
        """Say how likely each image is of each class.

        Args:
            images: as for `predict`.
            batch_size: images at a time.

        Returns:
            Shape (images, classes), float32, on the CPU; rows add up to 1.
        """
        source = self.learner.source(images)
        return torch.cat([found for _, found in self._batches(source, batch_size)])

    def stream(self, source: Source, batch_size: int = 32, top_k: int = 1) -> Iterator[Guess]:
        """Guess as images are read, batch by batch.

        Args:
            source: what `Learner.source` returned.
            batch_size: images at a time.
            top_k: how many of the likeliest classes to rank.
        """
        return guesses(self._batches(source, batch_size), self.classes, top_k)

    def _batches(self, source: Source, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is not allowed; give at least 1")
        statistics = self._statistics(source)

        def score(images: Tensor) -> Tensor:
            with contextlib.nullcontext() if statistics is None else given_statistics(statistics):
                return self._score(images)

        return scored_batches(source, score, self.learner.device, batch_size)

    @torch.no_grad()
    def _statistics(self, source: Source) -> Statistics | None:
        """Fix what images are normalised by, where the model has no averages of its own; batches don't matter then."""
        if not uses_batch_statistics(self.learner.model):
            return None
        reference = self._images
        if not uses_support_statistics(self.learner.model):
            sample = source.sample(_MOST_REFERENCE)
            if sample is not None:
                reference = torch.cat([sample.to(reference), reference])
        noted: Statistics = []
        with noting_statistics(noted):
            self._score(reference)
        return noted

    def _learn(self) -> Score:
        """Adapt; return what maps prepared images to probabilities, normalised by whatever is in force then."""
        learner = self.learner
        if learner.method == "maml":
            return self._gradient_steps()
        with torch.no_grad():
            known = features(learner.model, self._images)
        labels = self._labels
        if learner.method == "protonet":
            means = class_means(known, labels)
            return lambda images: prototype_logits(means, features(learner.model, images)).softmax(1)
        if learner.method == "centroid":
            return lambda images: nearest_centroid(known, labels, features(learner.model, images))
        classify = fit_logistic(known, labels)
        return lambda images: classify(features(learner.model, images))

    def _gradient_steps(self) -> Score:
        model, meta = self.learner.model, self.learner.spec.meta
        shown = len(self.classes)  # outputs that no support image has stand for nothing
        vmapped = VmappedModel(model, saved_loop(model, meta["inner_lr"], meta["inner_steps"]), 1)
        weights = self._stepped(vmapped, meta["inner_steps"])

        def score(images: Tensor) -> Tensor:
            found = vmapped.logits(weights, images[None])[0].softmax(1)[:, :shown]
            return found / found.sum(1, keepdim=True)

        return score

    @torch.no_grad()
    def _stepped(self, vmapped: VmappedModel, steps: int) -> Weights:
        """Take inner steps; where the head alone takes them, on features that are computed once."""
        images, model = self._images, vmapped.original
        if steps and (head := head_that_adapts_alone(model, vmapped.loop, images[:2])) is not None:
            known = head_inputs(model, head.path, images)
            assert known is not None
            vmapped, images = VmappedModel(head, vmapped.loop, 1), known
        weights = vmapped.start()
        for step in range(steps):
            weights = vmapped.step(weights, images[None], self._labels[None], step, second_order=False)
        return weights


def scored_batches(
    source: Source, score: Score, device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Classify images as they are read; no more than a batch is in memory.

    Args:
        source: the images.
        score: maps prepared images on the device to probabilities, shape (images, classes).
        device: where to compute.
        batch_size: images at a time.

    Yields:
        The images' places, and their probabilities, float32, on the CPU.

    Raises:
        RunError: naming an image whose probabilities are NaN or infinite.
    """
    with progress("predicting", len(source), "images") as bar:
        for places, images in source.batches(batch_size, bar.advance):
            with torch.no_grad():
                found = score(images.to(device)).float().cpu()
            finite = found.isfinite().all(1)
            if not finite.all():
                place = places[int(finite.int().argmin())]
                item = source.items[place]
                shown = repr(str(item)) if isinstance(item, str | Path) else f"image {place}"
                raise RunError(f"the prediction for {shown} is NaN or infinite: check the model's weights")
            yield places, found


def guesses(batches: Iterator[tuple[list[int], Tensor]], classes: Sequence[str], top_k: int = 1) -> Iterator[Guess]:
    """Take each image for its most likely class.

    Args:
        batches: what `scored_batches` yields.
        classes: their names.
        top_k: how many of the likeliest classes to rank, at most as many as there are.
    """
    for places, probabilities in batches:
        best = probabilities.topk(top_k, dim=1)
        for place, labels, values in zip(places, best.indices.tolist(), best.values.tolist(), strict=True):
            ranked = tuple((classes[label], value) for label, value in zip(labels, values, strict=True))
            yield Guess(*ranked[0], place, ranked)
