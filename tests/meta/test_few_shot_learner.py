"""`Learner.load(…).adapt(support).predict(images)`, from folders, Pillow images and tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from arelu_meta import Learner
from arelu_meta.backbones.checkpoint import load_model, save_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import ModelConfig
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.data.prediction_inputs import Source
from arelu_meta.errors import InputError, RunError
from arelu_meta.meta.evaluation import adapted_probabilities
from arelu_meta.meta.inner_loop import Inner, attach_loop
from arelu_meta.meta.normalization import NORMALIZATIONS, set_normalization

SIDE = 8
Make = Any


def _digit(row: int, seed: int) -> Image.Image:
    """Noise with one bright row: the row is the class."""
    pixels = np.random.default_rng(seed).integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
    pixels[row] += 150
    return Image.fromarray(pixels)


def _tensor(row: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(_digit(row, seed)).copy())[None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Meta-learners as they are saved before their first step, for each algorithm and normalisation."""
    made: dict[tuple[str, str], str] = {}

    def make(algorithm: str = "maml", normalization: str = "transductive") -> str:
        key = (algorithm, normalization)
        if key not in made:
            torch.manual_seed(0)
            name, side = ("mnist_linear", SIDE) if normalization == "none" else ("conv4_32", 16)
            model, spec = build_backbone(ModelConfig(name, pretrained=False), tuple("01234"), 1, side, "metatrain")
            set_normalization(model, normalization)
            attach_loop(model, Inner(0.2, 3, algorithm=algorithm))
            meta = {"ways": 5, "shots": 1, "queries": 3, "algorithm": algorithm, "inner_lr": 0.2, "inner_steps": 3}
            meta |= {"normalization": normalization, "inverted": False}
            made[key] = str(tmp_path_factory.mktemp("runs") / "model.safetensors")
            save_model(Path(made[key]), model, replace(spec, meta=meta))
        return made[key]

    return make


