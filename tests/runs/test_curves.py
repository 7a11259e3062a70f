import os
import subprocess
import sys
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


def test_a_home_that_is_read_only_puts_nothing_on_stderr(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from arelu_meta.runs.curves import draw_curves\n"
        "draw_curves(Path('c.png'), [{'epoch': 1, 'loss': 1.0}], 'epoch', {'loss': ['loss']}, 'a title')\n"
    )
    (tmp_path / "file").touch()  # a folder cannot be made below a file, by root neither
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CONFIG_HOME"}
    environment |= {"MPLCONFIGDIR": str(tmp_path / "file" / "x"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "c.png").is_file()
