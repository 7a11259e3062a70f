"""What a fine-tuning run can be asked for beyond the plain one, on MNIST-Linear and the embedded digits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arelu_meta import evaluate, finetune
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.cli import main
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError

Make = Callable[..., FinetuneConfig]


def _weights(results: dict[str, Any]) -> dict[str, torch.Tensor]:
    return read_tensors(Path(results["folder"]) / "model.safetensors")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = _weights(one), _weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_any_number_of_workers_gives_the_same_run_to_the_bit(digits: Make) -> None:
    assert _same(finetune(digits("none")), finetune(digits("two", data_workers=2)))


def test_decoded_images_in_memory_give_the_same_run_to_the_bit(digits: Make) -> None:
    assert _same(finetune(digits("kept", data_cache=True)), finetune(digits("read", data_cache=False)))


def test_two_half_batches_make_the_step_of_a_whole_one(digits: Make) -> None:
    whole = finetune(digits("whole", data_batch_size=40, data_augmentation="none"))
    halves = finetune(digits("halves", data_batch_size=20, optim_accumulate=2, data_augmentation="none"))
    for name, tensor in _weights(whole).items():
        torch.testing.assert_close(_weights(halves)[name], tensor, rtol=1e-4, atol=1e-5)


def test_only_the_head_moves_where_only_the_head_is_trained(digits: Make) -> None:
    before = _weights(finetune(digits("start", optim_lr=1e-12)))
    after = _weights(finetune(digits("head", train_mode="head")))
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-9)}
    assert moved == {"head.weight", "head.bias"}


def test_training_on_cached_features_is_training_on_the_images(digits: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from arelu_meta.finetuning import trainer

    cached = finetune(digits("cached", train_mode="head"))
    monkeypatch.setattr(trainer, "cached_batches", lambda *_: "a test compares")
    plain = finetune(digits("plain", train_mode="head"))
    for name, tensor in _weights(cached).items():
        torch.testing.assert_close(_weights(plain)[name], tensor, rtol=1e-4, atol=1e-6)


def test_cached_features_are_trained_on_where_images_are_channels_last(digits: Make) -> None:
    changes: dict[str, Any] = {"train_mode": "head", "model_name": "test_efficientnet", "data_image_size": 32}
    first, last = (finetune(digits(f"{kind}", train_channels_last=kind, **changes)) for kind in (False, True))
    for name, tensor in _weights(first).items():
        torch.testing.assert_close(_weights(last)[name], tensor, rtol=1e-4, atol=1e-5)


def test_only_scalars_and_head_move_where_activations_are_trained(digits: Make) -> None:
    changes = {"model_activation": "arelu", "model_init": "preserve"}
    before = _weights(finetune(digits("start", optim_lr=1e-12, **changes)))
    after = _weights(finetune(digits("scalars", train_mode="activations", **changes)))
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-9)}
    assert {"head.weight", "head.bias"} < moved
    assert {name.rpartition(".")[2] for name in moved - {"head.weight", "head.bias"}} <= {"alpha", "beta", "t"}
    assert any(name.endswith(".t") for name in moved)


def test_a_probe_takes_no_step_and_is_logistic_regression(digits: Make) -> None:
    results = finetune(digits(train_mode="probe"))
    assert results["test_accuracy"] > 0.9  # gradient steps get to about half of that in two epochs
    assert results["epochs"] == 1
    assert evaluate(results["folder"])["test_accuracy"] == results["test_accuracy"]


def test_a_head_can_start_as_logistic_regression(digits: Make) -> None:
    fitted = finetune(digits("fitted", model_head_init="probe", optim_lr=1e-12))
    assert fitted["test_accuracy"] > 0.9


def test_repeats_are_the_single_runs_with_their_mean_and_interval(digits: Make, tmp_path: Path) -> None:
    single = [finetune(digits(f"single-{seed}", run_seed=seed))["test_accuracy"] for seed in (3, 4, 5)]
    results = finetune(digits("many", run_seed=3, train_repeats=3))
    assert [results[f"test_accuracy_seed-{seed}"] for seed in (3, 4, 5)] == single
    assert results["test_accuracy"] == pytest.approx(np.mean(single))
    half = 4.302653 * np.std(single, ddof=1) / np.sqrt(3)
    width = results["test_high"] - results["test_low"]  # near the middle, Student's; the shared test images widen it
    assert 1.6 * half < width < 2.6 * half
    assert 0 < results["test_low"] < results["test_accuracy"] < results["test_high"] < 1
    assert json.loads((tmp_path / "many" / "results.json").read_text()) == results


def test_an_interrupted_series_goes_on_with_the_run_that_it_stopped_in(
    digits: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from arelu_meta.finetuning.trainer import Trainer

    finish = Trainer._finish

    def stop(self: Trainer) -> dict[str, Any]:
        if self.config.run.seed == 1:
            raise KeyboardInterrupt
        return finish(self)

    monkeypatch.setattr(Trainer, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(digits("series", train_repeats=2))
    monkeypatch.undo()
    first = (tmp_path / "series" / "seed-0" / "results.json").stat().st_mtime_ns
    results = finetune(digits("series", train_repeats=2, run_resume="auto"))
    assert results["runs"] == 2
    assert (tmp_path / "series" / "seed-0" / "results.json").stat().st_mtime_ns == first


def test_seeds_are_added_to_a_series_that_had_ended(digits: Make, capsys: pytest.CaptureFixture[str]) -> None:
    two = finetune(digits("series", train_repeats=2))
    assert "over 2 runs" in capsys.readouterr().out
    three = finetune(digits("series", train_repeats=3, run_resume="auto"))
    assert (two["runs"], three["runs"]) == (2, 3)
    assert three["test_accuracy_seed-0"] == two["test_accuracy_seed-0"]
    capsys.readouterr()
    assert finetune(digits("series", train_repeats=3, run_resume="auto")) == three
    assert "over 3 runs" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"holds the mean of 3 runs, which is not of these 2 \(seed-0, seed-1\)"):
        finetune(digits("series", train_repeats=2, run_resume="auto"))
    with pytest.raises(InputError, match=r"holds the mean of 3 runs \(seed-0, seed-1, seed-2\), and one is asked for"):
        finetune(digits("series", run_resume="auto"))
    finetune(digits("alone"))
    with pytest.raises(InputError, match=r"alone' holds one run's results, which is not of these 2"):
        finetune(digits("alone", data_folds=2, run_resume="auto"))


def test_one_runs_checkpoint_is_not_gone_on_from_by_several(digits: Make, tmp_path: Path) -> None:
    checkpoint = sorted((Path(finetune(digits("one"))["folder"]) / "checkpoints").glob("*.pt"))[-1]
    with pytest.raises(InputError, match=r"run\.resume: '.*pt' is one run's checkpoint, and 2 runs are .*; give auto"):
        finetune(digits("many", train_repeats=2, run_resume=str(checkpoint)))
    assert not (tmp_path / "many").exists()


def test_every_image_is_tested_once_over_all_folds(digits: Make) -> None:
    config = digits(data_folds=4)
    tested: list[str] = []
    for fold in (1, 2, 3, 4):
        config.data.fold = fold
        splits = load_images(config.data, 0)
        parts = [set(part.names) for part in (splits.train, splits.validation, splits.test)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        shares = np.bincount(splits.test.labels) / len(splits.test)
        assert shares.max() - shares.min() < 0.03  # stratified
        tested += splits.test.names
    assert len(tested) == len(set(tested)) == 1797


def test_cross_validation_sums_its_folds_up_and_each_can_be_evaluated_by_itself(digits: Make, tmp_path: Path) -> None:
    results = finetune(digits(data_folds=2, train_mode="probe"))
    assert results["test_n"] == 1797
    one = evaluate(tmp_path / "run" / "fold-2")
    assert one["test_accuracy"] == results["test_accuracy_fold-2"]


def test_the_running_average_is_what_is_saved(digits: Make) -> None:
    still = finetune(digits("still", optim_lr=1e-12))
    plain = finetune(digits("plain"))
    average = finetune(digits("average", train_ema=0.9999999))

    def distance(one: dict[str, Any]) -> float:
        weights, base = _weights(one), _weights(still)
        return float(sum((weights[name] - base[name]).abs().sum() for name in base if name.endswith("weight")))

    assert 0 < distance(average) < distance(plain)


def test_patience_ends_a_run_that_no_longer_gets_better(digits: Make) -> None:
    results = finetune(digits(train_epochs=9, train_patience=2, train_keep="best", optim_lr=1e-12))
    assert results["epochs"] == results["best_epoch"] + 2 < 9


def test_clipped_gradients_move_the_weights_no_further_than_the_rate_allows(digits: Make) -> None:
    config = digits(optim_clip_grad=0.001, optim_lr=1.0, optim_weight_decay=0.0, optim_schedule="constant")
    config.train.epochs = 1
    start = _weights(finetune(digits("start", optim_lr=1e-12, train_epochs=1)))
    moved = _weights(finetune(config))
    length = sum(float((moved[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert 0 < length <= 7 * 0.001 * 10 * 1.01  # 7 steps; momentum sums up to ten of them


def test_a_rate_is_looked_for_and_the_run_is_the_one_at_that_rate(
    digits: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = finetune(digits("found", optim_lr="auto"))
    assert "optim.lr auto: " in capsys.readouterr().out
    assert 1e-5 < found["learning_rate"] <= 1.0
    assert (tmp_path / "found" / "lr_search.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "found" / "lr_search.csv").read_text().count("\n") > 10
    assert _same(found, finetune(digits("given", optim_lr=found["learning_rate"])))


def test_scalars_that_learn_gently_do_so_at_a_rate_that_was_looked_for(digits: Make) -> None:
    start = finetune(digits("start", model_activation="arelu"))["folder"]
    found = finetune(digits("found", model_pretrained=start, optim_lr="auto"))
    assert _same(found, finetune(digits("given", model_pretrained=start, optim_lr=found["learning_rate"])))


@pytest.mark.parametrize("mixing", [{"train_mixup": 0.2}, {"train_cutmix": 1.0}])
def test_a_head_trains_on_images_where_they_are_mixed(
    digits: Make, capsys: pytest.CaptureFixture[str], mixing: dict[str, float]
) -> None:
    finetune(digits(train_mode="head", **mixing))
    assert "features are not cached: train.mixup or train.cutmix" in capsys.readouterr().out


def test_mixing_and_smoothing_and_class_weights_train(digits: Make) -> None:
    changes: dict[str, Any] = {"train_mixup": 0.2, "train_cutmix": 1.0, "train_label_smoothing": 0.1}
    results = finetune(digits(train_class_weights="balanced", train_epochs=6, **changes))
    assert results["test_accuracy"] > 0.2  # ten classes
    model, _ = load_model(results["folder"])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_mode": "probe", "train_ema": 0.9},
            r"train\.ema: 0\.9 is not read by finetune --train\.mode probe; leave train\.ema out",
        ),
        (
            {"train_mode": "head", "optim_layer_decay": 0.5},
            r"optim\.layer_decay: 0\.5 is not read by finetune --train\.mode",
        ),
        (
            {"train_mode": "head", "model_drop_rate": 0.5},
            r"model\.drop_rate: 0\.5 is not read by finetune --train\.mode",
        ),
        (
            {"train_mode": "probe", "optim_head_lr": 0.5},
            r"optim\.head_lr: 0\.5 is not read by finetune --train\.mode probe",
        ),
        ({"train_mode": "probe", "train_label_smoothing": 0.1}, r"train\.label_smoothing: 0\.1 is not read by"),
        ({"train_mode": "probe", "model_head_init": "zero"}, r"model\.head_init: 'zero' is not read by"),
        ({"train_mode": "probe", "train_compile": True}, r"train\.compile: true is not read by finetune --train\.mode"),
        ({"train_mode": "head", "train_compile": True}, r"train\.compile: true is not read by finetune --train\.mode"),
        (
            {"train_mode": "head", "optim_open_gates": 0.5},
            r"optim\.open_gates: 0\.5 is not read by finetune --train\.mode",
        ),
        (
            {"train_mode": "head", "optim_act_lr": 0.1, "model_activation": "arelu"},
            r"optim\.act_lr: 0\.1 is not read by finetune --train\.mode",
        ),
        ({"train_mode": "probe", "data_augmentation": "crop"}, r"data\.augmentation: 'crop' is not read by"),
        ({"optim_act_lr": 0.1}, r"optim\.act_lr: 0\.1 is of activations that learn"),
        ({"data_rotations": True}, r"data\.rotations: true is not read by finetune; metatrain"),
        ({"data_fold": 1}, r"data\.fold: 1 is one of how many"),
        ({"data_fold": 3, "data_folds": 2}, r"data\.fold: 3 is not allowed; give a number from 1 to data\.folds, 2"),
        ({"data_folds": 2, "train_repeats": 2}, r"train\.repeats: 2 does not go with data\.folds"),
        (
            {"train_epochs": 2, "optim_warmup_epochs": 3},
            r"optim\.warmup_epochs: 3 is more than train\.epochs, 2; give at",
        ),
        ({"data_folds": 1000}, r"data\.folds: 1000 is more than class '\d' allows"),
        ({"data_augmentation": "nonsense"}, r"data\.augmentation: 'nonsense' is not known; give auto, none, crop"),
        ({"run_trackers": "nonsense"}, r"run\.trackers: 'nonsense' is not known"),
        ({"train_label_smoothing": 1.0}, r"train\.label_smoothing: 1\.0 is not allowed; give .*below 1"),
        ({"optim_layer_decay": 1.5}, r"optim\.layer_decay: 1\.5 is not allowed; give .*at most 1"),
    ],
)
def test_what_a_run_would_not_read_or_cannot_do_is_refused_before_anything_is_written(
    digits: Make, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(digits(**changes))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("mode", ["head", "probe"])
def test_a_run_is_done_again_from_the_config_that_it_wrote(digits: Make, mode: str, tmp_path: Path) -> None:
    start = finetune(digits("start", model_activation="arelu", model_init="preserve"))["folder"]
    once = finetune(digits(train_mode=mode, model_pretrained=start))
    command = ["finetune", "--config", str(tmp_path / "run" / "config.yaml"), "--run.folder", str(tmp_path / "again")]
    assert main(command) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["test_loss"] == once["test_loss"]


def test_a_probe_on_a_head_that_is_no_single_linear_layer_is_refused_before_anything_is_written(
    digits: Make, tmp_path: Path
) -> None:
    config = digits(train_mode="probe", model_name="deit_tiny_distilled_patch16_224", data_image_size=32)
    with pytest.raises(InputError, match=r"'probe' needs a head that is one linear layer, and 'deit_tiny_distilled"):
        finetune(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["full", "gradual"])
def test_a_compiled_run_is_the_plain_run_to_rounding(digits: Make, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    plain = finetune(digits("plain", train_mode=mode))
    batches: list[int] = []
    real = torch.compile

    def with_eager_backend(model: torch.nn.Module) -> object:  # traced all the same, without seconds of C++
        traced: Any = real(model, backend="eager")
        traced.register_forward_hook(lambda module, inputs, logits: batches.append(len(logits)))
        return traced

    monkeypatch.setattr(torch, "compile", with_eager_backend)
    fast = finetune(digits("compiled", train_mode=mode, train_compile=True))
    assert sum(batches) == 2 * 200  # both epochs went through it
    for name, tensor in _weights(plain).items():
        torch.testing.assert_close(_weights(fast)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_short_run_has_gradients_of_every_epoch(digits: Make, tmp_path: Path) -> None:
    finetune(digits(train_epochs=3))  # 7 steps each
    steps = {int(line.split(",")[0]) for line in (tmp_path / "run" / "gradients.csv").read_text().splitlines()[1:]}
    assert all(steps & set(range(first, first + 7)) for first in (1, 8, 15))
