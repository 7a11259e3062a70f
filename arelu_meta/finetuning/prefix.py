"""A backbone's frozen first stages, run once an image: what they give stands in the images' place from then on."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.data.loading import Batches
from arelu_meta.finetuning.features import FeatureBatches, Tail
from arelu_meta.finetuning.heads import Features
from arelu_meta.runs.compute import autocast
from arelu_meta.runs.progress import progress

_MOST_BYTES = 4 << 30
_PREFIX_METHODS = ("_pos_embed",)  # timm's vision transformers add positions here, between the patches and the blocks
_DROPPING = ("Drop", "AlphaDrop", "FeatureAlphaDrop")  # modules whose names begin so give another output at each call


class Suffix(nn.Module):
    """A model that takes what its frozen first modules give, for images.

    Args:
        model: with all its modules; it is not changed.
        skipped: names of the frozen first modules.
    """

    def __init__(self, model: nn.Module, skipped: Sequence[str]) -> None:
        super().__init__()
        self.model, self.skipped = model, tuple(skipped)

    def forward(self, features: Tensor) -> Tensor:
        """Run the rest of the model.

        Args:
            features: what the last of the skipped modules gives.

        Returns:
            Logits of shape (images, classes).
        """
        with _passing(self.model, self.skipped):
            logits: Tensor = self.model(features)
        return logits


@contextmanager
def _passing(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let modules, and the methods that belong to the first stages, hand their input on."""
    modules = [model.get_submodule(name) for name in names]
    patched = [(module, "forward") for module in modules]
    patched += [(model, name) for name in _PREFIX_METHODS if hasattr(model, name)]
    try:
        for owner, name in patched:
            vars(owner)[name] = _hand_on
        yield
    finally:
        for owner, name in patched:
            vars(owner).pop(name, None)


def _hand_on(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def frozen_prefix(model: nn.Module) -> list[str]:
    """Name the modules before the first one that learns, in the order in which the model has them.

    Args:
        model: in training mode, as `set_learning` and `set_training` left it.

    Returns:
        Names; a sequence that learns in part gives those of its children that come first. Empty where the first module
        learns, or drops something out.
    """
    found: list[str] = []
    _walk(model, "", found)
    return found


def _walk(module: nn.Module, prefix: str, found: list[str]) -> bool:
    """Add the frozen modules that come first; say whether all of them are."""
    for name, child in module.named_children():
        if any(parameter.requires_grad for parameter in child.parameters()):
            if isinstance(child, nn.Sequential | nn.ModuleList):
                _walk(child, f"{prefix}{name}.", found)
            return False
        if any(part.training and type(part).__name__.startswith(_DROPPING) for part in child.modules()):
            return False
        found.append(f"{prefix}{name}")
    return True


@torch.no_grad()
def cached_prefix(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    device: torch.device,
    precision: str = "float32",
) -> tuple[FeatureBatches, FeatureBatches, Tail] | str:
    """Run the frozen first stages over all images, once.

    Args:
        model: in training mode, as `set_learning` and `set_training` left it; left in evaluation mode.
        train: the training images, the same in every epoch.
        validation: the validation images.
        device: where the model is.
        precision: float32, bf16 or fp16.

    Returns:
        The same batches with features for images, and what makes of the model (or of its running average) one that
        takes them; or the reason why features cannot stand for images, as a phrase.
    """
    names = frozen_prefix(model)
    model.eval()
    if not names:
        return "no stage comes before the first that learns"
    images = train.transform(train.images[0][0])[None].to(device)
    values = _given(model, names, images, precision)
    if values is None:
        return "the frozen stages do not come one after the other"
    total = len(train.images) + len(validation.images)
    if (size := values.nbytes * total) > _MOST_BYTES:
        return f"they would take {size / 2**30:.1f} GB"
    parts = [_run(model, names, batches, device, precision) for batches in (train, validation)]
    return parts[0], parts[1], lambda one: Suffix(one, names)


def _given(model: nn.Module, names: list[str], images: Tensor, precision: str) -> Tensor | None:
    """Take what the first stages give; None where the rest makes other logits of it than the whole model does."""
    given = _outputs(model, names, images, precision)
    if given is None:
        return None
    values, logits = given
    with suppress(RuntimeError, ValueError, TypeError, IndexError, AssertionError), autocast(precision, images.device):
        if torch.equal(Suffix(model, names)(values), logits):
            return values
    return None


def _outputs(model: nn.Module, names: list[str], images: Tensor, precision: str) -> tuple[Tensor, Tensor] | None:
    """Return what the last of the first modules (or the method after it) gives, and the logits."""
    seen: list[Any] = []
    hook = model.get_submodule(names[-1]).register_forward_hook(lambda module, inputs, output: seen.append(output))
    method = next((name for name in _PREFIX_METHODS if hasattr(model, name)), None)
    if method is not None:
        original = getattr(model, method)

        def noted(x: Tensor, *rest: Any, **named: Any) -> Any:
            found = original(x, *rest, **named)
            seen.append(found)  # of a block that comes after it, the hook tells
            return found

        vars(model)[method] = noted
    try:
        with autocast(precision, images.device):
            logits = model(images)
    finally:
        hook.remove()
        if method is not None:
            vars(model).pop(method, None)
    return (seen[-1], logits) if seen and isinstance(seen[-1], Tensor) else None


def _run(model: nn.Module, names: list[str], batches: Batches, device: torch.device, precision: str) -> FeatureBatches:
    whole = Batches(batches.images, batches.transform, batches.order.batch_size)
    values, labels = [], []
    with progress("computing features", len(batches.images), "images") as bar:
        for images, targets in whole.epoch(0):
            found = _outputs(model, names, images.to(device), precision)
            assert found is not None  # it was one for the first image
            values.append(found[0].cpu())
            labels.append(targets)
            bar.advance(len(targets))
    return FeatureBatches(Features(torch.cat(values), torch.cat(labels)), batches.order)
