"""What a race has found: one sentence, one chart, where the gain comes from, a table, and a card for a slide."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arelu_meta.claims.metrics import area_over_rates, regret, width_within, worth
from arelu_meta.runs.atomic_io import write_atomically
from arelu_meta.runs.progress import print_table
from arelu_meta.statistics import CONFIDENCE, Comparison, compare, judge, proportion_interval

Row = dict[str, Any]
PROBE, ORIGINAL = "probe", "original"
_FEWEST_SEEDS = 3  # whose scatter says something
_GAIN = (
    ("statistics held", "plain, statistics held", "plain"),
    ("scale (a constant)", "plain, control:gain", "plain"),
    ("a fixed leak", "plain, control:leak", "plain"),
    ("learned gates", "plain, open", "plain, control:leak"),
)


@dataclass(frozen=True)
class Recipe:
    """One way to fine-tune.

    Args:
        words: what to do, as an order.
        activation: what is swapped in, or None.
        init: how it starts.
        mode: as train.mode.
        share: of the learning rate, for the activations' scalars; None for no scalars.
        plain: a plain loop: statistics move, the head starts at zero, nothing is clipped.
        held: hold the statistics in a plain loop.
    """

    words: str
    activation: str | None = None
    init: str | None = None
    mode: str = "full"
    share: float | None = None
    plain: bool = False
    held: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is an AReLU with all else trained, too."""
        return self.activation == "arelu" and self.mode == "full" and not self.plain

    @property
    def keeps_activations(self) -> bool:
        """Whether the model's own activations stay."""
        return self.activation in (None, "control:gain", "control:head10")

    @property
    def keeps_features(self) -> bool:
        """Whether the features are those of the model as it came."""
        return self.keeps_activations or self.init == "preserve"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in points, with its 95 % interval.

    Args:
        mean: in points.
        low: lower end.
        high: upper end.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def words(self) -> str:
        """Say it as `83.1 % (81.4 to 84.8)`."""
        return f"{self.mean:.1f} % ({self.low:.1f} to {self.high:.1f})"


def estimate(values: Sequence[float], images: int, resplit: float) -> Estimate:
    """Return the mean of test accuracies over seeds with its interval.

    Args:
        values: in points, one a seed.
        images: that each was tested on.
        resplit: test images a training image where each seed splits the data anew; 0 for a fixed test set.

    Source: Nadeau and Bengio 2003; with fewer than three seeds, and never narrower than, Wilson 1927 on the images of
    one seed and as many more as others can have.
    """
    from scipy.stats import t

    mean, seeds = float(np.mean(values)), len(values)
    tested = images * (min(seeds, 1 + 1 / max(resplit, 0.1)) if resplit else 1)
    low, high = (100 * one for one in proportion_interval(mean / 100 * tested, tested))
    if seeds >= _FEWEST_SEEDS:
        error = float(np.std(values, ddof=1)) * math.sqrt(1 / seeds + resplit)
        half = float(t.ppf(0.5 + CONFIDENCE / 2, seeds - 1)) * error
        low, high = min(low, max(0.0, mean - half)), max(high, min(100.0, mean + half))
    return Estimate(mean, low, high, seeds)


