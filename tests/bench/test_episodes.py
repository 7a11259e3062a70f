"""What `arelu-meta bench episodes` measures."""

import json
from pathlib import Path

import pytest

from arelu_meta.bench.episodes import CASES, CONTENDERS, PEER, TASKS
from arelu_meta.cli import main


def test_the_command_counts_tasks_a_second_and_writes_the_contracts_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    arguments = ["bench", "episodes", "--case", "digits-5w1s", "--rounds", "1", "--device", "cpu"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["contender"] for row in rows] == list(CONTENDERS)
    assert {row["case"] for row in rows} == {"digits-5w1s"}
    assert {row["peer"] for row in rows} == {PEER}
    assert next(row for row in rows if row["contender"] == PEER)["ratio_to_peer"] == 1
    assert rows[0]["peak_bytes"] == TASKS * 80 * (8 * 8 * 4 + 8)
    assert capsys.readouterr().out.count("tasks a second") == len(CONTENDERS)


def test_mnist_is_the_case_of_the_claim() -> None:
    assert CASES["mnist-5w1s"].data == "mnist"
