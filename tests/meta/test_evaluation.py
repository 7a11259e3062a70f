import copy
import gc
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from arelu_meta import create_backbone, evaluate, metatrain
from arelu_meta.config import MetatrainConfig, TaskConfig
from arelu_meta.data.fewshot import Pool, TaskBatch, TensorSampler
from arelu_meta.errors import InputError
from arelu_meta.meta import engine
from arelu_meta.meta.evaluation import adaptation_curves, curve_results, task_accuracies, with_features
from arelu_meta.meta.inner_loop import Inner, attach_loop, saved_loop
from arelu_meta.meta.normalization import NORMALIZATIONS, set_normalization

CPU = torch.device("cpu")


def _sampler(side: int = 8, queries: int = 2) -> TensorSampler:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(10)
    pixels = torch.randint(0, 90, (60, 1, side, side), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, label % side] += 120  # each class has a bright row of its own
    return TensorSampler(Pool(pixels, labels, (0.5,), (0.5,)), TaskConfig(3, 2, queries), "test")


def _net(name: str = "mnist_linear", side: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, num_classes=3, in_chans=1, img_size=side, activation="arelu")


def test_the_adaptation_curve_ends_where_the_accuracy_is_and_starts_at_chance() -> None:
    model, sampler = _net(), _sampler()
    curves = adaptation_curves(model, sampler, range(60), 0.5, 3, CPU)
    assert [len(row) for row in curves] == [4] * 60
    assert [row[-1] for row in curves] == task_accuracies(model, sampler, range(60), 0.5, 3, CPU)
    assert [row[1] for row in curves] == task_accuracies(model, sampler, range(60), 0.5, 1, CPU)
    means = curve_results(curves)
    assert means["accuracy_after_0"] < 0.5 < means["accuracy_after_3"]


