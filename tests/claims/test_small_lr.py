import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from arelu_meta.claims import small_lr
from arelu_meta.claims.small_lr import conclude, finetune_config, list_trials
from arelu_meta.claims.study import resolve
from arelu_meta.cli import parse
from arelu_meta.config import DataConfig, FinetuneConfig, TaskConfig
from arelu_meta.data.fewshot import load_class_splits
from arelu_meta.errors import InputError, RunError

_WORDS = ["small-lr", "--model.name", "mnist_linear", "--model.pretrained", "false", "--optim.lr", "0.1,0.01"]


def _trials(*words: str) -> list[Any]:
    return list_trials(resolve(parse("claims", [*_WORDS, *words])))


def test_every_contender_runs_at_every_rate_and_the_matched_one_at_the_small_rate_alone() -> None:
    trials = _trials("--train.repeats", "2", "--model.activation", "original,gelu,arelu:paper")
    assert sum(one.contender == "probe" for one in trials) == 2  # one a seed, at no rate
    trials = [one for one in trials if one.contender != "probe"]
    found = {(one.contender, one.lr) for one in trials}
    everywhere = {(name, lr) for name in ("original", "gelu", "arelu:paper") for lr in (0.1, 0.01)}
    assert found == everywhere | {("matched:gelu", 0.01), ("matched:arelu:paper", 0.01)}
    assert len(trials) == 2 * len(found)


def test_a_contender_in_another_spelling_is_the_same_contender() -> None:
    trials = _trials("--model.activation", "original,GELU,gelu,AReLU:paper,arelu:paper")
    assert {one.contender for one in trials if one.lr == 0.1} == {"original", "gelu", "arelu:paper"}


