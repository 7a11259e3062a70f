"""Verdicts with their intervals, all of one unit on one scale, so that they can be compared at a glance."""

from collections.abc import Sequence
from typing import Any

from arelu_meta.report.blocks import Verdict, is_number, shown

_SIGNS = {"holds": "✓", "does not hold": "✗", "cannot tell": "?"}
_NEAR = 6.0  # per cent of the width in which a label would run out of the picture


def render_verdicts(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Prepare verdicts for the page's template.

    Args:
        verdicts: in order.
    """
    scales = {one.unit: _Scale([other for other in verdicts if other.unit == one.unit]) for one in verdicts}
    return [
        {
            "claim": one.claim,
            "verdict": one.verdict,
            "style": one.verdict.replace(" ", "-"),
            "sign": _SIGNS[one.verdict],
            "sentence": one.sentence,
            "whisker": _whisker(one, scales[one.unit]),
        }
        for one in verdicts
    ]


def explain(verdicts: Sequence[Verdict]) -> str:
    """Say how the lines below the verdicts are read; empty where there are none.

    Args:
        verdicts: of the page.
    """
    if not any(is_number(one.difference) for one in verdicts):
        return ""
    return (
        "Each line shows a mean difference (dot) with its 95 % interval (bar), on one scale; the dashed line is the "
        "margin, the smallest difference that counts. A claim holds where the whole bar lies above the margin, and "
        "does not hold where the whole bar lies below it."
    )


class _Scale:
    """Where a value lies between the least and the greatest, in per cent."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        values = [value for one in verdicts for value in (one.difference, one.low, one.high, one.margin)]
        ends = [value for value in values if is_number(value)] + [0.0]
        span = (max(ends) - min(ends)) or 1.0
        self.least, self.span = min(ends) - 0.04 * span, 1.08 * span

    def place(self, value: float) -> float:
        return round(100 * (value - self.least) / self.span, 2)

    def anchor(self, value: float) -> str:
        place = self.place(value)
        return "start" if place < _NEAR else "end" if place > 100 - _NEAR else "middle"


def _whisker(one: Verdict, scale: _Scale) -> dict[str, Any] | None:
    middle = one.difference
    if not is_number(middle):
        return None
    low = one.low if is_number(one.low) else middle
    high = one.high if is_number(one.high) else middle
    margin = one.margin if is_number(one.margin) else None
    made: dict[str, Any] = {
        "zero": scale.place(0.0),
        "zero_anchor": scale.anchor(0.0),
        "low": scale.place(low),
        "high": scale.place(high),
        "dot": scale.place(middle),
        "told": f"difference {middle:+.3g} {one.unit}, 95 % interval {low:+.3g} to {high:+.3g}",
        "margin": None,
        "margin_text": "",
    }
    if margin is not None:
        apart = scale.place(margin) - scale.place(0.0) > 3 * _NEAR
        made |= {"margin": scale.place(margin), "margin_anchor": scale.anchor(margin)}
        unit = one.unit.rstrip("s") if margin == 1 else one.unit
        made |= {"margin_text": f"margin {shown(margin)} {unit}" if apart else ""}
    return made
