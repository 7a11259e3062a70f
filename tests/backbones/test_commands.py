"""`arelu-meta swap MODEL`: its table, and its one line where something is wrong."""

import re
from pathlib import Path

import pytest
from PIL import Image

from arelu_meta.backbones.commands import swap_task
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
    counts = r"11 swapped, 2 kept, 22 parameters added, logits moved by \S+ of their size, complete"
    assert re.fullmatch(counts, lines[-1])
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
    assert out.splitlines()[-1].startswith(f"12 swapped, 0 kept, {added} parameters added, ")
    assert out.splitlines()[-1].endswith(" complete")


def test_pretrained_weights_are_preserved_unless_told_otherwise(capsys: Captured) -> None:
    assert main(["swap", "tf_efficientnet_lite0", "--model.pretrained"]) == 0
    assert "GatedAReLU(ReLU6)" in capsys.readouterr().out


def test_the_small_networks_can_be_swapped_too(capsys: Captured) -> None:
    assert main(["swap", "conv4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 swapped, 0 kept, 8 parameters added, ")


def test_the_table_is_ruled_by_stage_and_shows_where_each_activation_starts_and_how_far_it_moves(
    capsys: Captured,
) -> None:
    assert main(["swap", "test_resnet", "--model.init", "preserve"]) == 0
    body = [line for line in capsys.readouterr().out.splitlines() if line[0] in "│├"]
    stages: list[list[str]] = [[]]
    for line in body:
        if line[0] == "├":
            stages.append([])
        else:
            path, *_, alpha, beta, drift = (cell.strip() for cell in line.split("│")[1:-1])
            stages[-1].append(path)
            assert (alpha, beta, drift) == ("0.9", "2", "0")
    assert [len(stage) for stage in stages] == [2, 1, 2, 2, 3, 2]
    assert [stage[0] for stage in stages][1:3] == ["act1", "layer1.0.act1"]


def test_a_network_with_a_stage_for_each_activation_is_not_ruled(capsys: Captured) -> None:
    assert main(["swap", "test_vit"]) == 0
    assert "├" not in capsys.readouterr().out


def test_the_drift_is_measured_on_photographs_or_on_images_of_ones_own(capsys: Captured, tmp_path: Path) -> None:
    words = ["swap", "test_efficientnet", "--model.init", "fit", "--data.image_size", "64"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (70, 70), (60 * index, 20, 200 if name == "a" else 0)).save(
                tmp_path / name / f"{index}.png"
            )
    shown = []
    for more in ([], [], ["--data.root", str(tmp_path)]):
        assert main([*words, *more]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]


def test_batch_norm_statistics_can_be_estimated_anew_after_the_swap(capsys: Captured) -> None:
    words = ["swap", "tf_efficientnet_lite0", "--model.pretrained", "--model.init", "paper", "--data.image_size", "64"]
    moved = []
    for flag in ("false", "true"):
        assert main([*words, "--batch_norm", flag]) == 0
        found = re.search(r"logits moved by (\S+) of their size", capsys.readouterr().out)
        assert found is not None
        moved.append(float(found[1]))
    assert moved[1] < moved[0] / 1000


def test_the_picture_is_drawn_and_the_folder_must_exist(capsys: Captured, tmp_path: Path) -> None:
    assert main(["swap", "test_resnet", "--image", str(tmp_path / "drift.png")]) == 0
    with Image.open(tmp_path / "drift.png") as picture:
        assert min(picture.size) > 300
    capsys.readouterr()
    for name, message in (("drift.txt", "no picture's name"), ("no/drift.png", "does not exist; make it first")):
        assert main(["swap", "test_resnet", "--image", str(tmp_path / name)]) == 2
        assert re.fullmatch(rf"error: image: .*{message}.*\n", capsys.readouterr().err)


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
