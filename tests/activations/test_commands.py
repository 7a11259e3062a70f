"""`arelu-meta activations`: its table, and its picture of one panel a name, the function and the true derivative."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from arelu_meta.activations import commands
from arelu_meta.activations.commands import curve, plot_activations
from arelu_meta.activations.registry import create_activation, list_activations
from arelu_meta.cli import main
from arelu_meta.errors import InputError


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    figures: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            figures.append(self)

    monkeypatch.setattr(commands, "Figure", Recorded)
    return figures


def test_a_curve_holds_the_values_and_the_derivative() -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    y, slope = curve(create_activation("tanh"), x)
    torch.testing.assert_close(y, x.tanh())
    torch.testing.assert_close(slope, 1 - x.tanh() ** 2)
    assert not y.requires_grad
    assert not x.requires_grad


def test_a_curve_leaves_its_input_alone_even_in_place() -> None:
    x = torch.linspace(-3, 3, 50)
    before = x.clone()
    curve(create_activation("sigmoid", inplace=True), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_files_ending_sets_the_format(tmp_path: Path, ending: str, start: bytes) -> None:
    written = plot_activations(tmp_path / f"some.{ending}", ["relu", "arelu"])
    assert written.read_bytes().startswith(start)


def test_each_panel_shows_its_function_and_derivative(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_activations(tmp_path / "two.png", ["ReLU", "softmax", "elu"])
    relu, softmax, elu = drawn[0].axes
    curves = {line.get_label(): line.get_xydata() for line in relu.get_lines()}
    x = torch.linspace(-4, 4, 400, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(curves["function"])[:, 1], x.relu())
    torch.testing.assert_close(torch.tensor(curves["derivative"])[:, 1], (x > 0).double())
    assert [text.get_text() for text in softmax.texts] == ["looks across\nchannels"]
    assert softmax.get_lines() == [] or list(softmax.get_lines()) == []
    assert len(elu.get_lines()) == len(relu.get_lines())


def test_drawing_twice_gives_the_same_picture_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = plot_activations(tmp_path / "first.png", ["apl", "rrelu"]).read_bytes()
    torch.rand(3)
    torch.set_rng_state(before)
    second = plot_activations(tmp_path / "second.png", ["apl", "rrelu"]).read_bytes()
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("file", ["picture.foo", "picture", "."])
def test_a_file_without_a_picture_format_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(InputError, match=r"^plot: '.*' ends in no picture format; allowed are .*\.png"):
        plot_activations(tmp_path / file, ["relu"])


def test_a_missing_folder_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written .*give a file in a folder that exists"):
        plot_activations(tmp_path / "missing" / "some.png", ["relu"])


def test_an_unknown_name_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest: 'relu'"):
        plot_activations(tmp_path / "some.png", ["rellu"])
    with pytest.raises(InputError, match="nothing to draw"):
        plot_activations(tmp_path / "some.png", [])


def test_the_table_names_every_activation_and_alias_once_and_the_picture_has_a_panel_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    assert main(["activations", "--plot", str(tmp_path / "all.png")]) == 0
    words, listed = capsys.readouterr().out.split(), list_activations()
    for entry in listed:
        for name in (entry.name, *entry.aliases):
            assert words.count(name) == 1, name
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert [title for title in titles if title] == [entry.name for entry in listed]
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_a_picture_format_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activations", "--plot", str(tmp_path / "all.txt")]) == 2
    assert capsys.readouterr().err.startswith("error: plot: ")