def test_the_small_rate_may_be_named() -> None:
    trials = _trials("--optim.small_lr", "0.1")
    assert {one.lr for one in trials if one.contender.startswith("matched")} == {0.1}
    with pytest.raises(InputError, match=r"^optim\.small_lr: 0\.5 is not one of optim\.lr"):
        _trials("--optim.small_lr", "0.5")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.activation", "gelu:paper"], "only arelu has starts"),
        (["--model.activation", "arelu:papper"], "'arelu:papper' is not known; nearest: 'paper'"),
        (["--model.activation", "rellu"], "rellu"),
        (["--optim.name", "sdg"], "optim.name: 'sdg' is not known"),
        (["--model.name", "mnist_linear,conv4"], "one backbone"),
        (
            ["--pipeline", "maml", "--train.epochs", "3"],
            "train.epochs: 3 is not read by claims small-lr --pipeline maml",
        ),
    ],
)
def test_bad_input_is_named(words: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        _trials(*words)
    assert says in str(caught.value)


def test_contenders_that_are_the_same_by_construction_are_merged() -> None:
    for words, kept in (
        (["--model.activation", "original,arelu:paper,arelu"], {"original", "arelu:paper"}),
        (["--model.activation", "original,arelu,arelu:preserve"], {"original", "arelu", "arelu:preserve"}),
        (
            ["--model.pretrained", "true", "--model.activation", "original,arelu,arelu:preserve"],
            {"original", "arelu"},
        ),
    ):
        assert {one.contender for one in _trials(*words, "--optim.lr", "0.1")} - {"probe"} - {
            "matched:arelu",
            "matched:arelu:paper",
        } == kept


def test_contenders_differ_in_nothing_but_their_activation(tmp_path: Any) -> None:
    config = resolve(parse("claims", [*_WORDS, "--model.activation", "original,arelu:paper"]))
    trials = {one.contender: one for one in list_trials(config)}
    made = {name: finetune_config(config, one, tmp_path) for name, one in trials.items()}
    assert made["original"].model.activation is made["matched:arelu:paper"].model.activation is None
    assert made["matched:arelu:paper"].model.init is None
    assert (made["arelu:paper"].model.activation, made["arelu:paper"].model.init) == ("arelu", "paper")
    assert made["original"].train == made["arelu:paper"].train
    assert made["original"].model.head_init == made["arelu:paper"].model.head_init == "random"
    assert made["arelu:paper"].optim.act_lr == made["arelu:paper"].optim.lr


def _rows(contender: str, lr: float, test: list[float], validation: float, rate: float = 0.0) -> list[dict[str, Any]]:
    place = {"contender": contender, "lr": lr, "pipeline": "finetune", "rate": rate or lr}
    return [
        {
            **place,
            "seed": seed,
            "step": 10 * epoch,
            "accuracy": value / 100 * epoch / 2,
            "validation_accuracy": validation,
            "test_accuracy": value / 100,
        }
        for seed, value in enumerate(test)
        for epoch in (1, 2)
    ]


def _study() -> list[dict[str, Any]]:
    return [
        *_rows("original", 0.01, [80.0, 81, 80.5], 0.8),
        *_rows("original", 0.003, [50.0, 51, 50.5], 0.5),
        *_rows("original", 0.001, [30.0, 31, 30.5], 0.3),
        *_rows("arelu:paper", 0.01, [40.0, 41, 40.6], 0.4),
        *_rows("arelu:paper", 0.003, [50.0, 51, 50.5], 0.5),
        *_rows("arelu:paper", 0.001, [60.0, 61, 60.4], 0.6),
        *_rows("matched:arelu:paper", 0.001, [59.9, 61, 60.5], 0.6, rate=0.01),
    ]


def test_a_contender_may_be_ahead_at_the_small_rate_behind_at_the_best_and_level_with_the_steps_matched() -> None:
    found = conclude(_study(), 0.001, 1.0, None)
    assert [one.verdict for one in found.claims] == ["behind", "behind"]  # fixed beforehand; the others are described
    assert [one.primary for one in found.comparisons] == [True, True, False, False]
    assert "over all rates" in found.comparisons[0].claim
    assert "best rate (0.001 and 0.01)" in found.comparisons[1].claim
    assert "at 0.001" in found.comparisons[2].claim
    assert found.comparisons[2].low > 25
    assert "move the logits as far" in found.comparisons[3].claim


def test_only_the_first_arelu_of_a_study_is_judged_against_the_held_original() -> None:
    rows = [
        *_study(),
        *(row for lr in (0.01, 0.003, 0.001) for row in _rows("original:held", lr, [85.0, 86, 85.5], 0.9)),
        *(row for lr in (0.01, 0.003, 0.001) for row in _rows("arelu:open", lr, [95.0, 96, 95.6], 0.9)),
    ]
    found = conclude(rows, 0.001, 1.0, None)
    assert len(found.claims) == 2
    assert all(one.claim.startswith("arelu:paper against original:held ") for one in found.claims)
    assert any(one.claim.startswith("original against original:held") for one in found.comparisons)


def test_the_probe_and_chance_are_a_table_and_dashed_lines() -> None:
    probe = {"contender": "probe", "lr": 0.001, "step": 0, "accuracy": 0.7, "validation_accuracy": 0.7, "chance": 0.1}
    rows = [*_study(), *({**probe, "seed": seed, "test_accuracy": 0.7 + seed / 100} for seed in range(3))]
    found = conclude(rows, 0.001, 1.0, None)
    found.complete()
    assert [(one.name, round(one.accuracy, 1)) for one in found.anchors] == [("probe", 71.0), ("chance", 10.0)]
    assert found.tables[1].rows[0][:2] == ["probe", "71.0"]
    for drawn in found.curves:
        lines = {one.name: round(one.y[0], 1) for one in drawn.series if one.dashed}
        assert lines == {"probe": 71.0, "chance": 10.0}
    assert not any(row[0] == "probe" for row in found.tables[0].rows)


def test_a_best_rate_at_the_edge_of_those_tried_is_said() -> None:
    notes = conclude(_study(), 0.001, 1.0, None).notes
    assert "The best rate of original is the largest that was tried; a better one may lie beyond it." in notes
    assert "The best rate of arelu:paper is the smallest that was tried; a better one may lie beyond it." in notes
    wider = [
        *_study(),
        *_rows("original", 0.1, [70.0, 71, 70.5], 0.7),
        *_rows("arelu:paper", 0.1, [10.0, 11, 10.5], 0.1),
    ]
    edges = [note for note in conclude(wider, 0.001, 1.0, None).notes if note.startswith("The best rate")]
    assert edges == ["The best rate of arelu:paper is the smallest that was tried; a better one may lie beyond it."]


def test_steps_to_a_target_are_counted_and_never_is_said() -> None:
    table = next(one for one in conclude(_study(), 0.001, 1.0, 0.28).tables if one.title.startswith("The course"))
    steps = {row[0]: row[2] for row in table.rows}
    assert steps == {"original": "20", "arelu:paper": "10", "matched:arelu:paper": "10"}
    table = next(one for one in conclude(_study(), 0.001, 1.0, 0.95).tables if one.title.startswith("The course"))
    assert {row[2] for row in table.rows} == {"never"}


def test_the_multiple_of_the_rate_is_reported() -> None:
    table = next(one for one in conclude(_study(), 0.001, 1.0, None).tables if one.title.startswith("How many times"))
    assert table.rows == [["arelu:paper", "10"]]


def test_runs_that_became_nan_count_as_zero_and_are_counted() -> None:
    rows = [*_study()[:-6], *_rows("gelu", 0.01, [50.0, 50, 51], 0.5), *_rows("gelu", 0.003, [50.0, 50, 51], 0.5)]
    nan = {"contender": "gelu", "lr": 0.001, "pipeline": "finetune", "rate": 0.001, "step": 0, "diverged": "NaN"}
    zero = {"accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0}
    found = conclude([*rows, *[{**nan, **zero, "seed": seed} for seed in range(3)]], 0.001, 1.0, None)
    table = next(one for one in found.tables if one.title.startswith("The course"))
    assert next(row for row in table.rows if row[0] == "gelu")[-1] == 3
    assert any("NaN" in note for note in found.notes)


def _lost(contender: str, lr: float) -> list[dict[str, Any]]:
    zero = {"accuracy": 0.0, "validation_accuracy": 0.0, "test_accuracy": 0.0, "step": 0, "diverged": "NaN"}
    place = {"contender": contender, "lr": lr, "pipeline": "finetune", "rate": lr}
    return [{**place, **zero, "seed": seed} for seed in range(3)]


def test_where_the_original_became_nan_everywhere_there_is_no_target_and_no_best_rate() -> None:
    rows = [row for row in _study() if row["contender"] == "arelu:paper"]
    rows += [row for lr in (0.01, 0.003, 0.001) for row in _lost("original", lr)] + _lost("matched:arelu:paper", 0.001)
    found = conclude(rows, 0.001, 1.0, None)
    course = next(one for one in found.tables if one.title.startswith("The course"))
    assert course.columns[2] == "steps to a target"
    assert [row[2:4] for row in course.rows] == [["", ""]] * 3
    times = next(one for one in found.tables if one.title.startswith("How many times"))
    assert times.rows == [["arelu:paper", "it became NaN"]]
    assert not any("best rate of original" in note for note in found.notes)


def test_a_matched_run_that_became_nan_has_no_part_in_the_multiple_and_is_noted() -> None:
    rows = [row for row in _study() if not (row["contender"].startswith("matched") and row["seed"] == 1)]
    found = conclude([*rows, *_lost("matched:arelu:paper", 0.001)[1:2]], 0.001, 1.0, None)
    assert next(one for one in found.tables if one.title.startswith("How many times")).rows == [["arelu:paper", "10"]]
    assert any("NaN" in note for note in found.notes)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "configs" / "claims").glob("*.yaml")), ids=str)
