import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta.claims import gradients
from arelu_meta.claims.gradients import (
    SMALLEST,
    GradientTrial,
    PlainNet,
    build,
    conclude,
    gain,
    gradient_norms,
    list_trials,
    read_depths,
    train,
)
from arelu_meta.claims.in_memory_training import Tensors, load_tensors
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.cli import main, parse
from arelu_meta.config import DataConfig
from arelu_meta.errors import InputError

_SMALL = ["gradients", "--data.name", "digits", "--depth", "2,4", "--model.activation", "relu,arelu"]
_SMALL += ["--model.name", "plain", "--train.repeats", "2", "--processes", "1", "--run.folder"]


@pytest.fixture(scope="module")
def digits() -> Tensors:
    return load_tensors(DataConfig(name="digits"), 0, side=8)


def _trial(**changes: Any) -> GradientTrial:
    first: dict[str, Any] = {"data": "digits", "network": "plain", "depth": 4, "activation": "relu", "optimizer": "sgd"}
    return GradientTrial(**{**first, "lr": 0.01, "seed": 0, "epochs": 1, **changes})


def test_norms_are_those_of_the_gradients_of_biases_for_one_image(digits: Tensors) -> None:
    model = build(_trial(activation="elu"), digits)
    image, label = digits.train_images[:1].float() / 255, digits.train_labels[:1]
    found = gradient_norms(model, image, label)
    torch.nn.functional.cross_entropy(model(image), label).backward()
    expected = [math.log10(layer.bias.grad.norm()) for layer in model.layers]  # type: ignore[union-attr, operator]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_gradient_of_zero_counts_as_the_smallest_number(digits: Tensors) -> None:
    model = PlainNet(64, 10, 3, "relu")
    torch.nn.init.zeros_(model.head.weight)
    assert gradient_norms(model, digits.train_images[:4].float(), digits.train_labels[:4]) == [SMALLEST] * 3


@pytest.mark.parametrize("name", ["relu", "arelu", "relu6", "silu"])
def test_looking_at_gradients_leaves_the_network_and_its_logits_as_they_are(digits: Tensors, name: str) -> None:
    model, images = build(_trial(activation=name), digits), digits.train_images[:4].float()
    before = model(images)
    gradient_norms(model, images, digits.train_labels[:4])
    assert torch.equal(model(images), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gain_of_relu_is_that_of_he() -> None:
    assert gain("relu") == pytest.approx(math.sqrt(2), rel=0.01)


@pytest.mark.parametrize("name", ["relu", "arelu", "selu"])
def test_even_weights_keep_the_size_of_the_gradient_through_thirty_layers(digits: Tensors, name: str) -> None:
    images, labels = digits.train_images[:64].float() / 255, digits.train_labels[:64]
    even, usual = (
        gradient_norms(build(_trial(activation=name, depth=30, network=network), digits), images, labels)
        for network in ("plain_even", "plain")
    )
    assert abs(even[0] - even[-1]) < 1.5
    assert abs(even[0] - even[-1]) < abs(usual[0] - usual[-1])


@pytest.mark.parametrize("network", ["plain", "plain_even"])
def test_all_activations_of_a_seed_start_from_the_same_weights_up_to_a_scale(digits: Tensors, network: str) -> None:
    first, other = (build(_trial(activation=name, network=network), digits) for name in ("relu", "prelu"))
    for mine, theirs in zip(first.layers, other.layers, strict=True):
        assert isinstance(mine, torch.nn.Linear)
        assert isinstance(theirs, torch.nn.Linear)
        ratio = mine.weight / theirs.weight
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)


def test_a_network_of_few_layers_learns_and_is_read_at_every_fifth_of_the_way(digits: Tensors) -> None:
    rows = train(_trial(depth=2, network="plain_even", lr=0.05, epochs=5), digits)
    steps = sorted({row["step"] for row in rows})
    assert len(steps) == 6
    assert steps[0] == 0
    assert len(rows) == 6 * 2
    assert rows[-1]["accuracy"] > 0.7
    assert rows == train(_trial(depth=2, network="plain_even", lr=0.05, epochs=5), digits)


def test_a_network_that_diverges_is_noted_and_leaves_numbers(digits: Tensors) -> None:
    rows = train(_trial(activation="slaf", lr=1e6, depth=6), digits)
    assert rows[-1]["diverged"] is not None
    assert [row["log10_norm"] for row in rows if row["step"] == rows[-1]["diverged"]].count(None) > 0
    known = [
        {**row, **_place("relu", seed), "depth": 6, "diverged": None, "log10_norm": -1.0}
        for row in rows
        for seed in (0, 1)
    ]
    lost = [{**row, **_place("arelu", seed), "depth": 6} for row in rows for seed in (0, 1)]
    outcome = conclude([*known, *lost], 1.0)
    assert "Diverged" in outcome.notes[-1]
    assert "arelu (plain, 6 layers, seed 1)" in outcome.notes[-1]


