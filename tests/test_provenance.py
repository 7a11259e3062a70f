"""No test image or class leaks through a checkpoint, a copy or another seed without a word."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_meta import evaluate, finetune, metatrain
from arelu_meta.backbones.checkpoint import load_model, save_model
from arelu_meta.cli import main
from arelu_meta.config import DataConfig, FinetuneConfig, MetatrainConfig
from arelu_meta.data.image_folder import read_folder
from arelu_meta.data.image_io import Reading
from arelu_meta.data.named_datasets import load_images
from arelu_meta.data.splits import take_fold
from arelu_meta.errors import InputError
from arelu_meta.statistics import proportion_interval

CLASSES = "abcd"


def _noise(root: Path, images: int = 12, classes: str = CLASSES, seed: int = 0) -> Path:
    """Noise with drawn labels: nothing can be learned but by heart."""
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def _config(root: Path, folder: Path, **changes: Any) -> FinetuneConfig:
    config = FinetuneConfig()
    config.data.root, config.run.folder = str(root), str(folder)
    config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 8
    config.train.epochs, config.optim.lr, config.run.pictures = 1, 0.05, False
    for name, value in changes.items():
        group, _, field = name.partition("_")
        setattr(getattr(config, group), field, value)
    return config


def _split(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "split.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    finetune(_config(_noise(tmp_path / "noise"), tmp_path / "parent"))
    return tmp_path / "parent"


@pytest.mark.parametrize("seed", [1, 2, 7])
def test_a_run_from_a_checkpoint_tests_on_what_that_had_not_seen_whatever_its_seed(
    parent: Path, tmp_path: Path, seed: int
) -> None:
    results = finetune(_config(tmp_path / "noise", tmp_path / "child", model_pretrained=str(parent), run_seed=seed))
    assert _split(tmp_path / "child")["test"] == _split(parent)["test"]
    assert results["test_seen"] == 0


def test_a_checkpoint_of_a_checkpoint_remembers_both(parent: Path, tmp_path: Path) -> None:
    more = shutil.copytree(tmp_path / "noise", tmp_path / "more")
    _noise(tmp_path / "extra", seed=1)
    for name in CLASSES:
        for number in range(12):
            shutil.copy(tmp_path / "extra" / name / f"{number}.png", more / name / f"extra-{number}.png")
    child = _config(more, tmp_path / "child", model_pretrained=str(parent), run_seed=3)
    assert finetune(child)["test_seen"] == 0
    again = _config(tmp_path / "noise", tmp_path / "again", model_pretrained=str(tmp_path / "child"), run_seed=4)
    results = finetune(again)
    runs = (parent, tmp_path / "child")
    seen = {name for run in runs for part in ("train", "validation") for name in _split(run)[part]}
    assert results["test_seen"] == len(seen & set(_split(tmp_path / "again")["test"])) > 0


def test_repeats_from_a_checkpoint_test_on_unseen_images_and_folds_count_the_seen_ones_aloud(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repeats = _config(tmp_path / "noise", tmp_path / "repeats", model_pretrained=str(parent), train_repeats=2)
    assert finetune(repeats)["test_seen"] == 0
    folds = _config(tmp_path / "noise", tmp_path / "folds", model_pretrained=str(parent), data_folds=3)
    results = finetune(folds)
    assert results["test_n"] == 48
    assert results["test_seen"] == 36
    assert "NOT all unseen: 36 of 48 test images were trained or validated on before" in capsys.readouterr().out


def test_an_evaluation_on_images_that_were_trained_on_says_how_many(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(parent)["test_seen"] == 0
    assert main(["evaluate", str(parent), "--data.root", str(tmp_path / "noise")]) == 0
    assert "NOT all unseen: 36 of 48 test images" in capsys.readouterr().out
    moved = shutil.copytree(tmp_path / "noise", tmp_path / "renamed")
    for path in list(moved.rglob("*.png")):
        path.rename(path.with_name(f"other-{path.name}"))
    assert evaluate(parent, DataConfig(root=str(moved)))["test_seen"] == 36


def test_digits_by_name_are_evaluated_on_images_that_a_run_of_another_seed_had_not_seen(tmp_path: Path) -> None:
    config = _config(tmp_path, tmp_path / "digits", run_seed=5)
    config.data.root, config.data.per_class = None, 5
    finetune(config)
    assert evaluate(tmp_path / "digits", DataConfig(name="digits"))["test_seen"] == 0


def test_a_run_tested_on_a_parent_s_split_is_evaluated_on_the_same_images(parent: Path, tmp_path: Path) -> None:
    child = finetune(_config(tmp_path / "noise", tmp_path / "child", model_pretrained=str(parent), run_seed=6))
    found = evaluate(tmp_path / "child")
    assert (found["test_n"], found["test_accuracy"]) == (child["test_n"], child["test_accuracy"])


def test_copies_of_a_file_stay_in_one_part_and_are_named(tmp_path: Path) -> None:
    root = _noise(tmp_path / "noise", images=10)
    for name in CLASSES:
        for number in range(10):
            shutil.copy(root / name / f"{number}.png", root / name / f"copy-{number}.png")
    for seed in range(4):
        splits = load_images(DataConfig(root=str(root)), seed)
        parts = [set(part.digests().tolist()) for part in (splits.train, splits.validation, splits.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 80
        assert any("40 images are copies of others of their class (a/copy-0.png = a/0.png" in n for n in splits.notes)
        fold = take_fold(splits, 3, 1, seed)
        assert not np.isin(fold.test.digests(), fold.train.digests()).any()


def test_a_test_folder_that_copies_the_training_folder_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = _noise(tmp_path / "data" / "train", images=8)
    shutil.copytree(train, tmp_path / "data" / "test")
    results = finetune(_config(tmp_path / "data", tmp_path / "run"))
    assert results["test_seen"] == results["test_n"] == 32
    printed = capsys.readouterr().out
    assert "32 of 32 test images are training or validation images too (test/a/0.png = train/a/0.png" in printed
    assert "NOT all unseen: 32 of 32 test images" in printed


def test_a_query_that_is_a_support_image_is_refused(tmp_path: Path) -> None:
    config = MetatrainConfig()
    config.model.name, config.model.pretrained, config.run.folder = "mnist_linear", False, str(tmp_path / "few")
    config.task.ways, config.task.queries, config.meta.steps, config.eval.tasks = 2, 2, 1, 2
    config.data.image_size = 8
    metatrain(config)
    support = _noise(tmp_path / "support", images=2, classes="ab")
    query = _noise(tmp_path / "query", images=2, classes="ab", seed=9)
    shutil.copy(support / "a" / "0.png", query / "a" / "renamed.png")
    with pytest.raises(InputError, match=r"^query: .*renamed\.png' and 0 more are among the support images"):
        evaluate(tmp_path / "few", support=support, query=query)


def test_tasks_of_classes_that_the_checkpoint_was_trained_on_are_not_called_unseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _noise(tmp_path / "noise", images=6, classes="abcdefgh")
    finetune(_config(root, tmp_path / "parent"))
    config = MetatrainConfig()
    config.data.root, config.data.image_size, config.run.folder = str(root), 8, str(tmp_path / "few")
    config.model.name, config.model.pretrained = "mnist_linear", str(tmp_path / "parent")
    config.model.reset_head = True
    config.task.ways, config.task.queries, config.meta.steps, config.eval.tasks = 2, 2, 1, 3
    results = metatrain(config)
    assert results["test_seen"] == results["test_classes"] > 0
    printed = capsys.readouterr().out
    assert "tasks of unseen classes" not in printed
    assert f"NOT all unseen: {results['test_seen']} of {results['test_classes']} test classes" in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_activation": "gelu"}, "model.activation: 'gelu', and the run in"),
        ({"optim_lr": 0.1}, "optim.lr: 0.1, and the run in"),
        ({"run_seed": 1}, "run.seed: 1, and the run in"),
        ({"train_epochs": 4}, "train.epochs: 4, and the run in .* has ended after 1; give that, or another run.folder"),
    ],
)
def test_a_finished_run_under_other_settings_is_refused_by_the_first_that_differs(
    parent: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    config = _config(tmp_path / "noise", parent, run_resume="auto", **change)
    with pytest.raises(InputError, match=f"^{says}"):
        finetune(config)
    same = _config(tmp_path / "noise", parent, run_resume="auto", data_workers=1, run_checkpoint_minutes=1.0)
    assert finetune(same)["test_accuracy"] is not None


@pytest.mark.parametrize("series", [{}, {"train_repeats": 2}, {"data_folds": 3}])
def test_a_finished_run_or_series_is_no_answer_for_other_images_and_is_one_for_moved_ones(
    tmp_path: Path, series: dict[str, Any]
) -> None:
    root = _noise(tmp_path / "noise")
    finetune(_config(root, tmp_path / "run", **series))
    again = {**series, "run_resume": "auto"}
    moved = root.rename(tmp_path / "moved")
    assert finetune(_config(moved, tmp_path / "run", **again))["test_accuracy"] is not None
    with pytest.raises(InputError, match=r"^optim\.lr: 0\.5, and the run in '.*' ended with 0\.05"):
        finetune(_config(moved, tmp_path / "run", optim_lr=0.5, **again))
    (moved / "b" / "3.png").write_bytes((moved / "b" / "4.png").read_bytes())
    with pytest.raises(InputError, match=r"on other images, .* \(1 with another content, such as 'b/3\.png'\)"):
        finetune(_config(moved, tmp_path / "run", **again))
    (moved / "b" / "3.png").unlink()
    with pytest.raises(InputError, match=r"on other images, .* \(1 gone, such as 'b/3\.png'\)"):
        finetune(_config(moved, tmp_path / "run", **again))


def test_a_rate_of_the_scalars_that_is_left_out_on_resume_is_noticed(tmp_path: Path) -> None:
    root, own = _noise(tmp_path / "noise"), {"model_activation": "arelu", "run_resume": "auto"}
    finetune(_config(root, tmp_path / "run", optim_act_lr=0.3, **own))
    with pytest.raises(InputError, match=r"^optim\.act_lr: None, and the run in '.*' ended with 0\.3"):
        finetune(_config(root, tmp_path / "run", **own))


def test_a_moved_run_says_where_it_lies_now(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = parent.rename(tmp_path / "moved")
    assert finetune(_config(tmp_path / "noise", moved, run_resume="auto"))["folder"] == str(moved)
    assert "parent" not in capsys.readouterr().out.split("finished already")[1]


def _interrupt(trainer: object) -> None:
    raise KeyboardInterrupt


def test_files_that_were_exchanged_under_the_same_names_are_noticed_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arelu_meta.finetuning.trainer import Trainer

    root = _noise(tmp_path / "noise")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(_config(root, tmp_path / "run"))
    _noise(tmp_path / "others", seed=3)
    name = _split(tmp_path / "run")["train"][0]
    shutil.copy(tmp_path / "others" / name, root / name)
    with pytest.raises(InputError, match=f"1 with another content, such as '{name}'"):
        finetune(_config(root, tmp_path / "run", run_resume="auto"))
    (root / "a" / "new.png").write_bytes((tmp_path / "others" / "a" / "5.png").read_bytes())
    with pytest.raises(
        InputError, match=r"images, or on another split of them \(1 new, such as 'a/new\.png' and 1 with an"
    ):
        finetune(_config(root, tmp_path / "run", run_resume="auto"))


def test_a_person_s_own_hidden_temporary_files_stay(tmp_path: Path) -> None:
    mine = tmp_path / "run" / ".notes.tmp"
    mine.parent.mkdir()
    mine.write_text("mine")
    finetune(_config(_noise(tmp_path / "noise"), tmp_path / "run"))
    assert mine.read_text() == "mine"


def test_a_model_of_before_0_2_says_that_nobody_knows_what_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _noise(tmp_path / "noise")
    finetune(_config(root, tmp_path / "run"))
    model, spec = load_model(tmp_path / "run")
    save_model(tmp_path / "old.safetensors", model, replace(spec, provenance={}))
    results = finetune(_config(root, tmp_path / "child", model_pretrained=str(tmp_path / "old.safetensors")))
    assert results["test_seen"] is None
    assert "not known: how many of the" in capsys.readouterr().out


def _few(root: Path, folder: Path, **changes: Any) -> MetatrainConfig:
    config = MetatrainConfig()
    config.data.root, config.data.image_size, config.run.folder, config.run.pictures = str(root), 8, str(folder), False
    config.model.name, config.model.pretrained = "mnist_linear", False
    config.task.ways, config.task.queries, config.meta.steps, config.eval.tasks = 2, 2, 1, 3
    for name, value in changes.items():
        group, _, field = name.partition("_")
        setattr(getattr(config, group), field, value)
    return config


def _copy_all(root: Path, target: Path, times: int = 1) -> Path:
    """Copy every image beside itself."""
    shutil.copytree(root, target)
    for path in list(target.rglob("*.png")):
        for number in range(times):
            shutil.copy(path, path.with_name(f"{'copy-' * (number + 1)}{path.name}"))
    return target


def test_no_query_of_a_task_is_a_copy_of_a_support_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from arelu_meta.config import TaskConfig
    from arelu_meta.data.fewshot import TensorSampler, load_class_splits, load_pool
    from arelu_meta.data.loaders import InputSpec

    root = _copy_all(_noise(tmp_path / "noise", images=6, classes="abcdefgh"), tmp_path / "copies")
    task, inputs = TaskConfig(ways=2, shots=2, queries=4), InputSpec(8, 3, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(InputError, match=r"2 \+ 5 is more than class 'a' has \(6 different images here\)"):
        load_class_splits(DataConfig(root=str(root)), TaskConfig(ways=2, shots=2, queries=5), 0)
    splits = load_class_splits(DataConfig(root=str(root)), task, 0)
    for part in (splits.train, splits.validation, splits.test):
        assert part is not None
        tasks = TensorSampler(load_pool(part, inputs), task, "any").batch(range(20))
        for one in range(20):
            images = torch.cat([tasks.support_images[one], tasks.query_images[one]]).flatten(1)
            assert len(images.unique(dim=0)) == 12
    metatrain(_few(root, tmp_path / "run"))
    assert "48 images are copies of others of their class (" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--data.root", str(root), "--eval.tasks", "2"]) == 0
    assert "48 images are copies of others of their class (a/copy-0.png = a/0.png" in capsys.readouterr().out


def test_images_held_out_to_validate_tasks_on_are_no_copies_of_those_that_are_trained_on(tmp_path: Path) -> None:
    from arelu_meta.config import TaskConfig
    from arelu_meta.data.fewshot import load_class_splits

    root = _copy_all(_noise(tmp_path / "noise", images=8, classes="abcd"), tmp_path / "copies")
    splits = load_class_splits(DataConfig(root=str(root)), TaskConfig(ways=2, shots=1, queries=1), 0)
    assert splits.validation is not None
    assert set(splits.train.labels.tolist()) == set(splits.validation.labels.tolist())
    assert not np.isin(splits.validation.digests(), splits.train.digests()).any()
    assert len(splits.validation) + len(splits.train) == 32


def test_a_test_image_that_is_a_training_image_of_another_class_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = _noise(tmp_path / "data" / "train", images=8)
    test = _noise(tmp_path / "data" / "test", images=4, seed=1)
    for number in range(3):
        shutil.copy(train / "a" / f"{number}.png", test / "b" / f"new-{number}.png")
    shutil.copy(train / "b" / "0.png", test / "b" / "old.png")
    assert finetune(_config(tmp_path / "data", tmp_path / "run"))["test_seen"] == 4
    printed = capsys.readouterr().out
    assert "4 of 20 test images are training or validation images too, 3 of them of another class (" in printed
    assert evaluate(tmp_path / "run")["test_seen"] == 4


def test_validation_images_that_are_trained_on_are_named(tmp_path: Path) -> None:
    train = _noise(tmp_path / "data" / "train", images=8)
    shutil.copytree(train, tmp_path / "data" / "val")
    _noise(tmp_path / "data" / "test", images=4, seed=1)
    splits = load_images(DataConfig(root=str(tmp_path / "data")), 0)
    assert splits.test_seen == 0
    assert "32 of 32 validation images are training images too (val/a/0.png = train/a/0.png" in splits.notes[-1]


def test_copies_among_the_test_images_narrow_no_interval_of_a_run_of_repeats_of_folds_or_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _copy_all(_noise(tmp_path / "noise"), tmp_path / "copies", times=7)
    for name, series in {"run": {}, "repeats": {"train_repeats": 2}, "folds": {"data_folds": 3}}.items():
        results = finetune(_config(root, tmp_path / name, **series))
        different = {"run": 12, "repeats": 24, "folds": 48}[name]
        assert results["test_n"] == 8 * different
        least = proportion_interval(results["test_accuracy"] * different, different)
        assert results["test_low"] <= least[0] + 1e-9
        assert results["test_high"] >= least[1] - 1e-9
        printed = capsys.readouterr().out
        assert ("84 of 96" if name != "folds" else "112 of 128") in printed
        assert "test images are copies of others of them: the interval counts each but once" in printed
    again = evaluate(tmp_path / "run")
    least = proportion_interval(again["test_accuracy"] * 12, 12)
    assert (again["test_low"], again["test_high"]) == pytest.approx(least)
    evaluate(tmp_path / "run", DataConfig(root=str(root)))
    assert "336 of 384 test images are copies of others of them" in capsys.readouterr().out


def test_copies_of_a_query_narrow_no_interval(tmp_path: Path) -> None:
    metatrain(_few(_noise(tmp_path / "noise", images=6, classes="abcdefgh"), tmp_path / "few"))
    query = _copy_all(_noise(tmp_path / "other", images=3, classes="ab", seed=5), tmp_path / "query", times=9)
    support = _noise(tmp_path / "support", images=2, classes="ab", seed=6)
    found = evaluate(tmp_path / "few", support=support, query=query)
    assert found["test_n"] == 60
    least = proportion_interval(found["test_accuracy"] * 6, 6)
    assert (found["test_low"], found["test_high"]) == pytest.approx(least)


def test_few_shot_evaluation_of_a_model_of_before_0_2_does_not_call_its_images_unseen(tmp_path: Path) -> None:
    metatrain(_few(_noise(tmp_path / "noise", images=6, classes="abcdefgh"), tmp_path / "few"))
    model, spec = load_model(tmp_path / "few")
    save_model(tmp_path / "old.safetensors", model, replace(spec, provenance={}))
    support, query = (_noise(tmp_path / name, 2, "ab", seed) for seed, name in ((7, "support"), (8, "query")))
    assert evaluate(tmp_path / "few", support=support, query=query)["test_seen"] == 0
    assert evaluate(tmp_path / "old.safetensors", support=support, query=query)["test_seen"] is None


def test_test_classes_whose_images_were_validated_on_are_not_unseen(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for part, classes, seed in (("train", "abc", 0), ("val", "def", 1), ("test", "ghi", 2)):
        _noise(root / part, 6, classes, seed)
    shutil.copy(root / "val" / "d" / "0.png", root / "test" / "h" / "copied.png")
    assert metatrain(_few(root, tmp_path / "few"))["test_seen"] == 1
    assert evaluate(tmp_path / "few")["test_seen"] == 1


@pytest.mark.parametrize("copied", [1, 5])
def test_the_effective_number_of_images_lies_between_the_different_ones_and_one(tmp_path: Path, copied: int) -> None:
    root = _noise(tmp_path / "noise", images=4)
    for number in range(copied):
        shutil.copy(root / "a" / "0.png", root / "a" / f"copy-{number}.png")
    images = read_folder(root, root, Reading())
    assert 1 <= images.independent() <= 16
    assert images.independent() == pytest.approx((16 + copied) ** 2 / (15 + (1 + copied) ** 2))


def _not_more_than_chance(results: dict[str, Any], chance: float) -> bool:
    """Return True if an accuracy on noise is chance's within its interval, or it says that not all was unseen."""
    return bool(results["test_low"] <= chance or results["test_seen"])