def test_the_recipes_in_configs_are_read_and_say_their_command(file: Path) -> None:
    command = file.read_text().splitlines()[0].split()
    assert command[1:3] == ["arelu-meta", "claims"]
    assert str(file).endswith(command[command.index("--config") + 1])
    assert resolve(parse("claims", [command[3], "--config", str(file)])).train.repeats == 5


def test_a_study_of_one_rate_without_matched_runs_does_not_speak_of_them() -> None:
    rows = [row for row in _study() if row["lr"] == 0.001 and not row["contender"].startswith("matched")]
    found = conclude(rows, 0.001, 1.0, None)
    assert "matched" not in " ".join([*found.notes, *(table.note for table in found.tables)])
    assert "other rates were not tried" in found.notes[0]
    assert "with the steps matched as well" in conclude(_study(), 0.001, 1.0, None).notes[0]


def test_the_time_of_mamls_runs_is_told_from_few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["small-lr", "--pipeline", "maml", "--model.name", "conv4_32", "--optim.lr", "0.1", "--meta.tasks", "600"]
    config = resolve(parse("claims", [*words, "--data.name", "digits"]))
    trials, clock, judged = list_trials(config), [0.0], 0

    def work(_: Any, found: Any) -> None:
        nonlocal judged
        (trial,) = found
        tasks = trial.tasks + min(4, trial.length) * math.ceil(min(50, trial.tasks / 4))
        judged += tasks
        clock[0] += 3 + 2 * trial.length + tasks / 4

    monkeypatch.setattr(small_lr, "work", work)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    expected = sum(3 + 2 * trial.length + (600 + 4 * 50) / 4 for trial in trials)
    assert small_lr.estimate(config, trials) == pytest.approx(expected)
    assert judged < 50


