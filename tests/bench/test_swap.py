"""What `arelu-meta bench swap` measures."""

import json
from pathlib import Path

import pytest
import timm
import torch

from arelu_meta.bench.swap import PEER, SMALLEST, swap_rows
from arelu_meta.cli import main


def test_a_row_compares_a_swap_with_a_tenth_of_creating_the_model_and_one_forward() -> None:
    threads = torch.get_num_threads()
    (row,) = swap_rows(["test_resnet"], rounds=2)
    assert (row.case, row.contender, row.peer, row.rounds) == ("test_resnet", "swap", PEER, 2)
    assert row.median_ms > 0
    assert row.ratio_low <= row.ratio_to_peer <= row.ratio_high
    assert torch.get_num_threads() == threads


def test_every_case_is_a_model_of_its_file() -> None:
    for file, name in SMALLEST.items():
        assert name in timm.list_models(module=file)


def test_the_command_prints_how_many_keep_the_line_and_writes_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "swap", "--case", "test_vit", "--rounds", "1", "--device", "cpu"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert (row["case"], row["peer"]) == ("test_vit", PEER)
    said = capsys.readouterr().out
    ratio = f"{row['ratio_to_peer']:.2f}"
    assert f"of 1 models are swapped within {PEER}: median ratio {ratio}, largest {ratio} (test_vit)" in said
