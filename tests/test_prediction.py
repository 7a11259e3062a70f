import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta import finetune, metatrain
from arelu_meta.cli import main
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.errors import InputError
from arelu_meta.prediction import predict


def _photograph(path: Path, channel: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 90, (16, 16, 3), dtype=np.uint8)
    pixels[..., channel] += 150
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    for channel, colour in enumerate(("red", "green", "blue")):
        for index in range(16):
            _photograph(root / colour / f"{index}.png", channel, index)
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> str:
    config = FinetuneConfig()
    config.run.folder, config.data.root = str(tmp_path_factory.mktemp("runs") / "c"), str(colours)
    config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 16
    config.train.epochs, config.optim.lr = 4, 0.05
    return str(finetune(config)["folder"])


def test_each_image_gets_its_class_and_a_probability(classifier: str, tmp_path: Path) -> None:
    for name, channel in (("a rose.png", 0), ("ein Blatt für dich.png", 1)):
        _photograph(tmp_path / name, channel, 99)
    found = predict(classifier, [tmp_path / "a rose.png", tmp_path / "ein Blatt für dich.png"])
    assert [one.name for one in found] == ["red", "green"]
    assert all(1 / 3 < one.probability <= 1 for one in found)


def test_a_folder_is_searched_and_the_batch_size_does_not_matter(classifier: str, colours: Path) -> None:
    whole = predict(classifier, [colours])
    assert len(whole) == 48
    assert np.mean([one.path.parent.name == one.name for one in whole]) > 0.9
    small = predict(classifier, [colours], batch_size=5)
    assert [one.name for one in small] == [one.name for one in whole]


def test_a_support_folder_makes_classes_that_the_classifier_never_had(
    classifier: str, colours: Path, tmp_path: Path
) -> None:
    for name, channel in (("warm", 0), ("cold", 2)):
        for index in range(2):
            _photograph(tmp_path / "support" / name / f"{index}.png", channel, 200 + index)
    found = predict(classifier, [colours / "red", colours / "blue"], support=tmp_path / "support")
    assert {one.name for one in found} == {"warm", "cold"}
    wanted = {"red": "warm", "blue": "cold"}
    assert np.mean([wanted[one.path.parent.name] == one.name for one in found]) > 0.9


