"""What the study `transfer` concludes, pair by pair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.outcome import Outcome
from arelu_meta.claims.small_lr_tables import conclude as conclude_pair
from arelu_meta.claims.statistics import judge


def conclude(rows: Mapping[str, Sequence[Row]], small: float, margin: float) -> Outcome:
    """Judge finished runs.

    Args:
        rows: by pair, one a read-out, as the study `small-lr` has them.
        small: the small learning rate on the target.
        margin: how many points count as being ahead.

    Returns:
        What `small-lr` concludes of each pair, Holm's correction made over all of them.
    """
    whole = Outcome(notes=["Learning rates are those on the target; every network learned its source at the same one."])
    for pair, some in rows.items():
        found = conclude_pair(some, small, margin, None)
        whole.comparisons += [replace(one, claim=f"{pair}: {one.claim}") for one in found.comparisons]
        for name in ("tables", "curves", "heatmaps"):
            titled = [replace(one, title=f"{pair}: {one.title}") for one in getattr(found, name)]
            setattr(whole, name, getattr(whole, name) + titled)
        notes = [f"{pair}: {note}" if note.startswith("The best rate") else note for note in found.notes]
        whole.notes += [note for note in notes if note not in whole.notes]
    whole.comparisons = judge(whole.comparisons)
    return whole
