import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.layers import convert_sync_batchnorm

from arelu_meta import evaluate, finetune, swap_activations
from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.config import DataConfig, FinetuneConfig, RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.export.export import describe
from arelu_meta.finetuning.finetune import _check_sync
from arelu_meta.prediction import predict
from arelu_meta.runs.distributed import Ranks

Make = Callable[..., FinetuneConfig]


def test_a_run_leaves_all_the_files_of_the_contract(digits: Make) -> None:
    results = finetune(digits(run_pictures=True))
    folder = Path(results["folder"])
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *["config.yaml", "environment.json", "split.json", "metrics.csv", "model.safetensors", "checkpoints"],
        *["curves.png", "results.json", "gradients.csv", "gradients.png", "per_class.csv", "confusion.csv"],
        *["confusion.png", "confused_pairs.csv", "mistakes.csv", "mistakes.png", "times.csv"],
    }
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"task", "seed", "test_accuracy", "test_low", "test_high", "test_n", "seconds"} <= results.keys()
    assert results["task"] == "finetune"
    assert results["test_low"] <= results["test_accuracy"] <= results["test_high"]
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    split = json.loads((folder / "split.json").read_text())
    assert len(split["test"]) == results["test_n"]
    assert not set(split["test"]) & set(split["train"])
    assert len(split["train"]) == 200


def test_a_run_learns(digits: Make) -> None:
    assert finetune(digits(train_epochs=6, data_per_class=None))["test_accuracy"] > 0.8


def test_a_start_that_is_fitted_looks_at_the_training_images(digits: Make) -> None:
    results = finetune(digits(model_activation="arelu", model_init="fit", optim_lr=1e-12))
    fitted = read_tensors(Path(results["folder"]) / "model.safetensors")
    results = finetune(digits("other", model_activation="arelu", model_init="nearest", optim_lr=1e-12))
    nearest = read_tensors(Path(results["folder"]) / "model.safetensors")
    assert fitted.keys() == nearest.keys()
    # Both are least squares for a ReLU, whose slopes do not depend on the inputs: the same answer, by two ways.
    name = next(name for name in fitted if name.endswith("alpha"))
    assert fitted[name].item() == pytest.approx(nearest[name].item(), abs=1e-4)
    assert fitted[name].item() == pytest.approx(0.01, abs=1e-4)
    smooth = digits("smooth", model_activation="arelu", model_init="fit", model_name="test_vit", data_image_size=32)
    smooth.train.epochs, smooth.data.per_class = 1, 2
    split = read_tensors(Path(finetune(smooth)["folder"]) / "model.safetensors")
    alphas = {round(tensor.item(), 4) for name, tensor in split.items() if name.endswith("alpha")}
    assert len(alphas) > 3  # a GELU's slope depends on what a layer gets


def test_gates_open_on_schedule_and_stay_where_the_best_epoch_had_them(digits: Make) -> None:
    config = digits(model_activation="arelu", model_init="preserve", optim_open_gates=0.5, train_epochs=4)
    folder = Path(finetune(config)["folder"])
    last = torch.load(sorted((folder / "checkpoints").glob("*.pt"))[-1], weights_only=True)
    gates = [tensor.item() for name, tensor in last["model"].items() if name.endswith(".t")]
    assert set(gates) == {1.0}
    config = digits("learned", model_activation="arelu", model_init="preserve", train_epochs=1)
    saved = read_tensors(Path(finetune(config)["folder"]) / "model.safetensors")
    assert all(0 < abs(tensor.item()) < 1 for name, tensor in saved.items() if name.endswith(".t"))


def test_a_schedule_leaves_the_gates_of_frozen_stages_alone(digits: Make) -> None:
    resnet: dict[str, Any] = {"model_name": "test_resnet", "data_image_size": 32, "data_per_class": 4}
    config = digits("start", model_activation="arelu", model_init="preserve", train_epochs=1, **resnet)
    start = finetune(config)["folder"]
    config = digits(model_pretrained=start, train_mode="last-1", data_augmentation="none", optim_open_gates=0.5)
    config.model.name, config.data.image_size, config.data.per_class = "test_resnet", 32, 4
    folder = Path(finetune(config)["folder"])
    last = torch.load(sorted((folder / "checkpoints").glob("*.pt"))[-1], weights_only=True)["model"]
    before = read_tensors(Path(start) / "model.safetensors")
    gates = [name for name in last if name.endswith(".t")]
    assert {last[name].item() for name in gates if name.startswith("layer4")} == {1.0}
    assert all(last[name] == before[name] for name in gates if not name.startswith("layer4"))


