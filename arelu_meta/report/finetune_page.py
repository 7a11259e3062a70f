"""The page of a fine-tuning run."""

from arelu_meta.report.figures import heatmap
from arelu_meta.report.page import (
    Block,
    Budget,
    Cell,
    Chart,
    Fact,
    Page,
    Paragraph,
    Section,
    Table,
    is_number,
    percent,
    picture,
)
from arelu_meta.report.run_data import Run, column, number_of
from arelu_meta.report.run_sections import (
    described,
    ending,
    facts_around,
    figures_section,
    learning_section,
    scalar_sections,
    seen,
)

_MATRIX_CLASSES = 100
_ROWS = 20


def finetune_page(run: Run, budget: Budget) -> Page:
    """Report a fine-tuning run.

    Args:
        run: its folder; it need not have ended.
        budget: of pictures.
    """
    sections = [
        learning_section(run),
        *class_sections(run),
        *mistake_sections(run, budget),
        *scalar_sections(run),
        *figures_section(run),
    ]
    return Page(run.name, "Fine-tuning run", headline(run), facts(run), (), [*sections, ending([run])])


def headline(run: Run) -> str:
    """Say in a sentence how good the model is.

    Args:
        run: any.
    """
    accuracy = run.number("test_accuracy")
    if accuracy is None:
        return unfinished(run, "epoch", run.config.get("train.epochs"))
    counted = run.results.get("test_n")
    images = f"{counted:,} test images" if isinstance(counted, int) else "the test images"
    return f"{described(run)} gets {percent(accuracy)} of {images} right.{seen(run)}"


def unfinished(run: Run, unit: str, planned: object) -> str:
    """Say how far a run has come that has not ended.

    Args:
        run: without results.
        unit: epoch or step.
        planned: how many there would be; None for unknown.
    """
    rows = run.rows("metrics.csv")
    if not rows:
        return f"{described(run)}: this run has not ended, and no {unit} of it was written down."
    last = rows[-1]
    of = f" of {planned}" if isinstance(planned, int) else ""
    validation = number_of(last.get("validation_accuracy"))
    so_far = f"; validation accuracy so far {percent(validation)}" if validation is not None else ""
    return f"{described(run)}: this run has not ended. It has come to {unit} {last.get(unit, '?')}{of}{so_far}."


def facts(run: Run) -> list[Fact]:
    """Pick the numbers that are seen at first sight.

    Args:
        run: any.
    """
    found = []
    worst = run.number("worst_recall")
    if worst is not None:
        found.append(Fact("Worst class", percent(worst), f"recall of {run.text('worst_class')}"))
    if is_number(run.results.get("ece")):
        found.append(Fact("Calibration error", percent(run.number("ece")), "0 is best"))
    validation = column(run.rows("metrics.csv"), "validation_accuracy")
    if run.number("best_epoch") is not None and any(value is not None for value in validation):
        best = percent(run.number("validation_accuracy"))
        found.append(
            Fact("Epoch kept", f"{run.number('best_epoch'):g} of {run.number('epochs') or 0:g}", f"validation {best}")
        )
    return facts_around(run, found)


def class_sections(run: Run) -> list[Section]:
    """Show what was taken for what, and how good each class is.

    Args:
        run: any.
    """
    blocks: list[Block] = []
    if chart := confusion_chart(run):
        blocks.append(chart)
    pairs = run.rows("confused_pairs.csv", ("true", "predicted", "images"))
    if pairs:
        columns = ["true class", "taken for", "images", "share of the true class"]
        rows: list[list[Cell]] = [
            [row["true"], row["predicted"], number_of(row["images"]), number_of(row.get("share_of_true"))]
            for row in pairs
        ]
        formats = {columns[3]: ".1%", "images": ".0f"}
        blocks.append(Table("Most confused pairs", columns, rows, formats, shown=10))
    classes = run.rows("per_class.csv", ("class", "recall"))
    if classes:
        columns = ["class", "recall", "precision", "F1", "test images"]
        kept = ("recall", "precision", "f1", "support")
        rows = [[row["class"], *(number_of(row.get(name)) for name in kept)] for row in classes]
        formats = {"recall": ".1%", "precision": ".1%", "F1": ".1%", "test images": ".0f"}
        blocks.append(Table("Each class", columns, rows, formats, shown=_ROWS))
    return [Section("Classes", blocks)] if blocks else []


def confusion_chart(run: Run) -> Chart | None:
    """Draw the confusion matrix; None where there is none, or more classes than can be seen.

    Args:
        run: any.
    """
    rows = run.matrix("confusion.csv")
    if not rows:
        return None
    names, counts = [row[0] for row in rows[1:]], [[number_of(cell) for cell in row[1:]] for row in rows[1:]]
    if any(len(row) != len(names) or None in row for row in counts) or not names:
        run.problems.append("confusion.csv is damaged and left out.")
        return None
    if len(names) > _MATRIX_CLASSES:
        return None
    shares = [[(value or 0) / max(sum(cell or 0 for cell in row), 1) for value in row] for row in counts]
    texts = [["" if not value else f"{value:g}" for value in row] for row in counts]
    return heatmap(
        "Confusion matrix",
        "predicted",
        "true",
        names,
        names,
        shares,
        ".0%",
        "share of the true class",
        limits=(0.0, 1.0),
        top_down=True,
        text=texts,
        note="In the cells: test images. Colour: share of the true class. A perfect model has the diagonal alone.",
    )


def mistake_sections(run: Run, budget: Budget) -> list[Section]:
    """Show the most confident mistakes.

    Args:
        run: any.
        budget: of pictures.
    """
    rows = run.rows("mistakes.csv", ("image", "true", "predicted"))
    blocks: list[Block] = []
    told = "; ".join(f"{row['true']} taken for {row['predicted']}" for row in rows[:6])
    if rows and (run.folder / "mistakes.png").is_file():
        alt = f"The most confident mistakes as small photographs with their names. {told}."
        blocks.append(picture(run.folder / "mistakes.png", "The most confident mistakes", alt, budget))
    if rows:
        cells: list[list[Cell]] = [
            [row["image"], row["true"], row["predicted"], number_of(row.get("probability"))] for row in rows[:500]
        ]
        columns = ["image", "true class", "taken for", "probability"]
        note = "" if len(rows) <= 500 else f"The first 500 of {len(rows)}; mistakes.csv has them all."
        blocks.append(
            Table("Mistakes, the most confident first", columns, cells, {"probability": ".1%"}, note, shown=10)
        )
    elif run.results.get("mistakes") == 0:
        blocks.append(Paragraph("There is no mistake on the test images."))
    return [Section("Mistakes", blocks)] if blocks else []
