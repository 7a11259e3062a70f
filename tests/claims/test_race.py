"""The race: it keeps to its budget, chooses on validation images, goes on where it was stopped, and says what to do."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.claims import race as racing
from arelu_meta.claims.race import (
    ALL,
    ORIGINAL,
    PROBE,
    RECIPES,
    Plan,
    Race,
    Track,
    Trial,
    halve,
    race,
    read_duration,
)
from arelu_meta.claims.race_results import Row, conclude, estimate
from arelu_meta.claims.study import ResultsLog
from arelu_meta.cli import main
from arelu_meta.config import DataConfig, RaceConfig, RaceModelConfig, RaceSettings, RunConfig
from arelu_meta.errors import InputError

GENTLE = "preserve, gates at 0.1"
FACTS = {"data": "photos", "classes": 12, "images": 480, "resplit": 0.2, "chance": 1 / 12, "test_n": 100}


# --- Durations and halving


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("1h", 3600), ("90s", 90), ("1h30m", 5400), ("8h", 28800)])
def test_a_budget_is_read_as_a_person_writes_it(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["15", "m", "1.5h", "-1m", "1m1h", "15 m", "0s", "4s"])
def test_a_budget_that_is_no_time_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["race", "digits", "--race.budget", text]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: race.budget: ")
    assert said.count("\n") == 1


def test_halving_keeps_the_best_and_the_best_of_the_original_of_arelu_and_of_the_others() -> None:
    scores = {(name, lr): (0.5, -1.0) for name in ("norm", "bias") for lr in (1e-2, 1e-1)}
    scores |= {(ORIGINAL, 1e-3): (0.1, -9.0), (ORIGINAL, 1e-2): (0.2, -9.0), ("open", 1e-3): (0.05, -9.0)}
    kept = halve(scores, 2)
    assert kept[:2] == [("bias", 1e-2), ("bias", 1e-1)]
    assert kept[2:] == [(ORIGINAL, 1e-2), ("open", 1e-3)]
    assert halve(scores, 1) == [("bias", 1e-2), (ORIGINAL, 1e-2), ("open", 1e-3)]


def test_of_equal_accuracies_the_lower_loss_is_better() -> None:
    assert halve({("norm", 1e-2): (0.5, -2.0), ("norm", 1e-3): (0.5, -1.0)}, 1) == [("norm", 1e-3)]


# --- What it concludes


def final(recipe: str, lr: float, validation: list[float], test: list[float]) -> list[Row]:
    return [
        {
            "recipe": recipe,
            "lr": lr,
            "seed": seed,
            "epochs": 6,
            "phase": "final",
            "validation_accuracy": one,
            "validation_loss": 1.0,
            "test_accuracy": other,
        }
        for seed, (one, other) in enumerate(zip(validation, test, strict=True), 1)
    ]


THREE = [0.80, 0.81, 0.82]


def test_the_sentence_says_what_to_do_with_which_accuracy_and_what_arelu_and_a_probe_are_worth() -> None:
    rows = final(PROBE, 0.0, [0.7] * 3, [0.75, 0.76, 0.77]) + final(ORIGINAL, 3e-3, [0.9] * 3, THREE)
    rows += final(GENTLE, 3e-3, [0.85] * 3, [0.81, 0.82, 0.84])
    found = conclude(rows, FACTS, ALL)
    assert found["sentence"].startswith(
        "On photos (12 classes, 480 images): hold batch normalisation, train everything at 3e-3: 81.0 % ("
    )
    assert f"AReLU ({GENTLE}): +1.3 (" in found["sentence"]
    assert found["sentence"].endswith("A probe alone: 76.0 %.")
    assert found["winner"] == ORIGINAL
    assert found["test_low"] < found["test_accuracy"] < found["test_high"]


def test_the_winner_is_chosen_on_validation_images_and_not_on_the_test() -> None:
    rows = final(PROBE, 0.0, [0.6] * 3, THREE) + final(ORIGINAL, 1e-2, [0.9] * 3, [0.3] * 3)
    rows += final("norm", 1e-2, [0.8] * 3, [0.99] * 3)
    assert conclude(rows, FACTS, ALL)["winner"] == ORIGINAL


def test_of_equal_recipes_the_simplest_wins() -> None:
    rows = final(PROBE, 0.0, [0.9] * 3, THREE) + final(ORIGINAL, 1e-2, [0.9] * 3, THREE)
    assert conclude(rows, FACTS, ALL)["winner"] == PROBE


def test_the_rate_is_chosen_on_validation_images_among_those_with_the_most_seeds() -> None:
    rows = final(PROBE, 0.0, [0.1] * 3, THREE) + final(ORIGINAL, 1e-2, [0.8] * 3, THREE)
    rows += final(ORIGINAL, 3e-2, [0.9] * 3, THREE) + final(ORIGINAL, 1e-1, [0.99], [0.2])
    assert conclude(rows, FACTS, ALL)["learning_rate"] == 3e-2


def test_a_clear_difference_is_ahead_and_one_seed_is_no_verdict() -> None:
    wide = FACTS | {"resplit": 0.0, "test_n": 5000}
    rows = final(PROBE, 0.0, [0.1] * 4, [0.5] * 4) + final(ORIGINAL, 1e-2, [0.8] * 4, [0.5, 0.51, 0.52, 0.53])
    rows += final(GENTLE, 1e-2, [0.9] * 4, [0.7, 0.71, 0.72, 0.735])
    found = conclude(rows, wide, ALL)
    assert found["arelu_verdict"] == "ahead"
    assert "The swap against the original: +20" in found["sentence"]
    one = [row for row in rows if row["seed"] == 1]
    found = conclude(one, wide, ALL)
    assert found["arelu_verdict"] is None
    assert "no verdict" in found["sentence"]


def test_the_worth_is_the_rate_at_which_the_original_is_as_accurate() -> None:
    rows = final(PROBE, 0.0, [0.1] * 2, [0.5] * 2)
    for lr, one in ((1e-3, 0.3), (1e-2, 0.5), (1e-1, 0.7)):
        rows += final(ORIGINAL, lr, [0.5] * 2, [one] * 2) + final(GENTLE, lr, [0.5] * 2, [min(0.7, one + 0.2)] * 2)
    found = conclude(rows, FACTS, ALL)
    assert found["worth"] == pytest.approx(10)
    assert found["chart"]["worth"]["words"].startswith("× 10")


def test_the_gain_is_taken_apart_pair_by_pair() -> None:
    rows = final(PROBE, 0.0, [0.1] * 2, [0.5] * 2)
    means = {"plain": 0.4, "plain, control:gain": 0.5, "plain, control:leak": 0.57, "plain, open": 0.6}
    for name, one in (means | {"plain, statistics held": 0.75}).items():
        rows += [row | {"phase": "gain"} for row in final(name, 1e-3, [0.5] * 2, [one, one + 0.02])]
    bars = {bar["name"]: bar["value"] for bar in conclude(rows, FACTS, ALL)["gain"]}
    assert bars["statistics held"] == pytest.approx(35)
    assert bars["scale (a constant)"] == pytest.approx(10)
    assert bars["a fixed leak"] == pytest.approx(17)
    assert bars["learned gates"] == pytest.approx(3)


def test_an_interval_of_seeds_that_split_the_same_images_is_wider() -> None:
    values = [80.0, 82.0, 84.0, 86.0]
    alone, shared = estimate(values, 10_000, 0.0), estimate(values, 10_000, 0.25)
    assert shared.high - shared.low > 1.3 * (alone.high - alone.low)
    one = estimate([80.0], 100, 0.25)
    assert [one.low, one.high] == pytest.approx([71.1, 86.7], abs=0.2)


# --- The budget, by a clock of the test's


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Runner:
    """A track on which nothing is computed; a run takes as long as it is told to, by a clock."""

    careful = True

    def __init__(self, clock: Clock, plan: Plan, slower: float) -> None:
        self.clock, self.plan, self.slower = clock, plan, slower
        self.config = RaceConfig()
        self.trials: list[Trial] = []

    def run(self, trial: Trial, between: Callable[[], object]) -> Row:
        seconds = self.slower * self.plan.predict(trial)
        for _ in range(20):
            self.clock.now += seconds / 20
            between()
        self.trials.append(trial)
        good = -abs(np.log10((trial.lr or 1e-2) / 1e-2))
        return {
            "validation_accuracy": 0.8 + 0.1 * good,
            "validation_loss": 1.0 - good,
            "test_accuracy": 0.7 if trial.phase != "screen" else None,
            "seconds": seconds,
        }


def plan_of(epochs: int = 6) -> Plan:
    steps = {"head": 0.002} | dict.fromkeys(map(racing.kind_of, RECIPES), 0.2)
    recipes = [name for name in RECIPES if name != PROBE]
    rates = list(racing._GRIDS[1])
    return Plan(64, None, epochs, rates, recipes, [2000, 500, 1000], steps, 0.005, 10, [320, 80, 80], [80, 80], 10.0)


@pytest.mark.parametrize("budget", [60.0, 300.0, 900.0, 3600.0])
@pytest.mark.parametrize("slower", [0.5, 1.0, 4.0])
def test_a_race_keeps_to_its_budget_however_slow_the_machine_becomes(
    budget: float, slower: float, tmp_path: Path
) -> None:
    clock = Clock()
    plan = plan_of()
    runner: Any = Runner(clock, plan, slower)
    held = Race(runner, plan, ResultsLog(tmp_path / "race.jsonl"), budget, budget, clock)
    held.go()
    assert clock.now <= budget
    assert Trial(PROBE, 0.0, 0, 0, "screen") in held.log
    assert Trial(PROBE, 0.0, 1, 0, "final") in held.log
    if budget >= 900 and slower <= 1:
        seeds = {row["seed"] for row in held.rows() if row["phase"] == "final" and row["recipe"] == ORIGINAL}
        assert len(seeds) >= 3
        assert {row["phase"] for row in held.rows()} == {"screen", "final", "gain"}


def test_a_race_whose_time_was_over_before_it_began_has_the_probe(tmp_path: Path) -> None:
    clock, plan = Clock(), plan_of()
    runner: Any = Runner(clock, plan, 1.0)
    held = Race(runner, plan, ResultsLog(tmp_path / "race.jsonl"), -50.0, 60.0, clock)
    held.go()
    found = conclude(held.rows(), FACTS, ALL)
    assert found["winner"] == PROBE
    assert "no time for anything else" in found["sentence"]


def test_test_images_are_looked_at_by_the_leaders_alone_and_on_other_seeds(tmp_path: Path) -> None:
    clock, plan = Clock(), plan_of()
    runner: Any = Runner(clock, plan, 1.0)
    held = Race(runner, plan, ResultsLog(tmp_path / "race.jsonl"), 900.0, 900.0, clock)
    held.go()
    finals = [row for row in held.rows() if row["phase"] == "final"]
    assert {row["recipe"] for row in finals} <= {PROBE, *held.finalists()}
    assert len(held.finalists()) == 3
    assert 0 not in {row["seed"] for row in finals}
    assert all(row["test_accuracy"] is None for row in held.rows() if row["phase"] == "screen")


def test_more_adds_seeds_to_the_leaders_and_screens_nothing(tmp_path: Path) -> None:
    clock, plan = Clock(), plan_of()
    runner: Any = Runner(clock, plan, 1.0)
    held = Race(runner, plan, ResultsLog(tmp_path / "race.jsonl"), 900.0, 900.0, clock)
    held.go()
    before = {row["seed"] for row in held.rows() if row["phase"] == "final"}
    runner.trials.clear()
    held.until = clock.now + 900.0
    held.go(more=True)
    assert {trial.phase for trial in runner.trials} <= {"final", "gain"}
    assert len({row["seed"] for row in held.rows() if row["phase"] == "final"}) > len(before)


# --- From images to a model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Race two recipes at two rates, and end once they are done."""
    kept = {name: RECIPES[name] for name in (PROBE, ORIGINAL, GENTLE)}
    monkeypatch.setattr(racing, "RECIPES", kept)
    monkeypatch.setattr(racing, "_GRIDS", ((1e-3, 1e-2),))
    monkeypatch.setattr(racing, "_LENGTHS", ((2, 1), (2, 1), (2, 1)))
    monkeypatch.setattr(racing, "_MOST_SEEDS", 2)
    monkeypatch.setattr(racing, "_around", lambda lr, reach: [lr])


