"""What an activation costs in a whole training step, where convolutions take their share of the time."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.bench.op import GATE, PEER, PlainAReLU
from arelu_meta.bench.timing import Contender, Row, cuda_peak_bytes, kept_bytes, make_row, time_in_turns
from arelu_meta.runs.reproducibility import autocast

MODELS = ("resnet18", "tf_efficientnet_lite0")
CLASSES = 10


def step_rows(
    models: Iterable[str] = MODELS,
    image_size: int = 128,
    batch_size: int = 32,
    rounds: int = 15,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> list[Row]:
    """Time one training step (forward, loss, backward, SGD with momentum) of every contender in every model.

    Args:
        models: names for `create_backbone`; each starts at random and with 10 classes.
        image_size: side of the square images, in pixels.
        batch_size: images a step.
        rounds: over which medians are taken.
        device: where to compute.
        precision: float32, bf16 or fp16.

    Returns:
        One row for each model and contender: `relu` (the model as it came, whatever activation that is),
        `arelu-plain`, `arelu`, and `preserve`, whose gates stand open at 0.1. Case ids read `resnet18/128px/batch32`,
        and `resnet18/224px/batch256/bf16` in another precision than float32.
    """
    rows = []
    for name in models:
        case = f"{name}/{image_size}px/batch{batch_size}" + ("" if precision == "float32" else f"/{precision}")
        shape = (batch_size, 3, image_size, image_size)
        rows += _case_rows(case, name, shape, rounds, torch.device(device), precision)
    return rows


def _case_rows(
    case: str, name: str, shape: tuple[int, ...], rounds: int, device: torch.device, precision: str
) -> list[Row]:
    torch.manual_seed(0)
    images, labels = torch.randn(shape, device=device), torch.randint(CLASSES, shape[:1], device=device)
    built = {contender: build(name).to(device).train() for contender, build in CONTENDERS.items()}
    steps = {contender: _step(model, images, labels, precision) for contender, model in built.items()}
    times = time_in_turns({contender: Contender(step) for contender, step in steps.items()}, rounds, device)
    rows = []
    for contender, model in built.items():
        if device.type == "cuda":
            peak = cuda_peak_bytes(partial(steps[contender], None))
        else:
            owned = [*model.parameters(), *model.buffers(), images, labels]
            peak = kept_bytes(partial(_loss, model, images, labels, precision), owned)
        rows.append(make_row(case, contender, PEER, times, peak))
    return rows


def deterministic_rows(
    models: Iterable[str] = MODELS,
    image_size: int = 128,
    batch_size: int = 32,
    rounds: int = 15,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Time a training step with and without run.deterministic, in turns.

    Args:
        models: see `step_rows`, as the others.
        image_size: likewise.
        batch_size: likewise.
        rounds: likewise.
        device: likewise.

    Returns:
        For each model and each of `relu` and `arelu` two rows, the second `…-deterministic`, whose peer is the first.
        What is torch's alone, as cuDNN's search for fast algorithms, is as a run without the flag has it.
    """
    device = torch.device(device)
    rows = []
    for name in models:
        case = f"{name}/{image_size}px/batch{batch_size}"
        for contender in ("relu", "arelu"):
            rows += _deterministic_pair(case, contender, name, (batch_size, 3, image_size, image_size), rounds, device)
    return rows


def _deterministic_pair(
    case: str, contender: str, name: str, shape: tuple[int, ...], rounds: int, device: torch.device
) -> list[Row]:
    # Where it has not been set, cuBLAS has started without, and torch refuses its products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(0)
    images, labels = torch.randn(shape, device=device), torch.randint(CLASSES, shape[:1], device=device)
    model = CONTENDERS[contender](name).to(device).train()
    step = _step(model, images, labels)

    def repeatable(_: object) -> None:
        with _determinism():
            step(None)

    both = {contender: step, f"{contender}-deterministic": repeatable}
    times = time_in_turns({key: Contender(one) for key, one in both.items()}, rounds, device)
    owned = [*model.parameters(), *model.buffers(), images, labels]
    peaks = {
        key: cuda_peak_bytes(partial(one, None))
        if device.type == "cuda"
        else kept_bytes(partial(_loss, model, images, labels), owned)
        for key, one in both.items()
    }
    return [make_row(case, key, contender, times, peaks[key]) for key in both]


@contextlib.contextmanager
def _determinism() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]


def _loss(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> Tensor:
    with autocast(precision, images.device):
        return F.cross_entropy(model(images), labels)


def _step(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> Callable[[object], None]:
    # A rate so small that a random network stays finite over any number of rounds.
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(_: object) -> None:
        optimiser.zero_grad()
        _loss(model, images, labels, precision).backward()
        optimiser.step()

    return step


def _as_it_came(name: str) -> nn.Module:
    return create_backbone(name, num_classes=CLASSES)


def _with_arelu(name: str) -> nn.Module:
    return create_backbone(name, num_classes=CLASSES, activation="arelu", init="paper")


def _with_plain_arelu(name: str) -> nn.Module:
    model = _with_arelu(name)
    for path, module in list(model.named_modules()):
        if isinstance(module, AReLU):
            model.set_submodule(path, PlainAReLU())
    return model


def _with_preserve(name: str) -> nn.Module:
    model = create_backbone(name, num_classes=CLASSES, activation="arelu", init="preserve")
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            nn.init.constant_(module.t, GATE)
    return model


CONTENDERS: dict[str, Callable[[str], nn.Module]] = {
    "relu": _as_it_came,
    "arelu-plain": _with_plain_arelu,
    "arelu": _with_arelu,
    "preserve": _with_preserve,
}
