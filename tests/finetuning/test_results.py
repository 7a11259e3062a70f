import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from arelu_meta import AReLU
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, RunError
from arelu_meta.finetuning.recorders import GradientRecorder, ScalarRecorder
from arelu_meta.finetuning.results import write_results

# Scripts with and without a font here, right to left, emoji, formulas that are none, markup, lines and length.
ODD = ("花の名前", "زهرة", "цветок", "🌸🌼", "$x_{", "a\\$b^", "<b>&amp;", "two\nlines\tand", "x" * 300, "=1+1,\"'", "")


def _read(name: str) -> Image.Image:
    if name.startswith("gone"):
        raise InputError(f"{name} could not be read any more")
    size = (300, 40) if "wide" in name else (20, 30)
    return Image.new("L" if "grey" in name else "RGB", size, 128)


def image_set(classes: tuple[str, ...], labels: list[int], names: tuple[str, ...] | None = None) -> ImageSet:
    names = names or tuple(f"{classes[label]}/wide {index}.png" for index, label in enumerate(labels))
    return ImageSet(classes, np.array(labels, dtype=np.int64), names, _read)


def one_hot(predicted: list[int], classes: int) -> Tensor:
    return 4.0 * torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_everything_is_written_and_the_values_are_flat_json(tmp_path: Path) -> None:
    labels = [0, 0, 1, 1]
    test = image_set(("ant", "bee"), labels)
    found = write_results(tmp_path, one_hot([0, 1, 1, 1], 2), torch.tensor(labels), test, nn.Sequential(AReLU()))
    assert json.loads(json.dumps(found)) == found
    assert not any(isinstance(value, dict | list) for value in found.values())
    assert (found["test_accuracy"], found["test_n"], found["mistakes"]) == (0.75, 4, 1)
    assert found["test_low"] < 0.75 < found["test_high"]
    assert (found["worst_class"], found["worst_recall"]) == ("ant", 0.5)
    assert (found["alphas"], found["alphas_clamped"], found["top5"]) == (1, 0, 1.0)
    assert read(tmp_path / "per_class.csv")[1] == ["ant", "1.0", "0.5", str(2 / 3), "2"]
    assert read(tmp_path / "confusion.csv") == [
        ["true \\ predicted", "ant", "bee"],
        ["ant", "1", "1"],
        ["bee", "0", "2"],
    ]
    assert read(tmp_path / "confused_pairs.csv")[1:] == [["ant", "bee", "1", "0.5"]]
    assert read(tmp_path / "mistakes.csv")[1][:3] == ["ant/wide 1.png", "ant", "bee"]


def test_names_of_any_script_and_length_are_kept_in_tables_and_do_not_break_pictures(tmp_path: Path) -> None:
    labels = list(range(len(ODD)))
    predicted = [*labels[1:], 0]
    names = (*(f"{name}/grey {name}.png" for name in ODD[:-1]), "gone.png")
    test = image_set(ODD, labels, names)
    write_results(tmp_path, one_hot(predicted, len(ODD)), torch.tensor(labels), test)
    assert [row[0] for row in read(tmp_path / "per_class.csv")[1:]] == list(ODD)
    for picture in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width < 3000


@pytest.mark.parametrize("classes", [2, 100, 150])
def test_a_picture_of_many_classes_stays_within_bounds(classes: int, tmp_path: Path) -> None:
    labels = [label for label in range(classes) for _ in range(2)]
    predicted = [min(label + index % 2, classes - 1) for index, label in enumerate(labels)]
    test = image_set(tuple(f"class number {label}" for label in range(classes)), labels)
    write_results(tmp_path, one_hot(predicted, classes), torch.tensor(labels), test)
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 4000
    assert len(read(tmp_path / "confusion.csv")) == classes + 1


def test_the_contact_sheet_shows_up_to_24_mistakes_and_says_so_when_there_is_none(tmp_path: Path) -> None:
    sizes = {}
    for wrong in (0, 3, 24, 40):
        labels = [0] * 40 + [1]
        predicted = [1] * wrong + [0] * (40 - wrong) + [1]
        write_results(tmp_path, one_hot(predicted, 2), torch.tensor(labels), image_set(("a", "b"), labels))
        with Image.open(tmp_path / "mistakes.png") as image:
            sizes[wrong] = image.size
    assert sizes[0][1] < sizes[3][1] < sizes[24][1]
    assert sizes[24] == sizes[40]


def _green(size: int, _: int) -> Image.Image:
    return Image.new("RGB", (size, size), "#008000")


def test_the_contact_sheet_enlarges_small_images(tmp_path: Path) -> None:
    found = {}
    for size in (8, 200):
        green = ImageSet(("a", "b"), np.array([0]), ("a",), partial(_green, size))
        write_results(tmp_path, one_hot([1], 2), torch.tensor([0]), green)
        with Image.open(tmp_path / "mistakes.png") as image:
            found[size] = int((np.asarray(image.convert("RGB")) == (0, 128, 0)).all(2).sum())
    assert found[8] == pytest.approx(found[200], rel=0.05)


def test_what_was_recorded_is_drawn_where_there_is_any(tmp_path: Path) -> None:
    labels, model = [0, 1], nn.Sequential(nn.Linear(2, 2), AReLU())
    scalars, gradients = ScalarRecorder(tmp_path), GradientRecorder(tmp_path, every=1)
    test = image_set(("a", "b"), labels)
    write_results(tmp_path, one_hot(labels, 2), torch.tensor(labels), test, model, scalars, gradients)
    assert not (tmp_path / "scalars.png").exists()
    assert not (tmp_path / "gradients.png").exists()
    for step in (1, 2):
        model(torch.randn(3, 2)).sum().backward()
        scalars.record(model, step)
        gradients.record(model, step)
    write_results(tmp_path, one_hot(labels, 2), torch.tensor(labels), test, model, scalars, gradients)
    for picture in ("scalars.png", "gradients.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 300


def test_gradients_of_zero_are_drawn_too(tmp_path: Path) -> None:
    gradients, model = GradientRecorder(tmp_path), nn.Linear(2, 2)
    model.weight.grad = torch.zeros(2, 2)
    gradients.record(model, 1)
    write_results(
        tmp_path, one_hot([0, 1], 2), torch.tensor([0, 1]), image_set(("a", "b"), [0, 1]), gradients=gradients
    )
    assert (tmp_path / "gradients.png").is_file()


def test_a_prediction_that_is_nan_names_its_image_and_writes_nothing(tmp_path: Path) -> None:
    logits = one_hot([0, 1], 2)
    logits[1, 0] = torch.nan
    with pytest.raises(RunError, match=r"'b/wide 1.png' is NaN or infinite"):
        write_results(tmp_path, logits, torch.tensor([0, 1]), image_set(("a", "b"), [0, 1]))
    assert list(tmp_path.iterdir()) == []
