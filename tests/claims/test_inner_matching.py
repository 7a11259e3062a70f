import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arelu_meta.backbones.networks import conv4_32, mnist_linear
from arelu_meta.claims.matched_learning_rate import first_inner_steps, matched_inner_rate
from arelu_meta.claims.small_lr import list_trials, metatrain_config
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.cli import parse
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import TaskBatch, load_class_splits
from arelu_meta.meta.inner_loop import Inner, inner_of
from arelu_meta.meta.meta_trainer import make_sampler
from arelu_meta.meta.metatrain import make_model
from arelu_meta.meta.normalization import set_normalization


def _tasks() -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(2, 5, 1, 8, 8, generator=generator), torch.arange(5).expand(2, 5)
    return TaskBatch(images, labels, images, labels)


def test_the_change_is_that_of_plain_gradient_descent_on_each_support_set() -> None:
    torch.manual_seed(0)
    model, tasks = mnist_linear(num_classes=5, img_size=8), _tasks()
    squares = []
    for images, labels in zip(tasks.support_images, tasks.support_labels, strict=True):
        moved = deepcopy(model)
        before = moved(images).detach()
        optimizer = torch.optim.SGD(moved.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(moved(images), labels).backward()
            optimizer.step()
        squares.append((moved(images).detach() - before).square().mean())
    expected = float(torch.stack(squares).mean().sqrt())
    assert first_inner_steps(model, tasks, Inner(0.1, 5))[0] == pytest.approx(expected, rel=1e-4)


def test_the_change_grows_with_the_rate_and_leaves_the_model_and_its_averages_alone() -> None:
    torch.manual_seed(0)
    model = conv4_32(num_classes=5, in_chans=1, img_size=16).train()
    set_normalization(model, "transductive")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(2, 5, 1, 16, 16, generator=generator), torch.arange(5).expand(2, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = [
        first_inner_steps(model, TaskBatch(images, labels, images, labels), Inner(lr, 5))[0] for lr in (1e-3, 1e-2)
    ]
    assert 0 < sizes[0] < sizes[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_steps_that_overflow_are_infinitely_large() -> None:
    assert first_inner_steps(mnist_linear(num_classes=5, img_size=8), _tasks(), Inner(1e30, 5)) == (math.inf, math.inf)


def _configs(folder: Path) -> dict[str, MetatrainConfig]:
    words = ["small-lr", "--pipeline", "maml", "--model.name", "mnist_linear", "--optim.lr", "0.1,0.01"]
    config = resolve(parse("claims", [*words, "--data.name", "digits", "--train.repeats", "2"]))
    small = [one for one in list_trials(config) if one.lr == 0.01 and one.seed == 0]
    return {one.contender: metatrain_config(config, one, folder) for one in small}


def test_mamls_gain_is_split_as_well(tmp_path: Path) -> None:
    found = _configs(tmp_path)
    assert set(found) == {"original", "arelu:paper", "matched:arelu:paper"}
    ours, theirs = found["matched:arelu:paper"], found["arelu:paper"]
    assert ours == found["original"]
    rate = matched_inner_rate(ours, theirs)
    assert rate > 1.5 * 0.01  # the paper's start amplifies


def test_at_the_matched_rate_the_first_inner_steps_go_as_far(tmp_path: Path) -> None:
    found = _configs(tmp_path)
    ours, theirs = found["matched:arelu:paper"], found["arelu:paper"]
    rate = matched_inner_rate(ours, theirs)
    splits = load_class_splits(ours.data, ours.task, ours.run.seed)
    sizes = []
    for config in (replace(ours, meta=replace(ours.meta, inner_lr=rate)), theirs):
        torch.manual_seed(config.run.seed)
        model, spec, _ = make_model(config, splits)
        tasks = make_sampler(config, spec, splits, "train", torch.device("cpu")).batch(range(4))
        sizes.append(first_inner_steps(model, tasks, inner_of(config.meta))[0])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.06)


def test_a_model_is_matched_with_itself_at_its_own_rate(tmp_path: Path) -> None:
    config = _configs(tmp_path)["original"]
    assert matched_inner_rate(config, config) == config.meta.inner_lr


def test_mamls_study_ends_with_the_gain_split(tmp_path: Path) -> None:
    words = ["small-lr", "--pipeline", "maml", "--model.name", "mnist_linear", "--data.name", "digits"]
    words += ["--optim.lr", "0.01", "--meta.steps", "2", "--meta.tasks", "4", "--train.repeats", "2"]
    results = claims_task(parse("claims", [*words, "--processes", "1", "--run.folder", str(tmp_path / "study")]))
    described = next(table for table in results["tables"] if table["title"] == "Compared beside the claims")
    assert described["rows"][0][0].endswith("original whose first inner steps move the logits as far")
    times = next(table for table in results["tables"] if table["title"].startswith("How many times"))
    assert "its first inner steps" in times["title"]
    assert [name for name, _ in times["rows"]] == ["arelu:paper"]
    assert float(times["rows"][0][1]) > 1.5