def test_gates_that_a_schedule_opens_do_not_learn_where_stages_thaw(
    digits: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arelu_meta.finetuning.trainer import Trainer

    learning: list[bool] = []
    record = Trainer._record_gradients

    def look(self: Trainer, model: torch.nn.Module) -> None:
        learning.extend(p.grad is not None for name, p in model.named_parameters() if name.endswith(".t"))
        record(self, model)

    monkeypatch.setattr(Trainer, "_record_gradients", look)
    arelu: dict[str, Any] = {"model_activation": "arelu", "model_init": "preserve"}
    finetune(digits(train_mode="gradual", train_epochs=3, optim_open_gates=1.0, **arelu))
    assert learning
    assert not any(learning)


def test_one_image_a_step_is_enough_where_batch_normalisation_stands_still(digits: Make) -> None:
    single: dict[str, Any] = {"model_name": "test_resnet", "data_image_size": 32, "data_per_class": 1}
    single |= {"data_batch_size": 1, "optim_accumulate": 10, "train_epochs": 1}
    assert finetune(digits("still", train_freeze_bn=True, **single))["epochs"] == 1
    with pytest.raises(InputError, match=r"data\.batch_size: 1 at 32 px is too small"):
        finetune(digits("moving", train_freeze_bn=False, **single))


def test_gradients_are_sampled_four_times_an_epoch_however_many_batches_make_a_step(digits: Make) -> None:
    folder = Path(finetune(digits(train_epochs=1, data_batch_size=5, optim_accumulate=5))["folder"])
    steps = {line.partition(",")[0] for line in (folder / "gradients.csv").read_text().splitlines()[1:]}
    assert len(steps) >= 4  # of eight


def test_a_schedule_without_gates_is_refused_and_nothing_is_written(digits: Make) -> None:
    config = digits(model_activation="arelu", optim_open_gates=0.5)
    with pytest.raises(
        InputError, match=r"optim\.open_gates: 0\.5 opens the gates of preserve, and this model has none"
    ):
        finetune(config)
    assert not Path(str(config.run.folder)).exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(digits: Make) -> None:
    first, second = finetune(digits("a")), finetune(digits("b"))
    other = finetune(digits("c", run_seed=1))
    assert first["test_loss"] == second["test_loss"]
    assert first["test_loss"] != other["test_loss"]


def test_the_reported_accuracy_is_that_of_the_saved_model_on_the_listed_test_images(digits: Make) -> None:
    from arelu_meta.data.loaders import build_transform
    from arelu_meta.data.named_datasets import load_images

    config = digits()
    results = finetune(config)
    model, spec = load_model(results["folder"])
    test = load_images(config.data, 0).test
    transform = build_transform(spec.inputs, training=False)
    images = torch.stack([transform(test[index][0]) for index in range(len(test))])
    with torch.no_grad():
        accuracy = (model(images).argmax(1).numpy() == test.labels).mean()
    assert results["test_accuracy"] == pytest.approx(accuracy)


def test_a_run_of_depthwise_convolutions_is_channels_last_and_evaluates_to_the_same_bits(digits: Make) -> None:
    results = finetune(digits(model_name="test_efficientnet", data_image_size=32))
    folder = Path(results["folder"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["channels_last"] is True
    assert evaluate(folder, run=RunConfig(device="cpu"))["test_loss"] == results["test_loss"]


def test_a_run_keeps_the_order_that_is_asked_for(digits: Make) -> None:
    results = finetune(digits(model_name="test_efficientnet", data_image_size=32, train_channels_last=False))
    assert yaml.safe_load((Path(results["folder"]) / "config.yaml").read_text())["train"]["channels_last"] is False


def test_head_mode_changes_nothing_but_the_head(digits: Make, tmp_path: Path) -> None:
    config = digits(model_activation="arelu", train_mode="head", optim_weight_decay=0.1)
    config.model.name = "conv4_32"  # batch normalisation: its statistics must stay, too
    config.data.image_size, config.data.per_class = 16, 5
    results = finetune(config)
    after = read_tensors(Path(results["folder"]) / "model.safetensors")
    checkpoint = sorted((Path(results["folder"]) / "checkpoints").glob("*.pt"))[-1]
    trained = torch.load(checkpoint, weights_only=True)["model"]
    start = _start_weights(config)
    for name, tensor in start.items():
        changed = not torch.equal(tensor, trained[name])
        assert changed == name.startswith("head."), name
    assert after.keys() == start.keys()


def _start_weights(config: FinetuneConfig) -> dict[str, torch.Tensor]:
    """The weights before the first step: what the same seed builds."""
    from arelu_meta.backbones.from_config import build_backbone
    from arelu_meta.data.named_datasets import load_images
    from arelu_meta.runs.reproducibility import prepare

    prepare(config.run)
    splits = load_images(config.data, 0)
    model, _ = build_backbone(config.model, splits.train.classes, 1, config.data.image_size, "finetune")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_resumed_run_ends_as_the_run_that_was_not_interrupted(digits: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from arelu_meta.runs.run_folder import RunFolder

    whole = finetune(digits("whole", train_epochs=3))
    append = RunFolder.append_metrics

    def stop_at_two(self: RunFolder, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        append(self, row)

    monkeypatch.setattr(RunFolder, "append_metrics", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        finetune(digits("broken", train_epochs=3))
    monkeypatch.undo()
    resumed = finetune(digits("broken", train_epochs=3, run_resume="auto"))
    assert resumed["test_loss"] == whole["test_loss"]
    folders = [Path(result["folder"]) for result in (whole, resumed)]
    weights = [read_tensors(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [_lines(folder) for folder in folders]
    assert metrics[0] == metrics[1]


def _lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


def test_resume_auto_of_a_finished_run_says_so_and_changes_nothing(
    digits: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finetune(digits())
    before = {path: path.stat().st_mtime_ns for path in Path(first["folder"]).rglob("*")}
    again = finetune(digits(run_resume="auto"))
    assert again == first
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(first["folder"]).rglob("*")} == before


def test_divergence_names_step_rate_and_a_checkpoint_that_loads(digits: Make, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"loss became (nan|inf) (?:at|after) step \d+ \(optim.lr 1e\+30,.*epoch-0000\.pt"
    ):
        finetune(digits(optim_lr=1e30))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "epoch-0000.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())


def test_a_checkpoint_of_other_classes_starts_a_run_with_a_new_head_and_says_so(
    digits: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finetune(digits("first"))
    photos = _two_class_folder(tmp_path / "photos")
    config = digits("second", data_root=str(photos), data_per_class=None, model_pretrained=first["folder"])
    assert finetune(config)["classes"] == 2
    said = capsys.readouterr().out
    assert "by validation); none of the classes is one of the checkpoint's\n" in said
    assert "head_init: probe" in (tmp_path / "second" / "config.yaml").read_text()
    config.run.resume = "auto"
    assert finetune(config)["classes"] == 2  # the same config gives the results that are there


def test_a_run_goes_on_though_its_classes_moved_by_one_name(
    digits: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many classes, one new name ahead of the others: by row, each would get its neighbour's."""
    colours = {"b": (255, 0, 0), "c": (0, 255, 0), "d": (0, 0, 255), "e": (255, 255, 255)}
    config = digits("a", data_root=str(_coloured(tmp_path / "first", colours)), data_per_class=None, train_epochs=10)
    first = finetune(config)
    assert first["test_accuracy"] == 1
    capsys.readouterr()
    moved = _coloured(tmp_path / "moved", {"a": (9, 9, 9), **{name: colours[name] for name in "bcd"}})
    again = replace(config, run=replace(config.run, folder=str(tmp_path / "b")))
    again.data.root, again.model.pretrained, again.optim.lr = str(moved), first["folder"], 1e-9
    assert finetune(again)["test_accuracy"] >= 0.7  # of the four classes it knows three
    assert "head: as the checkpoint has it, with new rows for 1 class (a)\n" in capsys.readouterr().out


def test_a_run_goes_on_though_val_and_test_lack_a_class_and_says_so(
    digits: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = {"b": (255, 0, 0), "c": (0, 255, 0), "d": (0, 0, 255)}
    root = tmp_path / "images"
    for part, names in {"seg_train": "bcd", "seg_dev": "bc", "seg_test": "cd"}.items():
        _coloured(root / part, {name: colours[name] for name in names})
    results = finetune(digits("run", data_root=str(root), data_per_class=None))
    assert (results["test_n"], results["classes"]) == (24, 3)
    said = capsys.readouterr().out
    assert "read from seg_train/ (training), seg_dev/ (validation), seg_test/ (test)" in said
    assert "no validation image of 1 of 3 classes (d); no test image of 1 of 3 classes (b)" in said


def test_what_reads_the_images_of_a_run_goes_with_its_model(
    digits: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Range and fit: evaluate, predict, the run that resumes and the exported file's description do the same."""
    random = np.random.default_rng(0)
    for name, tops in {"dark": (100, 900), "light": (2600, 4000)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(*tops, (16, 40)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    config = digits(
        "run", data_root=str(tmp_path / "images"), data_per_class=None, data_fit="pad", train_epochs=20, optim_lr=0.01
    )
    results = finetune(config)
    assert results["test_accuracy"] == 1
    assert "24 images of more than 8 bits, whose pixels go from" in capsys.readouterr().out
    assert "range: 0-4095" in (tmp_path / "run" / "config.yaml").read_text()
    _, spec = load_model(tmp_path / "run")
    assert (spec.inputs.range, spec.inputs.fit) == ("0-4095", "pad")
    assert describe(spec, "onnx")["preprocessing"]["crop_mode"] == "border"
    assert any("0-4095 becomes 0-255" in step for step in describe(spec, "onnx")["steps"])
    assert evaluate(tmp_path / "run")["test_accuracy"] == 1
    other = tmp_path / "other" / "dark"  # alone, its 600 would be the white of 10 bits
    other.mkdir(parents=True)
    Image.fromarray(np.full((16, 40), 600, dtype=np.uint16)).save(other / "a.png")
    assert evaluate(tmp_path / "run", DataConfig(root=str(other.parent)))["test_accuracy"] == 1
    assert predict(tmp_path / "run", [other / "a.png"])[0].name == "dark"
    config.run.resume = "auto"
    assert finetune(config)["test_accuracy"] == 1


def _coloured(root: Path, colours: dict[str, tuple[int, int, int]]) -> Path:
    random = np.random.default_rng(0)
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.clip(random.integers(-9, 9, (20, 20, 3)) + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def _two_class_folder(root: Path, names: tuple[str, str] = ("dark", "bright")) -> Path:
    random = np.random.default_rng(0)
    for name, low in zip(names, (0, 128), strict=True):
        (root / name).mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(low, low + 127, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_preserve_starts_from_the_original_function_and_a_bfloat16_run_works(digits: Make) -> None:
    results = finetune(digits(model_activation="arelu", model_init="preserve", run_precision="bf16"))
    assert results["init"] == "preserve"
    tensors = read_tensors(Path(results["folder"]) / "model.safetensors")
    assert tensors["features.2.t"].dtype == torch.float32
    assert tensors["features.2.t"].item() != 0


def test_config_yaml_repeats_the_run(digits: Make, tmp_path: Path) -> None:
    from arelu_meta.cli import main

    first = finetune(digits("first"))
    config = Path(first["folder"]) / "config.yaml"
    assert yaml.safe_load(config.read_text())["optim"]["lr"] == 0.1
    assert main(["finetune", "--config", str(config), "--run.folder", str(tmp_path / "second")]) == 0
    second = json.loads((tmp_path / "second" / "results.json").read_text())
    assert second["test_loss"] == first["test_loss"]


def test_a_run_without_pictures_has_the_tables_all_the_same(digits: Make) -> None:
    folder = Path(finetune(digits())["folder"])
    assert not list(folder.glob("*.png"))
    assert {"per_class.csv", "confusion.csv", "mistakes.csv", "gradients.csv"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("device", "freeze", "said"),
    [("cpu", False, "is for GPUs, and this run is on cpu"), ("cuda", True, "give --train.freeze_bn false with it")],
)
def test_statistics_that_cannot_be_taken_over_gpus_are_refused(device: str, freeze: bool, said: str) -> None:
    config = FinetuneConfig()
    config.train.sync_bn, config.train.freeze_bn = True, freeze
    with pytest.raises(InputError, match=said):
        _check_sync(config, Ranks(torch.device(device)))


def test_statistics_taken_over_gpus_leave_a_swapped_model_what_it_is() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    normed = timm.create_model("regnetx_002", num_classes=3)  # its norms hold the activations
    images = torch.randn(2, 3, 32, 32)
    for one in (model, normed):
        swap_activations(one, "arelu", init="preserve")
        one.eval()
        before, names = one(images), list(one.state_dict())
        scalars = sum(isinstance(module, GatedAReLU) for module in one.modules())
        converted = convert_sync_batchnorm(one).eval()
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
        assert sum(isinstance(module, GatedAReLU) for module in converted.modules()) == scalars
        assert list(converted.state_dict()) == names
        torch.testing.assert_close(converted(images), before)


@pytest.mark.parametrize("start", ["probe", "random"])
def test_a_distilled_model_starts_both_its_heads(digits: Make, start: str) -> None:
    name = "deit_tiny_distilled_patch16_224"
    config = digits(model_name=name, model_head_init=start, data_image_size=32, data_per_class=2, train_epochs=1)
    config.optim.lr, config.data.batch_size = 1e-12, 128
    tensors = read_tensors(Path(finetune(config)["folder"]) / "model.safetensors")
    for head in ("head.weight", "head_dist.weight"):
        assert (tensors[head].abs().max() < 1e-6) == (start != "random")