def pictures(folder: Path, images: int = 10, classes: int = 3) -> Path:
    random = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class {number}").mkdir(parents=True)
        for one in range(images):
            pixels = random.integers(0, 120, (24, 30, 3), dtype=np.uint8)
            pixels[..., number % 3] += 100
            Image.fromarray(pixels).save(folder / f"class {number}" / f"{one}.png")
    return folder


def config_of(tmp_path: Path, **more: Any) -> RaceConfig:
    folder = tmp_path / "photos"
    if not folder.exists():
        pictures(folder)
    run = RunConfig(folder=str(tmp_path / "race"), device="cpu")
    data = DataConfig(root=str(folder), image_size=28, batch_size=16)
    model = RaceModelConfig(name="mnist_conv", pretrained=False)
    return RaceConfig(run, data, model, RaceSettings(budget="10m", **more))


@pytest.mark.usefixtures("small")
def test_a_race_ends_with_a_sentence_a_page_a_card_a_table_and_the_winners_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = race(config_of(tmp_path))
    folder = tmp_path / "race"
    said = capsys.readouterr().out
    assert results["sentence"] in said
    assert "in all, by race.budget 10m" in said
    with Image.open(folder / "card.png") as card:
        assert card.size == (1200, 630)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "On photos (3 classes, 30 images)" in page
    assert (folder / "race.csv").read_text().startswith("epochs,")
    flat = json.loads((folder / "results.json").read_text())
    assert {"task", "seed", "test_accuracy", "test_low", "test_high", "test_n", "seconds"} <= flat.keys()
    _model, spec = load_model(folder / "model")
    assert spec.classes == ["class 0", "class 1", "class 2"]
    assert main(["predict", str(folder / "model"), str(tmp_path / "photos" / "class 0" / "0.png")]) == 0
    again = flat["command"].replace("my-model", str(tmp_path / "again")).split()
    assert main(again[1:]) == 0
    made = json.loads((folder / "model" / "results.json").read_text())
    assert made["test_accuracy"] == json.loads((tmp_path / "again" / "results.json").read_text())["test_accuracy"]


