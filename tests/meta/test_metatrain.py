import copy
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arelu_meta import evaluate, metatrain
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.config import MetatrainConfig, TaskConfig
from arelu_meta.data.fewshot import TaskBatch, TensorSampler, load_class_splits, load_pool
from arelu_meta.errors import InputError, RunError
from arelu_meta.meta.evaluation import adaptation, task_accuracies
from arelu_meta.runs.signals import terminated_as_by_ctrl_c

Make = Callable[..., MetatrainConfig]


@pytest.fixture
def digits(tmp_path: Path) -> Make:
    """A run of seconds: 5-way 1-shot on the embedded digits with a small network."""

    def make(folder: str = "run", **changes: Any) -> MetatrainConfig:
        config = MetatrainConfig()
        config.run.folder, config.run.device = str(tmp_path / folder), "cpu"
        config.model.name, config.data.image_size = "mnist_linear", 8
        config.task.queries, config.meta.steps, config.meta.batch_tasks = 3, 4, 2
        config.eval.tasks, config.eval.every, config.meta.inner_lr = 20, 2, 0.1
        for name, value in changes.items():
            group, _, field = name.partition("_")
            setattr(getattr(config, group), field, value)
        return config

    return make


def test_a_run_leaves_the_files_of_the_contract_and_says_how_it_was_validated(digits: Make) -> None:
    results = metatrain(digits())
    folder = Path(results["folder"])
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"task", "seed", "test_accuracy", "test_low", "test_high", "test_n", "seconds"} <= results.keys()
    assert results["task"] == "metatrain"
    assert results["test_n"] == 20
    assert results["normalization"] == "transductive"
    assert "validated on other images of the training classes" in results["notes"]
    for name in ("config.yaml", "environment.json", "metrics.csv", "model.safetensors", "curves.png"):
        assert (folder / name).stat().st_size > 0
    split = json.loads((folder / "split.json").read_text())
    assert len(split["train_classes"]) == len(split["test_classes"]) == 5
    assert not set(split["train_classes"]) & set(split["test_classes"])
    assert split["validation_classes"] == split["train_classes"]
    assert not set(split["validation"]) & set(split["train"])


def test_meta_training_learns_to_learn_unseen_digits(digits: Make) -> None:
    config = digits(meta_steps=60, meta_batch_tasks=4, task_queries=5, eval_tasks=100, optim_lr=0.003, eval_every=20)
    config.model.activation = "arelu"
    assert metatrain(config)["test_low"] > 0.4  # chance is 0.2