def test_the_time_of_fine_tuning_is_told_from_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(parse("claims", [*_WORDS, "--train.epochs", "7", "--train.repeats", "2", "--data.name", "digits"]))
    trials, clock, lengths = list_trials(config), [0.0], []

    def finetune(found: FinetuneConfig) -> None:
        folder = Path(str(found.run.folder))
        folder.mkdir()
        (folder / "times.csv").write_text("epoch,seconds\n1,5.0\n")
        lengths.append(found.train.epochs)
        clock[0] += 12

    monkeypatch.setattr(small_lr, "finetune", finetune)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert small_lr.estimate(config, trials) == pytest.approx(len(trials) * (12 + 6 * 5))
    assert lengths == [1]


def test_where_the_first_epoch_becomes_nan_the_time_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(parse("claims", [*_WORDS, "--data.name", "digits"]))
    clock = [0.0]

    def finetune(_: FinetuneConfig) -> None:
        clock[0] += 3
        raise RunError("the loss is NaN in step 1; lower the rate")

    monkeypatch.setattr(small_lr, "finetune", finetune)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    trials = list_trials(config)
    assert small_lr.estimate(config, trials) == pytest.approx(sum(3 * trial.length for trial in trials))


def _few_shot_folder(root: Path, images: int) -> Path:
    for name in "abcdefghij":
        (root / name).mkdir(parents=True)
        for number in range(images):  # no two alike: no query is a copy of a support image
            image = Image.new("L", (8, 8), 5 * number)
            image.putpixel((0, 0), 20 * ord(name) % 251)
            image.save(root / name / f"{number}.png")
    return root


def _maml_plan(root: Path, rates: str) -> Any:
    words = ["small-lr", "--pipeline", "maml", "--model.name", "mnist_linear", "--data.root", str(root)]
    config = resolve(parse("claims", [*words, "--optim.lr", rates, "--train.repeats", "2"]))
    return small_lr.plan(config, torch.device("cpu"))


