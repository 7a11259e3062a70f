from pathlib import Path

import pytest

from arelu_meta.errors import InputError
from arelu_meta.sweep.spec import Domain, Halving, listed_trials, make_trial, read_spec

GRID = (
    "task: finetune\nset: {optim.name: sgd}\nparameters:\n  optim.lr: [1e-3, 1e-2]\n  model.activation: [null, arelu]\n"
)


def _spec(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return path


def test_a_grid_has_every_combination_once_with_values_read_as_flags_are(tmp_path: Path) -> None:
    trials = listed_trials(read_spec(str(_spec(tmp_path, GRID + "  run.seed: [0, 0, 1]\n"))))
    found = [(one.config.optim.lr, one.config.model.activation, one.config.run.seed) for one in trials]
    assert found == [(lr, name, seed) for lr in (1e-3, 1e-2) for name in (None, "arelu") for seed in (0, 1)]
    assert len({one.key for one in trials}) == 8


def test_a_run_is_named_by_what_decides_its_figures_and_by_nothing_else(tmp_path: Path) -> None:
    first = read_spec(str(_spec(tmp_path, GRID)))
    watched = read_spec(str(_spec(tmp_path, GRID.replace("{optim.name: sgd}", "{data.workers: 3}"))))
    other = read_spec(str(_spec(tmp_path, GRID.replace("{optim.name: sgd}", "{run.seed: 3}"))))
    keys = [[one.key for one in listed_trials(spec)] for spec in (first, watched, other)]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_the_shared_config_comes_from_a_file_beside_the_spec_and_set_overrides_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.5, name: adamw}\ntrain: {epochs: 9}\n")
    text = "config: base.yaml\nset: {optim: {lr: 0.25}}\nparameters: {run.seed: [1]}\n"
    config = listed_trials(read_spec(str(_spec(tmp_path, text))))[0].config
    assert (config.optim.lr, config.optim.name) == (0.25, "adamw")


@pytest.mark.parametrize(
    ("range_", "kind"),
    [("{uniform: [1e-3, 0.5]}", float), ("{loguniform: [1e-4, 1e-1]}", float), ("[0.1, 0.2, 0.3]", float)],
)
def test_random_draws_stay_in_their_range_and_are_the_same_every_time(tmp_path: Path, range_: str, kind: type) -> None:
    text = f"search: random\nsamples: 7\nseed: 5\nparameters: {{optim.lr: {range_}, train.epochs: {{int: [2, 4]}}}}\n"
    spec = read_spec(str(_spec(tmp_path, text)))
    first, second = listed_trials(spec), listed_trials(spec)
    assert [one.key for one in first] == [one.key for one in second]
    assert len({one.key for one in first}) == 7
    low, high = min(spec.parameters["optim.lr"].values), max(spec.parameters["optim.lr"].values)
    for one in first:
        assert isinstance(one.config.optim.lr, kind)
        assert low <= one.config.optim.lr <= high
        assert one.parameters["train.epochs"] in (2, 3, 4)


def test_a_random_search_ends_where_there_is_no_further_combination(tmp_path: Path) -> None:
    text = "search: random\nsamples: 50\nparameters: {run.seed: [0, 1, 2]}\n"
    assert len(listed_trials(read_spec(str(_spec(tmp_path, text))))) == 3


def test_early_stopping_takes_true_or_its_numbers(tmp_path: Path) -> None:
    assert read_spec(str(_spec(tmp_path, GRID + "early_stopping: true\n"))).halving == Halving()
    assert read_spec(str(_spec(tmp_path, GRID + "early_stopping: {factor: 4}\n"))).halving == Halving(1, 4)
    assert read_spec(str(_spec(tmp_path, GRID + "early_stopping: false\n"))).halving is None


def test_a_loss_is_minimised_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert read_spec(str(_spec(tmp_path, GRID + "metric: validation_loss\n"))).mode == "min"
    assert read_spec(str(_spec(tmp_path, GRID))).mode == "max"


