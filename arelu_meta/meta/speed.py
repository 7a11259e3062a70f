"""What is known of the vectorised engine's speed beside learn2learn's: engine_times.csv, and nothing else is said.

`python tests/meta/engine_times.py > arelu_meta/meta/engine_times.csv` measured it: a meta-step's gradient on noise, the
engines in turns. Drawing the tasks is not in it; that is another gain (`arelu-meta bench episodes`).
"""

import csv
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("engine_times.csv")


@dataclass(frozen=True)
class Timed:
    """One set-up, and how long a meta-step took in it.

    Args:
        model: name of the backbone.
        side: of its images, in pixels.
        channels: of its images.
        ways: classes a task.
        shots: support images a class.
        queries: query images a class.
        tasks: tasks a meta-step.
        steps: inner steps.
        order: 2, or 1.
        activation: what was swapped in, or nothing.
        algorithm: one of `ALGORITHMS`.
        normalization: one of `NORMALIZATIONS`.
        device: cpu or cuda.
        threads: of torch.
        learn2learn_ms: median over rounds, by learn2learn's engine.
        together_ms: likewise, by the vectorised one with all tasks at once.
        apart_ms: likewise, with one task at a time.
        together_speed_up: learn2learn's time divided by that with all tasks at once, median over rounds.
        apart_speed_up: likewise with one at a time.
        at_once: how many tasks the vectorised engine takes by itself.
    """

    model: str
    side: int
    channels: int
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int
    order: int
    activation: str
    algorithm: str
    normalization: str
    device: str
    threads: int
    learn2learn_ms: float
    together_ms: float
    apart_ms: float
    together_speed_up: float
    apart_speed_up: float
    at_once: int

    @property
    def speed_up(self) -> float:
        """How many times as fast as learn2learn the vectorised engine is, as it goes through a batch by itself."""
        return self.together_speed_up if self.at_once > 1 else self.apart_speed_up


@cache
def measured() -> tuple[Timed, ...]:
    """Read what was measured."""
    with _TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = {item.name: item.type for item in fields(Timed)}
    assert all(isinstance(kind, type) for kind in kinds.values())
    return tuple(Timed(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows)  # type: ignore[operator]


def known_speed(device: str, at_once: int) -> str:
    """Say what was measured where tasks were computed in the same way.

    Args:
        device: cpu or cuda.
        at_once: how many tasks the engine takes at once.

    Returns:
        A phrase for people.
    """
    alike = [row.speed_up for row in measured() if row.device == device and (row.at_once > 1) == (at_once > 1)]
    if not alike:
        return "its speed beside learn2learn's was not measured on such a device; arelu-meta bench maml measures it"
    how = "several tasks at once" if at_once > 1 else "one task at a time"
    return (
        f"{min(alike):.1f} to {max(alike):.1f} times as fast as learn2learn in the {len(alike)} set-ups measured with "
        f"{how}, and tasks are drawn faster (arelu-meta bench episodes)"
    )
