"""What a swap did, as a table."""

import html
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Swapped:
    """One activation that was replaced, or one call of it.

    Args:
        path: where the new one is found.
        role: what it is for.
        before: the class that was there.
        after: the class that is there now.
        alpha: the start's, if it is an AReLU; None also where a model has no data.
        beta: the start's.
        drift: how far its output moved on the first batch of `data`, relative to its size.
    """

    path: str
    role: str
    before: str
    after: str
    alpha: float | None = None
    beta: float | None = None
    drift: float | None = None


@dataclass(frozen=True)
class Kept:
    """One activation that stays, and why.

    Args:
        path: of the module, or of the module whose code calls a function.
        role: what it is for.
        before: the class, or the function.
        reason: why it stays; for a function with the line that calls it.
    """

    path: str
    role: str
    before: str
    reason: str


@dataclass
class SwapReport:
    """What a swap did.

    Args:
        swapped: the activations that were replaced, in the model's order.
        kept: the activations that stay, with a reason each.
        parameters_added: how many scalars the swap added.
        complete: True only if every hidden activation that a forward pass reaches was replaced.
        logit_drift: how far the model's output moved on the first batch of `data`, relative to its size.
        init: how AReLUs started; None for other activations.
        notes: what else there is to know: what was chosen by default, and what could not be looked at.
    """

    swapped: list[Swapped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    parameters_added: int = 0
    complete: bool = False
    logit_drift: float | None = None
    init: str | None = None
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """List what was replaced and what was kept: path, role, what stood there, what stands there now or why."""
        rows = [(entry.path, entry.role, entry.before, entry.after) for entry in self.swapped]
        return rows + [(entry.path, entry.role, entry.before, f"kept: {entry.reason}") for entry in self.kept]

    def __str__(self) -> str:
        rows = [("path", "role", "before", "after"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
        ]
        return "\n".join([*lines, *self.notes, self.counts()])

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""

        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head = row(("path", "role", "before", "after"), "th")
        body = "".join(row(cells, "td") for cells in self.rows())
        below = "".join(f"<p>{html.escape(line)}</p>" for line in [*self.notes, self.counts()])
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{below}"

    def counts(self) -> str:
        """Tell in one line how much was swapped."""
        state = "complete" if self.complete else "not complete"
        counts = f"{len(self.swapped)} swapped, {len(self.kept)} kept, {self.parameters_added} parameters added"
        drift = "" if self.logit_drift is None else f", logits moved by {self.logit_drift:.3g} of their size"
        return f"{counts}{drift}, {state}"