@pytest.mark.usefixtures("small")
def test_a_race_that_was_stopped_goes_on_and_does_no_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Trial] = []
    run = Track.run

    def stopping(self: Track, trial: Trial, between: Callable[[], object] = lambda: None) -> Row:
        if len(done) == 3:
            raise KeyboardInterrupt
        found = run(self, trial, between)
        done.append(trial)
        return found

    def counting(self: Track, trial: Trial, between: Callable[[], object] = lambda: None) -> Row:
        done.append(trial)
        return run(self, trial, between)

    monkeypatch.setattr(Track, "run", stopping)
    config = config_of(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="3 runs of the race are kept"):
        race(config)
    monkeypatch.setattr(Track, "run", counting)
    with pytest.raises(InputError, match="already holds a run"):
        race(config)
    resumed = replace(config, run=replace(config.run, resume="auto"))
    results = race(resumed)
    assert len(done) == len(set(done)) == results["runs"]
    again = race(resumed)
    assert again["sentence"] == results["sentence"]
    assert "finished already" in capsys.readouterr().out
    command = results["next"][-1].split()
    assert main(command[1:]) == 0
    more = json.loads((tmp_path / "race" / "results.json").read_text())
    assert len(more["seeds"]) > len(results["seeds"])
    assert len(done) == len(set(done)) == more["runs"]


