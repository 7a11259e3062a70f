import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from arelu_meta.backbones.checkpoint import read_spec
from arelu_meta.cli import parse
from arelu_meta.config import FinetuneConfig
from arelu_meta.export.model_card import command_of, escape, fenced, model_card, results_beside


def test_the_command_is_one_that_makes_the_same_config() -> None:
    config = FinetuneConfig()
    config.data.root, config.optim.lr, config.model.activation = "my flowers", 3e-4, "arelu"
    config.data.skip_broken, config.optim.head_lr = True, 0.5
    program, task, *words = shlex.split(command_of(asdict(config)))
    assert (program, task) == ("arelu-meta", "finetune")
    assert parse("finetune", words) == config


def test_the_command_tells_no_folder_of_the_machine() -> None:
    config = FinetuneConfig()
    config.run.folder, config.data.root, config.model.pretrained = "/home/me/out", "/home/me/cats", "~/runs/first"
    assert command_of(asdict(config)) == "arelu-meta finetune --data.root cats --model.pretrained first"


def test_a_config_that_a_stranger_wrote_is_no_danger() -> None:
    odd = {"optim": {"lr": [1, {"a": None}], "nothing": 3}, "data": "text", "run.seed": "$(rm -rf /)", "x": {"y": {}}}
    words = shlex.split(command_of(odd))
    assert words == ["arelu-meta", "finetune", "--optim.lr", '[1, {"a": null}]', "--run.seed", "$(rm -rf /)"]


@pytest.mark.parametrize(
    "text", ["<script>", "**b**", "[a](b)", "`x`", "a|b", "$x$", "# h", "1. a", "two\nlines", "http://x.y"]
)
def test_no_name_is_markup(text: str) -> None:
    shown = escape(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert not re.search(r"(?<!\\)[*_`\[\]|$#:]", shown)


def test_no_code_closes_its_fence() -> None:
    assert fenced("a\n```\nb", "sh") == "````sh\na\n```\nb\n````"


def test_the_card_says_what_how_and_how_good_and_its_metadata_can_be_read(run: Path) -> None:
    file, spec = read_spec(run)
    card = ModelCard(model_card(spec, results_beside(file), "pass"))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-classification"
    result = data["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 0.875
    assert result["dataset"]["name"] == "my flowers"
    for part in (
        "mnist\\_linear on my flowers",
        "activations replaced by `arelu` (start: preserve)",
        "32 × 32 px, 3 channels, and tells 3 classes apart",
        "7 train images, 1 validation images, 40 test images",
        "--optim.lr 0.007",
        "87.5% (95 % interval 70.0% to 95.0%, 40 images",
        "Expected calibration error 0.043",
        "花",
    ):
        assert part in card.content, part
    assert "<b>" not in card.content


def test_weights_without_results_get_a_card_that_says_so(run: Path) -> None:
    for name in ("results.json", "split.json"):
        (run / name).unlink()
    file, spec = read_spec(run)
    assert results_beside(file) == {}
    assert "No test results lie beside the weights" in model_card(spec, {}, "pass")


@pytest.mark.parametrize("content", ["no json", "[1]", json.dumps({"task": "metatrain"})])
def test_results_of_something_else_are_not_taken(content: str, run: Path) -> None:
    (run / "results.json").write_text(content)
    assert results_beside(run / "model.safetensors") == {}


def test_many_classes_are_cut(make_run: Callable[..., Path], run: Path) -> None:
    _, spec = read_spec(run)
    spec.classes = [f"c{number}" for number in range(1000)]
    card = model_card(spec, {}, "pass")
    assert "c199, and 800 more" in card
