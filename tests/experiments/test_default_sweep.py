"""The sweep that the defaults are held against: its points, its file, its verdict."""

from pathlib import Path

import pytest

from arelu_meta.claims.study import ResultsLog
from arelu_meta.config import DataConfig, FinetuneConfig, ModelConfig, RunConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.defaults import settle, settle_rates
from arelu_meta.validation import validate
from experiments.default_sweep import sweep
from experiments.default_sweep.sweep import (
    DefaultsConfig,
    Point,
    config_of,
    default_point,
    everything,
    points,
    points_of,
    sweep_defaults,
    verdict,
)

DEFAULT = ("defaults", default_point("flowers17", 64, 0).lr)


def _log(path: Path, config: DefaultsConfig, accuracy: dict[tuple[str, float], float], left_out: int = 0) -> ResultsLog:
    """Make runs up: 0.5, where nothing else is given."""
    log = ResultsLog(path)
    made = [
        (cell, point) for seed in range(config.seeds) for cell, point in points_of(config, "flowers17", seed).items()
    ]
    for cell, point in made[left_out:]:
        log.append(point, [{"test_accuracy": accuracy.get(cell, 0.5)}])
    return log


def test_a_sweep_has_twelve_points_a_set_and_the_defaults_are_the_first() -> None:
    config = DefaultsConfig()
    listed = list(points(config))
    assert len(listed) == len(set(listed)) == 24
    assert len(points_of(config, "flowers17", 0)) == 12
    assert next(iter(points_of(config, "flowers17", 0))) == DEFAULT
    assert listed[0] == default_point("flowers17", 64, 0)


def test_the_defaults_point_is_what_finetune_does_when_only_data_and_activation_are_given() -> None:
    config = config_of(default_point("flowers17", 64, 0), "run")
    validate(config)
    untouched = FinetuneConfig(
        run=RunConfig(folder="run", pictures=False),
        data=DataConfig(root="flowers17", image_size=64),
        model=ModelConfig(activation="arelu"),
    )
    assert settle_rates(settle(config), 680) == settle_rates(settle(untouched), 680)


def test_the_verdict_compares_means_and_waits_for_every_run(tmp_path: Path) -> None:
    config = DefaultsConfig(seeds=2)
    near = _log(tmp_path / "near", config, {DEFAULT: 0.895, ("plain", 3e-3): 0.9})
    assert verdict(config, near, "flowers17").endswith("0.5 points below the best (plain, 0.003): within 1 point")
    far = _log(tmp_path / "far", config, {DEFAULT: 0.87, ("plain", 3e-3): 0.9})
    assert "3.0 points below" in verdict(config, far, "flowers17")
    assert "NOT" in verdict(config, far, "flowers17")
    most = _log(tmp_path / "most", config, {}, left_out=1)
    assert verdict(config, most, "flowers17") == "flowers17: 1 of 24 runs are missing: no verdict"


def test_runs_of_other_defaults_are_shown_beside(tmp_path: Path) -> None:
    log = ResultsLog(tmp_path / "results.jsonl")
    for seed, plain, epochs, lr, accuracy in [
        (0, False, 6, 0.01, 0.8),
        (1, False, 6, 0.01, 0.9),
        (2, False, 6, 0.01, 0.1),
        (0, True, 12, 0.5, 0.7),
    ]:
        log.append(Point("flowers17", 64, seed, plain, epochs, lr, "best"), [{"test_accuracy": accuracy}])
    log.append(Point("flowers17", 64, 0, False, 6, 0.01, "last"), [{"test_accuracy": 0.6}])
    log.append(Point("flowers17", 128, 0, False, 6, 0.01, "best"), [{"test_accuracy": 0.1}])
    titles, rows = everything(DefaultsConfig(seeds=2), log, "flowers17")
    assert titles == ["way", "0.01", "0.5"]
    assert rows == [
        ["defaults, 6 epochs, best", "85.0 (2)", ""],
        ["defaults, 6 epochs, last", "60.0 (1)", ""],
        ["plain, 12 epochs, best", "", "70.0 (1)"],
    ]


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Point] = []

    def run(point: Point) -> dict[str, float]:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(point)
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(sweep, "run_point", run)
    config = DefaultsConfig(results=str(tmp_path / "results.jsonl"), data=["flowers17"])
    with pytest.raises(KeyboardInterrupt):
        sweep_defaults(config)
    first, ran[:] = list(ran), []

    def run_rest(point: Point) -> dict[str, float]:
        ran.append(point)
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(sweep, "run_point", run_rest)
    sweep_defaults(config)
    assert len(first) == 5
    assert len(ran) == 7
    assert not set(first) & set(ran)


def test_a_damaged_file_of_results_is_named_by_its_flag(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match=r"^results: .*results\.jsonl' is damaged"):
        sweep_defaults(DefaultsConfig(results=str(tmp_path / "results.jsonl"), table=True))
