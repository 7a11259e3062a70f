import io
import time
from pathlib import Path

import pytest

from arelu_meta.cli import main
from arelu_meta.runs import progress as module
from arelu_meta.runs.progress import Forecast, print_table, progress


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


@pytest.mark.parametrize(
    ("seconds", "used", "line"),
    [
        (0.01, 1e9, None),
        (0.2, 1e9, "about 3 min of training, 1.0 of 8 GB of memory so far"),
        (5.0, 1e9, "about 82 min of training, 1.0 of 8 GB of memory so far; shorter: a smaller size"),
        (0.01, 5e9, "about 10 s of training, 5.0 of 8 GB of memory so far; shorter: a smaller size"),
    ],
)
def test_a_long_or_heavy_run_says_after_two_steps_what_it_takes_and_what_would_make_it_short(
    seconds: float, used: float, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.0 + seconds, 99.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "memory", lambda: (int(used), 8_000_000_000))
    forecast = Forecast(992, "a smaller size")
    assert [forecast.after(1), forecast.after(2), forecast.after(3)] == [
        None,
        line and line.replace("198 s", "3 min"),
        None,
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("finetune --train.epochs 3 --data.per_class 3 --model.pretrained false", "--train.mode probe (frozen"),
        ("metatrain --task.queries 2 --meta.steps 3 --eval.tasks 2 --eval.validation_tasks 2", "protonet"),
    ],
)
def test_the_forecast_of_a_run_names_flags_that_make_it_short(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_LONG_RUN", 0.0)
    monkeypatch.setattr(module, "_HALF_AN_HOUR", 0.0)
    tiny = ["--model.name", "mnist_linear", "--data.image_size", "8", "--run.pictures", "false"]
    assert main([*words.split(), *tiny, "--run.folder", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("about ")]
    assert says in line
