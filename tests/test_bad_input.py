"""What a person can get wrong, through the command line: status 2, one line on stderr, nothing changed on disk."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from arelu_meta.cli import main
from arelu_meta.runs.checkpoints import load_checkpoint

FINETUNE = shlex.split(
    "finetune --model.name mnist_linear --model.pretrained false --data.image_size 8 --data.per_class 3 "
    "--train.epochs 1 --run.device cpu --run.folder new"
)
METATRAIN = shlex.split(
    "metatrain --model.name mnist_linear --data.image_size 8 --task.queries 2 --meta.steps 2 --meta.batch_tasks 2 "
    "--meta.inner_lr 0.1 --eval.tasks 4 --run.device cpu --run.folder new"
)

Snapshot = dict[str, tuple[int, int]]


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def _make_world(root: Path) -> None:
    """Good folders, spoilt folders, config files and checkpoints to give to the command line."""
    for name in "abcd":
        _fill(root / "good" / name, 8)
        _fill(root / "spoilt" / name, 8)
        _fill(root / "weeds" / name, 8)
        _fill(root / "few" / name, 7 if name == "c" else 8)
    (root / "spoilt" / "b" / "notes.jpg").write_text("a text that somebody renamed")
    cut = (root / "spoilt" / "c" / "0.png").read_bytes()
    (root / "spoilt" / "c" / "cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "weeds" / "nothing").mkdir()
    for name in "ab":
        _fill(root / "two" / name, 3)
    (root / "nothing").mkdir()
    (root / "file").write_text("just a file")
    for name, text in {
        "typo": "optim: {lrr: 0.1}",
        "group": "optm: {lr: 0.1}",
        "nested": "optim: 3",
        "list": "- a",
        "broken": "optim: {",
        "value": "optim: {lr: fast}",
        "zero": "optim: {lr: 0}",
        "empty": "data: {root: ''}",
        "twice": "optim.lr: 0.1\noptim: {lr: 0.2}",
        "tag": 'run: {seed: !!int ""}',
    }.items():
        (root / f"{name}.yaml").write_text(text)
    (root / "damaged.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not a header")
    save_file({"weight": torch.zeros(2)}, root / "foreign.safetensors")
    (root / "damaged.pt").write_bytes(b"not a zip file")
    torch.save([1, 2], root / "list.pt")


@pytest.fixture(scope="module")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    _make_world(root)
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main([*FINETUNE[:-1], "run"]) == 0
        assert main([*METATRAIN[:-1], "meta"]) == 0
        content = (root / "run" / "model.safetensors").read_bytes()
        (root / "cut.safetensors").write_bytes(content[: len(content) // 2])
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def world(made_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made_world)
    monkeypatch.setenv("ARELU_META_DATA", str(made_world / "no-data-home"))
    return made_world


def _snapshot(root: Path) -> Snapshot:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.stat()
        found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns)
    return found


def _case(*words: str, says: str, task: list[str] | None = None) -> tuple[list[str], str]:
    return [*(task or []), *words], says


# Every line of issue 2's "Bad input", and what the error must say.
CASES: dict[str, tuple[list[str], str]] = {
    # a missing folder
    "missing folder": _case(
        "--data.root", "flowrs/", task=FINETUNE, says=r"data\.root: 'flowrs/' does not exist; give a folder"
    ),
    "missing folder, metatrain": _case(
        "--data.root", "flowrs", task=METATRAIN, says=r"data\.root: 'flowrs' does not exist; give a folder"
    ),
    "missing folder, demo": _case("demo", "--data.root", "flowrs", says=r"data\.root: 'flowrs' does not exist"),
    "missing folder, evaluate": _case("evaluate", "run", "--data.root", "x", says=r"data\.root: 'x' does not exist"),
    "missing folder, predict": _case("predict", "run", "x.jpg", says=r"images: 'x\.jpg' does not exist; give image"),
    "missing support": _case("predict", "meta", "good", "--support", "x", says=r"support: 'x' does not exist; give"),
    "file as a folder": _case(
        "--data.root", "file", task=FINETUNE, says=r"data\.root: 'file' is a file; give a folder"
    ),
    "empty root": _case("--data.root", "", task=FINETUNE, says=r"data\.root: '' is empty; "),
    "folder without classes": _case("--data.root", "nothing", task=FINETUNE, says=r"'nothing' has 0 sub-folders; at"),
    # a class with no image
    "class without an image": _case(
        "--data.root", "weeds", task=FINETUNE, says=r"data\.root: class 'nothing' in 'weeds' has no image; every class"
    ),
    "class without an image, metatrain": _case(
        "--data.root", "weeds", task=METATRAIN, says=r"data\.root: class 'nothing' in 'weeds' has no image; every class"
    ),
    "folder without images, predict": _case(
        "predict", "run", "nothing", says=r"images: folder 'nothing' holds no image"
    ),
    # a file that is not an image
    "no image": _case(
        "--data.root",
        "spoilt",
        task=FINETUNE,
        says=r"'spoilt/b/notes\.jpg' \(and 1 more\) is not a whole image; .*skip",
    ),
    "no image, metatrain": _case(
        "--data.root", "spoilt", task=METATRAIN, says=r"'spoilt/b/notes\.jpg' \(and 1 more\) is"
    ),
    "no image, predict": _case("predict", "run", "file", says=r"images: 'file' is not a whole image; .*skip_broken"),
    # fewer images in a class than shots plus queries
    "few images": _case(
        *["--data.root", "few", "--task.ways", "2", "--task.shots", "4", "--task.queries", "4"],
        task=METATRAIN,
        says=r"task\.shots \+ task\.queries: 4 \+ 4 is more than class 'c' has \(7 images here\)",
    ),
    "few digits": _case(
        "--task.queries", "500", task=METATRAIN, says=r"task\.shots \+ task\.queries: 1 \+ 500 is more"
    ),
    # more ways than classes
    "many ways": _case(
        "--task.ways", "6", task=METATRAIN, says=r"task\.ways: 6 is too many for 10 classes.* at most 5"
    ),
    "many ways, evaluate": _case(
        "evaluate", "meta", "--data.root", "good", says=r"task\.ways: 5 is more than the 4 class"
    ),
    # an unknown model, activation, optimiser, task or data set
    "model": _case(
        "--model.name", "resnet19", task=FINETUNE, says=r"model\.name: 'resnet19' is not known; nearest: 'resnet"
    ),
    "model, metatrain": _case("--model.name", "conv5", task=METATRAIN, says=r"model\.name: 'conv5' .*nearest: 'conv4'"),
    "model, swap": _case("swap", "resnet19", says=r"model\.name: 'resnet19' is not known; nearest: 'resnet"),
    "activation": _case(
        "--model.activation", "arelo", task=FINETUNE, says=r"model\.activation: 'arelo' is not known; nearest: 'arelu'"
    ),
    "activation, swap": _case(
        "swap", "resnet18", "--model.activation", "gela", says=r"'gela' is not known; nearest: 'gelu'"
    ),
    "optimiser": _case(
        "--optim.name", "adamm", task=FINETUNE, says=r"optim\.name: 'adamm' is not known; nearest: 'adam"
    ),
    "optimiser, metatrain": _case("--optim.name", "sdg", task=METATRAIN, says=r"optim\.name: 'sdg' .*nearest: .*'sgd'"),
    "task": _case("fintune", says=r"task: 'fintune' is not known; nearest: 'finetune'"),
    "data set": _case(
        "--data.name", "mnits", task=FINETUNE, says=r"data\.name: 'mnits' is not known; nearest: .*'mnist'"
    ),
    "data set that is a folder": _case(
        "--data.name", "good", task=FINETUNE, says=r"data\.name: 'good' .*; a folder goes by --data\.root good"
    ),
    "few classes": _case(
        *["--data.root", "two", "--task.ways", "2"],
        task=METATRAIN,
        says=r"task\.ways: 2 is too many for 2 classes, .*; at least 4 classes are needed",
    ),
    "data set, metatrain": _case("--data.name", "omniglt", task=METATRAIN, says=r"data\.name: .*nearest: 'omniglot'"),
    "data set that is not there": _case(
        *["--data.name", "mnist", "--data.download", "false"],
        task=FINETUNE,
        says=r"data\.name: 'mnist' is missing or damaged in .*; give --data\.download true",
    ),
    # a mistyped YAML key or flag
    "YAML key": _case(
        "--config", "typo.yaml", task=FINETUNE, says=r"config: 'typo\.yaml': 'optim\.lrr' is not .*'optim\.lr'"
    ),
    "YAML group": _case(
        "--config", "group.yaml", task=FINETUNE, says=r"'optm' is not a field of finetune; nearest: 'optim"
    ),
    "YAML nesting": _case("--config", "nested.yaml", task=FINETUNE, says=r"optim: 3 is not allowed; give fields below"),
    "YAML list": _case("--config", "list.yaml", task=METATRAIN, says=r"'list\.yaml' holds a list; give keys"),
    "YAML broken": _case("--config", "broken.yaml", task=FINETUNE, says=r"config: 'broken\.yaml' is not YAML"),
    "YAML empty text": _case("--config", "empty.yaml", task=FINETUNE, says=r"data\.root: '' is empty"),
    "flag": _case("--optim.lrr", "1", task=FINETUNE, says=r"--optim\.lrr: no such flag; nearest: 'optim\.lr'"),
    "flag of another task": _case("--task.ways", "5", task=FINETUNE, says=r"--task\.ways: no such flag; "),
    "flag without a value": _case("--optim.lr", task=FINETUNE, says=r"optim\.lr: no value given"),
    "word": _case("flowrs", task=FINETUNE, says=r"data\.root: 'flowrs' does not exist; give a folder"),
    "words": _case("good", "flowers", task=FINETUNE, says=r"'flowers': not expected"),
    "dotted and nested": _case("--config", "twice.yaml", task=FINETUNE, says=r"'optim\.lr' is given twice, dotted and"),
    "YAML tag": _case("--config", "tag.yaml", task=FINETUNE, says=r"'tag\.yaml' is not YAML: '' is no int"),
    # a missing config file
    "config file": _case(
        "--config", "nowhere.yaml", task=FINETUNE, says=r"config: 'nowhere\.yaml' does not exist or is"
    ),
    "config folder": _case("--config", "good", task=METATRAIN, says=r"config: 'good' does not exist or is not a file"),
    # a learning rate that is not a number or not above 0
    **{
        f"learning rate {value}": _case(
            "--optim.lr", value, task=FINETUNE, says=rf"optim\.lr: '?{shown}'? is not allowed; give"
        )
        for value, shown in {
            **{"fast": "fast", "0": "0.0", "-0.1": "-0.1", "nan": "nan", "inf": "inf", "-inf": "-inf", "": ""},
            **{"1e-400": "0.0", "null": "None", "1,5": "1,5", "true": "[Tt]rue"},
        }.items()
    },
    "learning rate, head": _case(
        "--optim.head_lr", "0", task=FINETUNE, says=r"optim\.head_lr: 0\.0 is not allowed; give a"
    ),
    "learning rate, scalars": _case(
        "--optim.act_lr", "-1", task=METATRAIN, says=r"optim\.act_lr: -1\.0 is not allowed"
    ),
    "gates that open over more than the training": _case(
        "--optim.open_gates",
        "1.5",
        task=FINETUNE,
        says=r"optim\.open_gates: 1\.5 is not allowed; give a number above 0",
    ),
    "gates that there are not": _case(
        "--optim.open_gates", "0.5", task=METATRAIN, says=r"optim\.open_gates: 0\.5 opens the gates of preserve, and"
    ),
    "learning rate, inner": _case(
        "--meta.inner_lr", "0", task=METATRAIN, says=r"meta\.inner_lr: 0\.0 is not allowed; give"
    ),
    "learning rate, YAML": _case(
        "--config", "value.yaml", task=FINETUNE, says=r"optim\.lr: 'fast' is not allowed; give a nu"
    ),
    "learning rate 0, YAML": _case(
        "--config", "zero.yaml", task=FINETUNE, says=r"optim\.lr: 0\.0 is not allowed; give a"
    ),
    # a checkpoint that is missing, of another architecture, or damaged
    "checkpoint": _case(
        "evaluate", "nowhere", says=r"checkpoint: 'nowhere' does not exist; give a run folder or a model"
    ),
    "checkpoint, predict": _case(
        "predict", "nowhere", "good", says=r"checkpoint: 'nowhere' does not exist; give a run"
    ),
    "checkpoint, no run": _case(
        "evaluate", "good", says=r"checkpoint: folder 'good' holds no model\.safetensors; give"
    ),
    "checkpoint, start": _case(
        "--model.pretrained", "nowhere", task=FINETUNE, says=r"model\.pretrained: 'nowhere' does not exist; give a run"
    ),
    "checkpoint, resume": _case(
        "--run.resume", "nowhere.pt", task=FINETUNE, says=r"run\.resume: 'nowhere\.pt' does not exist; give never, auto"
    ),
    "architecture": _case(
        *["--model.pretrained", "run", "--model.name", "mnist_conv", "--data.image_size", "28"],
        task=FINETUNE,
        says=r"model\.pretrained: 'run' is of another architecture \('mnist_linear'\).* give --model\.name mnist_",
    ),
    "architecture, size": _case(
        *["--model.pretrained", "run", "--data.image_size", "12"],
        task=FINETUNE,
        says=r"data\.image_size: 12 does not go with model\.pretrained: 'run', .* of 8 px .*; give 8 or leave it out",
    ),
    "architecture, resume": _case(
        *["--run.resume", "run/checkpoints/epoch-0001.pt", "--model.activation", "arelu"],
        task=FINETUNE,
        says=r"model\.activation: 'arelu', and the run in 'run' ended with None; give what it had",
    ),
    "checkpoint of another task": _case(
        "--run.resume", "run/checkpoints/epoch-0001.pt", task=METATRAIN, says=r"is not one of a meta-training run; give"
    ),
    "checkpoint of another optimiser": _case(
        *["--run.resume", "run/checkpoints/epoch-0001.pt", "--optim.name", "adamw"],
        task=FINETUNE,
        says=r"optim\.name: 'adamw', and the run in 'run' ended with 'sgd'; give what it had, or another run\.folder",
    ),
    "classes that it does not know": _case(
        "evaluate", "run", "--data.root", "good", says=r"class 'a' is not one of the ch"
    ),
    "damaged": _case(
        "evaluate", "damaged.safetensors", says=r"checkpoint: 'damaged\.safetensors' is damaged or no model"
    ),
    "damaged, cut": _case(
        "predict", "cut.safetensors", "good", says=r"checkpoint: 'cut\.safetensors' is damaged or no mo"
    ),
    "damaged, foreign": _case(
        "evaluate", "foreign.safetensors", says=r"'foreign\.safetensors' does not say what model it"
    ),
    "damaged, start": _case(
        "--model.pretrained",
        "cut.safetensors",
        task=METATRAIN,
        says=r"model\.pretrained: 'cut\.safetensors' is damaged",
    ),
    "damaged, resume": _case(
        "--run.resume", "damaged.pt", task=FINETUNE, says=r"run\.resume: 'damaged\.pt' is not a checkpo"
    ),
    "no checkpoint, resume": _case(
        "--run.resume", "list.pt", task=METATRAIN, says=r"run\.resume: 'list\.pt' is not a check"
    ),
    "support missing": _case("predict", "meta", "good", says=r"support: missing; a meta-learned model needs --support"),
    # an output folder that already holds a run
    "output folder": _case(
        "--run.folder", "run", task=FINETUNE, says=r"run\.folder: 'run' already holds a run .* or --run\.resume auto"
    ),
    "output folder, metatrain": _case(
        "--run.folder", "run", task=METATRAIN, says=r"run\.folder: 'run' already holds a run"
    ),
    "output folder, evaluate": _case(
        "evaluate", "run", "--run.folder", "meta", says=r"run\.folder: 'meta' already holds"
    ),
    "output folder, predict": _case(
        "predict", "run", "good", "--run.folder", "run", says=r"run\.folder: 'run' already hold"
    ),
    "output folder, demo": _case(
        "demo", "--data.root", "good", "--run.folder", "run", says=r"run\.folder: 'run' already"
    ),
    "output folder of another task": _case(
        *["--run.folder", "meta", "--run.resume", "auto"],
        task=FINETUNE,
        says=r"run\.folder: 'meta' holds results of metatrain, not of finetune; give another folder",
    ),
    "output folder is a file": _case(
        "--run.folder", "file", task=FINETUNE, says=r"run\.folder: 'file' is a file; give a f"
    ),
    "output folder in a file": _case(
        "--run.folder",
        "file/x/y",
        task=FINETUNE,
        says=r"run\.folder: 'file/x/y' lies below .*/file', which is no folder",
    ),
    "output folder among the images": _case(
        *["--data.root", "good", "--run.folder", "good/a/../out"],
        task=FINETUNE,
        says=r"run\.folder: 'good/a/\.\./out' lies among the images in 'good'; give another folder",
    ),
    "output folder is the images, metatrain": _case(
        *["--data.root", "good", "--run.folder", "good"],
        task=METATRAIN,
        says=r"run\.folder: 'good' lies among the images in 'good'; give another folder",
    ),
    "output folder is the images, demo": _case(
        "demo", "--data.root", "good", "--run.folder", "good", says=r"run\.folder: 'good' lies among the images"
    ),
    "output folder of another run than the checkpoint": _case(
        *["--run.folder", "meta", "--run.resume", "run/checkpoints/epoch-0001.pt"],
        task=FINETUNE,
        says=r"run\.folder: 'meta' already holds a run \(config\.yaml\), and not the one of run\.resume 'run/",
    ),
    "output folder is empty": _case("--run.folder", "", task=METATRAIN, says=r"run\.folder: '' is empty"),
    # and what else a newcomer meets
    "choice": _case("--train.mode", "half", task=FINETUNE, says=r"train\.mode: 'half' is not known; give full, head, "),
    "whole number": _case(
        "--train.epochs", "1.5", task=FINETUNE, says=r"train\.epochs: '1\.5' is not allowed; give a whole"
    ),
    "no epochs": _case(
        "--train.epochs", "0", task=FINETUNE, says=r"train\.epochs: 0 is not allowed; give a number at least 1"
    ),
    "many per class": _case(
        "--data.per_class", "999", task=FINETUNE, says=r"data\.per_class: 999 is more than class .* at m"
    ),
    "device": _case(
        "--run.device", "gpu", task=FINETUNE, says=r"run\.device: 'gpu' is not known; give auto, cpu, cuda"
    ),
    "init without AReLU": _case(
        "--model.init", "preserve", task=FINETUNE, says=r"model\.init: 'preserve' starts an AReLU; gi"
    ),
    "no published weights": _case(
        "--model.pretrained", "true", task=FINETUNE, says=r"model\.pretrained: there are no publish"
    ),
    "size": _case(
        "--model.name",
        "mnist_conv",
        task=FINETUNE,
        says=r"model\.name: 'mnist_conv' cannot be made: img_size: 8 is too small",
    ),
    "batch of one": _case(
        *["--model.name", "test_efficientnet", "--data.image_size", "16", "--data.batch_size", "1"],
        task=FINETUNE,
        says=r"data\.batch_size: 1 at 16 px is too small, or does not fit 'test_efficientnet'",
    ),
    "optimiser that needs Hessians": _case(
        "--optim.name", "adahessian", task=FINETUNE, says=r"optim\.name: 'adahessian' needs second derivatives; give"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_status_2_one_line_and_nothing_written(
    case: str, world: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words, says = CASES[case]
    before = _snapshot(world)
    with caplog.at_level(logging.WARNING):
        status = main(words)
    err = capfd.readouterr().err
    assert status == 2, err
    assert re.match(rf"error: .*{says}", err), err
    assert err.endswith("\n")
    assert err.count("\n") == 1
    # Under pytest the log is caught; elsewhere its warnings would be further lines on stderr.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert _snapshot(world) == before


def test_outside_of_pytest_too_stderr_holds_one_line_a_case(world: Path) -> None:
    code = (
        "import json, sys\n"
        "from arelu_meta.cli import main\n"
        "print(*[main(words) for words in json.load(sys.stdin)], file=open('/dev/fd/1', 'w'))\n"
    )
    commands = json.dumps([words for words, _ in CASES.values()])
    done = subprocess.run(
        [sys.executable, "-c", code], input=commands, capture_output=True, text=True, cwd=world, check=False
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("error: ")] == []
    assert len(lines) == len(CASES)
    for (case, (_, says)), line in zip(CASES.items(), lines, strict=True):
        assert re.search(says, line), case
    assert done.stdout.split()[-len(CASES) :] == ["2"] * len(CASES)


# -- skip_broken ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _results(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "results.json").read_text())
    return content


@pytest.mark.usefixtures("world")
def test_skip_broken_counts_what_it_skips_in_fine_tuning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*FINETUNE, "--data.root", "spoilt", "--data.skip_broken", "--run.folder", str(folder)]
    assert main(words) == 0
    assert _results(folder)["skipped"] == 2
    split = json.loads((folder / "split.json").read_text())
    assert split["skipped"] == ["b/notes.jpg", "c/cut.png"]
    out, err = capfd.readouterr()
    assert "2 files skipped that are not images" in out
    assert err == ""
    # Evaluated again, on the run's own test images and on all of the folder.
    assert main(["evaluate", str(folder), "--data.root", "spoilt"]) == 2
    other = folder.parent / "again"
    again = ["evaluate", str(folder), "--data.root", "spoilt", "--data.skip_broken", "--run.folder", str(other)]
    assert main(again) == 0
    assert (_results(other)["skipped"], _results(other)["test_n"]) == (2, 32)


@pytest.mark.usefixtures("world")
def test_skip_broken_counts_what_it_skips_in_meta_training(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*METATRAIN, "--data.root", "spoilt", "--task.ways", "2", "--data.skip_broken", "--run.folder", str(folder)]
    assert main(words) == 0
    assert _results(folder)["skipped"] == 2
    assert json.loads((folder / "split.json").read_text())["skipped"] == ["b/notes.jpg", "c/cut.png"]
    out, err = capfd.readouterr()
    assert "2 files skipped that are not images" in out
    assert err == ""


@pytest.mark.usefixtures("world")
def test_skip_broken_counts_what_it_skips_in_prediction(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "spoilt/b", "spoilt/c/cut.png", "--data.skip_broken"]) == 0
    out, err = capfd.readouterr()
    assert len([line for line in out.splitlines() if line.startswith("spoilt/")]) == 8
    assert err == "files skipped because they are not images: 2\n"


@pytest.mark.usefixtures("world")
def test_without_broken_files_nothing_is_counted(folder: Path) -> None:
    assert main([*FINETUNE, "--data.root", "good", "--data.skip_broken", "--run.folder", str(folder)]) == 0
    assert _results(folder)["skipped"] == 0


# -- divergence -------------------------------------------------------------------------------------------------------

DIVERGING = {
    "finetune": [*FINETUNE, "--optim.lr", "1e30"],
    "finetune, convolutions": [
        *FINETUNE,
        "--model.name",
        "mnist_conv",
        "--data.image_size",
        "28",
        "--optim.lr",
        "1e30",
    ],
    "finetune, one batch": [*FINETUNE, "--optim.lr", "1e30", "--data.batch_size", "100"],  # only validation shows it
    "finetune, bfloat16": [*FINETUNE, "--optim.lr", "1e30", "--run.precision", "bf16"],
    "finetune, head": [*FINETUNE, "--optim.head_lr", "1e38", "--train.mode", "head"],
    "metatrain": [*METATRAIN, "--optim.name", "sgd", "--optim.lr", "1e30"],
    "metatrain, learn2learn": [
        *[*METATRAIN, "--optim.name", "sgd", "--optim.lr", "1e30", "--meta.engine", "learn2learn"],
    ],
    "metatrain, adam": [*METATRAIN, "--optim.lr", "1e30"],
    "metatrain, inner loop": [*METATRAIN, "--meta.inner_lr", "1e30"],
    # The weights are spoilt by the last step of an interval: what it leaves must not pass for a good checkpoint.
    "metatrain, each step": [*METATRAIN, "--optim.name", "sgd", "--optim.lr", "1e30", "--eval.every", "1"],
    "metatrain, anomaly": [*METATRAIN, "--meta.inner_lr", "1e30", "--run.detect_anomaly"],
    "metatrain, last step": [*METATRAIN, "--optim.name", "sgd", "--optim.lr", "1e30", "--meta.steps", "1"],
    "metatrain, no validation": [
        *[*METATRAIN, "--optim.name", "sgd", "--optim.lr", "1e30", "--meta.steps", "1"],
        *["--data.root", "good", "--task.ways", "2", "--task.queries", "4"],  # too few images to hold any out
    ],
}


@pytest.fixture(params=DIVERGING)
def diverging(request: pytest.FixtureRequest, folder: Path) -> Iterator[list[str]]:
    if "learn2learn" in request.param:
        pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    with torch.autograd.set_detect_anomaly(False):  # as it was, whatever a run sets
        yield [*DIVERGING[request.param], "--run.folder", str(folder)]


def test_divergence_is_status_3_and_names_step_rate_and_a_good_checkpoint(
    diverging: list[str], world: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = _snapshot(world)
    assert main(diverging) == 3
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(r"(loss|predictions|gradient).* became (nan|inf|NaN or infinite)", err)
    assert re.search(r" (at|after) step \d+", err)
    assert re.search(r"learning rate (1e\+3\d|\d)", err)
    named = re.search(r"the last good checkpoint is (\S+\.pt);", err)
    assert named is not None, err
    state = load_checkpoint(Path(named[1]))
    tensors = [tensor for tensor in state["model"].values() if tensor.is_floating_point()]
    assert all(tensor.abs().max() < 100 for tensor in tensors)
    assert not (folder / "results.json").exists()
    assert _snapshot(world) == before


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("task", [FINETUNE, METATRAIN], ids=["finetune", "metatrain"])
def test_after_a_divergence_the_run_goes_on_from_its_checkpoint_at_a_smaller_rate(
    task: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*task, "--optim.name", "sgd", "--run.folder", str(folder)]
    assert main([*words, "--optim.lr", "1e30"]) == 3
    assert main([*words, "--optim.lr", "0.01", "--run.resume", "auto"]) == 0
    assert 0 <= float(str(_results(folder)["test_accuracy"])) <= 1
    assert capfd.readouterr().err.count("\n") == 1
