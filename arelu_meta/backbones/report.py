"""What a swap did, as a table; and what a training did to its scalars, in a line."""

import html
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.zoo import ELSA

_SHUT = 0.01
"""The mean size of gates under which the network counts as the original's: slopes differ by less than a hundredth."""


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

    Example:
        >>> import torch
        >>> from arelu_meta import swap_activations
        >>> report = swap_activations(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2)), "arelu")
        >>> report.swapped[0].path, report.swapped[0].after, report.parameters_added
        ('0', 'AReLU', 2)
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


def scalars_results(model: nn.Module, lr: float | None = None, act_lr: float | None = None) -> dict[str, Any]:
    """Say what the gates and slopes of a trained model's AReLUs are.

    Args:
        model: any module; one that its run kept.
        lr: at which rate it learned, for what to try next.
        act_lr: at which rate its scalars did; None for lr.

    Returns:
        Flat values for results.json: `gates` (a sentence), `alpha_low`, `alpha_high`, `beta_low`, `beta_high`, and with
        gates `gate_mean` and `gate_largest`, both of the sizes |t|; nothing without an AReLU.
    """
    layers = [(path, one) for path, one in model.named_modules() if isinstance(one, AReLU | GatedAReLU | ELSA)]
    if not layers or any(one.alpha.is_meta for _, one in layers):
        return {}
    alphas, betas = (
        torch.cat([getattr(one, name).detach().float().cpu() for _, one in layers]) for name in ("alpha", "beta")
    )
    found: dict[str, Any] = {
        "alpha_low": alphas.min().item(),
        "alpha_high": alphas.max().item(),
        "beta_low": betas.min().item(),
        "beta_high": betas.max().item(),
    }
    slopes = f"alpha {alphas.min():.3g} to {alphas.max():.3g}, beta {betas.min():.3g} to {betas.max():.3g}"
    gated = {path: one.t for path, one in layers if isinstance(one, GatedAReLU)}
    if not gated:
        return {"gates": f"AReLU: {slopes} over {len(layers)} layers", **found}
    sizes = {path: abs(t.item()) for path, t in gated.items()}
    mean, widest = sum(sizes.values()) / len(sizes), max(sizes, key=lambda path: sizes[path])
    found |= {"gate_mean": mean, "gate_largest": sizes[widest]}
    line = f"gates: mean |t| {mean:.2g}"
    if mean >= _SHUT:
        return {"gates": f"{line}, largest {sizes[widest]:.2g} at {widest}; {slopes}", **found}
    if not any(t.requires_grad for t in gated.values()):
        return {"gates": f"{line}: the network is still the original's, for its gates were not trained", **found}
    slow = lr is not None and act_lr is not None and act_lr < lr
    opens = f"--optim.act_lr {lr:.3g} opens them" if slow else "more epochs or a larger --optim.act_lr open them"
    return {"gates": f"{line}: the network is still the original's; {opens}", **found}
