"""`metatrain` in Python: a network of one's own, and tasks or a data set of one's own."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from arelu_meta import Learner, MetatrainConfig, evaluate, metatrain, predict, swap_activations
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.errors import InputError

Make = Callable[..., MetatrainConfig]
WAYS, SHOTS, QUERIES, SIDE = 3, 2, 4, 6


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """A run of a few meta-steps."""

    def make(folder: str = "run", **changes: Any) -> MetatrainConfig:
        config = MetatrainConfig()
        config.run.folder, config.run.pictures = str(tmp_path / folder), False
        config.meta.steps, config.meta.batch_tasks, config.eval.every, config.eval.tasks = 4, 3, 2, 8
        for name, value in changes.items():
            group, _, field = name.partition("_")
            setattr(getattr(config, group), field, value)
        return config

    return make


class Net(nn.Module):
    """A network as somebody else writes it."""

    def __init__(self, outputs: int = WAYS, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))
        return found


def net(seed: int = 0, **options: int) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def draw(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a task whose classes differ in brightness."""
    generator = torch.Generator().manual_seed(number)
    means = torch.randn(WAYS, 1, 1, 1, 1, generator=generator)
    parts: list[Tensor] = []
    for count in (SHOTS, QUERIES):
        parts.append((means + 0.2 * torch.randn(WAYS, count, 1, SIDE, SIDE, generator=generator)).flatten(0, 1))
        parts.append(torch.arange(WAYS).repeat_interleave(count))
    return parts[0], parts[1], parts[2], parts[3]


class Squares(torch.utils.data.Dataset[tuple[Any, int]]):
    """Grey squares of many classes, as Pillow images or as tensors."""

    def __init__(self, classes: int = 12, each: int = 8, tensors: bool = False, first: int = 0) -> None:
        rng = np.random.default_rng(first)
        self.labels = np.arange(classes * each) % classes
        noise = rng.normal(0, 8, (len(self.labels), SIDE, SIDE))
        self.pixels = (noise + 20 + 16 * self.labels[:, None, None]).clip(0, 255).astype(np.uint8)
        self.tensors, self.classes = tensors, [f"level {first + label}" for label in range(classes)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError(index)
        pixels, label = self.pixels[index], int(self.labels[index])
        return (torch.from_numpy(pixels / 128 - 1).float()[None] if self.tensors else Image.fromarray(pixels)), label


def test_a_list_of_tasks_trains_a_network_of_ones_own(config: Make) -> None:
    own = net()
    rows: list[dict[str, Any]] = []
    before = own.conv.weight.detach().clone()
    results = metatrain(config(), own, [draw(number) for number in range(40)], on_epoch=rows.append)
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0].keys() == {"step", "train_loss", "train_accuracy", "validation_accuracy"}
    assert not torch.equal(own.conv.weight, before)
    assert (results["ways"], results["shots"], results["queries"]) == (WAYS, SHOTS, QUERIES)
    assert results["test_n"] == 8
    assert results["test_seen"] is None
    assert "of the training tasks' source, held out" in results["notes"]
    held = {part.name for part in Path(results["folder"]).iterdir()}
    assert {"config.yaml", "environment.json", "split.json", "metrics.csv", "model.safetensors", "results.json"} <= held
    split = json.loads((Path(results["folder"]) / "split.json").read_text())
    assert not set(split["train_tasks"]) & set(split["test_tasks"])
    assert len(split["train_tasks"]) + len(split["test_tasks"]) == 40


def test_training_on_tasks_learns(config: Make) -> None:
    quick = config(meta_steps=40, eval_every=40, optim_lr=0.02, eval_tasks=40)
    results = metatrain(quick, net(), map(draw, itertools.count()), test=[draw(-1 - n) for n in range(40)])
    assert results["test_accuracy"] > results["accuracy_after_0"] + 0.15
    assert results["test_n"] == 40


FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: [draw(number) for number in range(30)],
    "generator": lambda: map(draw, itertools.count()),
    "loader": lambda: torch.utils.data.DataLoader([draw(n) for n in range(30)], batch_size=None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tasks_give_the_same_weights_in_every_form(config: Make, form: str) -> None:
    test = [draw(100 + number) for number in range(8)]
    expected = metatrain(config("list"), first := net(), FORMS["list"](), test=test)
    found = metatrain(config("other"), second := net(), FORMS[form](), test=test)
    assert found["test_accuracy"] == expected["test_accuracy"]
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_a_run_on_a_generator_goes_on_where_it_was_interrupted(config: Make) -> None:
    def tasks() -> Iterator[Any]:
        return map(draw, itertools.count())

    whole = metatrain(config("whole"), first := net(), tasks())

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metatrain(config("broken"), net(), tasks(), on_epoch=stop)
    resumed = metatrain(config("broken", run_resume="auto"), second := net(), tasks())
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("tensors", [False, True])
def test_the_classes_of_a_data_set_are_divided(config: Make, tensors: bool) -> None:
    size = {} if tensors else {"data_image_size": SIDE}
    results = metatrain(config(task_ways=3, task_queries=2, **size), net(), Squares(tensors=tensors))
    split = json.loads((Path(results["folder"]) / "split.json").read_text())
    parts = [set(split[f"{part}_classes"]) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 12
    assert results["test_seen"] == 0
    _, spec = load_model(results["folder"], model=net())
    assert spec.inputs.prepared == tensors
    assert spec.inputs.image_size == SIDE


def test_classes_to_validate_and_to_test_on_may_be_given(config: Make) -> None:
    validation, test = Squares(4, first=20), Squares(5, first=40)
    made = config(task_ways=3, task_queries=2, data_image_size=SIDE)
    results = metatrain(made, net(), Squares(), validation, test)
    split = json.loads((Path(results["folder"]) / "split.json").read_text())
    assert split["test_classes"] == [f"level {n}" for n in range(40, 45)]
    assert len(split["validation_classes"]) == 4
    with pytest.raises(InputError, match=r"^test: validation is given without it; give classes to test on, too"):
        metatrain(config("other", task_ways=3, task_queries=2), net(), Squares(), validation)


def test_a_network_made_by_its_name_takes_tasks_too(config: Make) -> None:
    made = config(model_name="conv4_32", model_activation="arelu")

    def larger(number: int) -> tuple[Tensor, ...]:
        return tuple(p.repeat_interleave(3, 2).repeat_interleave(3, 3) if p.dim() == 4 else p for p in draw(number))

    results = metatrain(made, tasks=[larger(number) for number in range(20)])
    model, spec = load_model(results["folder"])
    assert spec.inputs.image_size == 18
    assert model(torch.zeros(2, 1, 18, 18)).shape == (2, WAYS)


def test_a_learn2learn_task_set_trains(config: Make) -> None:
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    dataset = l2l.data.MetaDataset(Squares(tensors=True))
    kinds = l2l.data.transforms
    transforms = [kinds.NWays(dataset, WAYS), kinds.KShots(dataset, 4), kinds.LoadData(dataset)]
    transforms += [kinds.RemapLabels(dataset), kinds.ConsecutiveLabels(dataset)]
    for count in (-1, 30):
        tasks = l2l.data.Taskset(dataset, transforms, num_tasks=count)
        results = metatrain(config(f"run {count}", task_shots=1), net(), tasks)
        assert (results["ways"], results["shots"], results["queries"]) == (WAYS, 1, 3)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "anil", "metasgd", "mamlpp", "reptile"])
def test_a_network_of_ones_own_learns_by_every_algorithm(config: Make, algorithm: str) -> None:
    own = net()
    swap_activations(own, "arelu", init="paper", example=torch.zeros(2, 1, SIDE, SIDE))
    results = metatrain(config(meta_algorithm=algorithm, meta_inner_steps=2), own, [draw(n) for n in range(20)])
    assert 0 <= results["test_accuracy"] <= 1
    assert results["activation"] == "arelu"


# What is done with its run


@pytest.fixture
def run(config: Make) -> str:
    """The folder of a run with a network of one's own, on images of squares."""
    made = config(task_ways=3, task_queries=2, data_image_size=SIDE)
    folder: str = metatrain(made, net(), Squares())["folder"]
    return folder


def test_a_learner_is_made_of_the_run_when_its_network_is_handed_over(run: str) -> None:
    data, support = Squares(6, first=60), {}
    for label in range(3):
        support[f"level {label}"] = [data[index][0] for index in range(len(data)) if data[index][1] == label][:2]
    fresh, again = (Learner.load(run, device="cpu", model=net(seed)).adapt(support) for seed in (3, 4))
    queries = [data[index][0] for index in range(6)]
    assert torch.equal(fresh.probabilities(queries), again.probabilities(queries))
    assert fresh.predict(queries)[0].name in support


def test_without_its_network_the_run_says_what_to_do(run: str, tmp_path: Path) -> None:
    sentence = r"trained a network of its own, Net.*load_model\(run, model=net\)"
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "a.png")
    for use in (
        lambda: load_model(run),
        lambda: Learner.load(run),
        lambda: evaluate(run),
        lambda: predict(run, [str(tmp_path / "a.png")], support=str(tmp_path)),
    ):
        with pytest.raises(InputError, match=sentence):
            use()


def test_a_run_on_tensors_takes_tensors_alone(config: Make) -> None:
    folder = metatrain(config(), net(), [draw(number) for number in range(20)])["folder"]
    learner, (known, labels, asked, _) = Learner.load(folder, device="cpu", model=net(5)), draw(50)
    assert learner.adapt((known, labels)).probabilities(asked).shape == (WAYS * QUERIES, WAYS)
    image = Image.new("L", (SIDE, SIDE))
    with pytest.raises(InputError, match="was trained on tensors that its data set made of images"):
        learner.adapt({"a": [image], "b": [image]})
    with pytest.raises(InputError, match=r"trained on tensors that were handed over.*Learner.load\(run\).adapt"):
        evaluate(folder, model=net())
    with pytest.raises(InputError, match=r"and .resnet18. is none; leave it out"):
        Learner.load("resnet18", model=net())


