"""How long a meta-step takes by either engine, over networks, ways, orders and threads: what `auto` goes by.

    python tests/meta/engine_times.py --threads 1 --rounds 5 >> times.jsonl

One JSON line a case: milliseconds (medians over rounds in which all take turns, on noise) by learn2learn, by the
vectorised engine with all tasks at once and with one at a time, which of both it chooses itself, and how many times as
fast as learn2learn that is.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.backbones.create import create_backbone, size_argument
from arelu_meta.bench.timing import Contender, time_in_turns
from arelu_meta.data.episodes import TaskBatch
from arelu_meta.meta.engines import Engine, Inner, Learn2learnEngine, VectorizedEngine
from arelu_meta.meta.inner import attach_loop
from arelu_meta.meta.normalization import set_normalization, train_mode


@dataclass(frozen=True)
class Case:
    """A set-up: a task has `ways` times `shots` support and `ways` times `queries` query images."""

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
    Case("mnist_conv", 28, 5, 1, 1, 32, 5),
    Case("mnist_conv", 28, 5, 1, 1, 32, 5, "arelu"),
    Case("mnist_conv", 28, 5, 1, 1, 32, 1, "arelu"),
    Case("mnist_conv", 28, 5, 5, 5, 32, 5, "arelu"),
    Case("mnist_conv", 28, 5, 1, 1, 4, 1, "arelu"),
    Case("mnist_conv", 28, 20, 1, 1, 16, 5, "arelu"),
    Case("mnist_linear", 8, 5, 1, 5, 16, 1),
    Case("conv4", 28, 5, 1, 1, 32, 1),
    Case("conv4", 28, 5, 1, 1, 32, 1, order=1),
    Case("conv4", 28, 5, 1, 15, 16, 1),
    Case("conv4", 28, 5, 5, 15, 4, 5),
    Case("conv4", 28, 20, 1, 1, 16, 1),
    Case("conv4", 28, 20, 1, 1, 16, 1, order=1),
    Case("conv4_32", 28, 5, 1, 5, 16, 1),
    Case("conv4_32", 28, 20, 1, 2, 8, 1),
    Case("conv4", 28, 5, 1, 5, 16, 5, algorithm="anil"),
    Case("conv4", 28, 5, 1, 5, 16, 1, algorithm="metasgd"),
    Case("conv4", 28, 5, 1, 5, 16, 3, algorithm="mamlpp"),
    Case("conv4", 28, 5, 1, 5, 16, 3, algorithm="reptile"),
    Case("conv4", 28, 5, 1, 5, 16, 1, algorithm="protonet"),
    Case("conv4", 28, 5, 1, 5, 16, 1, normalization="support"),
    Case("conv4", 28, 5, 1, 5, 16, 1, normalization="running"),
    Case("conv4", 84, 5, 1, 5, 4, 1, channels=3),
    Case("resnet12", 28, 5, 1, 1, 4, 1),
    Case("resnet12", 28, 5, 1, 1, 4, 1, order=1),
    Case("test_resnet", 64, 5, 1, 1, 8, 1, "arelu", 3, normalization="frozen"),
    Case("test_efficientnet", 64, 5, 1, 1, 8, 1, "arelu", 3, normalization="frozen"),
    Case("tf_efficientnet_lite0", 64, 5, 1, 1, 4, 1, "arelu", 3, 1, "maml", "frozen"),
    Case("tf_efficientnet_lite0", 64, 5, 1, 1, 4, 1, "arelu", 3, 2, "maml", "frozen"),
    Case("tf_efficientnet_lite0", 128, 5, 5, 5, 2, 10, "arelu", 3, 1, "anil", "frozen"),
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


def measure(case: Case, rounds: int, device: torch.device) -> dict[str, object]:
    """Time one case.

    Args:
        case: what to compute.
        rounds: over which medians are taken.
        device: where.
    """
    tasks = _noise(case, device)
    kinds: dict[str, Callable[..., Engine]] = {
        "learn2learn": Learn2learnEngine,
        "together": lambda model, inner: VectorizedEngine(model, inner, task_chunk=case.tasks),
        "apart": lambda model, inner: VectorizedEngine(model, inner, task_chunk=1),
    }
    engines = {name: _engine(case, make, device) for name, make in kinds.items()}
    choosing = VectorizedEngine(engines["apart"].model, engines["apart"].inner)
    with sdpa_kernel(SDPBackend.MATH):
        choosing.settle_chunk(tasks)
        times = time_in_turns({name: _contender(engine, tasks) for name, engine in engines.items()}, rounds, device)
    chosen = "apart" if choosing.task_chunk == 1 else "together"
    ratio = median(theirs / mine for theirs, mine in zip(times["learn2learn"], times[chosen], strict=True))
    shown = {f"{name}_ms": round(median(values) * 1000, 2) for name, values in times.items()}
    return asdict(case) | shown | {"auto": chosen, "at_once": choosing.task_chunk, "speed_up": round(ratio, 2)}


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
    for case in CASES[given.first : given.first + given.count]:
        row = measure(case, given.rounds, torch.device(given.device))
        sys.stdout.write(json.dumps(row | {"threads": given.threads, "device": given.device}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
