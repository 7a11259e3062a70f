from pathlib import Path

import pytest

from arelu_meta.bench import claims
from arelu_meta.claims import mnist_study
from arelu_meta.claims.small_nets import Trial


def test_both_contenders_are_timed_in_every_round(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(claims.CASES, "tiny", 240)
    monkeypatch.setattr(claims, "cores", lambda: 1)
    rows = claims.claims_rows("tiny", rounds=2, seeds=1)
    assert [(row.contender, row.peer, row.rounds) for row in rows] == [
        ("study", "dataloader", 2),
        ("dataloader", "dataloader", 2),
    ]
    assert rows[1].ratio_to_peer == 1
    assert all(row.median_ms > 0 for row in rows)


def test_the_case_is_five_seeds_by_four_rates_which_a_gpu_stacks_as_one() -> None:
    trials = [
        Trial("mnist", "mnist_conv", "arelu", "authors", "sgd", lr, seed, 1) for lr in claims.RATES for seed in range(5)
    ]
    assert [len(group) for group in mnist_study.stack(trials)] == [20]
