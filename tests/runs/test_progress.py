import io
import time

import pytest

from arelu_meta.runs import progress as module
from arelu_meta.runs.progress import print_table, progress


def test_piped_progress_is_plain_lines_with_rate_and_metric(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("reading", 4, "images") as bar:
        time.sleep(0.01)
        bar.advance(2, loss=0.25)
        bar.line("half way")
    out = capsys.readouterr().out
    assert "reading: 2/4 images" in out
    assert "images/s" in out
    assert "loss 0.25" in out
    assert "half way\n" in out
    assert "\x1b" not in out


def test_piped_progress_is_silent_between_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 1000, "images") as bar:
        for _ in range(1000):
            bar.advance(1)
    assert capsys.readouterr().out == ""


def test_piped_progress_without_a_metric_ends_with_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("reading", 4, "images") as bar:
        bar.advance(2)
    assert capsys.readouterr().out.endswith(" s left\n")


def test_a_table_whose_reader_stops_leaves_the_status_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):  # rich would exit with 1
        print_table("a title", ["name"], [["a"]])


def test_tables_show_brackets_of_class_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a title", ["name", "value"], [["[red]rose[/red]", "1"]])
    assert "[red]rose[/red]" in capsys.readouterr().out
