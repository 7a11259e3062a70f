from pathlib import Path

import pytest

from arelu_meta import list_activations
from arelu_meta.cli import main


def test_the_table_names_every_activation_and_the_picture_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["activations", "--plot", str(tmp_path / "all.png")]) == 0
    out = capsys.readouterr().out
    for entry in list_activations():
        assert f" {entry.name} " in out
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_a_picture_format_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activations", "--plot", str(tmp_path / "all.txt")]) == 2
    assert capsys.readouterr().err.startswith("error: plot: ")