def test_a_page_is_made_of_a_run_on_ones_own_tasks(config: Make, tmp_path: Path) -> None:
    from arelu_meta import cli

    folder = metatrain(config(), net(), [draw(number) for number in range(20)])["folder"]
    assert cli.main(["report", folder, "--output", str(tmp_path / "page.html")]) == 0
    assert "held out" in (tmp_path / "page.html").read_text()


def test_the_tasks_of_a_run_on_ones_own_data_are_asked_for_again(run: str) -> None:
    with pytest.raises(InputError, match=r"'given' stands for .* handed over"):
        evaluate(run, model=net())


# What cannot work


def wrong(**options: Any) -> dict[str, Any]:
    return {"model": net, "tasks": lambda: [draw(n) for n in range(9)], "config": {}, "head": None, **options}


def other_size() -> list[Any]:
    images, labels, *asked = draw(1)
    return [*(draw(n) for n in range(9)), (images[:-1], labels[:-1], *asked)]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no module": (wrong(model=lambda: "conv4"), "model: 'conv4' is no torch.nn.Module"),
    "logits of other ways": (wrong(model=lambda: net(outputs=7)), "model: Net gives 7 logits"),
    "other channels": (wrong(model=lambda: net(channels=3)), "model: Net cannot take images of shape (1, 6, 6)"),
    "a text": (wrong(tasks=lambda: "photos"), "tasks: 'photos' is no iterable of tasks"),
    "nothing": (wrong(tasks=list), "tasks: none given"),
    "two tasks": (wrong(tasks=lambda: [draw(0), draw(1)]), "tasks: 2 given; give 3 or more"),
    "other ways": (wrong(config={"task_ways": 4}), "task.ways: 4 was asked for, and the tasks given have 3"),
    "a folder, too": (wrong(config={"data_root": "photos"}), "data.root: 'photos' is not read where tasks are given"),
    "turned classes": (wrong(config={"data_rotations": True}), "data.rotations: True is not read where tasks are"),
    "patience": (wrong(config={"eval_patience": 2}), "there are no tasks to validate on; give validation"),
    "another name": (
        wrong(config={"model_name": "conv4_32"}),
        "model.name: 'conv4_32' is of a model that is made here",
    ),
    "an unknown head": (wrong(head="top"), "head: 'top' is no module of the model"),
    "tests of another kind": (wrong(test=lambda: Squares()), "test: it is a data set of (image, label), and tasks are"),
    "tests of other ways": (
        wrong(test=lambda: [[part[part < 2] if part.dim() == 1 else part[: len(part) * 2 // 3] for part in draw(0)]]),
        "test: its tasks are of 2 classes of images of shape (1, 6, 6), and those to train on of 3 classes",
    ),
    "too few classes": (wrong(tasks=lambda: Squares(4), config={"task_ways": 3}), "task.ways: 3"),
    "protonet": (
        wrong(config={"meta_algorithm": "protonet"}),
        "meta.algorithm: protonet, centroid and logistic compare",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_sentence_and_writes_nothing(config: Make, case: str, tmp_path: Path) -> None:
    given, sentence = WRONG[case]
    more = {"test": given["test"]()} if "test" in given else {}
    with pytest.raises(InputError) as caught:
        metatrain(config(**given["config"]), given["model"](), given["tasks"](), head=given["head"], **more)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_task_of_another_size_is_named(config: Make) -> None:
    with pytest.raises(InputError, match=r"^tasks: task \d+ has support and query images of shapes"):
        metatrain(config(meta_steps=9), net(), other_size(), test=[draw(0), draw(1)])


def test_tests_without_tasks_and_a_head_without_a_model_are_refused(config: Make) -> None:
    with pytest.raises(InputError, match=r"^test: it goes with tasks to train on, and none are given"):
        metatrain(config(), test=[draw(0)])
    with pytest.raises(InputError, match=r"^head: 'fc' names the head of a model that is given, and none is"):
        metatrain(config(), head="fc")


def test_a_named_head_is_what_anil_adapts(config: Make) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(SIDE * SIDE, WAYS)
            self.last = nn.Linear(WAYS, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.top(x.flatten(1)).relu())
            return found

    own = Two()
    results = metatrain(config(meta_algorithm="anil"), own, [draw(n) for n in range(20)], head="top")
    loop = load_model(results["folder"], model=own)[0].inner_loop
    assert {name.split(".")[0] for name in loop.names} == {"top"}  # type: ignore[union-attr]


@pytest.mark.parametrize("algorithm", ["maml", "metasgd"])
def test_a_sequential_is_what_it_was_but_for_its_weights(config: Make, algorithm: str) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, WAYS))
    metatrain(config(meta_algorithm=algorithm), own, [draw(n) for n in range(20)])
    assert own(torch.zeros(2, 1, SIDE, SIDE)).shape == (2, WAYS)
    assert len(own) == (4 if algorithm == "maml" else 5)
