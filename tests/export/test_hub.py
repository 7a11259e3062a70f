"""The Hub itself cannot be reached here: huggingface_hub's own functions are replaced where they would go online."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.cli import main
from arelu_meta.errors import InputError, RunError
from arelu_meta.export.hub import load_from_hub, model_config, prepare, push

MakeRun = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the Hub: uploads are copied into it, downloads come from it."""
    import huggingface_hub

    root = tmp_path / "hub"

    def create_repo(self: object, repo_id: str, **_: object) -> SimpleNamespace:
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self: object, repo_id: str, filename: str, **_: object) -> bool:
        return (root / repo_id / filename).exists()

    def upload_folder(self: object, *, repo_id: str, folder_path: str, **_: object) -> None:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    for function in (create_repo, file_exists, upload_folder):
        monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, filename, **_: str(root / repo_id / filename)
    )
    return root


def same_logits(first: torch.nn.Module, second: torch.nn.Module, channels: int = 3) -> bool:
    images = torch.randn(2, channels, 32, 32)
    return torch.equal(first.eval()(images), second.eval()(images))


@pytest.mark.parametrize(("name", "channels"), [("test_resnet", 3), ("test_vit", 3), ("mnist_linear", 1)])
def test_a_swapped_model_comes_back_from_the_hub_as_it_was(
    name: str, channels: int, hub: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", name, channels=channels)
    push(run, "me/flowers")
    assert {path.name for path in (hub / "me" / "flowers").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    model, spec = load_from_hub("me/flowers")
    original, own = load_model(run)
    assert same_logits(model, original, channels)
    assert (spec.classes, spec.inputs) == (own.classes, own.inputs)


def test_the_lines_of_the_pushed_card_load_the_model(hub: Path, run: Path) -> None:
    push(run, "me/flowers")
    card = (hub / "me" / "flowers" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("\n```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert same_logits(names["model"], load_model(run)[0])


def test_timm_alone_loads_a_model_that_was_not_swapped_with_its_preprocessing(
    hub: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    import timm

    run = make_run(tmp_path / "run", "test_resnet", activation=None)
    push(run, "me/plain")
    assert "timm.create_model(" in (hub / "me" / "plain" / "README.md").read_text(encoding="utf-8")
    model = timm.create_model(f"local-dir:{hub / 'me' / 'plain'}", pretrained=True)
    assert same_logits(model, load_model(run)[0])
    config = timm.data.resolve_model_data_config(model)
    assert (tuple(config["mean"]), config["crop_pct"]) == ((0.5, 0.4, 0.3), 0.9)
    assert config["interpolation"] == "bilinear"
    assert tuple(config["input_size"]) == (3, 32, 32)


def test_a_folder_that_timm_saved_is_loaded_without_the_hub(run: Path, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model, spec = load_model(run)
    folder = str(tmp_path / "saved")
    save_for_hf(prepare(model, spec), folder, model_config=model_config(spec), safe_serialization=True)
    assert same_logits(load_from_hub(folder)[0], load_model(run)[0])


def test_what_is_sent_names_no_local_folder_and_claims_no_license(hub: Path, run: Path) -> None:
    push(run, "me/flowers")
    sent = "".join((hub / "me" / "flowers" / name).read_text(encoding="utf-8") for name in ("README.md", "config.json"))
    assert "someone" not in sent
    assert "secret" not in sent
    assert "license: unknown" in sent
    assert "87.5% (95 % interval 70.0% to 95.0%, 40 images" in sent


def test_a_readme_that_the_repository_has_is_left_as_it_is(hub: Path, run: Path) -> None:
    (hub / "me" / "flowers").mkdir(parents=True)
    (hub / "me" / "flowers" / "README.md").write_text("mine")
    push(run, "me/flowers")
    assert (hub / "me" / "flowers" / "README.md").read_text() == "mine"


def test_a_hub_that_refuses_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def refuse(self: object, repo_id: str, **_: object) -> None:
        raise OSError("401\nUnauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RunError, match=r"^hub: 'me/x' could not be pushed \(OSError: 401 Unauthorized\); log in with"):
        push(run, "me/x")
    assert main(["export", str(run), "--hub", "me/x"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_hub_alone_writes_no_file(hub: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(run.iterdir())
    assert main(["export", str(run), "--hub", "me/x"]) == 0
    assert capsys.readouterr().out == "pushed to https://huggingface.co/me/x\n"
    assert set(run.iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            {"config.json": '{"architecture": "resnet18"}'},
            "was not pushed by arelu_meta; timm.create_model may load it",
        ),
        ({"config.json": "no json"}, "cannot be loaded"),
        ({"model.safetensors": "no weights"}, "cannot be loaded"),
    ],
)
def test_a_repository_that_is_none_of_ours_is_one_line(
    damage: dict[str, str], message: str, hub: Path, run: Path
) -> None:
    push(run, "me/x")
    for name, content in damage.items():
        (hub / "me" / "x" / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        load_from_hub("me/x")
    assert "\n" not in str(raised.value)


def test_a_small_repository_cannot_ask_for_a_huge_model(hub: Path, run: Path) -> None:
    push(run, "me/x")
    path = hub / "me" / "x" / "config.json"
    content = json.loads(path.read_text())
    content["arelu_meta"]["name"] = "vit_giant_patch14_224"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"its header's model has [\d,]+ parameters, and it holds [\d,]+ numbers"):
        load_from_hub("me/x")


def test_a_spec_from_a_stranger_is_checked(hub: Path, run: Path) -> None:
    push(run, "me/x")
    path = hub / "me" / "x" / "config.json"
    content = json.loads(path.read_text())
    content["arelu_meta"]["inputs"]["image_size"] = -1
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"cannot be loaded \(TypeError: its header's inputs\.image_size: -1 is not allowed; .*\)"
    ):
        load_from_hub("me/x")


@pytest.mark.parametrize("name", ["../x", "me/../x", "../../me/x", "/me/x", "me/x/../../y", "me\\x"])
def test_a_repository_whose_name_leaves_its_folder_is_refused_before_anything_is_asked_or_written(
    name: str, hub: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for use in (partial(push, run), load_from_hub):
        with pytest.raises(InputError, match="hub: "):
            use(name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["hf-hub:evil/x", "local-dir:../evil", "../evil", "resnet18/../evil"])
def test_a_network_that_a_header_names_is_one_of_the_installed_ones_and_no_place(
    name: str, hub: Path, run: Path
) -> None:
    push(run, "me/x")
    path = hub / "me" / "x" / "config.json"
    content = json.loads(path.read_text())
    content["arelu_meta"]["name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(name)):
        load_from_hub("me/x")