def test_a_logarithmic_draw_never_leaves_its_range() -> None:
    class AlwaysHighest:
        def uniform(self, low: float, high: float) -> float:
            return high

    assert Domain("loguniform", (1e-3, 0.3)).draw(AlwaysHighest()) <= 0.3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing; give fields such as task: and parameters:"),
        ("- 1\n", "holds a list"),
        ("taks: finetune\n", "taks: no such field; nearest: 'task'"),
        ("task: predict\n", "task: 'predict' is not allowed; give one of 'finetune', 'metatrain'"),
        ("task: [1]\n", "task: [1] is not allowed; give one of 'finetune'"),
        ("task: finetune\n", "parameters: holds nothing"),
        ("parameters: {}\n", "parameters: holds nothing"),
        ("parameters: {optim.lr: []}\n", "optim.lr: choice: [] is not allowed; give at least one value"),
        ("parameters: {optim.lr: 0.1}\n", "optim.lr: 0.1 is not allowed; give a list, or uniform:"),
        ("parameters: {optim.lrr: [1]}\n", "optim.lrr: no such field of finetune; nearest: 'optim.lr'"),
        ("parameters: {optim.lr: [fast]}\n", "optim.lr: 'fast' is not allowed; give a number or one of 'auto'"),
        ("parameters: {optim.lr: [-1]}\n", "optim.lr: -1.0 is not allowed; give a number above 0"),
        ("parameters: {optim.lr: [[1, 2]]}\n", "optim.lr: [1, 2] is not allowed; give one value"),
        (
            "parameters: {optim.lr: {uniform: [1, 2]}}\n",
            "uniform has no grid; give a list, or search: random or optuna",
        ),
        ("search: random\nparameters: {optim.lr: {normal: [1, 2]}}\n", "optim.lr: 'normal' is not known; give a list"),
        ("search: random\nparameters: {optim.lr: {uniform: [1]}}\n", "[1] is not allowed; give [low, high]"),
        ("search: random\nparameters: {optim.lr: {uniform: [2, 1]}}\n", "give two numbers, the lower first"),
        ("search: random\nparameters: {optim.lr: {int: [1, 2]}}\n", "int is not allowed; the field takes any number"),
        ("search: random\nparameters: {train.epochs: {uniform: [1, 2]}}\n", "the field takes whole numbers, give int:"),
        ("search: random\nparameters: {optim.name: {uniform: [1, 2]}}\n", "the field takes no numbers, give a list"),
        (
            "search: random\nsamples: 0\nparameters: {optim.lr: [1]}\n",
            "samples: 0 is not allowed; give a number at",
        ),
        (
            "search: bayes\nparameters: {optim.lr: [1]}\n",
            "search: 'bayes' is not allowed; give one of",
        ),
        ("samples: 3\nparameters: {optim.lr: [1]}\n", "samples: a grid has every combination"),
        (
            "metric: test_accuracy\nparameters: {optim.lr: [1]}\n",
            "metric: 'test_accuracy' is not allowed; give one of 'validation_",
        ),
        ("early_stopping: {grace: 0}\nparameters: {optim.lr: [1]}\n", "early_stopping: grace: 0 is not allowed"),
        ("early_stopping: 3\nparameters: {optim.lr: [1]}\n", "early_stopping: 3 is not allowed; give true or false"),
        ("parameters: {run.folder: [a]}\n", "run.folder: is the sweep's own"),
        ("set: {run.resume: auto}\nparameters: {optim.lr: [1]}\n", "run.resume: is the sweep's own"),
        ("set: [1]\nparameters: {optim.lr: [1]}\n", "set: [1] is not allowed; give a dict"),
        ("set: {train.repeats: 3}\nparameters: {optim.lr: [1]}\n", "sweep over run.seed or data.fold instead"),
        ("parameters: {data.fold: [1, 2]}\n", "data.fold: 1 is one of how many? give --data.folds with it"),
        ("config: there.yaml\nparameters: {optim.lr: [1]}\n", "there.yaml' does not exist or is not a file"),
        ("config: 3\nparameters: {optim.lr: [1]}\n", "config: 3 is not allowed; give a text"),
        ("set: {optim: {lr: 1}, optim.lr: 2}\nparameters: {run.seed: [1]}\n", "optim.lr: is given twice"),
        ("parameters: {optim.lr: [1]}\nparameters: {optim.lr: [2]}\n", "is not YAML: 'parameters' is given twice"),
        ("parameters: {optim.lr: [1], optim.lr: [1\n", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence_that_says_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    path = _spec(tmp_path, text)
    with pytest.raises(InputError) as refused:
        read_spec(str(path))
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_too_many_runs_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    values = ", ".join(str(number) for number in range(1, 60))
    text = "parameters: {" + ", ".join(f"{name}: [{values}]" for name in ("run.seed", "train.epochs", "data.per_class"))
    with pytest.raises(InputError, match="205379 runs are too many"):
        read_spec(str(_spec(tmp_path, text + "}\n")))


def test_values_that_do_not_go_together_are_refused_with_their_run(tmp_path: Path) -> None:
    spec = read_spec(str(_spec(tmp_path, "set: {data.folds: 3, data.fold: 1}\nparameters: {data.fold: [1, 3]}\n")))
    with pytest.raises(InputError, match=r"give a number from 1 to data\.folds, 3"):
        make_trial(spec, {"data.fold": 4})


def test_every_recipe_of_a_sweep_is_one_that_can_be_read() -> None:
    recipes = sorted((Path(__file__).parents[2] / "configs" / "sweep").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert read_spec(str(recipe)).parameters
        assert f"arelu-meta sweep configs/sweep/{recipe.name}" in recipe.read_text()
