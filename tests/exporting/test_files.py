import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from arelu_meta.backbones.saving import load_model
from arelu_meta.data.loading import build_transform
from arelu_meta.errors import InputError, MissingExtraError, RunError
from arelu_meta.exporting import export, files

MakeRun = Callable[..., Path]


def _need(kind: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(package)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


BEFORE = {"model.safetensors", "results.json", "split.json"}


@pytest.mark.parametrize(
    ("kind", "name"), [("onnx", "test_resnet"), ("torchscript", "mnist_linear"), ("pt2", "mnist_linear")]
)
def test_the_lines_of_the_card_give_the_models_class_in_a_process_without_this_toolkit(
    kind: str, name: str, make_run: MakeRun, tmp_path: Path
) -> None:
    _need(kind)
    run = make_run(tmp_path / "run", name)
    found = export(run, format=kind)
    file = Path(found["file"])
    assert _names(run) == BEFORE | {file.name, f"{file.name}.json", "README.md"}
    assert found["largest_difference"] < 1e-5
    assert found["bytes"] == file.stat().st_size
    Image.radial_gradient("L").resize((70, 50)).convert("RGB").save(run / "photo.jpg")
    card = (run / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("\n```")[0]
    code = "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['arelu_meta'] = None\n" + code
    done = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model, spec = load_model(run)
    image = build_transform(spec.inputs, training=False)(Image.open(run / "photo.jpg"))
    assert done.stdout == spec.classes[int(model(image[None]).argmax())] + "\n"


@pytest.mark.parametrize(("ending", "kind"), [(".onnx", "onnx"), (".ts", "torchscript"), (".PT2", "pt2")])
def test_the_ending_chooses_the_format(ending: str, kind: str, tmp_path: Path) -> None:
    assert files.choose_output(tmp_path, f"a{ending}", None) == (kind, Path(f"a{ending}"))
    assert files.choose_output(tmp_path, "a.bin", kind) == (kind, Path("a.bin"))


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
    text = (run / "README.md").read_text(encoding="utf-8") + Path(f"{found['file']}.json").read_text(encoding="utf-8")
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
    assert "convert('L')" in (run / "README.md").read_text(encoding="utf-8")


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


def _fail(error: Exception) -> Callable[..., None]:
    def write(model: nn.Module, images: torch.Tensor, path: Path, info: dict[str, Any]) -> None:
        path.write_text("half")
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), r"could not be written \(No space left on device\)"),
        (RuntimeError("data-dependent\nbranch"), r"cannot be exported so \(RuntimeError: data-dependent branch\)"),
    ],
)
def test_an_export_that_fails_leaves_nothing(
    error: Exception, message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files._FORMATS, "pt2", files._Format((".pt2",), _fail(error), files._run_pt2))
    with pytest.raises(RunError, match=message):
        export(run, format="pt2")
    assert _names(run) == BEFORE


def test_a_file_that_computes_something_else_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        right = files._run_pt2(path)
        return lambda images: right(images) + 0.1

    monkeypatch.setitem(files._FORMATS, "pt2", files._Format((".pt2",), files._write_pt2, off))
    with pytest.raises(RunError, match=r"logits are 0\.1 off the model's; nothing is written"):
        export(run, format="pt2")
    assert _names(run) == BEFORE


def test_a_meta_learner_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^checkpoint: it holds a meta-learner"):
        export(make_run(tmp_path / "m", "mnist_linear", task="metatrain"))


def test_a_readme_of_someone_elses_is_left_as_it_is(run: Path) -> None:
    (run / "README.md").write_text("my notes")
    assert export(run, format="pt2")["card"] is None
    assert (run / "README.md").read_text() == "my notes"


def test_a_folder_that_is_read_only_is_named_before_the_model_is_exported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"model\.pt2' cannot be written: .* is read-only; give another"):
        export(run, format="pt2")