@pytest.mark.slow
def test_on_noise_no_command_reports_more_than_chance_without_saying_what_was_seen(tmp_path: Path) -> None:
    root = _noise(tmp_path / "noise", images=20)
    by_heart = {
        "train_epochs": 10,
        "train_keep": "last",
        "optim_lr": 0.1,
        "optim_name": "sgd",
        "data_augmentation": "none",
    }
    found = [finetune(_config(root, tmp_path / "run", **by_heart))]
    own = {"model_pretrained": str(tmp_path / "run"), "run_seed": 1, **by_heart}
    found.append(finetune(_config(root, tmp_path / "seed", **own)))
    found.append(finetune(_config(root, tmp_path / "folds", data_folds=3, **own)))
    found.append(finetune(_config(root, tmp_path / "repeats", train_repeats=2, **own)))
    found.append(evaluate(tmp_path / "run", DataConfig(root=str(root))))
    assert found[-1]["test_accuracy"] > 0.5
    assert found[-1]["test_seen"] == 60
    assert all(_not_more_than_chance(results, 0.25) for results in found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_noise_few_shot_tasks_of_few_images_are_not_surely_better_than_chance(tmp_path: Path, seed: int) -> None:
    root = _noise(tmp_path / "noise", images=8, classes="abcdefghijkl", seed=seed)
    found = metatrain(_few(root, tmp_path / "few", eval_tasks=100))
    assert found["test_seen"] == 0
    assert _not_more_than_chance(found, 0.5)
    images = 8 * found["test_classes"]
    alone = proportion_interval(images * found["test_accuracy"], images)
    assert found["test_low"] <= alone[0] + 1e-9
    again = evaluate(tmp_path / "few", tasks=100, against="centroid")
    assert (again["test_low"], again["test_high"]) == (found["test_low"], found["test_high"])
    assert again["difference_low"] <= 0 <= again["difference_high"]


@pytest.mark.slow
def test_a_study_of_given_runs_says_how_many_of_its_images_one_of_them_was_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    root = _noise(tmp_path / "noise")
    for seed in (0, 1):
        net = {"model_name": "mnist_conv", "data_image_size": 28, "run_seed": seed}
        finetune(_config(root, tmp_path / f"run{seed}", **net))
    runs = f"{tmp_path / 'run0'},{tmp_path / 'run1'}"
    assert main(["claims", "focus", "--focus.runs", runs, "--run.folder", str(tmp_path / "study")]) == 0
    shared = set(_split(tmp_path / "run0")["test"]) - set(_split(tmp_path / "run1")["test"])
    page = (tmp_path / "study" / "report.md").read_text()
    assert f"{len(shared)} of 12 images were trained or validated on by run1." in page
    assert "validated on by run0" not in page
