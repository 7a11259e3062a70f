from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from arelu_meta.claims.in_memory_training import Trial, load_tensors, shelved, train_one
from arelu_meta.claims.mnist import work
from arelu_meta.claims.study import ResultsLog, Row, announce, describe_seconds, key_of, probe, run_missing, write_rows
from arelu_meta.config import DataConfig
from arelu_meta.errors import InputError


@dataclass(frozen=True)
class _Trial:
    name: str
    seed: int = 0


_done: list[str] = []
_TRIALS = [[_Trial(name)] for name in "abcde"]


def _work(group: Sequence[_Trial]) -> list[list[Row]]:
    _done.extend(trial.name for trial in group)
    return [[{"epoch": 1, "accuracy": 0.5}] for _ in group]


def _work_until_c(group: Sequence[_Trial]) -> list[list[Row]]:
    if group[0].name == "c":
        raise KeyboardInterrupt
    return _work(group)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    _done.clear()


def test_a_study_stopped_half_way_goes_on_with_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt, match=r"2 of 5 runs are finished .* --run\.resume auto"):
        run_missing(ResultsLog(path), _TRIALS, _work_until_c, processes=1)
    assert _done == ["a", "b"]
    run_missing(ResultsLog(path), _TRIALS, _work, processes=1)
    assert _done == ["a", "b", "c", "d", "e"]
    run_missing(ResultsLog(path), _TRIALS, _work, processes=1)
    assert _done == ["a", "b", "c", "d", "e"]


def test_a_line_cut_off_by_a_kill_is_dropped_and_its_run_done_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    run_missing(ResultsLog(path), _TRIALS, _work, processes=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    _done.clear()
    run_missing(ResultsLog(path), _TRIALS, _work, processes=1)
    assert _done == ["e"]
    assert path.read_bytes() == whole


def test_a_group_of_which_a_part_is_done_runs_the_rest_alone(tmp_path: Path) -> None:
    log = ResultsLog(tmp_path / "runs.jsonl")
    run_missing(log, [[_Trial("a")]], _work, processes=1)
    run_missing(log, [[_Trial("a"), _Trial("b")]], _work, processes=1)
    assert _done == ["a", "b"]


def test_the_rows_of_several_runs_come_in_the_order_of_the_runs_with_their_own_columns(tmp_path: Path) -> None:
    log = ResultsLog(tmp_path / "runs.jsonl")
    log.append(_Trial("a", 1), [{"epoch": 1}, {"epoch": 2}])
    log.append(_Trial("b"), [{"epoch": 1}])
    assert log.of_all([_Trial("b"), _Trial("a", 1)]) == [
        {"name": "b", "seed": 0, "epoch": 1},
        {"name": "a", "seed": 1, "epoch": 1},
        {"name": "a", "seed": 1, "epoch": 2},
    ]
    with pytest.raises(KeyError):
        log.of_all([_Trial("c")])


def test_what_a_process_beside_this_one_noted_stays(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ours, theirs = ResultsLog(path), ResultsLog(path)
    for log, name in ((ours, "a"), (theirs, "b"), (ours, "c"), (theirs, "d")):
        log.append(_Trial(name), [{"epoch": 1}])
    assert [row["name"] for row in ResultsLog(path).of_all(_Trial(name) for name in "abcd")] == ["a", "b", "c", "d"]


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match=r"^run\.folder: .*runs\.jsonl' is damaged"):
        ResultsLog(tmp_path / "runs.jsonl")


def test_processes_share_the_runs_and_give_the_curves_of_one_after_the_other(tmp_path: Path) -> None:
    data = load_tensors(DataConfig(name="digits"), 0, side=28).share(0.1)
    first = Trial("digits", "mnist_linear", "arelu", "authors", "sgd", 0.1, 0, epochs=2)
    trials = [replace(first, seed=seed) for seed in range(4)]
    log = ResultsLog(tmp_path / "runs.jsonl")
    with shelved(data) as shelf:
        run_missing(log, [[trial] for trial in trials], partial(work, shelf, "cpu", False), processes=2)
    assert [log.rows[key_of(trial)] for trial in trials] == [train_one(trial, data) for trial in trials]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4


def test_the_time_ahead_is_said_in_a_person_s_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert [describe_seconds(value) for value in (0.2, 90, 150, 3000, 9000, 10**6)] == [
        "1 seconds",
        "90 seconds",
        "2.5 minutes",
        "50 minutes",
        "2.5 hours",
        "12 days",
    ]
    announce(3, 9, 600.0, 2)
    assert "3 of 9 runs to do, 2 at once: about 5.0 minutes" in capsys.readouterr().out


def test_what_a_longer_run_takes_is_told_from_two_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    done: list[int] = []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def run(length: int) -> None:
        clock[0] += 10 + 3 * length + (100 if not done else 0)  # the first call is slow
        done.append(length)

    seconds = probe(run, (2, 4))
    assert done == [2, 2, 4]
    assert [seconds(length) for length in (1, 2, 10)] == [16, 16, 40]


def test_rows_with_other_columns_leave_cells_empty(tmp_path: Path) -> None:
    write_rows(tmp_path / "runs.csv", [{"a": 1, "b": 2}, {"a": 3, "c": 4}])
    assert (tmp_path / "runs.csv").read_text() == "a,b,c\n1,2,\n3,,4\n"
