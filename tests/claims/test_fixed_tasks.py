from pathlib import Path

import pytest
from PIL import Image

from arelu_meta.cli import main


def _folder(root: Path, classes: int, images: int) -> Path:
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(images):
            Image.new("L", (8, 8), number).save(root / f"class {label}" / f"{number}.png")
    return root


@pytest.mark.parametrize(("classes", "images"), [(4, 20), (10, 6)])
@pytest.mark.parametrize(
    ("study", "needed"),
    [
        (
            ["small-lr", "--pipeline", "maml"],
            "1 image to learn from and 15 to be judged on; give at least 10 classes of 16 images",
        ),
        (
            ["meta", "--meta.shots", "5"],
            "5 images to learn from and 5 to be judged on; give at least 10 classes of 10 images",
        ),
    ],
)
def test_data_that_is_too_small_for_a_study_is_named_and_not_a_flag_that_the_study_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], study: list[str], needed: str, classes: int, images: int
) -> None:
    root = _folder(tmp_path / "few", classes, images)
    words = ["claims", *study, "--data.root", str(root), "--run.folder", str(tmp_path / "study")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: data.root: {str(root)!r} is too small for this study's tasks of 5 classes, {needed}"
    assert not (tmp_path / "study").exists()
