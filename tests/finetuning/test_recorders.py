import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from arelu_meta import AReLU, GatedAReLU, create_backbone
from arelu_meta.finetuning.recorders import GradientRecorder, ScalarRecorder, gradient_norms, layer_of


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_scalars_of_every_arelu_are_written_each_epoch(tmp_path: Path) -> None:
    model = nn.Sequential(AReLU(alpha=0.5, beta=1.0), nn.ReLU(), GatedAReLU(nn.ReLU(), alpha=1.5, beta=-2.0, t=0.25))
    recorder = ScalarRecorder(tmp_path)
    recorder.record(model, 0)
    with torch.no_grad():
        model[0].alpha.fill_(0.75)  # type: ignore[operator]
    recorder.record(model, 1)
    rows = read(tmp_path / "scalars.csv")
    assert [(row["epoch"], row["path"]) for row in rows] == [("0", "0"), ("0", "2"), ("1", "0"), ("1", "2")]
    assert [row["alpha"] for row in rows] == ["0.5", "1.5", "0.75", "1.5"]
    assert [row["beta"] for row in rows[:2]] == ["1.0", "-2.0"]
    assert [row["t"] for row in rows[:2]] == ["", "0.25"]
    assert [row["alpha_clamped"] for row in rows[:2]] == ["False", "True"]


def test_a_model_without_arelu_leaves_no_file(tmp_path: Path) -> None:
    ScalarRecorder(tmp_path).record(nn.ReLU(), 0)
    assert list(tmp_path.iterdir()) == []


def test_rows_after_the_checkpoint_are_dropped_and_those_before_survive_in_a_new_folder(tmp_path: Path) -> None:
    model = nn.Sequential(AReLU())
    first = ScalarRecorder(tmp_path)
    first.record(model, 0)
    torch.save(first.state(), tmp_path / "state.pt")
    first.record(model, 1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        again = ScalarRecorder(folder)
        again.restore(state)
        assert [row["epoch"] for row in read(folder / "scalars.csv")] == ["0"]
        again.record(model, 1)
        assert [row["epoch"] for row in read(folder / "scalars.csv")] == ["0", "1"]


def test_a_checkpoint_without_rows_empties_the_file(tmp_path: Path) -> None:
    recorder = ScalarRecorder(tmp_path)
    recorder.record(nn.Sequential(AReLU()), 0)
    recorder.restore(None)
    assert not (tmp_path / "scalars.csv").exists()


def test_a_stranger_s_rows_that_could_not_be_written_out_are_refused(tmp_path: Path) -> None:
    laughs: list[object] = []
    for _ in range(100):  # written out, more than the world's memory
        laughs = [laughs, laughs]
    recorder = ScalarRecorder(tmp_path)
    with pytest.raises(ValueError, match=r"scalars\.csv holds more than plain values"):
        recorder.restore([[1, "act", laughs]])
    assert not recorder.path.exists()


def test_gradient_norms_are_those_of_all_parameters_of_a_layer() -> None:
    model = create_backbone("test_resnet", num_classes=3)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    norms = gradient_norms(model)
    wanted = torch.cat([p.grad.flatten() for n, p in model.named_parameters() if n.startswith("layer1.0.")])  # type: ignore[union-attr]
    assert norms["layer1.0"] == pytest.approx(wanted.norm().item(), rel=1e-5)
    assert next(iter(norms)).startswith("conv1")
    assert list(norms)[-1] == "fc"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.3.1.conv_pw.weight", "blocks.3"),
        ("layer1.0.bn1.bias", "layer1.0"),
        ("conv_stem.weight", "conv_stem"),
        ("cls_token", "cls_token"),
        ("features.1", "features"),  # a list of parameters, not of layers
    ],
)
def test_a_layer_is_the_first_part_of_a_name_and_the_number_behind_it(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_gradients_are_sampled_at_the_first_step_and_every_so_many(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].requires_grad_(False)
    recorder = GradientRecorder(tmp_path, every=3)
    for step in range(1, 7):
        model[0].weight.grad = torch.full((2, 2), float(step))
        recorder.record(model, step, scale=2.0)
    rows = read(tmp_path / "gradients.csv")
    assert [(row["step"], row["layer"], float(row["norm"])) for row in rows] == [
        ("1", "0", 1.0),
        ("3", "0", 3.0),
        ("6", "0", 6.0),
    ]


def test_no_gradients_are_no_rows(tmp_path: Path) -> None:
    GradientRecorder(tmp_path).record(nn.Linear(2, 2), 1)
    assert list(tmp_path.iterdir()) == []
