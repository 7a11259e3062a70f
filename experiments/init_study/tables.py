"""The tables of the study of starts, from the runs that have ended."""

from collections.abc import Sequence
from typing import Any

from arelu_meta.runs.progress import print_table
from arelu_meta.statistics import mean_interval
from experiments.init_study.study import Rows, StudyConfig, chosen_rate, trial_of


def print_tables(config: StudyConfig, rows: Rows) -> None:
    """Print, for each set and optimiser, the first seed over all rates, and the seeds paired with the original.

    Args:
        config: a stage of the study.
        rows: the runs that have ended.
    """
    for data, per_class in zip(config.data, config.per_class, strict=True):
        for optimizer, rates, small in zip(config.optimizers, config.rates, config.small_rates, strict=True):
            about = f"{data}, {per_class} a class, {config.image_size} px, {optimizer}"
            one = _Set(config, rows, data, per_class, optimizer)
            _show(config, f"{about}: test accuracy (%), seed 0", one.screening(sorted(rates)))
            _show(config, f"{about}: validation accuracy (%) after each epoch at {small:g}", one.by_epoch(small))
            if config.seeds > 1:
                _show(config, f"{about}: {config.seeds} seeds, paired with {config.reference}", one.paired(small))


def _show(config: StudyConfig, title: str, table: list[list[str]]) -> None:
    if not config.markdown:
        print_table(title, table[0], table[1:])
        return
    print(f"\n**{title}**\n")
    for number, row in enumerate(table):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("| --- |" + " ---: |" * (len(row) - 1))


class _Set:
    """The runs on one set with one optimiser."""

    def __init__(self, config: StudyConfig, rows: Rows, data: str, per_class: int, optimizer: str) -> None:
        self.config, self.rows = config, rows
        self.data, self.per_class, self.optimizer = data, per_class, optimizer

    def accuracy(self, start: str, lr: float, seed: int) -> float | None:
        """Give a run's test accuracy in per cent; None if it has not ended."""
        row = self._row(start, lr, seed)
        return None if row is None else 100 * float(row["test_accuracy"])

    def _row(self, start: str, lr: float, seed: int) -> dict[str, Any] | None:
        return self.rows.get(trial_of(self.config, self.data, self.per_class, self.optimizer, start, lr, seed).key)

    def chosen(self, start: str) -> float | None:
        """Give the rate that validation images chose."""
        return chosen_rate(self.config, self.rows, self.data, self.per_class, self.optimizer, start)

    def screening(self, rates: Sequence[float]) -> list[list[str]]:
        """List every start over every rate, with its test accuracy at the rate chosen on validation images."""
        table = [["start", *(f"{lr:g}" for lr in rates), "chosen", "there"]]
        for start in self.config.starts:
            best = self.chosen(start)
            cells = [_cell(self.accuracy(start, lr, 0)) for lr in rates]
            there = _cell(None if best is None else self.accuracy(start, best, 0))
            table.append([start, *cells, "" if best is None else f"{best:g}", there])
        return table

    def by_epoch(self, lr: float) -> list[list[str]]:
        """List every start's validation accuracy epoch by epoch, the mean over the seeds that have ended."""
        table = [["start", *(str(epoch + 1) for epoch in range(self.config.epochs)), "seeds"]]
        for start in self.config.starts:
            found = [self._row(start, lr, seed) for seed in range(self.config.seeds)]
            courses = [row["by_epoch"] for row in found if row is not None and "by_epoch" in row]
            means = [100 * sum(values) / len(values) for values in zip(*courses, strict=True)]
            table.append([start, *(map(_cell, means or [None] * self.config.epochs)), str(len(courses))])
        return table

    def paired(self, small: float) -> list[list[str]]:
        """List every start's mean over the seeds at both rates, and its difference from the original's, paired."""
        header = ["start"]
        for what in (f"at {small:g}", "at its chosen rate"):
            header += [what, "seeds", "difference (95 % interval)"]
        table = [header]
        for start in self.config.starts:
            row = [start]
            for rates in ((small, small), (self.chosen(start), self.chosen(self.config.reference))):
                row += self._compared(start, *rates)
            table.append(row)
        return table

    def _compared(self, start: str, rate: float | None, reference_rate: float | None) -> list[str]:
        if rate is None or reference_rate is None:
            return ["", "0", ""]
        pairs = [
            (self.accuracy(start, rate, seed), self.accuracy(self.config.reference, reference_rate, seed))
            for seed in range(self.config.seeds)
        ]
        own = [mine for mine, _ in pairs if mine is not None]
        differences = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
        cells = [_cell(sum(own) / len(own) if own else None), str(len(own))]
        if start == self.config.reference or len(differences) < 2:
            return [*cells, ""]
        mean, low, high = mean_interval(differences)
        return [*cells, f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
