"""What the study `transfer` concludes, pair by pair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.small_lr_tables import conclude as conclude_pair
from arelu_meta.claims.tables import Outcome
from arelu_meta.statistics import judge


def conclude(
    rows: Mapping[str, Sequence[Row]], small: float, margin: float, resplit: Mapping[str, float] | None = None
) -> Outcome:
    """Judge finished runs.

    Args:
        rows: by pair, one a read-out, as the study `small-lr` has them.
        small: the small learning rate on the target.
        margin: differences within so many points do not count.
        resplit: by pair, as in `compare`.

    Returns:
        What `small-lr` concludes of each pair, Holm's correction made over all of them.
    """
    whole = Outcome(notes=["Learning rates are those on the target; every network learned its source at the same one."])
    by_pair = {
        pair: conclude_pair(some, small, margin, None, resplit=(resplit or {}).get(pair, 0.0))
        for pair, some in rows.items()
    }
    shared = [note for note in next(iter(by_pair.values())).notes if all(note in one.notes for one in by_pair.values())]
    whole.notes += shared
    for pair, found in by_pair.items():
        whole.comparisons += [replace(one, claim=f"{pair}: {one.claim}") for one in found.comparisons]
        for name in ("tables", "curves", "heatmaps"):
            titled = [replace(one, title=f"{pair}: {one.title}") for one in getattr(found, name)]
            setattr(whole, name, getattr(whole, name) + titled)
        whole.notes += [f"{pair}: {note}" for note in found.notes if note not in shared]
    whole.comparisons = judge(whole.comparisons)
    return whole
