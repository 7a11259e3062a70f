"""`evaluate RUN --support DIR --query DIR`, other tasks than the run's, and several rivals on the same tasks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta import evaluate
from arelu_meta.backbones.checkpoint import save_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.cli import main
from arelu_meta.config import DataConfig, MetatrainConfig, ModelConfig, UnseenTaskConfig
from arelu_meta.errors import InputError
from arelu_meta.meta.inner_loop import Inner, attach_loop
from arelu_meta.validation import flatten


def _folder(root: Path, names: str, count: int, first: int = 0) -> Path:
    for row, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(first + number).integers(0, 90, (8, 8), dtype=np.uint8)
            pixels[2 * row] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A 3-way meta-learner as it is before its first step, saved with the config of its run."""
    from dataclasses import asdict

    config = MetatrainConfig()
    config.model.name, config.data.image_size, config.task.ways, config.task.queries = "mnist_linear", 8, 3, 3
    model, spec = build_backbone(ModelConfig("mnist_linear", pretrained=False), tuple("012"), 1, 8, "metatrain")
    attach_loop(model, Inner(0.2, 3))
    meta = {**asdict(config.task), "algorithm": "maml", "inner_lr": 0.2, "inner_steps": 3, "inverted": False}
    meta["normalization"] = "transductive"
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model, replace(spec, meta=meta, config=asdict(config)))
    assert flatten(config)["task.ways"] == 3
    return str(path)


def test_a_support_and_a_query_folder_give_an_accuracy_over_images_that_names_its_normalisation(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support, query = _folder(tmp_path / "s", "abc", 4), _folder(tmp_path / "q", "abc", 6, first=50)
    words = ["evaluate", run, "--support", str(support), "--query", str(query), "--run.folder", str(tmp_path / "out")]
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["test_n"], results["ways"], results["support_images"]) == (18, 3, 12)
    assert results["test_accuracy"] > 0.8
    assert results["normalization"] == "transductive"
    assert "18 images, transductive normalisation)" in capsys.readouterr().out


def test_folders_that_do_not_do_are_one_line(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support, query = _folder(tmp_path / "s", "abc", 2), _folder(tmp_path / "q", "abd", 2)
    for words, says in (
        (["--support", str(support)], "error: query: missing; give --support FOLDER and --query FOLDER together"),
        (["--query", str(query)], "error: support: missing; give --support FOLDER and --query FOLDER together"),
        (["--support", str(support), "--query", "nowhere"], "error: query: 'nowhere' does not exist; give a folder"),
        (["--support", str(support), "--query", str(query)], "error: query: class 'd' is not one of the support's; "),
    ):
        assert main(["evaluate", run, *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith(says)
        assert err.count("\n") == 1


def test_tasks_may_have_other_shots_queries_and_steps_and_the_curve_is_written(run: str, tmp_path: Path) -> None:
    data = DataConfig(root=str(_folder(tmp_path / "d", "abcd", 12)))
    found = evaluate(run, data, tasks=40, task=UnseenTaskConfig(shots=5, queries=2), inner_steps=5)
    assert (found["shots"], found["queries"], found["inner_steps"], found["normalization"]) == (5, 2, 5, "transductive")
    assert found["accuracy_after_5"] == found["test_accuracy"] > found["accuracy_after_0"]
    with pytest.raises(InputError, match=r"^task\.shots \+ task\.queries: 11 \+ 3 is more than class 'a' has"):
        evaluate(run, data, tasks=2, task=UnseenTaskConfig(shots=11))


def test_several_rivals_are_judged_on_the_same_tasks(run: str, tmp_path: Path) -> None:
    data = DataConfig(root=str(_folder(tmp_path / "d", "abcd", 12)))
    found = evaluate(run, data, tasks=20, against=f"centroid, {run}")
    assert (found["against"], found["against_2"]) == ("centroid", run)
    assert found["difference_2"] == 0
    assert found["difference_low_2"] < 0 < found["difference_high_2"]  # of so few query images
    assert found["difference"] == pytest.approx(found["test_accuracy"] - found["against_accuracy"])


def test_one_alphabet_a_task_is_refused_where_there_are_no_alphabets(run: str, tmp_path: Path) -> None:
    data = DataConfig(root=str(_folder(tmp_path / "d", "abcd", 12)))
    with pytest.raises(InputError, match=r"^task\.alphabets: 'one-in-test' needs characters of several alphabets"):
        evaluate(run, data, tasks=2, task=UnseenTaskConfig(alphabets="one"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--eval.every 3", "eval.every: 3 is not read by evaluate of a meta-learner; metatrain reads it; leave"),
        ("--eval.patience 3", "eval.patience: 3 is not read"),
        ("--eval.validation_tasks 9", "eval.validation_tasks: 9 is not read"),
        ("--data.image_size 16", "data.image_size: 16 is not read"),
        ("--data.rotations true", "data.rotations: True is read of other images than the run's own; give --data.root"),
        (
            "--support S --query S --eval.against centroid",
            "eval.against: 'centroid' is not read by evaluate with a",
        ),
        ("--support S --query S --eval.tasks 5", "eval.tasks: 5 is not read by evaluate with a support and a"),
        ("--support S --query S --task.shots 2", "task.shots: 2 is not read by evaluate with a support and a"),
        ("--support S --query S --data.root S", "data.root: 'S' is not read by evaluate with a support and a"),
        ("--support S --query S --run.precision bf16", "run.precision: 'bf16' is not read by evaluate with a"),
    ],
)
def test_what_an_evaluation_does_not_read_is_refused(
    run: str, words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", run, *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1