@pytest.mark.usefixtures("small")
def test_a_race_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    race(config)
    (tmp_path / "race" / "results.json").unlink()
    (tmp_path / "photos" / "class 0" / "0.png").unlink()
    with pytest.raises(InputError, match="does not hold what it held"):
        race(replace(config, run=replace(config.run, resume="auto")))


def test_more_seeds_without_a_race_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"race\.more"):
        race(config_of(tmp_path, more=True))


def test_every_recipe_of_a_race_trains_alike_but_for_what_defines_it(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path), model=RaceModelConfig())
    track = Track(config, torch.device("cpu"), 32, None)
    whole = [name for name, one in ALL.items() if one.mode == "full" and not one.plain]
    settings = {name: track.settings(Trial(name, 1e-2, 0, 3, "screen")) for name in whole}
    first = settings[ORIGINAL]
    assert first.train.freeze_bn is True
    assert first.optim.clip_grad == 1.0
    assert first.model.head_init == "probe"
    for name, one in settings.items():
        optim = replace(one.optim, act_lr=None, head_lr=None)
        assert (one.train, optim, one.data) == (first.train, first.optim, first.data), name
        assert one.model.head_init == "probe"
    assert settings[GENTLE].optim.act_lr == pytest.approx(1e-3)


def test_a_step_is_timed_without_the_making_of_the_model_where_an_epoch_has_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = Track(config_of(tmp_path), torch.device("cpu"), 28, 2)
    model = Track.model

    def slow(self: Track, *given: Any) -> Any:
        time.sleep(1.0)
        return model(self, *given)

    monkeypatch.setattr(Track, "model", slow)
    assert track.time_steps([ORIGINAL])[0]["full, own"] < 0.9


@pytest.mark.slow
def test_a_race_of_forty_seconds_ends_in_time_on_the_digits(tmp_path: Path) -> None:
    config = RaceConfig(
        RunConfig(folder=str(tmp_path / "race"), device="cpu"),
        DataConfig(name="digits", per_class=10, image_size=32),
        RaceModelConfig(),
        RaceSettings(budget="40s", controls=True),
    )
    results = race(config)
    assert results["seconds"] < 60
    assert results["test_accuracy"] > 0.4