def test_where_no_task_is_left_to_choose_a_rate_by_one_rate_alone_is_tried(tmp_path: Path) -> None:
    root = _few_shot_folder(tmp_path / "few", images=17)
    with pytest.raises(InputError, match=r"^optim\.lr: the best of 0\.1,0\.01 is chosen on validation tasks"):
        _maml_plan(root, "0.1,0.01").__enter__()
    with _maml_plan(root, "0.1") as plan:
        assert len(plan.trials) == 6  # two contenders and the one that is matched, two seeds; no probe of features


def test_a_seed_that_leaves_no_task_to_choose_a_rate_by_is_found_before_the_first_run(tmp_path: Path) -> None:
    root = _few_shot_folder(tmp_path / "few", images=40)
    splits = {seed: load_class_splits(DataConfig(root=str(root)), TaskConfig(), seed) for seed in (0, 1)}
    taught = {seed: {one.train.classes[label] for label in one.train.labels} for seed, one in splits.items()}
    (scarce,) = sorted(taught[1] - taught[0])[:1]
    for number in range(17, 40):
        (root / scarce / f"{number}.png").unlink()
    with pytest.raises(InputError, match=r"^optim\.lr: the best of"):
        _maml_plan(root, "0.1,0.01").__enter__()


def test_a_study_says_that_its_rate_was_chosen_on_classes_that_were_trained_on(tmp_path: Path) -> None:
    with _maml_plan(_few_shot_folder(tmp_path / "few", images=40), "0.01,0.001") as plan:
        log = SimpleNamespace(of_all=lambda _: _study())
        notes = plan.conclude(log, tmp_path).notes
    assert notes[-1] == (
        "Of the data: too few classes to validate on unseen ones: validated on other images of the training classes."
    )


def test_of_two_rates_none_is_called_the_best() -> None:
    found = conclude([row for row in _study() if row["lr"] != 0.003], 0.001, 1.0, None)
    assert not any("best rate" in one.claim for one in found.comparisons)
    assert "best rate" not in str(found.tables[0].columns)
    assert "Of 2 rates none is called the best: that takes 3." in found.notes


def test_how_far_a_contender_is_worth_a_larger_rate_and_what_an_untuned_one_costs_stand_beside_it() -> None:
    table = conclude(_study(), 0.001, 1.0, None).tables[1]
    by_name = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert by_name["arelu:paper"]["worth at 0.001"].startswith("× 4.5 (")  # 60.5 between 50.5 at 0.003 and 80.5
    assert by_name["original"]["over all rates"] == "53.6 ± 0.5"
    assert by_name["original"]["peak"] == "80.5 at 0.01"
    assert by_name["original"]["regret"] == f"{80.5 - (80.5 + 50.5 + 30.5) / 3:.1f}"
    assert set(by_name) == {"original", "arelu:paper"}


def test_controls_are_contenders_explained_with_their_formula_and_never_claims() -> None:
    rows = [
        *_study(),
        *(row for lr in (0.01, 0.003, 0.001) for row in _rows("control:leak", lr, [90.0, 91, 90.5], 0.9)),
    ]
    found = conclude(rows, 0.001, 1.0, None)
    assert all(one.claim.startswith("arelu:paper") for one in found.claims)
    (table,) = [one for one in found.tables if one.title == "Controls"]
    assert table.rows[0][:2] == ["control:leak", "act(x) + 0.18 * x, everywhere"]


def test_shut_gates_that_are_frozen_are_the_original_and_merged_with_it() -> None:
    names = "original,arelu:preserve:frozen,arelu:frozen,arelu:preserve,arelu:open:frozen"
    found = {one.contender for one in _trials("--model.pretrained", "true", "--model.activation", names)}
    assert {"original", "arelu:preserve", "arelu:open:frozen"} <= found
    assert not {"arelu:preserve:frozen", "arelu:frozen"} & found


