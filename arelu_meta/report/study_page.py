"""The page of a study of the paper's claims: what `arelu-meta claims` wrote into results.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from arelu_meta.report.figures import Series, curves, heatmap
from arelu_meta.report.page import (
    VERDICTS,
    Block,
    Budget,
    Cell,
    Chart,
    Fact,
    Page,
    Paragraph,
    Section,
    Table,
    Verdict,
    is_number,
    picture,
)
from arelu_meta.report.run_data import Run
from arelu_meta.report.run_sections import duration, ending

_ROWS = 25
T = TypeVar("T")


def study_page(run: Run, budget: Budget) -> Page:
    """Report a study.

    Args:
        run: its folder.
        budget: of pictures.
    """
    verdicts = each(run, "verdicts", verdict_of)
    sections = [
        Section("What was compared, and how to read it", _read_with(run)),
        Section("Curves", each(run, "curves", _curves)),
        Section("Heat maps", each(run, "heatmaps", _heatmap)),
        Section("Tables", each(run, "tables", table_of)),
        Section("Pictures", each(run, "images", lambda found: _picture(found, run.folder, budget))),
        Section("The statistics behind the verdicts", statistics(run)),
    ]
    name = run.text("study") or str(run.config.get("study") or run.name)
    filled = [section for section in sections if section.blocks]
    return Page(
        f"Study: {name}", "Study of a claim", _headline(run, verdicts), _facts(run), verdicts, [*filled, ending([run])]
    )


def _read_with(run: Run) -> list[Block]:
    """Say what was compared on what, and what a reader should know."""
    notes = run.results.get("notes") or []
    if not isinstance(notes, list):
        run.problems.append("results.json: notes is no list and is left out.")
        notes = []
    return [Paragraph(str(text)) for text in [run.text("headline"), *notes] if text]


def each(run: Run, name: str, make: Callable[[dict[str, Any]], T]) -> list[T]:
    """Make something of each entry of a list in results.json; what is damaged is said and left out."""
    entries = run.results.get(name) or []
    if not isinstance(entries, list):
        run.problems.append(f"results.json: {name} is no list and is left out.")
        return []
    made = []
    for number, entry in enumerate(entries, 1):
        try:
            made.append(make(entry))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            run.problems.append(f"results.json: entry {number} of {name} is damaged and left out.")
    return made


def verdict_of(found: dict[str, Any]) -> Verdict:
    """Read a verdict of results.json; a damaged one raises what it makes Python meet."""
    verdict = _of_v01(found) or str(found["verdict"])
    if verdict not in VERDICTS:
        raise ValueError(verdict)
    claim = str(found["claim"])
    sentence = str(found.get("sentence") or "")
    # The sentence stands below the claim, so the claim need not be in it.
    sentence = sentence.removeprefix(f"{claim}: ")
    numbers = {name: _number(found.get(name)) for name in ("difference", "low", "high", "margin")}
    return Verdict(
        claim,
        verdict,
        sentence[:1].upper() + sentence[1:],
        **numbers,
        unit=str(found.get("unit") or "points"),
        words=str(found.get("words") or verdict),
    )


def _of_v01(found: dict[str, Any]) -> str | None:
    """Translate a verdict of version 0.1, whose *does not hold* was level, behind, or neither by the interval."""
    low, margin = _number(found.get("low")), _number(found.get("margin"))
    level = low is not None and margin is not None and low > -margin
    high = _number(found.get("high"))
    behind = high is not None and margin is not None and high < -margin
    fails = "behind" if behind else "level" if level else "need more seeds"
    return {"holds": "ahead", "does not hold": fails, "cannot tell": "need more seeds"}.get(str(found["verdict"]))


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None


def _headline(run: Run, verdicts: Sequence[Verdict]) -> str:
    """Give the answer: the one claim's verdict, or how many have which."""
    if not verdicts:
        return "This study has no verdict: " + ("none was asked for." if run.results else _how_far(run))
    if len(verdicts) == 1:
        words = verdicts[0].words or verdicts[0].verdict
        return f"{words[:1].upper()}{words[1:]}: {verdicts[0].claim}."
    counts = {name: sum(one.verdict == name for one in verdicts) for name in VERDICTS}
    verbs = {name: (f"is {name}", f"are {name}") for name in VERDICTS} | {
        "need more seeds": ("needs more seeds", "need more seeds")
    }
    parts = [f"{count} {verbs[name][count != 1]}" for name, count in counts.items() if count]
    return f"Of {len(verdicts)} claims, {_joined(parts)}."


def _how_far(run: Run) -> str:
    ended = run.lines("runs.jsonl")
    counted = f" {ended} of its runs {'has' if ended == 1 else 'have'}." if ended else ""
    return f"it has not ended.{counted} The same command with --run.resume auto goes on."


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _facts(run: Run) -> list[Fact]:
    found = [Fact("Size", run.text("size"))] if run.text("size") else []
    if named := _runs_named(run):
        found.append(Fact("Runs", f"{named:,}", "all of them in runs.csv"))
    seeds = run.results.get("seeds")
    counted = len(seeds) if isinstance(seeds, list) else seeds
    if isinstance(counted, int) and not isinstance(counted, bool):
        found.append(Fact("Seeds", str(counted)))
    if run.number("seconds") is not None:
        found.append(Fact("Time", duration(run.number("seconds"))))
    return found