def test_a_run_asked_to_stop_within_a_validation_stops_there_and_goes_on_to_the_same_bits(
    digits: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = {"meta_task_chunk": 1, "eval_validation_tasks": 9}
    whole = metatrain(digits("whole", **one_by_one))
    judged = 0

    def asked(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal judged
        judged += 1
        if judged == 2:
            signal.raise_signal(signal.SIGTERM)
        return adaptation(*arguments, **options)

    monkeypatch.setattr("arelu_meta.meta.evaluation.adaptation", asked)
    with terminated_as_by_ctrl_c(), pytest.raises(KeyboardInterrupt):
        metatrain(digits("broken", **one_by_one))
    assert judged == 2
    monkeypatch.undo()
    resumed = metatrain(digits("broken", **one_by_one, run_resume="auto"))
    folders = [Path(result["folder"]) for result in (whole, resumed)]
    assert (folders[0] / "metrics.csv").read_bytes() == (folders[1] / "metrics.csv").read_bytes()
    weights = [read_tensors(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("engine", ["vectorized", "learn2learn"])
def test_gates_open_on_schedule_whatever_the_engine(digits: Make, engine: str) -> None:
    if engine == "learn2learn":
        pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    config = digits(model_activation="arelu", model_init="preserve", optim_open_gates=1.0, meta_engine=engine)
    folder = Path(metatrain(config)["folder"])
    checkpoints = [torch.load(path, weights_only=True) for path in sorted((folder / "checkpoints").glob("*.pt"))]
    gates = {state["step"]: {v.item() for k, v in state["model"].items() if k.endswith(".t")} for state in checkpoints}
    assert gates[4] == {1.0}
    assert all(opened == {step / 4} for step, opened in gates.items())


def test_a_start_that_is_fitted_looks_at_the_tasks_images(digits: Make) -> None:
    config = digits(model_activation="arelu", model_init="fit", model_name="conv4_32", data_image_size=16)
    saved = read_tensors(Path(metatrain(config)["folder"]) / "model.safetensors")
    # ReLU's nearest slope, 0.01, from which four meta-steps move it a little.
    assert all(abs(tensor.item() - 0.01) < 0.01 for name, tensor in saved.items() if name.endswith("alpha"))


def test_the_same_seed_gives_the_same_run(digits: Make) -> None:
    first, second = metatrain(digits("a")), metatrain(digits("b"))
    assert first["test_accuracy"] == second["test_accuracy"]
    weights = [read_tensors(Path(result["folder"]) / "model.safetensors") for result in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_ends_as_the_run_that_was_not_interrupted(digits: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from arelu_meta.runs.run_folder import RunFolder

    whole = metatrain(digits("whole"))
    append = RunFolder.append_metrics

    def stop_at_four(self: RunFolder, row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt
        append(self, row)

    monkeypatch.setattr(RunFolder, "append_metrics", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        metatrain(digits("broken"))
    monkeypatch.undo()
    resumed = metatrain(digits("broken", run_resume="auto"))
    weights = [read_tensors(Path(result["folder"]) / "model.safetensors") for result in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed["test_accuracy"] == whole["test_accuracy"]


def _interrupt(config: MetatrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run that is interrupted before its first meta-step."""
    from arelu_meta.meta.meta_trainer import MetaTrainer

    def stop(self: MetaTrainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MetaTrainer, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        metatrain(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"meta_normalization": "group"}, "meta.normalization: 'group', and the run in"),
        ({"meta_algorithm": "fomaml"}, "meta.algorithm: 'fomaml', and the run in"),
    ],
)
def test_a_run_does_not_go_on_as_another_learner(
    digits: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], says: str
) -> None:
    _interrupt(digits(), monkeypatch)
    with pytest.raises(InputError, match=rf"^{re.escape(says)}"):
        metatrain(digits(run_resume="auto", **change))


@pytest.mark.parametrize("normalization", ["transductive", "running", "frozen"])
def test_evaluation_never_changes_the_model(digits: Make, normalization: str) -> None:
    from arelu_meta.backbones.from_config import build_backbone
    from arelu_meta.config import ModelConfig
    from arelu_meta.meta.normalization import set_normalization, train_mode

    model, spec = build_backbone(ModelConfig("conv4_32", pretrained=False), tuple("01234"), 1, 16, "metatrain")
    set_normalization(model, normalization)
    train_mode(model, normalization)
    before = copy.deepcopy(model.state_dict())
    task = TaskConfig(queries=2)
    pool = load_pool(load_class_splits(digits().data, task, 0).test, spec.inputs)
    task_accuracies(model, TensorSampler(pool, task, "test"), range(3), 0.4, 2, torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_accuracies_do_not_depend_on_the_order_of_the_tasks(digits: Make) -> None:
    results = metatrain(digits(meta_steps=2))
    model, spec = load_model(results["folder"])
    task = TaskConfig(queries=2)
    pool = load_pool(load_class_splits(digits().data, task, 0).test, spec.inputs)
    sampler = TensorSampler(pool, task, "test")
    forward = task_accuracies(model, sampler, [0, 1, 2], 0.1, 1, torch.device("cpu"))
    backward = task_accuracies(model, sampler, [2, 1, 0], 0.1, 1, torch.device("cpu"))
    assert forward == backward[::-1]


def test_first_order_maml_is_the_same_by_algorithm_and_by_order(digits: Make) -> None:
    by_name = metatrain(digits("a", meta_algorithm="fomaml"))
    by_order = metatrain(digits("b", meta_order=1))
    second = metatrain(digits("c"))
    assert by_name["order"] == by_order["order"] == 1
    weights = [read_tensors(Path(r["folder"]) / "model.safetensors") for r in (by_name, by_order, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_swapped_pretrained_timm_backbone_meta_learns(digits: Make) -> None:
    config = digits(meta_steps=1, meta_batch_tasks=1, eval_tasks=2, eval_every=1, meta_normalization="frozen")
    config.model.name, config.model.pretrained = "tf_efficientnet_lite0", True
    config.model.activation, config.data.image_size, config.task.queries = "arelu", 32, 1
    config.meta.order, config.meta.inner_lr = 1, 0.01
    results = metatrain(config)
    assert results["init"] == "preserve"
    model, spec = load_model(results["folder"])
    assert spec.inputs.channels == 3
    assert sum(name.endswith(".t") for name, _ in model.named_parameters()) == 33


def test_divergence_names_step_rates_and_checkpoint(digits: Make, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"query loss of task \d+ became (nan|inf) at step \d+ .*1e\+30.*step-000000\.pt"
    ):
        metatrain(digits(meta_inner_lr=1e30))
    assert (tmp_path / "run" / "checkpoints" / "step-000000.pt").is_file()


def test_meta_training_evaluation_and_resuming_need_no_learn2learn(
    digits: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    results = metatrain(digits())
    assert results["engine"] == "vectorized"
    assert evaluate(results["folder"], tasks=20)["test_accuracy"] == results["test_accuracy"]


def test_the_headline_and_the_results_say_which_engine_ran(digits: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    assert metatrain(digits(meta_engine="learn2learn"))["engine"] == "learn2learn"
    assert "learn2learn engine" in capsys.readouterr().out


def test_both_engines_train_on_the_same_tasks_and_so_end_at_the_same_weights(digits: Make) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    folders = [Path(metatrain(digits(name, meta_engine=name))["folder"]) for name in ("vectorized", "learn2learn")]
    rows = [np.loadtxt(folder / "metrics.csv", delimiter=",", skiprows=1) for folder in folders]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)
    weights = [read_tensors(folder / "model.safetensors") for folder in folders]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-4)


def test_running_averages_are_learned_alike_by_both_engines(digits: Make) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    found = {}
    for engine in ("vectorized", "learn2learn"):
        config = digits(engine, meta_normalization="running", meta_steps=1, eval_tasks=2, meta_engine=engine)
        config.model.name, config.data.image_size = "conv4_32", 16
        found[engine] = read_tensors(Path(metatrain(config)["folder"]) / "model.safetensors")
    averages = [name for name in found["vectorized"] if "running_" in name]
    assert len(averages) == 8
    counts = {int(tensor) for name, tensor in found["vectorized"].items() if name.endswith("num_batches_tracked")}
    assert counts == {4}  # support and queries of two tasks
    assert all(found["vectorized"][name].shape == found["learn2learn"][name].shape for name in averages)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_run_in_chunks_ends_as_the_run_without(digits: Make, chunk: int) -> None:
    whole, split = metatrain(digits("a")), metatrain(digits("b", meta_task_chunk=chunk))
    weights = [read_tensors(Path(result["folder"]) / "model.safetensors") for result in (whole, split)]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-4)


def test_evaluation_never_holds_more_than_a_chunk_of_tasks(digits: Make) -> None:
    class Counting(TensorSampler):
        most = 0

        def batch(self, tasks: Sequence[int]) -> TaskBatch:
            self.most = max(self.most, len(tasks))
            return super().batch(tasks)

    model, spec = load_model(metatrain(digits(meta_steps=1))["folder"])
    task = TaskConfig(queries=2)
    sampler = Counting(load_pool(load_class_splits(digits().data, task, 0).test, spec.inputs), task, "test")
    found = task_accuracies(model, sampler, range(500), 0.1, 1, torch.device("cpu"))
    assert len(found) == 500
    assert sampler.most <= 32
    assert found[:40] == task_accuracies(model, sampler, range(40), 0.1, 1, torch.device("cpu"), task_chunk=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_folds": 2}, r"data\.folds: 2 is not read by metatrain; finetune"),
        ({"optim_accumulate": 2}, r"optim\.accumulate: 2 is not read by metatrain; finetune"),
        ({"optim_lr": "auto"}, r"optim\.lr: 'auto' is not allowed here, only finetune chooses a rate"),
        ({"optim_lr": "default"}, r"optim\.lr: 'default' is not allowed here, only finetune chooses a rate"),
        ({"run_trackers": "tensorboard"}, r"run\.trackers: 'tensorboard' is not read by metatrain; finetune"),
        ({"data_workers": 2}, r"data\.workers: 2 is not read by metatrain; finetune"),
        ({"data_cache": True}, r"data\.cache: true is not read by metatrain; finetune"),
        ({"data_per_class": 20}, r"data\.per_class: 20 is not read by metatrain; finetune"),
        ({"data_batch_size": 8}, r"data\.batch_size: 8 is not read by metatrain; finetune"),
        ({"model_head_init": "probe"}, r"model\.head_init: 'probe' is read by arelu-meta finetune alone"),
        (
            {"meta_engine": "learn2learn", "meta_algorithm": "centroid"},
            r"cannot do centroid, which takes no",
        ),
        (
            {"meta_algorithm": "protonet", "meta_adapt": "head"},
            r"meta\.adapt: 'head' would not be read: protonet compares features",
        ),
        (
            {"meta_algorithm": "centroid", "eval_patience": 2},
            r"eval\.patience: 2 would not be read: centroid takes no meta-steps",
        ),
        (
            {"meta_inner_steps": 1001},
            r"meta\.inner_steps: 1001 is not allowed; give a number at least 1 and at most 1000",
        ),
        ({"meta_inner_act_lr": 0.1}, r"meta\.inner_act_lr: 0\.1 would not be read: .* give --model\.activation arelu"),
    ],
)
def test_what_meta_training_does_not_read_is_refused(digits: Make, changes: dict[str, Any], message: str) -> None:
    config = digits(**changes)
    with pytest.raises(InputError, match=message):
        metatrain(config)
    assert not Path(config.run.folder or "").exists()


def test_patience_without_classes_to_validate_on_is_refused(digits: Make, tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"train": list("01234"), "test": list("56789")}), encoding="utf-8")
    config = digits(task_split_file=str(file), eval_patience=2)
    with pytest.raises(InputError, match=r"eval\.patience: 2 would not be read: .* name some in task\.split_file"):
        metatrain(config)
    assert not Path(config.run.folder or "").exists()


def test_a_rate_of_scalars_is_refused_where_the_inner_loop_leaves_them_alone(digits: Make) -> None:
    config = digits(meta_inner_act_lr=0.1, meta_adapt="head", model_activation="arelu")
    with pytest.raises(InputError, match="maml that adapts head takes no inner step with the activations' scalars"):
        metatrain(config)
    assert not Path(config.run.folder or "").exists()


def test_a_limit_on_the_gradients_norm_bounds_every_meta_step(digits: Make) -> None:
    moved = {}
    for limit in (None, 1e-3):
        start = read_tensors(Path(metatrain(digits(f"start {limit}", optim_lr=1e-30))["folder"]) / "model.safetensors")
        config = digits(f"run {limit}", optim_name="momentum", optim_lr=1.0, optim_clip_grad=limit, meta_steps=1)
        end = read_tensors(Path(metatrain(config)["folder"]) / "model.safetensors")
        squares = [(end[name] - start[name]).square().sum() for name in start]
        moved[limit] = float(torch.stack(squares).sum().sqrt())
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.01)
    assert moved[None] > 0.01


@pytest.mark.parametrize(("head_init", "is_zero"), [("auto", True), ("zero", True), ("random", False)])
def test_a_new_head_on_pretrained_features_starts_at_zero_unless_told_otherwise(
    digits: Make, head_init: str, is_zero: bool
) -> None:
    config = digits(model_head_init=head_init, meta_algorithm="finetune", eval_tasks=2, meta_normalization="frozen")
    config.model.name, config.model.pretrained = "tf_efficientnet_lite0", True
    config.data.image_size, config.task.queries, config.meta.inner_lr = 32, 1, 0.01
    model, _ = load_model(metatrain(config)["folder"])
    assert model.get_classifier().weight.any() != is_zero  # type: ignore[operator]


@pytest.mark.parametrize("change", [{"best": "x"}, {"losses": ["x"]}, {"seconds": None}, {"best_step": [1]}], ids=str)
def test_a_checkpoint_that_no_meta_training_wrote_is_refused_in_a_sentence(
    digits: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], tmp_path: Path
) -> None:
    _interrupt(digits("whole"), monkeypatch)
    (written,) = (tmp_path / "whole" / "checkpoints").glob("*.pt")
    torch.save(torch.load(written, weights_only=True) | change, tmp_path / "strange.pt")
    with pytest.raises(InputError, match=r"^run\.resume: .* does not fit this config"):
        metatrain(digits("other", run_resume=str(tmp_path / "strange.pt")))


# Several seeds


def test_several_seeds_give_their_mean_with_its_interval(digits: Make) -> None:
    whole = metatrain(digits("seeds", train_repeats=3, run_seed=5))
    assert whole["runs"] == 3
    accuracies = [whole[f"test_accuracy_seed-{seed}"] for seed in (5, 6, 7)]
    assert whole["test_accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert whole["test_low"] < whole["test_accuracy"] < whole["test_high"]
    alone = metatrain(digits("alone", run_seed=6))
    assert accuracies[1] == alone["test_accuracy"]
    assert whole["test_n"] == 3 * alone["test_n"]
    folder = Path(whole["folder"])
    assert json.loads((folder / "results.json").read_text()) == whole
    assert read_tensors(folder / "seed-6" / "model.safetensors").keys()
    splits = [json.loads((folder / f"seed-{seed}" / "split.json").read_text())["test_classes"] for seed in (5, 6, 7)]
    assert splits[0] != splits[1] or splits[1] != splits[2]


def test_seeds_that_are_added_later_leave_the_others_as_they_are(
    digits: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    metatrain(digits("seeds", train_repeats=2))
    weights = Path(digits("seeds").run.folder or "") / "seed-0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert metatrain(digits("seeds", train_repeats=3, run_resume="auto"))["runs"] == 3
    assert weights.stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds the mean of 3 runs"):
        metatrain(digits("seeds", run_resume="auto"))
    with pytest.raises(InputError, match=r"^meta.inner_lr: 0.2, and the run in"):
        metatrain(digits("seeds", train_repeats=3, run_resume="auto", meta_inner_lr=0.2))
