"""The study `tuning`: small sets of parameters side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arelu_meta.claims import tuning
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.claims.tuning import conclude, cost_of, kept_bytes, list_trials, tuning_config
from arelu_meta.cli import parse
from arelu_meta.errors import InputError
from arelu_meta.finetuning.defaults import settle, settle_rates
from arelu_meta.validation import flatten

_WORDS = ["tuning", "--model.name", "test_resnet", "--model.pretrained", "false", "--data.image_size", "32"]
_SMALL = [*_WORDS, "--data.per_class", "5", "--train.modes", "head,activations,full", "--train.epochs", "1"]
_SMALL += ["--train.repeats", "2", "--optim.lr", "0.1,0.01", "--processes", "1"]


def test_all_sets_are_trained_alike_but_for_the_mode() -> None:
    config = resolve(parse("claims", ["tuning"]))
    trials, _ = list_trials(config)
    by_mode: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if trial.contender != "probe":
            made = settle_rates(settle(tuning_config(config, trial, Path("run"))), images=100)
            own = {"train.mode", *(["optim.act_lr"] if trial.contender == "head" else [])}
            by_mode.setdefault(trial.contender, []).append(
                {name: value for name, value in flatten(made).items() if name not in own}
            )
    assert {"head", "activations", "bias", "norm", "last-1", "full"} <= set(by_mode)
    first = by_mode.pop("full")
    assert all(one["train.freeze_bn"] for one in first)
    for mode, found in by_mode.items():
        shared = set(found[0])
        assert found == [{name: value for name, value in one.items() if name in shared} for one in first], mode


@pytest.mark.parametrize("modes", ["head,nothing", "probe", "head,,full"])
def test_an_unknown_set_is_named(modes: str) -> None:
    with pytest.raises(InputError, match=r"^train\.modes: "):
        list_trials(resolve(parse("claims", [*_WORDS, "--train.modes", modes])))


def test_without_peft_lora_is_left_out_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    trials, notes = list_trials(resolve(parse("claims", ["tuning"])))
    assert "lora" not in {trial.contender for trial in trials}
    assert any("lora is left out" in note for note in notes)


def test_a_step_of_fewer_parameters_keeps_less() -> None:
    config = resolve(parse("claims", _SMALL))
    trials, _ = list_trials(config)
    costs = {
        mode: cost_of(tuning_config(config, next(one for one in trials if one.contender == mode), Path("run")))
        for mode in ("head", "activations", "full")
    }
    assert 0 < costs["head"]["parameters"] < costs["activations"]["parameters"] < costs["full"]["parameters"]
    assert costs["head"]["memory"] < costs["activations"]["memory"] < costs["full"]["memory"]


def test_what_a_linear_layer_keeps_is_its_input() -> None:
    layer, images = nn.Linear(10, 3), torch.zeros(7, 10)
    assert kept_bytes(layer, images) == 4 * 7 * 10
    assert kept_bytes(layer.requires_grad_(False), images) == 0


def _rows(mode: str, tests: list[float], parameters: int) -> list[dict[str, Any]]:
    trial = tuning.Trial("finetune", "digits", 32, 32, 5, "x", True, mode, "sgd", 0.1, 0, 1, regime="careful")
    costs = {"parameters": parameters, "bytes": 4 * parameters, "seconds": 1.0, "memory": 2.0, "rate": 0.1}
    return [
        {**asdict(trial), "seed": seed, "step": 1, "accuracy": 0.5, "validation_accuracy": 0.5, "test_accuracy": test}
        | costs
        for seed, test in enumerate(tests)
    ]


def test_two_claims_are_judged_and_the_front_holds_what_nobody_beats_with_as_few() -> None:
    rows = [
        *_rows("head", [0.70, 0.71, 0.72], 100),
        *_rows("activations", [0.80, 0.81, 0.825], 200),
        *_rows("bias", [0.75, 0.76, 0.77], 300),
        *_rows("full", [0.80, 0.81, 0.82], 9000),
    ]
    found = conclude(rows, 1.0)
    claims = [one.claim.split(",")[0] for one in found.claims]
    assert claims == ["activations against head", "activations against full"]
    assert found.claims[0].verdict == "ahead"
    assert [one.claim.split(",")[0] for one in found.comparisons if not one.primary] == ["activations against bias"]
    front = found.curves[0].series[-1]
    assert (front.dashed, front.x) == (True, [100.0, 200.0])
    assert found.tables[0].rows[0][:2] == ["head", "71.0 ± 1.0"]


def test_a_study_runs_to_its_page(tmp_path: Path) -> None:
    results = claims_task(parse("claims", [*_SMALL, "--run.folder", str(tmp_path / "study")]))
    assert [row[0] for row in results["tables"][0]["rows"]] == ["head", "activations", "full"]
    assert [one["name"] for one in results["anchors"]] == ["probe", "chance"]
    assert len(results["verdicts"]) == 2
    assert (tmp_path / "study" / "report.html").is_file()
