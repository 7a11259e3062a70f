"""What an activation costs in a whole training step, where convolutions take their share of the time."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.bench.op import GATE, PEER, PlainAReLU
from arelu_meta.bench.timing import Cases, Contender, Row, cuda_peak_bytes, kept_bytes, make_row, time_in_turns
from arelu_meta.runs.reproducibility import autocast

MODELS = ("resnet18", "tf_efficientnet_lite0")
CLASSES = 10


def step_cases(device: torch.device, rounds: int | None = None, deterministic: bool = False) -> Cases:
    """List the cases, with ids as `resnet18/128px/batch32`, and `resnet18/224px/batch256/bf16` of a GPU.

    Args:
        device: where to compute; a GPU has cases of the size that it is used at, too.
        rounds: over which medians are taken; default: 15.
        deterministic: measure run.deterministic instead, without the GPU's own cases.
    """
    sizes = [(128, 32, "float32")]
    if device.type == "cuda" and not deterministic:
        sizes.append((224, 256, "bf16"))
    settings = [(name, *size) for size in sizes for name in MODELS]
    return {_case(*setting): partial(step_rows, *setting, rounds or 15, device, deterministic) for setting in settings}


def _case(name: str, image_size: int, batch_size: int, precision: str) -> str:
    return f"{name}/{image_size}px/batch{batch_size}" + ("" if precision == "float32" else f"/{precision}")


def step_rows(
    name: str,
    image_size: int = 128,
    batch_size: int = 32,
    precision: str = "float32",
    rounds: int = 15,
    device: torch.device | str = "cpu",
    deterministic: bool = False,
) -> list[Row]:
    """Time one training step (forward, loss, backward, SGD with momentum) of every contender in one case.

    Args:
        name: a name for `create_backbone`; the model starts at random and has 10 classes.
        image_size: side of the square images, in pixels.
        batch_size: images a step.
        precision: float32, bf16 or fp16.
        rounds: over which medians are taken.
        device: where to compute.
        deterministic: measure the price of run.deterministic: `relu` and `arelu` alone, each with and without.

    Returns:
        One row for each contender: `relu` (the model as it came, whatever activation that is), `arelu-plain`, `arelu`,
        and `preserve`, whose gates stand open at 0.1; or, with `deterministic`, for `relu` and `arelu` two rows each,
        the second `…-deterministic`, whose peer is the first. What is torch's alone, as cuDNN's search for fast
        algorithms, is as a run without the flag has it.
    """
    device = torch.device(device)
    torch.manual_seed(0)
    shape = (batch_size, 3, image_size, image_size)
    images, labels = torch.randn(shape, device=device), torch.randint(CLASSES, shape[:1], device=device)
    built = {
        one: CONTENDERS[one](name).to(device).train() for one in (("relu", "arelu") if deterministic else CONTENDERS)
    }
    steps = {one: _step(model, images, labels, precision) for one, model in built.items()}
    peers = dict.fromkeys(steps, PEER)
    if deterministic:
        # Where it has not been set, cuBLAS has started without, and torch refuses its products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        for one in list(built):
            steps[f"{one}-deterministic"], built[f"{one}-deterministic"] = _repeatable(steps[one]), built[one]
        peers = {one: one.removesuffix("-deterministic") for one in sorted(steps, key=lambda one: "arelu" in one)}
    times = time_in_turns({one: Contender(step) for one, step in steps.items()}, rounds, device)
    case, rows = _case(name, image_size, batch_size, precision), []
    for one, peer in peers.items():
        if device.type == "cuda":
            peak = cuda_peak_bytes(partial(steps[one], None))
        else:
            owned = [*built[one].parameters(), *built[one].buffers(), images, labels]
            peak = kept_bytes(partial(_loss, built[one], images, labels, precision), owned)
        rows.append(make_row(case, one, peer, times, peak))
    return rows


def _repeatable(step: Callable[[object], None]) -> Callable[[object], None]:
    def repeatable(_: object) -> None:
        with _determinism():
            step(None)

    return repeatable


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
