"""`arelu-meta swap MODEL`: its table, and its one line where something is wrong."""

import re
from pathlib import Path

import pytest

from arelu_meta.backbones.swap_task import swap_task
from arelu_meta.cli import main
from arelu_meta.config import ModelConfig, SwapConfig

Captured = pytest.CaptureFixture[str]


def test_the_table_lists_every_activation_and_ends_with_the_counts(capsys: Captured) -> None:
    assert main(["swap", "test_efficientnet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].startswith("test_efficientnet → arelu")
    assert re.search(r"path\W+role\W+before\W+after", captured.out)
    # Nine hidden activations, two squeeze-excite blocks with one and a gate each; the paper's start has two scalars.
    assert lines[-1] == "11 swapped, 2 kept, 22 parameters added, complete"
    rows = [line for line in lines if "SiLU" in line or "Sigmoid" in line]
    assert len(rows) == 13
    assert sum("AReLU" in row for row in rows) == 11
    assert sum("kept: a gate" in row for row in rows) == 2
    assert sum("se.gate" in row for row in rows) == 2


@pytest.mark.parametrize(
    ("flags", "after", "added"),
    [
        (["--model.init", "preserve"], "GatedAReLU(ReLU)", 36),
        (["--model.init", "paper"], "AReLU", 24),
        (["--model.activation", "gelu"], "GELU", 0),
        (["--model.activation", "prelu"], "PReLU", 12),
    ],
)
def test_activation_and_start_are_flags(capsys: Captured, flags: list[str], after: str, added: int) -> None:
    assert main(["swap", "test_resnet", *flags]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(rf"\b{re.escape(after)}", out)) >= 12
    assert out.splitlines()[-1] == f"12 swapped, 0 kept, {added} parameters added, complete"


def test_pretrained_weights_are_preserved_unless_told_otherwise(capsys: Captured) -> None:
    assert main(["swap", "tf_efficientnet_lite0", "--model.pretrained"]) == 0
    assert "GatedAReLU(ReLU6)" in capsys.readouterr().out


def test_the_small_networks_can_be_swapped_too(capsys: Captured) -> None:
    assert main(["swap", "conv4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 swapped, 0 kept, 8 parameters added, complete"


def test_the_report_is_returned_to_python(capsys: Captured) -> None:
    report = swap_task(SwapConfig(model=ModelConfig(name="test_vit", pretrained=False, activation="arelu")))
    assert report is not None
    assert [entry.path for entry in report.swapped] == [f"blocks.{block}.mlp.act" for block in range(6)]
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], r"model\.name: 'resnet81' is not known; nearest: .*'resnet18'"),
        (["test_resnet", "--model.activation", "aerlu"], r"'aerlu' is not known; nearest: 'arelu'"),
        (
            ["test_resnet", "--model.init", "presrve"],
            r"model\.init: 'presrve' is not allowed; give .*'?paper'?, '?preserve",
        ),
        (
            ["test_resnet", "--model.activation", "gelu", "--model.init", "paper"],
            r"model\.init: 'paper' starts an AReLU",
        ),
        (
            ["test_resnet", "--model.activaton", "gelu"],
            r"--model\.activaton: no such flag; nearest: 'model\.activation'",
        ),
        ([], r"MODEL: missing; usage: arelu-meta swap MODEL"),
        (["conv4", "--model.pretrained"], r"no published weights of 'conv4'"),
    ],
)
def test_bad_input_is_one_line_with_status_two(capsys: Captured, arguments: list[str], message: str) -> None:
    assert main(["swap", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", captured.err), captured.err


def test_a_checkpoint_is_not_what_swap_takes(capsys: Captured, tmp_path: Path) -> None:
    assert main(["swap", "conv4", "--model.pretrained", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: model.pretrained: ")
    assert captured.err.count("\n") == 1
