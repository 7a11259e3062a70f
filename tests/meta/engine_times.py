"""How long a meta-step takes by either engine, over networks, ways, orders and algorithms: engine_times.csv.

    OMP_NUM_THREADS=1 python tests/meta/engine_times.py > arelu_meta/meta/engine_times.csv

One line a set-up, as `arelu_meta.meta.speed.Timed` explains: medians over rounds in which the engines take turns; of
one thread on a CPU it is the time for which the process had the processor.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.backbones.create import create_backbone, size_argument
from arelu_meta.bench.timing import Contender, time_in_turns
from arelu_meta.data.episodes import TaskBatch
from arelu_meta.meta.engine import Engine, Inner, Learn2learnEngine, VectorizedEngine
from arelu_meta.meta.inner_loop import attach_loop
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.meta.speed import Timed


@dataclass(frozen=True)
class Case:
    """A set-up, as `Timed` explains."""

    model: str
    side: int
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int
    activation: str | None = None
    channels: int = 1
    order: int = 2
    algorithm: str = "maml"
    normalization: str = "transductive"


CASES = (
    Case("mnist_conv", 28, 5, 1, 1, 8, 5, "arelu"),
    Case("mnist_conv", 28, 5, 1, 1, 8, 5),
    Case("mnist_conv", 28, 5, 1, 1, 8, 1, "arelu"),
    Case("mnist_conv", 28, 5, 1, 1, 2, 1, "arelu"),
    Case("mnist_conv", 28, 20, 1, 1, 4, 1, "arelu"),
    Case("mnist_linear", 8, 5, 1, 5, 16, 1),
    Case("conv4", 28, 5, 1, 1, 8, 1),
    Case("conv4", 28, 5, 1, 1, 8, 1, order=1),
    Case("conv4", 28, 5, 1, 15, 4, 1),
    Case("conv4", 28, 20, 1, 1, 4, 1),
    Case("conv4", 28, 20, 1, 1, 4, 1, order=1),
    Case("conv4_32", 28, 5, 1, 5, 8, 1),
    Case("conv4_32", 28, 20, 1, 2, 4, 1),
    Case("conv4_32", 28, 5, 1, 5, 8, 5, algorithm="anil"),
    Case("conv4_32", 28, 5, 1, 5, 8, 1, algorithm="metasgd"),
    Case("conv4_32", 28, 5, 1, 5, 8, 3, algorithm="mamlpp"),
    Case("conv4_32", 28, 5, 1, 5, 8, 3, algorithm="reptile"),
    Case("conv4_32", 28, 5, 1, 5, 8, 1, algorithm="protonet"),
    Case("conv4_32", 28, 5, 1, 5, 8, 1, normalization="support"),
    Case("conv4_32", 28, 5, 1, 5, 8, 1, normalization="running"),
    Case("conv4", 84, 5, 1, 1, 2, 1, channels=3),
    Case("resnet12", 28, 5, 1, 1, 2, 1),
    Case("resnet12", 28, 5, 1, 1, 2, 1, order=1),
    Case("test_resnet", 64, 5, 1, 1, 4, 1, "arelu", 3, normalization="frozen"),
    Case("tf_efficientnet_lite0", 64, 5, 1, 1, 2, 1, "arelu", 3, 1, "maml", "frozen"),
    Case("tf_efficientnet_lite0", 64, 5, 1, 1, 2, 1, "arelu", 3, 2, "maml", "frozen"),
)


def _noise(case: Case, device: torch.device) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(case.ways).repeat_interleave(per_class).repeat(case.tasks, 1)
        return torch.rand(*labels.shape, case.channels, case.side, case.side, generator=generator), labels

    return TaskBatch(*draw(case.shots), *draw(case.queries)).to(device)


def _engine(case: Case, make: Callable[..., Engine], device: torch.device) -> Engine:
    torch.manual_seed(0)
    size: dict[str, Any] = size_argument(case.model, case.side)
    model = create_backbone(
        case.model, num_classes=case.ways, in_chans=case.channels, activation=case.activation, **size
    ).to(device)
    set_normalization(model, case.normalization)
    train_mode(model, case.normalization)
    inner = Inner(0.01, case.steps, case.order == 1, case.algorithm)
    attach_loop(model, inner)
    return make(model, inner)


def measure(case: Case, rounds: int, device: torch.device, threads: int) -> Timed:
    """Time one set-up.

    Args:
        case: what to compute.
        rounds: over which medians are taken.
        device: where.
        threads: of torch.
    """
    tasks = _noise(case, device)
    kinds: dict[str, Callable[..., Engine]] = {
        "learn2learn": Learn2learnEngine,
        "together": lambda model, inner: VectorizedEngine(model, inner, task_chunk=case.tasks),
        "apart": lambda model, inner: VectorizedEngine(model, inner, task_chunk=1),
    }
    engines = {name: _engine(case, make, device) for name, make in kinds.items()}
    choosing = VectorizedEngine(engines["apart"].model, engines["apart"].inner)
    # Other programs take a processor's time, not this process's.
    clock = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter
    contenders = {name: _contender(engine, tasks) for name, engine in engines.items()}
    with sdpa_kernel(SDPBackend.MATH):
        choosing.settle_chunk(tasks)
        times = time_in_turns(contenders, rounds, device, clock)
    found: dict[str, Any] = {f"{name}_ms": round(median(values) * 1000, 1) for name, values in times.items()}
    for name in ("together", "apart"):
        ratios = [theirs / mine for theirs, mine in zip(times["learn2learn"], times[name], strict=True)]
        found[f"{name}_speed_up"] = round(median(ratios), 2)
    given: dict[str, Any] = asdict(case) | {"activation": case.activation or ""}
    at_once = min(case.tasks, choosing.task_chunk or 1)
    return Timed(**given, **found, device=device.type, threads=threads, at_once=at_once)


def _contender(engine: Engine, tasks: TaskBatch) -> Contender:
    return Contender(lambda _: engine.meta_gradient(tasks), lambda: engine.model.zero_grad(set_to_none=True))


def main() -> None:
    """Measure all cases, or those from a place on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--first", type=int, default=0, help="leave out the cases before this one, counted from 0")
    parser.add_argument("--count", type=int, default=len(CASES))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    writer = csv.DictWriter(sys.stdout, [item.name for item in fields(Timed)], lineterminator="\n")
    if given.first == 0:
        writer.writeheader()
    for case in CASES[given.first : given.first + given.count]:
        writer.writerow(asdict(measure(case, given.rounds, torch.device(given.device), given.threads)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