def test_piped_predictions_are_tab_separated_and_go_to_csv_where_asked(
    classifier: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(colours / "red" / "0.png")
    assert main(["predict", classifier, image, "--run.folder", str(tmp_path / "p")]) == 0
    path, name, probability = capsys.readouterr().out.strip().split("\t")
    assert (path, name) == (image, "red")
    assert 0 < float(probability) <= 1
    with (tmp_path / "p" / "predictions.csv").open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [
            ("image", "class", "probability"),
            (image, "red", probability),
        ]


def test_top_k_and_every_class_go_to_a_csv_of_ones_own(classifier: str, colours: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.csv"
    words = ["predict", classifier, str(colours / "blue"), "--output", str(file), "--top_k", "2", "--probabilities"]
    assert main(words) == 0
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 16
    columns = ["image", "class", "probability", "class_2", "probability_2", "p(blue)", "p(green)", "p(red)"]
    assert list(rows[0]) == columns
    for row in rows:
        assert float(row["probability"]) >= float(row["probability_2"])
        assert float(row[f"p({row['class_2']})"]) == pytest.approx(float(row["probability_2"]), abs=1e-4)
        assert sum(float(row[f"p({name})"]) for name in ("red", "green", "blue")) == pytest.approx(1, abs=1e-5)
    (ranked,) = predict(classifier, [colours / "red" / "0.png"], top_k=2)
    assert (ranked.name, ranked.probability) == ranked.ranked[0]
    assert len(ranked.ranked) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top_k", "4"], "top_k: 4 is not allowed; give 1 to 3, the number of classes"),
        (["--top_k", "0"], "top_k: 0"),
        (
            ["--data.image_size", "32"],
            "data.image_size: 32 is not read by predict; finetune, metatrain, swap, race, claims read it; leave",
        ),
        (["--run.precision", "bf16"], "run.precision: 'bf16' is not read by predict"),
        (["--probabilities"], "give --output FILE.csv or --run.folder"),
        (["--output", "found.txt"], "'found.txt' is not allowed; give a file that ends in .csv"),
        (["--output", "no/found.csv"], "the folder of 'no/found.csv' does not exist"),
        (["--output", "there.csv"], "'there.csv' is there already; give another, or --overwrite"),
    ],
)
def test_what_cannot_be_predicted_or_written_is_one_line(
    classifier: str,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("precious")
    assert main(["predict", classifier, str(colours / "red" / "0.png"), *words]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert said in line
    assert (tmp_path / "there.csv").read_text() == "precious"


def test_a_broken_image_is_named_or_skipped(classifier: str, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"broken\.jpg' is not a whole image"):
        predict(classifier, [tmp_path / "broken.jpg", colours / "red" / "0.png"])
    assert len(predict(classifier, [tmp_path / "broken.jpg", colours / "red" / "0.png"], skip_broken=True)) == 1


@pytest.fixture(scope="module")
def meta_learner(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    config = MetatrainConfig()
    config.run.folder = str(tmp_path_factory.mktemp("runs") / "m")
    config.model.name, config.data.image_size, config.model.activation = "mnist_linear", 8, "arelu"
    config.task.queries, config.meta.steps, config.meta.batch_tasks, config.meta.inner_lr = 5, 30, 4, 0.1
    config.optim.lr, config.eval.tasks, config.eval.every, config.eval.inner_steps = 0.003, 5, 30, 5
    return str(metatrain(config)["folder"])


def test_a_meta_learner_sorts_digits_after_one_look_at_each_class(meta_learner: str, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for digit in (0, 1, 6):
        for number, index in enumerate(np.flatnonzero(bunch.target == digit)[:12]):
            part = "support" if number < 3 else "rest"
            folder = tmp_path / part / f"digit {digit}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((bunch.images[index] * 15).astype(np.uint8)).save(folder / f"{index}.png")
    found = predict(meta_learner, [tmp_path / "rest"], support=tmp_path / "support")
    assert len(found) == 27
    assert np.mean([one.path.parent.name == one.name for one in found]) > 0.7


def test_a_meta_learner_without_support_or_with_too_many_classes_says_what_it_needs(
    meta_learner: str, colours: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"support: missing.*--support FOLDER"):
        predict(meta_learner, [colours])
    for index in range(6):
        _photograph(tmp_path / f"class {index}" / "0.png", 0, index)
    with pytest.raises(InputError, match=r"has 6 classes, the model was trained for 5 ways"):
        predict(meta_learner, [colours], support=tmp_path)


def test_one_photograph_alone_is_predicted_by_a_learner_normalised_by_the_batch_at_hand(
    colours: Path, tmp_path: Path
) -> None:
    config = MetatrainConfig()
    config.run.folder, config.data.root = str(tmp_path / "m"), str(tmp_path / "six")
    for index in range(6):
        for number in range(4):
            _photograph(tmp_path / "six" / f"class {index}" / f"{number}.png", index % 3, 10 * index + number)
    config.model.name, config.data.image_size = "test_resnet", 32  # its last maps have one pixel
    config.task.ways, config.task.queries, config.meta.steps, config.meta.batch_tasks = 3, 2, 1, 2
    config.eval.tasks = 2
    folder = metatrain(config)["folder"]
    support = tmp_path / "support"
    for channel, colour in enumerate(("red", "green", "blue")):
        _photograph(support / colour / "0.png", channel, 300 + channel)
    found = predict(folder, [colours / "red" / "0.png"], support=support)
    assert len(found) == 1
    assert 1 / 3 < found[0].probability <= 1


def test_a_support_folder_that_does_not_do_is_named_as_the_support(
    classifier: str, colours: Path, tmp_path: Path
) -> None:
    (tmp_path / "only" / "one").mkdir(parents=True)
    image = colours / "red" / "0.png"
    with pytest.raises(InputError, match=r"^support: '.*only' has 1 sub-folders; at least 2 classes"):
        predict(classifier, [image], support=tmp_path / "only")
    (tmp_path / "only" / "two").mkdir()
    with pytest.raises(InputError, match=r"^support: class 'one' in '.*only' has no image"):
        predict(classifier, [image], support=tmp_path / "only")


def test_a_file_whose_name_is_not_utf_8_is_named(classifier: str, tmp_path: Path) -> None:
    _photograph(tmp_path / os.fsdecode(b"caf\xe9.png"), 0, 1)
    with pytest.raises(InputError, match=r"^images: the name .* is not UTF-8; rename it"):
        predict(classifier, [tmp_path])


ODD = ("line\nbreak", "bell\x07\x1b[31m", "turned\u202e")


@pytest.fixture
def oddly_named(classifier: str, tmp_path: Path) -> list[str]:
    for channel, name in enumerate(ODD):
        for number in range(8):
            _photograph(tmp_path / "odd" / name / f"{number}\t\x9b.png", channel, number)
    data = ["--data.root", str(tmp_path / "odd"), "--data.image_size", "16", "--run.folder", str(tmp_path / "run")]
    model = ["--model.name", "mnist_linear", "--model.pretrained", classifier, "--run.pictures", "false"]
    assert main(["finetune", *data, *model, "--train.epochs", "1"]) == 0
    return [str(tmp_path / "run"), str(tmp_path / "odd")]


def test_names_that_would_break_lines_or_drive_a_terminal_are_printed_escaped(
    oddly_named: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    file = tmp_path / "found.csv"
    assert main(["predict", *oddly_named, "--output", str(file), "--probabilities"]) == 0
    assert main(["report", oddly_named[0]]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert (len(lines), err) == (25, "")
    assert [line.count("\t") for line in lines[:24]] == [2] * 24
    assert r"line\nbreak/0\t\x9b.png" in out
    table = file.read_text(encoding="utf-8")
    assert table.splitlines()[0] == r"image,class,probability,p(bell\x07\x1b[31m),p(line\nbreak),p(turned\u202e)"
    page = (Path(oddly_named[0]) / "report.md").read_text(encoding="utf-8")
    assert not set("\x07\x1b\x9b\u202e") & set(out + table + page)
    assert main(["predict", *oddly_named, "--support", "no\nwhere\x1b"]) == 2
    assert (
        capfd.readouterr().err
        == "error: support: 'no\\nwhere\\x1b' does not exist; give a folder with one sub-folder a class\n"
    )


def test_letters_of_any_language_and_spaces_of_any_width_are_printed_as_they_are(
    classifier: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "写真\u3000Aufnahme\u202f10\u00a0Uhr 👩\u200d🔬\x9b\ufeff.png"
    _photograph(tmp_path / name, 0, 1)
    capfd.readouterr()
    assert main(["predict", classifier, str(tmp_path / name)]) == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path / name}\t".replace("\x9b", r"\x9b"))


def test_a_class_that_is_half_a_character_is_written_as_its_code(classifier: str, tmp_path: Path) -> None:
    source, spoilt = Path(classifier, "model.safetensors").read_bytes(), tmp_path / "spoilt.safetensors"
    size = 8 + int.from_bytes(source[:8], "little")
    header = source[8:size].replace(b"green", rb"\\ud8ab")
    spoilt.write_bytes(len(header).to_bytes(8, "little") + header + source[size:])
    assert main(["export", str(spoilt), "--format", "torchscript"]) == 0
    described = json.loads((tmp_path / "model.pt.json").read_text(encoding="utf-8"))
    assert described["classes"] == ["blue", "\ud8ab", "red"]
