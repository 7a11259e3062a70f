import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta import evaluate, finetune, metatrain
from arelu_meta.backbones.checkpoint import read_spec, save_model
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.cli import main
from arelu_meta.config import DataConfig, FinetuneConfig, MetatrainConfig
from arelu_meta.data.provenance import of_its_run
from arelu_meta.errors import InputError, RunError
from arelu_meta.prediction import predict

Photos = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Folders of tiny red, green and blue photographs."""
    root = tmp_path_factory.mktemp("photos")

    def make(name: str, per_class: int) -> Path:
        random = np.random.default_rng(per_class)
        for channel, colour in enumerate(("red", "green", "blue")):
            (root / name / colour).mkdir(parents=True, exist_ok=True)
            for index in range(per_class):
                pixels = random.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / name / colour / f"{index}.png")
        return root / name

    return make


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, photos: Photos) -> dict[str, object]:
    config = FinetuneConfig()
    config.run.folder, config.data.root = str(tmp_path_factory.mktemp("runs") / "c"), str(photos("train", 20))
    config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 16
    config.train.epochs, config.optim.lr = 4, 0.05
    return finetune(config)


def test_evaluating_a_run_repeats_its_test(classifier: dict[str, object]) -> None:
    found = evaluate(str(classifier["folder"]))
    for key in ("test_accuracy", "test_low", "test_high", "test_n", "test_loss"):
        assert found[key] == pytest.approx(classifier[key])


def test_evaluating_on_another_folder_counts_all_its_images(classifier: dict[str, object], photos: Photos) -> None:
    found = evaluate(str(classifier["folder"]), DataConfig(root=str(photos("new", 7))))
    assert found["test_n"] == 21
    assert found["test_accuracy"] > 0.9


def test_files_left_out_of_an_evaluation_are_counted_aloud(
    classifier: dict[str, object], photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos("spoilt", 3)
    (root / "red" / "notes.jpg").write_text("no image")
    (root / "red" / "notes.txt").write_text("passed over")
    assert main(["evaluate", str(classifier["folder"]), "--data.root", str(root), "--data.skip_broken"]) == 0
    printed = capsys.readouterr()
    assert "9 images" in printed.out
    assert printed.err.endswith("files skipped because they are not images: 1\n")


def test_the_run_s_own_test_images_are_found_among_new_ones_and_missed_where_one_is_gone(
    photos: Photos, tmp_path: Path
) -> None:
    config = FinetuneConfig()
    config.run.folder, config.data.root = str(tmp_path / "c"), str(photos("changing", 8))
    config.model.name, config.model.pretrained, config.data.image_size = "mnist_linear", False, 16
    config.train.epochs = 1
    run = finetune(config)
    added = Path(config.data.root) / "red" / "new.png"
    Image.new("RGB", (16, 16), "red").save(added)
    assert evaluate(run["folder"])["test_accuracy"] == run["test_accuracy"]
    tested = json.loads((tmp_path / "c" / "split.json").read_text())["test"][0]
    (Path(config.data.root) / tested).unlink()
    with pytest.raises(
        InputError, match=r"^checkpoint: the images of its run have changed since .*--data\.root FOLDER"
    ):
        evaluate(run["folder"])


@pytest.mark.parametrize(
    ("group", "name", "value"), [("run", "seed", "x"), ("data", "root", 5), ("data", "batch_size", -3)]
)
def test_a_header_whose_config_is_none_is_bad_input(
    classifier: dict[str, object], tmp_path: Path, group: str, name: str, value: object
) -> None:
    file, spec = read_spec(str(classifier["folder"]))
    model = spec.build()
    model.load_state_dict(read_tensors(file))
    spec.config[group][name] = value
    save_model(tmp_path / "m.safetensors", model, spec)
    with pytest.raises(InputError, match=r"^checkpoint: it does not say what its run was tested on"):
        evaluate(tmp_path / "m.safetensors")


def test_a_folder_that_brings_train_alone_is_evaluated_whole(
    classifier: dict[str, object], photos: Photos, tmp_path: Path
) -> None:
    photos("lone", 4).rename(tmp_path / "train")
    assert evaluate(str(classifier["folder"]), DataConfig(root=str(tmp_path)))["test_n"] == 12


def test_weights_that_are_nan_are_no_accuracy(classifier: dict[str, object], tmp_path: Path, photos: Photos) -> None:
    file, spec = read_spec(str(classifier["folder"]))
    model = spec.build()
    model.load_state_dict({name: tensor * float("nan") for name, tensor in read_tensors(file).items()})
    save_model(tmp_path / "nan.safetensors", model, spec)
    with pytest.raises(RunError, match="predictions are NaN or infinite"):
        evaluate(tmp_path / "nan.safetensors")
    image = photos("nan", 3) / "red" / "0.png"
    with pytest.raises(RunError, match=r"red/0\.png' is NaN or infinite"):
        predict(tmp_path / "nan.safetensors", [image])


def test_a_folder_with_some_of_the_classes_is_numbered_as_the_model_does(
    classifier: dict[str, object], photos: Photos, tmp_path: Path
) -> None:
    whole = photos("some", 5)
    (tmp_path / "two").mkdir()
    for colour in ("green", "red"):
        (whole / colour).rename(tmp_path / "two" / colour)
    assert evaluate(str(classifier["folder"]), DataConfig(root=str(tmp_path / "two")))["test_accuracy"] > 0.9


def test_a_class_that_the_model_does_not_know_is_named(
    classifier: dict[str, object], photos: Photos, tmp_path: Path
) -> None:
    folder = photos("odd", 3)
    (folder / "red").rename(folder / "reed")
    with pytest.raises(InputError, match=r"class 'reed' is not one of the checkpoint's; nearest: 'red', 'green'"):
        evaluate(str(classifier["folder"]), DataConfig(root=str(folder)))


def test_from_the_command_line_results_go_where_asked(classifier: dict[str, object], tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    assert main(["evaluate", str(classifier["folder"]), "--run.folder", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["test_n"] == classifier["test_n"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"test": 3}', "{}", ""], ids=["deep", "number", "none", "empty"])
def test_a_stranger_s_split_that_no_run_wrote_is_not_stumbled_over(
    classifier: dict[str, object], content: str, tmp_path: Path
) -> None:
    shutil.copy(Path(str(classifier["folder"])) / "model.safetensors", tmp_path)
    (tmp_path / "split.json").write_text(content)
    assert evaluate(tmp_path)["test_accuracy"] == classifier["test_accuracy"]


@pytest.mark.parametrize("task", [["evaluate"], ["predict", "photo.png"]], ids=["evaluate", "predict"])
def test_no_evaluation_or_prediction_writes_over_the_results_of_the_run_that_it_looks_at(
    classifier: dict[str, object], task: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(str(classifier["folder"]))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    name, *words = task
    assert main([name, str(folder), *words, "--run.folder", str(folder), "--run.resume", "auto"]) == 2
    assert capsys.readouterr().err.startswith("error: run.resume: 'auto' is not read by ")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_evaluating_a_meta_learner_repeats_its_test_and_takes_more_tasks(tmp_path: Path, photos: Photos) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    config = MetatrainConfig()
    config.run.folder, config.model.name, config.data.image_size = str(tmp_path / "m"), "mnist_linear", 8
    config.task.queries, config.meta.steps, config.meta.batch_tasks, config.meta.inner_lr = 3, 2, 2, 0.1
    config.eval.tasks, config.eval.every = 10, 2
    run = metatrain(config)
    again = evaluate(run["folder"], tasks=10)
    assert again["test_accuracy"] == run["test_accuracy"]
    assert evaluate(run["folder"], tasks=12)["test_n"] == 12
    with pytest.raises(InputError, match=r"task\.ways: 5 is more than the 3 classes here"):
        evaluate(run["folder"], DataConfig(root=str(photos("few", 6))))


def test_a_header_names_no_folder_to_download_into(classifier: dict[str, object]) -> None:
    spec = read_spec(str(classifier["folder"]))[1]
    spec.config["data"] |= {"name": "mnist", "root": "somewhere"}
    assert of_its_run(spec.config)[0].download is False
    spec.config["data"]["image_size"] = 10**9
    with pytest.raises(InputError, match=r"^checkpoint: .*image_size: 1000000000 is not allowed"):
        of_its_run(spec.config)