@pytest.mark.parametrize("algorithm", ["maml", "metasgd", "mamlpp", "protonet", "centroid", "logistic", "finetune"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_no_test_task_changes_the_model(algorithm: str, normalization: str) -> None:
    model = _net("conv4_32", 16)
    set_normalization(model, normalization)
    attach_loop(model, Inner(0.1, 2, algorithm=algorithm))
    before = copy.deepcopy(model.state_dict())
    task_accuracies(model, _sampler(16), range(3), 0.1, 2, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("algorithm", ["protonet", "centroid", "logistic"])
def test_features_tell_classes_apart_that_are_easy_without_any_training(algorithm: str) -> None:
    model = _net()
    attach_loop(model, Inner(0.1, 1, algorithm=algorithm))
    assert sum(task_accuracies(model, _sampler(), range(40), 0.1, 1, CPU)) / 40 > 0.7


@pytest.mark.parametrize("algorithm", ["anil", "protonet", "centroid", "logistic"])
@pytest.mark.parametrize("normalization", ["frozen", "group"])
def test_features_computed_once_give_the_accuracies_that_images_give(
    algorithm: str, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampler = _net("conv4_32", 16), _sampler(16)
    set_normalization(model, normalization)
    attach_loop(model, Inner(0.5, 3, algorithm=algorithm))
    assert with_features(model.eval(), sampler, 40, saved_loop(model, 0.5, 3), CPU) is not None
    once = adaptation_curves(model, sampler, range(40), 0.5, 3, CPU)
    monkeypatch.setattr("arelu_meta.meta.evaluation.with_features", lambda *_: None)
    each_time = adaptation_curves(model, sampler, range(40), 0.5, 3, CPU)
    assert len({tuple(row) for row in once}) > 1
    assert np.abs(np.array(once) - np.array(each_time)).mean() < 0.01  # batches of other sizes round otherwise


def test_features_are_not_computed_once_where_they_change_or_where_few_tasks_are_drawn() -> None:
    model, sampler = _net("conv4_32", 16).eval(), _sampler(16)
    for algorithm, tasks, found in (("maml", 40, False), ("anil", 2, False), ("anil", 40, True)):
        attach_loop(model, Inner(0.5, 1, algorithm=algorithm))
        assert (with_features(model, sampler, tasks, saved_loop(model, 0.5, 1), CPU) is not None) == found
    set_normalization(model, "transductive")
    assert with_features(model, sampler, 40, saved_loop(model, 0.5, 1), CPU) is None


def _resident_bytes() -> int:
    """Memory of this process, tensors' too, of which Python's own accounts know nothing."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_memory_is_flat_over_ten_thousand_tasks() -> None:
    class Watched(TensorSampler):
        held: dict[int, int]
        resident: dict[int, int]

        def batch(self, tasks: Sequence[int]) -> TaskBatch:
            if tasks[0] in {960, 9600}:
                gc.collect()  # what waits for the collector is not kept
                self.held[tasks[0]] = tracemalloc.get_traced_memory()[0]
                self.resident[tasks[0]] = _resident_bytes()
            return super().batch(tasks)

    plain = _sampler()
    sampler = Watched(plain.pool, plain.task, "test")
    sampler.held, sampler.resident = {}, {}
    tracemalloc.start()
    try:
        found = task_accuracies(_net(), sampler, range(10_000), 0.1, 1, CPU)
    finally:
        tracemalloc.stop()
    assert len(found) == 10_000
    # One accuracy a task is kept, 90 bytes or so as a list of one number; nothing else.
    assert sampler.held[9600] - sampler.held[960] < 8640 * 200
    # The images of these tasks alone take 26 MB: a tensor kept for each would be seen.
    assert sampler.resident[9600] - sampler.resident[960] < 15e6


def test_evaluation_takes_as_many_tasks_at_once_as_training_would(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(TensorSampler):
        sizes: list[int]

        def batch(self, tasks: Sequence[int]) -> TaskBatch:
            self.sizes.append(len(tasks))
            return super().batch(tasks)

    model, plain = _net(), _sampler()
    sampler = Watched(plain.pool, plain.task, "test")

    def sizes() -> tuple[int, list[float]]:
        sampler.sizes = []
        found = task_accuracies(model, sampler, range(40), 0.1, 1, CPU)
        return max(sampler.sizes[1:]), found

    together, expected = sizes()
    assert together == 32
    monkeypatch.setattr(engine, "_LARGE_TASK", 1 << 10)  # every task counts as large
    assert sizes() == (1, expected)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "_free_bytes", lambda device: 1 << 10)  # a task is larger than all memory
    assert sizes() == (1, expected)


def test_training_stops_when_validation_no_longer_improves_and_keeps_the_best(tmp_path: Path) -> None:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(tmp_path / "run"), "cpu"
    config.model.name, config.data.image_size, config.task.queries = "mnist_linear", 8, 3
    config.optim.lr = 1e-9  # nothing is learned, so that the first validation is the best
    config.meta.steps, config.meta.batch_tasks, config.eval.tasks = 20, 1, 10
    config.eval.every, config.eval.validation_tasks, config.eval.patience = 1, 3, 2
    results = metatrain(config)
    assert results["steps"] == 3
    assert results["accuracy_after_1"] == results["test_accuracy"]


@pytest.mark.parametrize("algorithm", ["anil", "metasgd", "mamlpp", "reptile", "protonet", "centroid", "finetune"])
def test_a_saved_run_evaluates_as_it_did_whatever_its_algorithm(
    tmp_path: Path, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(tmp_path / "run"), "cpu"
    config.model.name, config.data.image_size, config.task.queries = "mnist_linear", 8, 3
    config.meta.steps, config.meta.batch_tasks, config.eval.tasks, config.eval.every = 2, 2, 10, 1
    config.meta.algorithm, config.meta.inner_lr, config.meta.inner_steps = algorithm, 0.1, 2  # type: ignore[assignment]
    results = metatrain(config)
    assert "transductive normalisation; accuracy after" in capsys.readouterr().out
    assert evaluate(results["folder"], tasks=10)["test_accuracy"] == results["test_accuracy"]


def test_evaluate_judges_another_model_on_the_same_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(tmp_path / "run"), "cpu"
    config.model.name, config.data.image_size, config.task.queries = "mnist_linear", 8, 3
    config.meta.steps, config.meta.batch_tasks, config.eval.tasks, config.eval.every = 1, 1, 10, 1
    run = metatrain(config)["folder"]
    itself = evaluate(run, tasks=10, against=run)
    assert itself["against_accuracy"] == itself["test_accuracy"]
    assert itself["difference"] == 0
    assert itself["difference_low"] < 0 < itself["difference_high"]  # of so many query images
    centroids = evaluate(run, tasks=10, against="centroid")
    assert centroids["difference"] == pytest.approx(centroids["test_accuracy"] - centroids["against_accuracy"])
    assert centroids["difference"] != 0
    assert centroids["difference_low"] < centroids["difference"] < centroids["difference_high"]
    with pytest.raises(InputError, match=r"eval\.against: 'centroids' .*centroid, logistic or finetune"):
        evaluate(run, tasks=10, against="centroids")
    config.eval.against, config.run.folder = "centroid", str(tmp_path / "other")
    with pytest.raises(InputError, match=r"eval\.against: 'centroid' is not read by metatrain; evaluate reads it"):
        metatrain(config)
