import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arelu_meta import cli
from arelu_meta.backbones.checkpoint import load_model, save_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import ModelConfig

WORDS = ["--model.name", "mnist_conv", "--data.image_size", "28", "--data.per_class", "3", "--train.epochs", "1"]
WORDS += ["--run.pictures", "false", "--run.device", "cpu"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, spec = build_backbone(ModelConfig("mnist_conv", False), tuple("ab"), 1, 28, "finetune")
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base" / "model.safetensors", model, spec)
    return tmp_path / "base"


def run(folder: Path, *words: str) -> dict[str, Any]:
    assert cli.main(["finetune", *WORDS, *words, "--run.folder", str(folder)]) == 0
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("mode", ["activations", "bias", "lora", "head", "probe", "full", "last-1"])
def test_a_run_that_saves_an_adapter_is_evaluated_to_the_same_and_goes_on(
    tmp_path: Path, base: Path, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--train.mode", mode, "--run.save", "adapter", "--model.activation", "arelu"]
    results = run(tmp_path / "a", "--model.pretrained", str(base), *words)
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "a")]) == 0
    assert f"test accuracy {results['test_accuracy']:.1%}" in capfd.readouterr().out
    # From there on: another adapter, of the same backbone and not of this adapter.
    run(tmp_path / "b", "--model.pretrained", str(tmp_path / "a"), "--run.save", "adapter", "--train.mode", "head")
    (tmp_path / "a" / "model.safetensors").unlink()
    model, spec = load_model(tmp_path / "b")
    assert (spec.activation, spec.init, spec.adapter) == ("arelu", "preserve", {})
    assert not any("lora" in name for name in model.state_dict())


def test_an_adapter_of_a_network_that_nobody_has_is_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--model.pretrained", "false", "--run.save", "adapter", "--run.folder", str(tmp_path / "run")]
    assert cli.main(["finetune", *words]) == 2
    error = capfd.readouterr().err
    assert error == (
        "error: run.save: 'adapter' is what differs from a pretrained backbone, and model.pretrained is false; give "
        "--run.save model\n"
    )
    assert not (tmp_path / "run").exists()


def test_lora_without_peft_is_one_sentence(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    words = [*WORDS, "--model.pretrained", str(base), "--train.mode", "lora", "--run.folder", str(tmp_path / "run")]
    assert cli.main(["finetune", *words]) == 2
    error = capfd.readouterr().err
    assert error == ("error: train.mode: 'lora' needs peft, which is not installed; pip install 'arelu-meta[peft]'\n")
    assert not (tmp_path / "run").exists()


def test_a_run_says_which_epoch_it_kept_and_what_its_gates_did_on_the_terminal_and_on_the_page(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = run(tmp_path / "a", "--model.pretrained", str(base), "--model.activation", "arelu")
    out = capfd.readouterr().out
    assert f"\n{results['kept']}\n" in out
    assert results["gates"].startswith("gates: mean |t| ")
    assert f"\n{results['gates']}\n" in out
    assert cli.main(["report", str(tmp_path / "a")]) == 0
    assert "Gates: mean |t| " in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_an_epoch_0_that_nothing_came_near_is_told(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.pretrained", str(base), "--optim.lr", "30", "--optim.clip_grad", "1000", "--train.keep", "best"]
    results = run(tmp_path / "a", *words)
    assert results["best_epoch"] == 0
    assert re.match(r"kept: the model before the first epoch, nothing learned helped \(validation ", results["kept"])


def test_elsa_over_another_activation_is_trained_saved_and_told(tmp_path: Path, base: Path) -> None:
    words = ["--model.pretrained", str(base), "--model.activation", "elsa:relu6", "--model.alpha", "0.5"]
    results = run(tmp_path / "a", *words, "--train.mode", "activations", "--run.save", "adapter")
    assert results["gates"].startswith("AReLU: alpha 0.")
    assert load_model(tmp_path / "a")[1].activation == "elsa:relu6"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--model.alpha", "0.5"], "model.alpha: 0.5 starts an AReLU; give --model.activation arelu with it"),
        (["--model.alpha", "2", "--model.activation", "arelu"], "model.alpha: 2.0 is not allowed; give a number"),
        (["--model.beta", "1", "--model.activation", "gelu"], "model.beta: 1.0 is of an AReLU, and 'gelu' has none"),
    ],
)
def test_a_start_that_no_activation_reads_is_one_line(
    words: list[str], error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["finetune", *WORDS, "--model.pretrained", "false", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {error}")
