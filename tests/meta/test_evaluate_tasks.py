"""A saved meta-learner on unseen classes: what it is compared with, and what is said where classes are not unseen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_meta import evaluate, metatrain
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.config import DataConfig, MetatrainConfig, UnseenTaskConfig
from arelu_meta.errors import InputError
from arelu_meta.meta.evaluate_tasks import _backbone_of_start


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Six classes of six small images."""
    draw = np.random.default_rng(0)
    for name in "abcdef":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return str(tmp_path / "photos")


def _run(folder: Path, photos: str, init: Any = None, seed: int = 3) -> str:
    config = MetatrainConfig()
    config.run.folder, config.run.seed, config.run.device, config.run.pictures = str(folder), seed, "cpu", False
    config.data.root, config.data.image_size = photos, 8
    config.model.name, config.model.activation, config.model.init = "mnist_linear", "arelu", init
    config.task.ways, config.task.queries = 2, 2
    config.meta.steps, config.meta.batch_tasks, config.eval.tasks, config.eval.validation_tasks = 1, 1, 4, 1
    return str(metatrain(config)["folder"])


@pytest.mark.parametrize("init", ["paper", "fit", "open"])
def test_a_baseline_is_judged_on_the_very_backbone_that_the_run_started_from(
    tmp_path: Path, photos: str, init: str
) -> None:
    run = _run(tmp_path / "run", photos, init)
    started = torch.load(Path(run) / "checkpoints" / "step-000000.pt", weights_only=True)["model"]
    _, spec = load_model(run)
    before = torch.get_rng_state()
    backbone = _backbone_of_start(spec).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert backbone.keys() == started.keys()
    for name, tensor in backbone.items():
        torch.testing.assert_close(tensor, started[name], rtol=0, atol=0)
    assert 0 <= evaluate(run, tasks=4, against="centroid, logistic")["against_accuracy_2"] <= 1


def test_raw_pixels_tell_striped_classes_apart_with_no_network_at_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for row in range(8):
        (tmp_path / "stripes" / str(row)).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 60, (8, 8), dtype=np.uint8)
            pixels[row] += 150
            Image.fromarray(pixels).save(tmp_path / "stripes" / str(row) / f"{number}.png")
    run = _run(tmp_path / "run", str(tmp_path / "stripes"))
    assert evaluate(run, tasks=10, against="pixels")["against_accuracy"] > 0.9


def test_classes_that_were_trained_on_are_told_apart_from_unseen_ones(tmp_path: Path, photos: str) -> None:
    run = _run(tmp_path / "run", photos)
    assert evaluate(run, tasks=4)["test_seen"] == 0
    found = evaluate(run, DataConfig(root=photos), tasks=4)
    assert (found["test_seen"], found["test_classes"]) == (4, 6)


def test_a_comma_with_no_name_beside_it_is_refused(tmp_path: Path, photos: str) -> None:
    run = _run(tmp_path / "run", photos)
    with pytest.raises(InputError, match=r"^eval\.against: 'centroid,' has a comma with no name beside it"):
        evaluate(run, tasks=4, against="centroid,")


def test_test_images_that_were_exchanged_under_the_same_names_are_refused(tmp_path: Path, photos: str) -> None:
    run = _run(tmp_path / "run", photos)
    renamed = tmp_path / "photos" / "c"
    for path in sorted(renamed.iterdir()):
        path.rename(renamed / f"new-{path.name}")
    assert evaluate(run, tasks=2)["test_seen"] == 0
    draw = np.random.default_rng(1)
    for path in (tmp_path / "photos").rglob("*.png"):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    for task in (None, UnseenTaskConfig(alphabets="mixed")):
        with pytest.raises(
            InputError, match=r"^checkpoint: the images of its run have changed since \(0 of 12 to test"
        ):
            evaluate(run, tasks=2, task=task)


def test_what_a_run_is_compared_with_says_how_many_of_the_test_classes_it_was_trained_on(
    tmp_path: Path, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = _run(tmp_path / "run", photos), _run(tmp_path / "other", photos, seed=5)
    tested, trained = set(_classes(run, "test")), set(_classes(other, "train"))
    assert tested & trained
    found = evaluate(run, tasks=2, against=f"centroid,{run},{other}")
    note = f"{len(tested & trained)} of {len(tested)} test classes were seen by {other}"
    assert found["notes"] == note
    assert note in capsys.readouterr().out


def _classes(run: str, part: str) -> list[str]:
    return json.loads((Path(run) / "split.json").read_text())[f"{part}_classes"]  # type: ignore[no-any-return]