def test_a_network_that_diverges_before_its_first_read_out_counts_as_the_worst_one() -> None:
    rows = [
        {**row, "log10_norm": None if row["step"] else row["log10_norm"], "diverged": 10}
        if row["activation"] == "relu"
        else row
        for row in _made_up({"relu": [0.0, 0.0, 0.0], "arelu": [-3.0, -3.1, -2.9]})
    ]
    outcome = conclude(rows, 1.0)
    assert [(one.verdict, one.n) for one in outcome.claims] == [("ahead", 3)] * 2
    assert [one.difference for one in outcome.claims] == pytest.approx([-3.0 - SMALLEST] * 2)
    assert "counts there as the worst" in outcome.notes[-1]


def test_networks_that_all_diverge_at_once_are_noted_and_none_is_ahead() -> None:
    rows = [{**row, "log10_norm": None, "diverged": 0} for row in _made_up({"relu": [0, 0], "arelu": [0, 0]})]
    outcome = conclude([row for row in rows if row["step"] == 0], 1.0)
    assert {(one.verdict, one.difference) for one in outcome.comparisons} == {
        ("need more seeds", 0.0)
    }  # two that are the same
    assert "Diverged" in outcome.notes[-1]


def _place(activation: str, seed: int) -> dict[str, Any]:
    return {"network": "plain", "depth": 2, "activation": activation, "seed": seed}


def _made_up(ratios: dict[str, list[float]]) -> list[dict[str, Any]]:
    ends = {"accuracy": 0.5, "diverged": None}
    return [
        {**_place(name, seed), **ends, "step": step, "layer": layer, "log10_norm": norm}
        for name, values in ratios.items()
        for seed, ratio in enumerate(values)
        for step in (0, 10)
        for layer, norm in ((1, ratio - 2.0), (2, -2.0))
    ]


def _verdicts(ratios: dict[str, list[float]]) -> list[tuple[str, str]]:
    return [(one.claim.split(" over")[0], one.verdict) for one in conclude(_made_up(ratios), 1.0).claims]


def test_a_gradient_that_arrives_is_told_from_one_that_vanishes() -> None:
    assert _verdicts({"relu": [-8.0, -8.1, -7.9], "arelu": [-0.1, 0.0, -0.2]}) == [
        ("AReLU's gradient against relu's, what is lost", "ahead"),
        ("AReLU's gradient against relu's, how uneven it is", "ahead"),
    ]


def test_an_exploding_gradient_is_no_merit() -> None:
    found = _verdicts({"relu": [-0.1, 0.1, 0.0], "arelu": [9.0, 9.2, 9.1]})
    assert [verdict for _, verdict in found] == ["level", "behind"]


def test_what_is_judged_is_fixed_beforehand_and_the_others_are_described() -> None:
    rows = _made_up({"relu": [-9.0, -8], "elu": [-1.0, -2], "arelu": [-1.0, -1.5]})
    outcome = conclude(rows, 1.0)
    assert all("against relu's" in one.claim and "over training" in one.claim for one in outcome.claims)
    assert len(outcome.claims) == 2
    described = next(table for table in outcome.tables if "every other" in table.title)
    assert len(described.rows) == 8  # two others, two scores, two readings


def test_a_study_of_gradients_ends_with_rows_verdicts_and_a_page_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    work, calls = gradients.work, []

    def killed(shelf: Any, device: str, trials: Any) -> Any:
        calls.append(trials)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return work(shelf, device, trials)

    monkeypatch.setattr(gradients, "work", killed)
    with pytest.raises(KeyboardInterrupt, match="3 of 8 runs are finished"):
        claims_task(parse("claims", [*_SMALL, str(folder)]))
    monkeypatch.setattr(gradients, "work", work)
    results = claims_task(parse("claims", [*_SMALL, str(folder), "--run.resume", "auto"]))
    assert "5 of 8 runs to do" in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 6 * (2 + 4)  # activations, seeds, read-outs, layers
    assert len(results["verdicts"]) == 2  # two readings of the claim, over all depths
    assert all(len(row) == len(table["columns"]) for table in results["tables"] for row in table["rows"])
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--depth", "5,1"], "depth: '1' is not allowed; give whole numbers from 2 to 200"),
        (["--depth", "5.5"], "depth: '5.5' is not allowed"),
        (["--depth", "201"], "depth: '201' is not allowed"),
        (["--depth", "5,"], "depth: '' is not allowed"),
        (["--model.name", "plane"], "model.name: 'plane' is not known to gradients; nearest: 'plain'"),
        (["--model.activation", "rellu"], "rellu"),
        (["--optim.name", "sgd,adam"], "optim.name: 'sgd,adam' is not allowed; gradients takes one of sgd, adam"),
        (["--optim.lr", "0.1,0.2"], "optim.lr: '0.1,0.2' is not allowed; gradients takes one learning rate"),
        (["--engine", "stacked"], "engine: 'stacked' is not read by claims gradients; claims mnist reads it"),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "gradients", *words, "--run.folder", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_other_studies_do_not_read_a_depth() -> None:
    with pytest.raises(InputError, match="depth: 5 is not read by claims mnist; claims gradients reads it"):
        parse("claims", ["mnist", "--depth", "5"])


def test_depths_are_read_once_each_from_few_to_many() -> None:
    assert read_depths("20, 5,5") == [5, 20]
    assert read_depths(7) == [7]


def test_the_first_seed_of_everything_runs_first() -> None:
    trials = list_trials(resolve(parse("claims", _SMALL[:-1])))
    assert [one.seed for one in trials] == [0] * 4 + [1] * 4