class Finals:
    """The finals' accuracies, in points, by recipe, learning rate and seed.

    Args:
        rows: all of the race.
        order: recipes, the simplest first.
    """

    def __init__(self, rows: Sequence[Row], order: Sequence[str]) -> None:
        self.test: dict[str, dict[float, dict[int, float]]] = {}
        self.validation: dict[str, dict[float, dict[int, float]]] = {}
        for row in rows:
            if row["phase"] == "final":
                for found, name in ((self.test, "test_accuracy"), (self.validation, "validation_accuracy")):
                    by_rate = found.setdefault(row["recipe"], {}).setdefault(row["lr"], {})
                    by_rate[row["seed"]] = 100 * row[name]
        self.names = sorted(self.test, key=list(order).index)
        self.rates = {name: self._best_rate(name) for name in self.names}

    def _best_rate(self, name: str) -> float:
        """Choose the rate by the mean validation accuracy, among those with the most seeds."""
        found = self.validation[name]
        most = max(map(len, found.values()))
        rates = sorted(lr for lr, seeds in found.items() if len(seeds) == most)
        return max(rates, key=lambda lr: float(np.mean(list(found[lr].values()))))

    def at_best(self, name: str) -> dict[int, float]:
        """Return each seed's test accuracy at the recipe's best rate."""
        return self.test[name][self.rates[name]]

    def winner(self) -> str:
        """Return whose validation accuracy is highest over the seeds that all have; of equal ones the simplest."""
        chosen = {name: self.validation[name][self.rates[name]] for name in self.names}
        common = set.intersection(*(set(seeds) for seeds in chosen.values())) or None
        means = {
            name: float(np.mean([value for seed, value in seeds.items() if common is None or seed in common]))
            for name, seeds in chosen.items()
        }
        return max(self.names, key=lambda name: round(means[name], 6))

    def curve(self, name: str) -> dict[float, float]:
        """Return the mean test accuracy by learning rate."""
        return {lr: float(np.mean(list(seeds.values()))) for lr, seeds in sorted(self.test[name].items()) if lr}


