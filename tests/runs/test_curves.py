from pathlib import Path

from PIL import Image

from arelu_meta.runs.curves import draw_curves


def test_curves_are_a_picture_whose_lines_follow_the_numbers(tmp_path: Path) -> None:
    up = [{"epoch": 1, "accuracy": 0.1}, {"epoch": 2, "accuracy": 0.9}]
    down = [{"epoch": 1, "accuracy": 0.9}, {"epoch": 2, "accuracy": 0.1}]
    for name, rows in (("up", up), ("down", down)):
        draw_curves(tmp_path / f"{name}.png", rows, "epoch", {"accuracy": ["accuracy"]}, "a run")
    with Image.open(tmp_path / "up.png") as first, Image.open(tmp_path / "down.png") as second:
        assert first.size == second.size
        assert min(first.size) > 300
        assert first.convert("RGB").tobytes() != second.convert("RGB").tobytes()


def test_a_column_without_values_is_drawn_without_an_error(tmp_path: Path) -> None:
    rows = [{"step": 1, "train": 0.5, "validation": None}]
    draw_curves(tmp_path / "c.png", rows, "step", {"accuracy": ["train", "validation"]}, "no validation")
    assert (tmp_path / "c.png").stat().st_size > 1000
