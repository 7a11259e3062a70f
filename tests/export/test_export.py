import errno
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.cli import main
from arelu_meta.data.image_io import read_image
from arelu_meta.data.loaders import build_transform
from arelu_meta.errors import InputError, MissingExtraError, RunError
from arelu_meta.export.export import choose_output, export

MakeRun = Callable[..., Path]

module = sys.modules[export.__module__]


def _need(kind: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(package)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


BEFORE = {"model.safetensors", "results.json", "split.json"}


# Turned by its EXIF, half transparent over black: what a decoder makes of it without a second thought is another image.
def _write_photo(path: Path) -> None:
    image = Image.radial_gradient("L").resize((70, 50)).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 35, 25))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def test_the_lines_of_the_cards_give_the_models_class_in_a_process_without_this_toolkit(
    make_run: MakeRun, tmp_path: Path
) -> None:
    _need("onnx")
    names = {"a.onnx": "mnist_conv", "b.pt": "mnist_linear", "c.pt2": "mnist_linear"}
    _write_photo(tmp_path / "photo.jpg.png")
    expected, codes = [], []
    for file, name in names.items():
        run = make_run(tmp_path / file[0], name)
        found = export(run, tmp_path / file)
        assert found["largest_difference"] < 1e-5 < found["largest_logit"]
        assert found["bytes"] == (tmp_path / file).stat().st_size
        card = (tmp_path / f"{file}.md").read_text(encoding="utf-8")
        codes.append(card.split("```python\n")[1].split("\n```")[0].replace("photo.jpg", "photo.jpg.png"))
        model, spec = load_model(run)
        images = build_transform(spec.inputs, training=False)(read_image(tmp_path / "photo.jpg.png"))[None]
        with torch.no_grad():
            expected.append(([spec.classes[int(model(images).argmax())]], images.double().sum().item()))
    assert _names(tmp_path) == {*names, *(f"{name}.{end}" for name in names for end in ("json", "md")), *"abc"} | {
        "photo.jpg.png"
    }
    code = "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['arelu_meta'] = None\n"
    code += "".join(f"{one}\nprint(float(images.double().sum()))\n" for one in codes)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.split(r"(?<=\n)(-?[\d.e-]+)\n", done.stdout)
    for (classes, pixels), text, number in zip(expected, said[::2], said[1::2], strict=False):
        assert text == "\n".join(classes) + "\n"
        assert float(number) == pytest.approx(pixels)
    assert len(said) == 2 * len(names) + 1


def test_a_card_is_its_files_own_and_never_over_anothers(make_run: MakeRun, tmp_path: Path) -> None:
    for name, activation in (("a", None), ("b", "arelu")):
        export(make_run(tmp_path / name, activation=activation), tmp_path / f"{name}.pt2")
    (tmp_path / "README.md").write_text("my notes")
    cards = [(tmp_path / f"{name}.pt2.md").read_text(encoding="utf-8") for name in "ab"]
    assert ["its own activations" in card for card in cards] == [True, False]
    with pytest.raises(InputError, match=r"is there already; give another file or --overwrite"):
        export(tmp_path / "a", tmp_path / "b.pt2")
    (tmp_path / "b.pt2").unlink()
    (tmp_path / "b.pt2.json").unlink()
    with pytest.raises(InputError, match=r"b\.pt2\.md' is there already; give another file or --overwrite"):
        export(tmp_path / "a", tmp_path / "b.pt2")
    assert (tmp_path / "b.pt2.md").read_text(encoding="utf-8") == cards[1]
    assert (tmp_path / "README.md").read_text() == "my notes"


@pytest.mark.parametrize(("ending", "kind"), [(".onnx", "onnx"), (".ts", "torchscript"), (".PT2", "pt2")])
def test_the_ending_chooses_the_format(ending: str, kind: str, tmp_path: Path) -> None:
    assert choose_output(tmp_path, f"a{ending}", None) == (kind, Path(f"a{ending}"))
    assert choose_output(tmp_path, "a.bin", kind) == (kind, Path("a.bin"))


def test_classes_and_preprocessing_are_inside_the_onnx_file(run: Path) -> None:
    _need("onnx")
    import onnxruntime

    found = export(run)
    session = onnxruntime.InferenceSession(found["file"], providers=["CPUExecutionProvider"])
    kept = {
        name: json.loads(value)
        for name, value in session.get_modelmeta().custom_metadata_map.items()
        if value[0] in "[{0123456789"
    }
    info = json.loads(Path(f"{found['file']}.json").read_text(encoding="utf-8"))
    assert kept["classes"] == info["classes"] == load_model(run)[1].classes
    assert kept["mean"] == [0.5, 0.4, 0.3]
    assert kept["crop_pct"] == 0.9
    assert kept["arelu_meta"] == info
    assert session.get_modelmeta().custom_metadata_map["interpolation"] == "bilinear"
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_classes_are_inside_torchs_archives_too(kind: str, run: Path) -> None:
    path, kept = export(run, format=kind)["file"], {"arelu_meta.json": ""}
    if kind == "pt2":
        torch.export.load(path, extra_files=kept)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            torch.jit.load(path, _extra_files=kept)
    assert json.loads(kept["arelu_meta.json"])["classes"][0] == "ant"


