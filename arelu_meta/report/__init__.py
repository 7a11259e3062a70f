"""One self-contained HTML page of a run, a study or a sweep, with Markdown and CSV beside it."""

from arelu_meta.report.report import make_page, write_report

__all__ = ["make_page", "write_report"]