def conclude(rows: Sequence[Row], facts: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Say what a race's runs have shown.

    Args:
        rows: of all runs, with `recipe`, `lr`, `seed`, `epochs`, `phase`, `validation_accuracy`, `test_accuracy`.
        facts: `data`, `classes`, `images`, `resplit`, `chance` (a fraction), `test_n`.
        recipes: by name, the simplest first.

    Returns:
        The part of results.json that is about accuracy.
    """
    finals = Finals(rows, list(recipes))
    winner = finals.winner()
    ours = max(
        (name for name in finals.names if recipes[name].is_ours),
        key=lambda name: np.mean(list(finals.validation[name][finals.rates[name]].values())),
        default=None,
    )
    images, resplit = int(facts["test_n"]), float(facts["resplit"])
    best = estimate(list(finals.at_best(winner).values()), images, resplit)
    probe = estimate(list(finals.at_best(PROBE).values()), images, resplit)
    verdicts = _verdicts(finals, recipes, winner, ours, images, resplit)
    gain = _gain(rows, images, resplit)
    times = _worth(finals, ours)
    chance = 100 * float(facts["chance"])
    sentence = _sentence(facts, finals, recipes, winner, ours, best, probe, verdicts, resplit)
    against = next((one for one in verdicts if one.claim.endswith(f"against {ORIGINAL}")), None)
    return {
        "task": "race",
        "sentence": sentence,
        "winner": winner,
        "learning_rate": finals.rates[winner],
        "test_accuracy": best.mean / 100,
        "test_low": best.low / 100,
        "test_high": best.high / 100,
        "test_n": images,
        "probe_accuracy": probe.mean / 100,
        "chance": facts["chance"],
        "arelu": ours,
        "arelu_difference": None if against is None else against.difference,
        "arelu_low": None if against is None else against.low,
        "arelu_high": None if against is None else against.high,
        "arelu_verdict": None if against is None else against.verdict,
        "worth": None if times is None else times["times"],
        "seeds": sorted(finals.at_best(winner)),
        "verdicts": [one.as_row() for one in verdicts],
        "tables": [_table(rows, finals, recipes, images, resplit)],
        "chart": _chart(finals, probe, chance, times, images, resplit),
        "gain": gain,
        "notes": _notes(rows, finals, resplit, gain),
    }


def _verdicts(
    finals: Finals, recipes: Mapping[str, Recipe], winner: str, ours: str | None, images: int, resplit: float
) -> list[Comparison]:
    pairs = []
    if ours is not None and ORIGINAL in finals.names:
        pairs.append((ours, ORIGINAL))
    if winner != PROBE:
        pairs.append((winner, PROBE))
    found = [
        compare(
            f"{_named(first, recipes)} against {second}",
            finals.at_best(first),
            finals.at_best(second),
            images=images,
            resplit=resplit,
        )
        for first, second in pairs
        if len(finals.at_best(first).keys() & finals.at_best(second).keys()) > 1
    ]
    return judge(found)


def _named(name: str, recipes: Mapping[str, Recipe]) -> str:
    return f"AReLU ({name})" if recipes[name].is_ours else name


def _sentence(
    facts: Mapping[str, Any],
    finals: Finals,
    recipes: Mapping[str, Recipe],
    winner: str,
    ours: str | None,
    best: Estimate,
    probe: Estimate,
    verdicts: Sequence[Comparison],
    resplit: float,
) -> str:
    rate = f" at {_as_written(finals.rates[winner])}" if finals.rates[winner] else ""
    parts = [
        f"On {facts['data']} ({facts['classes']} classes, {facts['images']} images): "
        f"{recipes[winner].words}{rate}: {best.words}."
    ]
    if ours is not None and ORIGINAL in finals.names:
        claim = next((one for one in verdicts if one.claim.endswith(f"against {ORIGINAL}")), None)
        to_original = finals.at_best(ours).keys() & finals.at_best(ORIGINAL).keys()
        name = "The swap" if winner == ours else _named(ours, recipes)
        beside = " against the original" if winner != ORIGINAL else ""
        if claim is not None and claim.n < _FEWEST_SEEDS:
            parts.append(
                f"{name}{beside}: {_signed(claim.difference)} on two seeds, too few for a verdict; --race.more true "
                "adds seeds."
            )
        elif claim is not None:
            parts.append(
                f"{name}{beside}: {_signed(claim.difference)} ({_signed(claim.low)} to {_signed(claim.high)}): "
                f"{claim.words}."
            )
        elif to_original:
            seed = min(to_original)
            difference = finals.at_best(ours)[seed] - finals.at_best(ORIGINAL)[seed]
            parts.append(
                f"{name}{beside}: {_signed(difference)} on one seed: no verdict yet (--race.more true adds seeds)."
            )
    if winner != PROBE:
        parts.append(f"A probe alone: {probe.mean:.1f} %.")
    elif len(finals.names) == 1:
        parts.append("There was no time for anything else; give a longer --race.budget.")
    return " ".join(parts)


def _as_written(rate: float) -> str:
    """Write a learning rate as people do: 3e-3."""
    return f"{rate:.0e}".replace("e-0", "e-")


def _signed(value: float) -> str:
    """Write a difference with a real minus sign."""
    return f"{value:+.1f}".replace("-", "−")


def _worth(finals: Finals, ours: str | None) -> dict[str, Any] | None:
    """Say how many times as fast the original would have to learn to be as good as AReLU is at the smallest rate."""
    if ours is None or ORIGINAL not in finals.names:
        return None
    original, own = finals.test[ORIGINAL], finals.test[ours]
    common = sorted(lr for lr in original.keys() & own.keys() if lr)
    if len(original) < 2 or not common:
        return None
    seeds = set.intersection(*(set(original[lr]) for lr in original))
    if not seeds & set(own[common[0]]):
        return None
    found = worth(own, original, common[0])
    reached = float(np.mean([own[common[0]][seed] for seed in seeds & own[common[0]].keys()]))
    return {
        "times": found.times,
        "low": found.low,
        "high": found.high if math.isfinite(found.high) else None,
        "sign": found.sign,
        "words": found.words,
        "rate": common[0],
        "accuracy": reached,
    }


def _chart(
    finals: Finals, probe: Estimate, chance: float, times: dict[str, Any] | None, images: int, resplit: float
) -> dict[str, Any]:
    series = []
    for name in finals.names:
        if name == PROBE:
            continue
        points = {
            lr: estimate(list(seeds.values()), images, resplit) for lr, seeds in sorted(finals.test[name].items())
        }
        series.append(
            {
                "name": name,
                "x": list(points),
                "y": [one.mean for one in points.values()],
                "low": [one.low for one in points.values()],
                "high": [one.high for one in points.values()],
            }
        )
    return {"series": series, "probe": probe.mean, "chance": chance, "worth": times}


def _gain(rows: Sequence[Row], images: int, resplit: float) -> list[dict[str, Any]]:
    """Take the gain over a plain loop apart, in points."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["phase"] == "gain":
            found.setdefault(row["recipe"], {})[row["seed"]] = 100 * row["test_accuracy"]
    bars = []
    for label, first, second in _GAIN:
        ours, theirs = found.get(first, {}), found.get(second, {})
        seeds = ours.keys() & theirs.keys()
        if not seeds:
            continue
        bar = {
            "name": label,
            "value": float(np.mean([ours[seed] - theirs[seed] for seed in seeds])),
            "seeds": len(seeds),
        }
        if len(seeds) > 1:
            compared = compare(label, ours, theirs, images=images, resplit=resplit)
            bar |= {"low": compared.low, "high": compared.high}
        bars.append(bar | {"rate": next(row["lr"] for row in rows if row["phase"] == "gain")})
    return bars


def _table(
    rows: Sequence[Row], finals: Finals, recipes: Mapping[str, Recipe], images: int, resplit: float
) -> dict[str, Any]:
    screened: dict[str, Row] = {}
    for row in rows:
        if row["phase"] == "screen":
            best = screened.get(row["recipe"])
            key = (row["epochs"], row["validation_accuracy"], -row["validation_loss"])
            if best is None or key > (best["epochs"], best["validation_accuracy"], -best["validation_loss"]):
                screened[row["recipe"]] = row
    body: list[list[Any]] = []
    for name in recipes:
        if name not in screened and name not in finals.names:
            continue
        seen = screened.get(name)
        cells: list[Any] = [name, "", "", "", "", "", ""]
        if seen is not None:
            cells[1] = f"{seen['lr']:g}" if seen["lr"] else ""
            cells[2] = f"{100 * seen['validation_accuracy']:.1f}"
        if name in finals.names:
            one = estimate(list(finals.at_best(name).values()), images, resplit)
            cells[1] = f"{finals.rates[name]:g}" if finals.rates[name] else ""
            cells[3], cells[4] = one.words.replace(" %", ""), str(one.seeds)
            curve = finals.curve(name)
            if len(curve) > 2:
                cells[5] = f"{area_over_rates(curve):.1f}"
                cells[6] = f"{width_within(curve):.1f} ({regret(curve):.1f})"
        body.append(cells)
    done = [row for row in body if row[3]]
    body = done + sorted((row for row in body if not row[3]), key=lambda row: -float(row[2] or 0))
    return {
        "title": "Recipes",
        "columns": [
            "recipe",
            "best rate",
            "validation, screening",
            "test (95 % interval)",
            "seeds",
            "over all rates",
            "decades within 90 % (regret)",
        ],
        "rows": body,
        "note": "Accuracies in per cent. Test images are looked at by the finalists alone. Over all rates: the mean "
        "over the log-rates of the finals; regret: what a rate drawn from them loses on average.",
    }


def _notes(rows: Sequence[Row], finals: Finals, resplit: float, gain: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    seeds = max(len(found) for by in finals.test.values() for found in by.values())
    if resplit and seeds >= _FEWEST_SEEDS:
        notes.append(
            "Every seed splits the same images anew, so that seeds are not independent: intervals and verdicts are by "
            "Nadeau and Bengio's corrected resampled t."
        )
    if seeds < _FEWEST_SEEDS:
        notes.append(
            f"The finals had time for {'one seed' if seeds == 1 else 'two seeds'}: intervals are of the test images "
            "alone; --race.more true adds seeds."
        )
    if gain:
        notes.append(
            f"Where the gain comes from: a plain loop at {gain[0]['rate']:g} (statistics of batch normalisation move, "
            "the head starts at zero, nothing is clipped) beside the same loop with one thing changed; learned gates: "
            "AReLU's open start against the fixed leak."
        )
    diverged = sum("diverged" in row for row in rows)
    if diverged:
        notes.append(f"{diverged} runs became NaN and count as accuracy 0.")
    return notes


def tell(results: Mapping[str, Any], folder: Path) -> None:
    """Print the table, the gain, the sentence and what to do next; draw the card.

    Args:
        results: of the race.
        folder: of the race.
    """
    print()
    table = results["tables"][0]
    finished = [row for row in table["rows"] if row[3]]
    others = [row for row in table["rows"] if not row[3]]
    columns = [0, 1, 2, 3, 4]
    rows = [[str(row[place]) for place in columns] for row in [*finished, *others]]
    print_table(table["title"], [table["columns"][place] for place in columns], rows, {len(finished) - 1})
    if results["gain"]:
        bars = [[bar["name"], f"{bar['value']:+.1f}", _bar(bar["value"]), _range(bar)] for bar in results["gain"]]
        print_table("Where the gain comes from, in points", ["part", "points", "", "95 % interval"], bars)
    for note in results["notes"]:
        print(note)
    times = results["chart"]["worth"]
    if times is not None:
        print(
            f"At {times['rate']:g}, {results['arelu']} is worth {times['words']}: the original is as accurate at so "
            "many times the rate."
        )
    print(f"\n{results['sentence']}\n")
    print(f"made again by: {results['command']}\nnext:")
    for command in results["next"]:
        print(f"  {command}")
    draw_card(results, folder / "card.png")


def _bar(value: float) -> str:
    return ("+" if value >= 0 else "-") * min(20, round(abs(value)))


def _range(bar: Mapping[str, Any]) -> str:
    return f"{bar['low']:+.1f} to {bar['high']:+.1f}" if "low" in bar else "one seed"


def draw_card(results: Mapping[str, Any], path: Path) -> None:
    """Draw the sentence and the chart, 1200 × 630 pixels, for a slide or a post.

    Args:
        results: of the race.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from arelu_meta.runs.curves import COLOURS

    figure = Figure(figsize=(12, 6.3), facecolor="white")
    FigureCanvasAgg(figure)
    text = _plain(results["sentence"])
    wrapped = textwrap.fill(text, 92)
    figure.text(0.04, 0.955, wrapped, fontsize=15, va="top", linespacing=1.35, color="#1a1a1a")
    axes = figure.add_axes((0.075, 0.115, 0.885, 0.80 - 0.048 * (wrapped.count("\n") + 1)))
    chart = results["chart"]
    for colour, one in zip(COLOURS, chart["series"], strict=False):
        axes.plot(one["x"], one["y"], marker="o", color=colour, label=_plain(one["name"]), linewidth=2.2)
        axes.fill_between(one["x"], one["low"], one["high"], color=colour, alpha=0.13, linewidth=0)
        if len(one["x"]) == 1:
            axes.errorbar(
                one["x"], one["y"], [[one["y"][0] - one["low"][0]], [one["high"][0] - one["y"][0]]], color=colour
            )
    axes.axhline(chart["probe"], color="0.35", linestyle="--", label="probe alone")
    axes.axhline(chart["chance"], color="0.65", linestyle=":", label="chance")
    axes.set_xscale("log")
    times = chart["worth"]
    if times is not None and times["sign"] == "=" and times["times"] > 1:
        axes.annotate(
            "",
            (times["rate"] * times["times"], times["accuracy"]),
            (times["rate"], times["accuracy"]),
            arrowprops={"arrowstyle": "->", "linewidth": 1.8, "color": "0.25"},
        )
        middle = times["rate"] * math.sqrt(times["times"])
        axes.annotate(
            f"worth {times['words']}", (middle, times["accuracy"]), (0, 7), textcoords="offset points", ha="center"
        )
    axes.set(xlabel="learning rate", ylabel="test accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=11, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.text(0.96, 0.02, "arelu-meta race", fontsize=10, ha="right", color="0.5")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def _plain(text: str) -> str:
    """Take a text as it is: matplotlib reads mathematics between dollar signs."""
    return text.replace("$", r"\$")
