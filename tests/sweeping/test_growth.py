from pathlib import Path

import pytest

from arelu_meta.sweeping import growth
from arelu_meta.sweeping.spec import read_spec


def test_rows_hold_milliseconds_a_run_and_their_ratio_to_runs_by_hand() -> None:
    found = {growth._PEER: growth.Measured(0.0, 4.0, 1.0), "sweep, 2 workers": growth.Measured(9.0, 3.0, 1.5)}
    peer, sweep = growth.rows_of(found, 6)
    assert (peer.median_ms, peer.ratio_to_peer, peer.rounds) == (4000.0, 1.0, 6)
    assert (sweep.median_ms, sweep.ratio_to_peer, sweep.contender) == (3000.0, 0.75, "sweep, 2 workers")


def test_the_file_that_it_sweeps_is_one_of_as_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_run", lambda words: None)
    with pytest.raises(ValueError, match="empty"):
        growth.by_sweep(tmp_path, 5, 1)  # nothing was run, so there is no first run
    assert len(read_spec(str(tmp_path / "spec.yaml")).parameters["run.seed"].values) == 5


def test_every_recipe_of_a_sweep_is_one_that_can_be_read() -> None:
    recipes = sorted((Path(__file__).parents[2] / "configs" / "sweep").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert read_spec(str(recipe)).parameters
        assert f"arelu-meta sweep configs/sweep/{recipe.name}" in recipe.read_text()