def _runs_named(run: Run) -> int:
    """Count a study's runs: as it says itself, for runs.csv can have 200,000 rows; else by their columns."""
    told = run.results.get("runs")
    if isinstance(told, int) and not isinstance(told, bool):
        return told if (run.folder / "runs.csv").is_file() else 0
    rows = run.rows("runs.csv")
    return len({tuple(row.get(name, "") for name in _identity(rows[0])) for row in rows}) if rows else 0


def _identity(row: dict[str, str]) -> list[str]:
    """Name the columns that tell one run from another; the others say what was read out, and when."""
    read = ("accuracy", "loss", "epoch", "step", "seconds", "value", "norm")
    return [name for name in row if not any(word in name for word in read)]


def table_of(found: dict[str, Any]) -> Table:
    """Read a table of results.json; a damaged one raises what it makes Python meet."""
    columns = [str(name) for name in found["columns"]]
    rows = [[_plain(cell) for cell in row] for row in found["rows"]]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("a row has another length than the header")
    return Table(str(found["title"]), columns, rows, note=str(found.get("note") or ""), csv=True, shown=_ROWS)


def _plain(cell: object) -> Cell:
    return cell if cell is None or isinstance(cell, str | int | float | bool) else str(cell)


def _curves(found: dict[str, Any]) -> Block:
    series = [
        Series(
            str(one["name"]),
            list(one["x"]),
            [_number(value) for value in one["y"]],
            [_number(value) for value in one.get("low") or ()],
            [_number(value) for value in one.get("high") or ()],
            dashed=one.get("dashed") is True,
        )
        for one in found["series"]
    ]
    if any(len(one.x) != len(one.y) for one in series):
        raise ValueError("x and y have not the same length")
    if not series:
        return Paragraph(f"{found['title']}: there is no curve, for no run has a course; see the notes above.")
    banded = any(len(one.low) for one in series)
    about_band = "Band: one standard deviation over seeds on either side of the mean." if banded else ""
    note = str(found.get("note") or about_band)
    log_x = found.get("log_x") is True
    return curves(str(found["title"]), str(found["x_label"]), str(found["y_label"]), series, log_x=log_x, note=note)


def _heatmap(found: dict[str, Any]) -> Chart:
    cells = [[_number(value) for value in row] for row in found["z"]]
    x, y = [_label(one) for one in found["x"]], [_label(one) for one in found["y"]]
    if len(cells) != len(y) or any(len(row) != len(x) for row in cells):
        raise ValueError("z does not fit x and y")
    title, note = str(found["title"]), str(found.get("note") or "")
    label = str(found.get("value_label") or "")
    return heatmap(
        title, str(found["x_label"]), str(found["y_label"]), x, y, cells, ".1f", label, top_down=True, note=note
    )


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _picture(found: dict[str, Any], folder: Path, budget: Budget) -> Block:
    title = str(found.get("title") or "Picture")
    path = (folder / str(found["file"])).resolve()
    if not path.is_relative_to(folder.resolve()):
        return Paragraph(f"{title}: its file lies outside the study's folder and is left out.", warning=True)
    return picture(path, title, str(found.get("alt") or title), budget)


def statistics(run: Run) -> list[Block]:
    """List every number behind the verdicts, one row a claim."""
    names = {
        "verdict": "verdict",
        "difference": "difference",
        "low": "95 % low",
        "high": "95 % high",
        "unit": "unit",
        "p": "p",
        "p_holm": "p after Holm",
        "effect_size": "effect size",
        "n": "pairs",
        "margin": "margin",
        "resplit": "test / train",
        "more_seeds": "more seeds",
        "seeds_needed": "pairs for 1 point",  # of version 0.1
    }
    found = run.results.get("verdicts")
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    used = {key: name for key, name in names.items() if any(one.get(key) is not None for one in entries)}
    if len(used) < 3:
        return []
    rows = [[str(one.get("claim", "")), *(_plain(one.get(key)) for key in used)] for one in entries]
    formats = {"difference": "+.2f", "95 % low": "+.2f", "95 % high": "+.2f", "p": ".2g", "p after Holm": ".2g"}
    formats |= {"effect size": "+.2f"}
    note = (
        "Differences are means over pairs of runs with the same seed, with the 95 % interval of the paired t (where "
        "every seed splits the data anew, of Nadeau and Bengio’s corrected resampled t, with a variance factor of 1/n "
        "+ test/train). Each claim is tested one-sidedly for ahead, for behind, and twice for level; p is twice the "
        "smallest, and Holm’s correction is over all claims: a false verdict, either way, stands in one study of "
        "twenty at most. More seeds: with so many the verdict would come four times in five, if the difference is as "
        "found. Effect size: the mean difference in standard deviations of the differences."
    )
    return [Table("Verdicts", ["claim", *used.values()], rows, formats, note, csv=True)]
