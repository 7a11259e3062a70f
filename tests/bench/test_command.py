import json
from dataclasses import replace
from pathlib import Path

import pytest

from arelu_meta.bench import command, maml
from arelu_meta.bench.maml import has_torchopt
from arelu_meta.cli import main


def test_bench_op_writes_the_contracts_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = "16x10x12x12/float32/contiguous/forward_backward"
    arguments = ["bench", "op", "--case", case, "--rounds", "2", "--device", "cpu", "--json", str(tmp_path / "r.json")]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    assert {"case", "contender", "peer", "median_ms", "peak_bytes", "ratio_to_peer"} <= rows[0].keys()
    assert {row["case"] for row in rows} == {case}
    assert {row["peer"] for row in rows} == {"relu"}
    names = {row["contender"] for row in rows}
    assert {"relu", "relu-inplace", "prelu", "gelu", "arelu-plain", "arelu", "arelu-inplace"} <= names
    assert {"preserve-relu6", "preserve-gelu"} <= names
    assert next(row for row in rows if row["contender"] == "relu")["ratio_to_peer"] == 1
    out = capsys.readouterr().out
    assert case in out
    assert "cores" in out


def test_the_growth_of_a_case_is_many_and_what_is_measured_is_written_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    monkeypatch.setattr(maml, "GROWING_TASKS", (1, 2))
    monkeypatch.setattr(maml, "GROWING_STEPS", (1,))
    monkeypatch.setitem(maml.CASES, "authors-mnist-relu", replace(maml.CASES["authors-mnist-relu"], tasks=2))
    seen: list[int] = []
    monkeypatch.setattr(command, "write_json", lambda path, rows: seen.append(len(rows)))
    words = ["bench", "maml", "--growth", "true", "--case", "authors-mnist-relu", "--rounds", "1", "--device", "cpu"]
    assert main([*words, "--json", str(tmp_path / "r.json")]) == 0
    contenders = 3 if has_torchopt() else 2
    assert seen == [contenders, 2 * contenders, 3 * contenders]
    out = capsys.readouterr().out
    assert all(f"authors-mnist-relu/{what} vectorized: " in out for what in ("tasks1", "tasks2", "steps1"))
    assert "meta-steps a second" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bench", "opp"],
            "error: what: 'opp' is not allowed; give one of 'op', 'step', 'finetune', 'maml'",
        ),
        (["bench", "op", "--case", "nothing"], "error: case: 'nothing' is not known"),
        (["bench", "op", "--json", "no/such/folder/r.json"], "error: json: the folder of"),
        (
            ["bench", "maml", "--case", "omniglot-5w"],
            "error: case: 'omniglot-5w' is not known; nearest: 'omniglot-5w1s'",
        ),
        (["bench", "op", "--growth", "true"], "error: growth: true is not read by bench op; bench maml reads it"),
        (
            ["bench", "op", "--deterministic", "true"],
            "error: deterministic: true is not read by bench op; bench step reads it",
        ),
        (["bench", "op", "--rounds", "0"], "error: rounds: 0 is not allowed"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
