"""What the study `architectures` concludes: network by network, and over all of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.outcome import Heatmap, Outcome, Table
from arelu_meta.claims.small_lr_tables import ORIGINAL, Runs, course_curves, edge_notes, spread
from arelu_meta.claims.statistics import Comparison, compare, judge
from arelu_meta.errors import counted


def conclude(rows: Sequence[Row], margin: float) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a read-out, with `model`, `contender`, `lr`, `seed`, `step`, `accuracy`, `validation_accuracy` and
            `test_accuracy`.
        margin: how many points count as being ahead.

    Returns:
        A comparison a network and contender, one over all networks, their table, and curves a network. Where there are
        several learning rates, each contender is read at the one that is best on validation images.
    """
    networks = list(dict.fromkeys(row["model"] for row in rows))
    runs = {name: Runs([row for row in rows if row["model"] == name]) for name in networks}
    first = runs[networks[0]]
    reference = ORIGINAL if ORIGINAL in first.contenders else first.contenders[0]
    best = {name: {one: runs[name].best_rate(one) for one in first.contenders} for name in networks}
    tested = {name: {one: runs[name].test(one, best[name][one]) for one in first.contenders} for name in networks}
    comparisons = list(_comparisons(tested, first.contenders, reference, margin))
    return Outcome(
        judge(comparisons),
        [_table(tested, best, first.contenders, reference)],
        [course_curves(runs[name], best[name], name) for name in networks],
        [_map(runs, best)] if len(first.rates) == 1 else [_map(runs, best), *_rates(runs)],
        notes=_notes(runs, best),
    )


Tested = dict[str, dict[str, dict[int, float]]]
"""Test accuracy in per cent, by network, contender and seed."""


def _comparisons(tested: Tested, contenders: list[str], reference: str, margin: float) -> Iterator[Comparison]:
    for one in contenders:
        if one == reference:
            continue
        if len(tested) > 1:
            ours, theirs = (_over_networks(tested, name) for name in (one, reference))
            yield compare(f"{one} is ahead of {reference} over {len(tested)} networks", ours, theirs, margin)
        for network, found in tested.items():
            yield compare(f"{one} is ahead of {reference} in {network}", found[one], found[reference], margin)


def _over_networks(tested: Tested, contender: str) -> dict[int, float]:
    """Average over networks, seed by seed: the seeds are the pairs, for networks are not drawn at random."""
    shared = set.intersection(*(set(found[contender]) for found in tested.values()))
    return {seed: float(np.mean([found[contender][seed] for found in tested.values()])) for seed in sorted(shared)}


def _table(tested: Tested, best: dict[str, dict[str, float]], contenders: list[str], reference: str) -> Table:
    rows = []
    for network, found in tested.items():
        means = {one: np.mean([*found[one].values()]) for one in contenders}
        others = [one for one in contenders if one != reference]
        rows.append(
            [
                network,
                *(f"{spread(found[one])} (at {best[network][one]:g})" for one in contenders),
                *(f"{means[one] - means[reference]:+.1f}" for one in others),
            ]
        )
    return Table(
        "Test accuracy in per cent, from scratch",
        ["network", *contenders, *(f"{one} − {reference}" for one in contenders if one != reference)],
        rows,
        "Mean ± standard deviation over seeds, at the learning rate that is best on validation images.",
    )


def _map(runs: dict[str, Runs], best: dict[str, dict[str, float]]) -> Heatmap:
    contenders = next(iter(runs.values())).contenders
    values: list[list[float | None]] = [
        [float(np.mean([*one.test(name, best[network][name]).values()])) for name in contenders]
        for network, one in runs.items()
    ]
    return Heatmap("Test accuracy (%)", "activation", "network", contenders, list(runs), values)


def _rates(runs: dict[str, Runs]) -> Iterator[Heatmap]:
    for network, one in runs.items():
        values: list[list[float | None]] = [
            [float(np.mean([*one.test(name, lr).values()])) for lr in one.rates] for name in one.contenders
        ]
        rates = [f"{lr:g}" for lr in one.rates]
        yield Heatmap(f"{network}: test accuracy (%)", "learning rate", "activation", rates, one.contenders, values)


def _notes(runs: dict[str, Runs], best: dict[str, dict[str, float]]) -> list[str]:
    notes = ["The pairs are seeds; that other networks would do alike is not said by the interval over these."]
    lost = sum(one.diverged(name, lr) for one in runs.values() for name in one.contenders for lr in one.rates)
    at_edge = [name for name, one in runs.items() if edge_notes(one, best[name])]
    if at_edge:
        notes.append(f"A best rate is the largest or smallest that was tried in {', '.join(at_edge)}: look beyond it.")
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as accuracy 0."] if lost else notes
