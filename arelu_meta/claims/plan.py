"""What a study hands to the task that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from arelu_meta.claims.ledger import Ledger
from arelu_meta.claims.running import Work
from arelu_meta.claims.tables import Outcome


@dataclass
class Plan:
    """The runs of a study, how to do them, and how to conclude from them.

    Args:
        groups: trials that run together; most groups hold one.
        work: runs a group.
        processes: groups at once.
        seconds: about how long trials take, one after the other in one process; measured on this machine.
        conclude: judges the finished runs; given the ledger and the study's folder, for pictures.
        headline: what is compared on what, in a line.
    """

    groups: list[list[Any]]
    work: Work
    processes: int
    seconds: Callable[[Sequence[Any]], float]
    conclude: Callable[[Ledger, Any], Outcome]
    headline: str

    @property
    def trials(self) -> list[Any]:
        """All runs in their order."""
        return [trial for group in self.groups for trial in group]
