import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from arelu_meta.claims.focus import conclude, entropy, last_map, read_regions, share_inside
from arelu_meta.claims.study import claims_task
from arelu_meta.cli import main, parse
from arelu_meta.data.loaders import InputSpec
from arelu_meta.errors import InputError

_WORDS = ["focus", "--model.name", "test_resnet", "--model.pretrained", "false", "--data.image_size", "64"]
_WORDS += ["--model.activation", "original,arelu", "--train.epochs", "1", "--train.repeats", "2", "--processes", "1"]
_WORDS += ["--focus.count", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images: a bright square on the left, or on the right; and boxes of all of them."""
    root = tmp_path_factory.mktemp("data")
    lines = ["image,x0,y0,x1,y1"]
    noise = np.random.default_rng(0)
    for name, left in (("left", 4), ("right", 40)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = noise.integers(0, 60, (64, 64, 3)).astype(np.uint8)
            pixels[20:44, left : left + 20] = 250
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
            lines.append(f"{name}/{number}.png,{left},20,{left + 20},44")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def test_an_even_map_has_the_object_s_area_inside_and_full_entropy() -> None:
    inside = np.zeros((8, 8), dtype=bool)
    inside[:4, :4] = True
    for even in (np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)):
        assert share_inside(even, inside) == {"inside": 0.25, "area": 0.25}
        assert entropy(even) == pytest.approx(1.0)


def test_a_map_of_one_point_has_no_entropy_and_is_inside_or_not() -> None:
    point, inside = np.zeros((8, 8), np.float32), np.zeros((8, 8), dtype=bool)
    point[1, 1] = 3.0
    inside[:4, :4] = True
    assert entropy(point) == 0.0
    assert share_inside(point, inside) == {"inside": 1.0, "area": 0.25}
    assert share_inside(point, ~inside)["inside"] == 0.0
    assert share_inside(point, None) == share_inside(point, np.zeros_like(inside)) == {"inside": None, "area": None}


def test_boxes_of_one_image_add_up_and_end_before_their_last_pixel(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na/b.png,0,0,2,3\na/b.png,8,8,10,10\n")
    regions = read_regions(str(tmp_path / "boxes.csv"), None)
    assert regions is not None
    drawn = regions("a/b.png", Image.new("RGB", (10, 10)))
    assert drawn is not None
    found = np.asarray(drawn) > 0
    assert found.sum() == 2 * 3 + 2 * 2
    assert found[:3, :2].all()
    assert regions("other.png", Image.new("RGB", (10, 10))) is None


def test_a_mask_is_found_by_its_path_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:9] = 1  # as label images are: 1 is the object
    Image.fromarray(mask).save(tmp_path / "a" / "b.png")
    regions = read_regions(None, str(tmp_path))
    assert regions is not None
    drawn = regions("a/b.jpg", Image.new("RGB", (12, 10)))
    assert drawn is not None
    assert (np.asarray(drawn) > 0).sum() == 3 * 6
    with pytest.raises(InputError, match="12 x 10 pixels and its image 9 x 9"):
        regions("a/b.jpg", Image.new("RGB", (9, 9)))


def test_a_box_outside_its_image_is_refused_and_one_that_reaches_out_is_cut(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,8,8,99,10\nb.png,10,0,12,4\n")
    regions = read_regions(str(tmp_path / "boxes.csv"), None)
    assert regions is not None
    image = Image.new("L", (10, 10))
    cut = regions("a.png", image)
    assert cut is not None
    assert (np.asarray(cut) > 0).sum() == 4
    with pytest.raises(InputError, match=r"^focus\.boxes: 10,0,12,4 in .* lies outside 'b\.png' of 10 x 10 pixels"):
        regions("b.png", image)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("image,x0,y0,x1\na,1,2,3\n", "has no column 'y1'; give the columns image,x0,y0,x1,y1"),
        ("image,x0,y0,x1,y1\na,5,2,3,4\n", "'5,2,3,4' in line 2"),
        ("image,x0,y0,x1,y1\na,0,0,wide,4\n", "'0,0,wide,4' in line 2"),
        ("image,x0,y0,x1,y1\na,0,0,4\n", "in line 2"),
    ],
)
def test_a_csv_that_is_none_of_boxes_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(InputError) as raised:
        read_regions(str(tmp_path / "boxes.csv"), None)
    assert says in str(raised.value)


def test_the_last_map_is_the_last_with_more_than_one_pixel() -> None:
    inputs = InputSpec(8, 3, (0.0,) * 3, (1.0,) * 3)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert last_map(model, inputs) is features
    with pytest.raises(InputError, match="no map of features"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), inputs)


def _made_up(inside: dict[str, list[float]], **changes: Any) -> list[dict[str, Any]]:
    place = {"run": "", "entropy": 0.9, "area": 0.2, "right": True, "test_accuracy": 0.5, "image": "a", **changes}
    return [
        {**place, "contender": name, "seed": seed, "inside": value, "explained": "a"}
        for name, values in inside.items()
        for seed, mean in enumerate(values)
        for value in (mean - 0.05, mean + 0.05)
    ]


def test_energy_inside_is_judged_over_seeds(tmp_path: Path) -> None:
    rows = _made_up({"arelu": [0.60, 0.61, 0.62], "original": [0.50, 0.505, 0.52], "gelu": [0.3, 0.31, 0.32]})
    outcome = conclude(rows, 1.0, tmp_path)
    assert [(one.claim, one.verdict, one.n, one.primary) for one in outcome.comparisons] == [
        ("Grad-CAM of arelu against original, energy inside the object", "ahead", 3, True),
        ("Grad-CAM of gelu against original, energy inside the object", "behind", 3, False),
    ]
    assert outcome.tables[0].rows[0] == [
        "arelu",
        "61.0 ± 1.0",
        "20.0 ± 0.0",
        "90.0 ± 0.0",
        "100.0 ± 0.0",
        "50.0 ± 0.0",
        2,
    ]
    assert outcome.images == []


def test_without_boxes_less_entropy_is_more_focus(tmp_path: Path) -> None:
    rows = [
        {**row, "inside": None, "area": None, "entropy": row["inside"]}
        for row in _made_up({"original": [0.60, 0.61, 0.62], "arelu": [0.50, 0.505, 0.52]})
    ]
    (one,) = conclude(rows, 1.0, tmp_path).comparisons
    assert (one.claim, one.verdict) == ("Grad-CAM of arelu against original, entropy (less is ahead)", "ahead")


def test_where_the_pairs_are_images_of_given_runs_they_are_not_called_runs(tmp_path: Path) -> None:
    rows = _made_up({"original": [0.5], "arelu": [0.5]}, run="somewhere")
    rows[-1]["inside"] = 0.9
    (one,) = conclude(rows, 1.0, tmp_path).comparisons
    assert "more images" in one.sentence


def test_a_study_fine_tunes_looks_draws_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (the extra `focus`)")
    words = [*_WORDS, "--data.root", str(folder / "images"), "--focus.boxes", str(folder / "boxes.csv")]
    words += ["--run.folder", str(tmp_path / "study")]
    first = claims_task(parse("claims", words))
    assert [one["n"] for one in first["verdicts"]] == [2]
    # The box's share of what the network sees: the image is scaled to 67 pixels, and 64 of them are kept.
    assert first["tables"][0]["rows"][0][2] == f"{100 * 20 * 24 * (67 / 64) ** 2 / 64**2:.1f} ± 0.0"
    with Image.open(tmp_path / "study" / "focus.png") as strip:
        assert strip.size[1] > 200
    assert "Grad-CAM side by side" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    claims_task(parse("claims", [*words, "--run.resume", "auto", "--train.repeats", "3"]))
    assert "3 of 9 runs to do" in capsys.readouterr().out


def test_runs_that_a_person_gives_are_paired_by_image(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (the extra `focus`)")
    runs = []
    for name, words in {"plain": [], "ours": ["--model.activation", "arelu"]}.items():
        words = [*words, "--data.root", str(folder / "images"), "--model.name", "test_resnet", "--train.epochs", "1"]
        words += ["--model.pretrained", "false", "--data.image_size", "64", "--run.pictures", "false"]
        runs.append(str(tmp_path / name))
        assert main(["finetune", *words, "--run.folder", runs[-1]]) == 0
    words = ["--focus.runs", ",".join(runs), "--focus.images", str(folder / "images"), "--focus.count", "6"]
    found = claims_task(parse("claims", ["focus", *words, "--processes", "1", "--run.folder", str(tmp_path / "study")]))
    (verdict,) = found["verdicts"]
    assert verdict["claim"] == "Grad-CAM of ours against plain, entropy (less is ahead)"
    assert verdict["n"] == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--focus.boxes", "nowhere.csv"], "focus.boxes: 'nowhere.csv' cannot be read"),
        (["--focus.masks", "nowhere"], "focus.masks: 'nowhere' is no folder"),
        (["--focus.masks", "a", "--focus.boxes", "b"], "does not go with focus.boxes"),
        (["--focus.images", "nowhere"], "focus.images: 'nowhere' is no folder"),
        (["--focus.runs", "nowhere,elsewhere"], "focus.runs: 'nowhere' does not exist"),
        (["--focus.runs", "nowhere"], "leaves nothing to compare; give two folders"),
        (["--focus.count", "0"], "focus.count: 0 is not allowed"),
        (["--model.activation", "arelu"], "leaves nothing to compare"),
        (["--model.name", "vit_tiny_patch16_224"], "no map of features"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(
    words: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (the extra `focus`)")
    data = ["--data.root", str(folder / "images"), "--run.folder", str(tmp_path / "out")]
    assert main(["claims", *_WORDS, *data, *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_package_one_line_says_how_to_install_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    words = ["--data.root", str(folder / "images"), "--run.folder", str(tmp_path / "out")]
    assert main(["claims", *_WORDS, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: grad-cam: cannot be imported")
    assert error.endswith("pip install arelu-meta[focus]\n")
    assert not (tmp_path / "out").exists()
