import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta.cli import main


def test_demo_on_a_folder_of_ones_own_prints_one_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for channel, colour in enumerate(("red", "my green")):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for index in range(6):
            pixels = random.integers(0, 100, (40, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(tmp_path / "photos" / colour / f"{index}.jpg")
    folder = tmp_path / "demo"
    assert main(["demo", "--data.root", str(tmp_path / "photos"), "--run.folder", str(folder)]) == 0
    out = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    keys = [key.removesuffix("_accuracy") for key in results if key.endswith("_accuracy")]
    for told in ("probe", "held", "preserve", "paper"):
        assert any(told in key for key in keys), keys
    for key in keys:
        accuracy = results[f"{key}_accuracy"]
        assert results[f"{key}_low"] <= accuracy <= results[f"{key}_high"]
        assert f"{accuracy:.1%}" in out
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
    assert {run["test_accuracy"] for run in runs} == {results[key] for key in results if key.endswith("_accuracy")}
    with Image.open(folder / "demo.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_the_whole_demo_runs_on_embedded_data(tmp_path: Path) -> None:
    assert main(["demo", "--run.folder", str(tmp_path / "demo")]) == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["metatrain_arelu_n"] == 600
    assert {results[key] for key in results if key.startswith("finetune") and key.endswith("_n")} == {450}