def test_support_and_images_may_be_pillow_images_files_folders_or_tensors(runs: Make, tmp_path: Path) -> None:
    learner = Learner.load(runs(normalization="none"))
    rows = {"top": 1, "bottom": 6}
    for name, row in rows.items():
        (tmp_path / "support" / name).mkdir(parents=True)
        for seed in range(4):
            _digit(row, seed).save(tmp_path / "support" / name / f"{seed}.png")
    by_folder = learner.adapt(tmp_path / "support")
    by_name = learner.adapt({name: [_digit(row, seed) for seed in range(4)] for name, row in rows.items()})
    images = [_digit(row, 50 + number) for number, row in enumerate((1, 6, 6, 1))]
    by_tensor = learner.adapt(
        (torch.stack([_tensor(row, seed) for row in (6, 1) for seed in range(4)]), torch.arange(2).repeat_interleave(4))
    )
    assert by_folder.classes == ["bottom", "top"]
    assert by_tensor.classes == ["0", "1"]
    wanted = ["top", "bottom", "bottom", "top"]
    assert [guess.name for guess in by_folder.predict(images)] == wanted
    assert [guess.name for guess in by_name.predict(images)] == wanted
    tensors = torch.stack([_tensor(row, 50 + number) for number, row in enumerate((1, 6, 6, 1))])
    assert [guess.name for guess in by_tensor.predict(tensors)] == ["1", "0", "0", "1"]
    torch.testing.assert_close(by_folder.probabilities(images), by_tensor.probabilities(tensors.float() / 255))
    assert [guess.place for guess in by_name.predict(images)] == [0, 1, 2, 3]
    assert by_name.predict(images[0])[0].name == "top"


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_batch_size_changes_no_probability_and_nothing_changes_the_model(
    runs: Make, algorithm: str, normalization: str
) -> None:
    learner = Learner.load(runs(algorithm, normalization))
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    adapted = learner.adapt({str(row): [_digit(row, seed) for seed in range(2)] for row in (1, 4, 6)})
    images = [_digit(row, 60 + row) for row in (1, 4, 6, 1, 6)]
    whole = adapted.probabilities(images, batch_size=32)
    assert whole.shape == (5, 3)
    torch.testing.assert_close(whole.sum(1), torch.ones(5))
    torch.testing.assert_close(adapted.probabilities(images, batch_size=2), whole, rtol=1e-4, atol=1e-5)
    if normalization != "transductive":
        torch.testing.assert_close(adapted.probabilities(images[3])[0], whole[3], rtol=1e-4, atol=1e-5)
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("normalization", ["support", "frozen", "group", "none"])
def test_it_predicts_what_evaluation_scores(runs: Make, normalization: str) -> None:
    folder = runs("maml", normalization)
    model, spec = load_model(folder)
    learner = Learner.load(folder)
    support = {str(row): [_digit(row, seed) for seed in range(2)] for row in range(5)}
    queries = [_digit(row, 80 + row) for row in range(5)]

    def stack(images: list[Image.Image]) -> torch.Tensor:
        source = learner.source(images)
        found = [source.read(place) for place in range(len(images))]
        return torch.stack([one for one in found if one is not None])

    images = stack([image for row in support.values() for image in row])
    asked = stack(queries)
    labels = torch.arange(5).repeat_interleave(2)
    task = TaskBatch(images[None], labels[None], asked[None], torch.arange(5)[None])
    expected = adapted_probabilities(model, task, spec.meta["inner_lr"], spec.meta["inner_steps"])[0]
    torch.testing.assert_close(learner.adapt(support).probabilities(queries), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_support_set_passes_a_body_that_does_not_adapt_once_whatever_the_steps(
    runs: Make, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = {str(row): [_digit(row, seed) for seed in range(2)] for row in (1, 4, 6)}
    images = [_digit(row, 60 + row) for row in (1, 4, 6)]
    learner = Learner.load(runs("anil", normalization))
    assert learner.spec.meta["inner_steps"] == 3
    seen: list[int] = []
    first = next(module for module in learner.model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    hook = first.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    adapted = learner.adapt(support)
    hook.remove()
    assert seen == [2, 6]  # two images to see whether the head acts last, then each of the six once
    once = adapted.probabilities(images)
    monkeypatch.setattr("arelu_meta.meta.few_shot_learner.head_that_adapts_alone", lambda *_: None)
    torch.testing.assert_close(once, learner.adapt(support).probabilities(images), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(once, torch.full_like(once, 1 / 3), atol=1e-3)  # the head has moved


def test_no_more_than_a_batch_of_images_is_held(runs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Learner.load(runs(normalization="none")).adapt({"a": [_digit(1, 0)], "b": [_digit(6, 0)]})
    read: list[int] = []
    whole = Source.read

    def counting(self: Source, index: int) -> torch.Tensor | None:
        read.append(index)
        return whole(self, index)

    monkeypatch.setattr(Source, "read", counting)
    stream = adapted.stream(adapted.learner.source([_digit(1, seed) for seed in range(40)]), batch_size=8)
    for place, guess in enumerate(stream):
        assert guess.place == place
        assert len(read) == 8 * (place // 8 + 1)


@pytest.mark.parametrize("method", ["centroid", "logistic"])
def test_a_backbone_tells_classes_apart_by_its_features(method: Any) -> None:
    learner = Learner.load("tf_efficientnet_lite0", method=method)
    shades = {"red": (200, 20, 20), "blue": (20, 20, 200)}
    support = {name: [Image.new("RGB", (40, 30), shade)] * 2 for name, shade in shades.items()}
    adapted = learner.adapt(support)
    images = [Image.new("RGB", (50, 50), tuple(value + 15 for value in shade)) for shade in shades.values()]
    assert [guess.name for guess in adapted.predict(images)] == ["red", "blue"]
    assert learner.normalization == "frozen"


@pytest.mark.parametrize("method", ["maml", "centroid", "logistic"])
def test_eight_more_images_of_one_class_do_not_draw_the_others_to_it(runs: Make, method: Any) -> None:
    learner = Learner.load(runs(normalization="none"), method=method)
    rows = (1, 4, 6)
    support = {str(row): [_digit(row, 10 * row + seed) for seed in range(2)] for row in rows}
    more = support | {"1": [*support["1"], *(_digit(1, 900 + seed) for seed in range(8))]}
    queries = [_digit(row, 500 + row + 10 * number) for row in rows for number in range(8)]
    wanted = [str(row) for row in rows for _ in range(8)]
    for given in (support, more):
        assert [guess.name for guess in learner.adapt(given).predict(queries)] == wanted


def test_support_that_does_not_fit_the_model_is_said_in_a_sentence(runs: Make, tmp_path: Path) -> None:
    learner = Learner.load(runs(normalization="none"))
    labels = torch.arange(2)
    with pytest.raises(InputError, match=r"^support: a tensor of shape \(3, 8, 8\) does not fit .* takes \(1, 8, 8\)"):
        learner.adapt((torch.zeros(2, 3, 8, 8), labels))
    with pytest.raises(InputError, match=r"^support: a tensor of shape \(1, 9, 8\) does not fit"):
        learner.adapt((torch.zeros(2, 1, 9, 8), labels))
    with pytest.raises(
        InputError, match=r"^support: a tensor of torch.float32 with values from 1.008 to 2; give uint8, or"
    ):
        learner.adapt((torch.linspace(0, 2, 128).view(2, 1, 8, 8), labels))
    with pytest.raises(InputError, match=r"^support: labels \[0, 2\]; give at least two classes, numbered 0, 1, …"):
        learner.adapt((torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])))
    with pytest.raises(InputError, match=r"^support: images of shape \(2, 1, 8, 8\) with labels of shape \(3,\)"):
        learner.adapt((torch.zeros(2, 1, 8, 8), torch.arange(3)))
    with pytest.raises(InputError, match=r"^support: 1 classes; give the images of at least 2"):
        learner.adapt({"one": [_digit(1, 0)]})
    with pytest.raises(InputError, match=r"^support: class 'b': none given"):
        learner.adapt({"a": [_digit(1, 0)], "b": []})
    with pytest.raises(InputError, match=r"^support: it has 6 classes, the model was trained for 5 ways"):
        learner.adapt({str(row): _digit(row, 0) for row in range(6)})
    with pytest.raises(InputError, match=r"^support: 'nowhere' does not exist; give a folder"):
        learner.adapt("nowhere")
    with pytest.raises(InputError, match=r"^support: 3 is not allowed; give a text or a path"):
        learner.adapt(3)  # type: ignore[arg-type]
    adapted = learner.adapt({"a": [_digit(1, 0)], "b": [_digit(6, 0)]})
    with pytest.raises(InputError, match=r"^images: a tensor of shape \(3, 8, 8\) does not fit the model"):
        adapted.predict(torch.zeros(4, 3, 8, 8))
    with pytest.raises(InputError, match=r"^images: .*0\.5.* is not allowed; give a text or a path"):
        adapted.predict([0.5])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"^method: 'protonet' is not what .* was trained for; "):
        Learner.load(runs(normalization="none"), method="protonet")


def test_a_grey_model_says_that_it_does_not_see_the_colours_of_a_support(
    runs: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shade in (("red", (250, 0, 0)), ("grey", (90, 90, 90))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), shade).save(tmp_path / name / "0.png")
    Learner.load(runs(normalization="none")).adapt(tmp_path)
    assert capsys.readouterr().err == "support: 1 images are in colour; the model takes grey ones and sees none of it\n"


def test_weights_that_are_nan_are_no_guess(runs: Make) -> None:
    learner = Learner.load(runs(normalization="none"))
    for parameter in learner.model.parameters():
        parameter.data.fill_(float("nan"))
    adapted = learner.adapt({"a": [_digit(1, 0)], "b": [_digit(6, 0)]})
    with pytest.raises(RunError, match=r"the prediction for image 0 is NaN or infinite"):
        adapted.predict([_digit(1, 5)])


def test_files_that_are_not_images_are_left_out_of_a_class_given_by_name(
    runs: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = Learner.load(runs(normalization="none"))
    broken, whole = tmp_path / "broken.png", tmp_path / "whole.png"
    broken.write_text("no image")
    _digit(1, 0).save(whole)
    other = [_digit(6, 0), _digit(6, 1)]
    adapted = learner.adapt({"a": [broken, whole], "b": other}, skip_broken=True)
    assert adapted.support_size == 3
    torch.testing.assert_close(
        adapted.probabilities([_digit(1, 5)]), learner.adapt({"a": whole, "b": other}).probabilities([_digit(1, 5)])
    )
    assert capsys.readouterr().err == "files skipped because they are not images: 1\n"
    with pytest.raises(InputError, match=r"^support: class 'a' has no image; every class needs at least one"):
        learner.adapt({"a": broken, "b": other}, skip_broken=True)
    with pytest.raises(InputError, match=r"^support: '.*broken\.png' is not a whole image"):
        learner.adapt({"a": [broken, whole], "b": other})


def test_what_is_no_tensor_and_batches_of_nothing_are_refused_in_a_sentence(runs: Make) -> None:
    learner = Learner.load(runs(normalization="none"))
    for support in (([0.5], [0]), (np.zeros((2, 1, 8, 8)), np.arange(2)), (torch.zeros(2, 1, 8, 8),)):
        with pytest.raises(InputError, match=r"^support: a tuple; give a folder, .*, or a tensor with labels"):
            learner.adapt(support)  # type: ignore[arg-type]
    adapted = learner.adapt({"a": [_digit(1, 0)], "b": [_digit(6, 0)]})
    with pytest.raises(InputError, match=r"^batch_size: 0 is not allowed; give at least 1"):
        adapted.predict([_digit(1, 5)], batch_size=0)