def test_a_match_that_was_refused_is_said_and_nothing_is_compared_with_it() -> None:
    place = {"contender": "matched:arelu:paper", "lr": 0.001, "pipeline": "finetune", "refused": "training is lost"}
    rows = [row for row in _study() if not row["contender"].startswith("matched")]
    found = conclude([*rows, *({**place, "seed": seed} for seed in range(3))], 0.001, 1.0, None)
    assert not any("move the logits" in one.claim for one in found.comparisons)
    assert "matched:arelu:paper, seed 2, is refused: training is lost." in found.notes
    assert [row[0] for row in found.tables[0].rows] == ["original", "arelu:paper"]


def test_what_begins_as_the_original_is_not_matched_with_it() -> None:
    words = ["--model.activation", "original,arelu:preserve,arelu:paper"]
    assert {one.contender for one in _trials(*words) if one.contender.startswith("matched")} == {"matched:arelu:paper"}
    words = ["--model.pretrained", "true", "--model.activation", "original,arelu"]
    assert not any(one.contender.startswith("matched") for one in _trials(*words))


def test_a_start_that_was_chosen_on_test_images_says_so() -> None:
    rows = [{**row, "contender": row["contender"].replace("paper", "open")} for row in _study()]
    assert any("chosen on test images of flowers17" in note for note in conclude(rows, 0.001, 1.0, None).notes)
    assert not any("chosen on test images" in note for note in conclude(_study(), 0.001, 1.0, None).notes)


def test_seeds_that_split_one_folder_anew_have_wider_intervals_and_the_study_says_why() -> None:
    plain, resplit = (conclude(_study(), 0.001, 1.0, None, resplit=ratio) for ratio in (0.0, 0.5))
    assert resplit.comparisons[0].high - resplit.comparisons[0].low == pytest.approx(
        math.sqrt(1 + 3 * 0.5) * (plain.comparisons[0].high - plain.comparisons[0].low)
    )
    plain.complete()
    resplit.complete()
    assert not any("Nadeau" in note for note in plain.notes)
    assert any("1/seeds + test/train (1/3 + 0.5)" in note for note in resplit.notes)


def test_the_grid_of_starts_makes_a_contender_of_each_and_leaves_those_without_scalars_alone() -> None:
    words = [
        "--model.activation",
        "original,gelu,arelu:paper,elsa:relu6",
        "--model.alpha",
        "0.5,0.9",
        "--model.beta",
        "1",
    ]
    found = {one.contender for one in _trials(*words) if not one.contender.startswith("matched")}
    assert found == {"original", "gelu", "probe"} | {
        f"{name}@{alpha}/1" for name in ("arelu:paper", "elsa:relu6") for alpha in ("0.5", "0.9")
    }
    made = small_lr.model_config("mnist_linear", False, "arelu:paper@0.5/1")
    assert (made.activation, made.init, made.alpha, made.beta) == ("arelu", "paper", 0.5, 1.0)
    assert small_lr.model_config("mnist_linear", False, "arelu@/3").alpha is None
    assert small_lr.is_ours("arelu@0.5/1")
    assert small_lr.keeps_function("arelu:preserve@0.5/1", pretrained=False)


def test_learned_inner_rates_are_rivals_of_maml_alone(tmp_path: Path) -> None:
    words = ["small-lr", "--pipeline", "maml", "--model.activation", "original,original:meta-sgd,original:maml++"]
    config = resolve(parse("claims", words))
    made = {
        one.contender: small_lr.metatrain_config(config, one, tmp_path)
        for one in list_trials(config)
        if not one.contender.startswith("matched")
    }
    assert {name: one.meta.algorithm for name, one in made.items()} == {
        "original": "maml",
        "original:meta-sgd": "metasgd",
        "original:maml++": "mamlpp",
    }
    assert all(one.model.activation is None for one in made.values())
    with pytest.raises(InputError, match="is a meta-learner; give --pipeline maml"):
        _trials("--model.activation", "original,original:maml++")