def test_no_local_folder_is_published(run: Path) -> None:
    found = export(run, format="pt2")
    text = (run / "model.pt2.md").read_text(encoding="utf-8") + Path(f"{found['file']}.json").read_text(
        encoding="utf-8"
    )
    assert "someone" not in text
    assert "secret" not in text
    assert "my flowers" in text


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("activation", [None, "arelu"])
def test_other_networks_and_grey_images_are_exported(
    name: str, activation: str | None, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "r", name, activation, channels=1)
    assert export(run, format="pt2")["largest_difference"] < 1e-5
    assert "convert('L')" in (run / "model.pt2.md").read_text(encoding="utf-8")


def test_folding_writes_the_gates_as_plain_activations_and_changes_nothing(run: Path) -> None:
    plain = export(run, run / "plain.pt2")
    folded = export(run / "model.safetensors", run / "folded.pt2", fold=True)
    assert (plain["gates_folded"], folded["gates_folded"]) == (0, plain["gates"])
    assert folded["gates"] > 0
    assert folded["largest_difference"] < 1e-5
    count = [
        sum(1 for node in torch.export.load(one["file"]).graph.nodes if node.op == "call_function")
        for one in (plain, folded)
    ]
    assert count[1] < count[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onx"}, r"^format: 'onx' is not known; nearest: 'onnx'"),
        ({"output": "a.bin"}, r"^output: 'a.bin' ends in no known format; end it in \.onnx, \.pt"),
        ({"output": "a.pt2", "format": "onnx"}, r"^output: 'a.pt2' ends as pt2, and format is onnx"),
        ({"output": "/no/such/folder/a.pt2"}, r"^output: '/no/such/folder/a.pt2' cannot be written: .* is no folder"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    arguments: dict[str, Any], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    with pytest.raises(InputError, match=message):
        export(run, **arguments)
    assert _names(run) == BEFORE


def test_what_is_there_is_replaced_only_when_asked(run: Path) -> None:
    (run / "model.pt2.json").write_text("mine")
    with pytest.raises(InputError, match=r"model\.pt2\.json' is there already; give another file or --overwrite"):
        export(run, format="pt2")
    (run / "model.pt").mkdir()
    with pytest.raises(InputError, match=r"model\.pt' is a folder"):
        export(run, format="torchscript", overwrite=True)
    assert _names(run) == BEFORE | {"model.pt2.json", "model.pt"}
    export(run, format="pt2", overwrite=True)
    assert json.loads((run / "model.pt2.json").read_text())["format"] == "pt2"


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_comes_with_the_command_that_installs_it(
    package: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"^format: onnx needs the package .*: pip install .arelu-meta"):
        export(run)
    assert _names(run) == BEFORE


def test_an_export_that_fails_is_one_sentence_and_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("data-dependent\nbranch")

    monkeypatch.setitem(module._FORMATS, "pt2", replace(module._FORMATS["pt2"], export=fail))
    with pytest.raises(RunError, match=r"cannot be exported so \(RuntimeError: data-dependent branch\)"):
        export(run, format="pt2")
    assert _names(run) == BEFORE


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(kind: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\)"):
        export(run, format=kind)
    assert _names(run) == BEFORE


def test_what_computes_something_else_is_not_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
        right = module._load_pt2(content)
        return lambda images: right(images) + 0.1

    monkeypatch.setitem(module._FORMATS, "pt2", replace(module._FORMATS["pt2"], load=off))
    with pytest.raises(RunError, match=r"logits are 0\.1 off the model's, whose largest is [\d.]+; nothing is written"):
        export(run, format="pt2")
    assert _names(run) == BEFORE


def test_a_meta_learner_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^checkpoint: it holds a meta-learner"):
        export(make_run(tmp_path / "m", "mnist_linear", task="metatrain"))


def test_a_folder_that_is_read_only_is_named_before_the_model_is_exported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"model\.pt2' cannot be written: .* is read-only; give another"):
        export(run, format="pt2")


def test_it_says_what_was_written_and_how_exact_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--output", str(run / "a.pt2"), "--fold"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "a.pt2: pt2, " in out
    assert re.search(r"on random images: [\d.e-]+ \(the largest logit is [\d.]+\)", out)
    assert "gates folded: " in out
    assert "a.pt2.json (classes, preprocessing) and a.pt2.md (model card)" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "error: format: 'tflite' is not allowed; give one of 'onnx', 'torchscript', 'pt2'\n"),
        (["--hub", "a b"], "error: hub: 'a b' is not a repository's name"),
        (["--hub", "only-a-name"], "error: hub: 'only-a-name' is not a repository's name; give USER/NAME\n"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(message)


def test_a_checkpoint_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere"), "--format", "pt2"]) == 2
    assert "nowhere' does not exist; give a run folder or a model.safetensors" in capsys.readouterr().err
