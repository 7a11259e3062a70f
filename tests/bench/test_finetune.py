"""`bench finetune`: the rows' shape, what is kept for the backward, and that all train on the same images."""

from pathlib import Path

import pytest
import torch

from arelu_meta.bench import finetune
from arelu_meta.bench.finetune import Case, finetune_cases, finetune_rows, images_per_second, write_photographs


# timm's data set leaves the files that it reads to be closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_every_contender_has_a_row_and_keeps_what_its_activation_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "BATCHES", 2)
    rows = {row.contender: row for row in finetune_rows("small", Case("resnet18", 32, 2, "float32"), rounds=1)}
    assert list(rows) == ["timm", "relu", "relu-decoding", "relu-contiguous", "arelu", "preserve"]
    assert all(row.median_ms > 0 and row.peer == "timm" and row.case == "small" for row in rows.values())
    peaks = {name: row.peak_bytes / rows["timm"].peak_bytes for name, row in rows.items()}
    assert peaks["relu"] == pytest.approx(1, abs=0.02)
    assert peaks["arelu"] == pytest.approx(1, abs=0.02)
    assert peaks["relu"] < peaks["preserve"]


def test_the_larger_cases_are_a_gpus() -> None:
    assert list(finetune_cases(torch.device("cpu"))) == [
        "resnet18/128px/batch32",
        "tf_efficientnet_lite0/128px/batch32",
    ]
    assert "resnet18/224px/batch256/bf16" in finetune_cases(torch.device("cuda"))


def test_an_epochs_time_is_said_as_images_a_second() -> None:
    assert images_per_second("resnet18/128px/batch32", 2000.0) == 96.0


def test_the_photographs_are_a_folder_of_two_classes(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", 5)
    names = sorted(path.relative_to(tmp_path / "photographs").as_posix() for path in tmp_path.rglob("*.jpg"))
    assert names == ["even/0000.jpg", "even/0002.jpg", "even/0004.jpg", "odd/0001.jpg", "odd/0003.jpg"]
