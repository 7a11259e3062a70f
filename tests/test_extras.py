import subprocess
import sys
from pathlib import Path

import pytest

from arelu_meta import cli
from arelu_meta.errors import MissingExtraError, import_learn2learn
from arelu_meta.meta import engine

COMMAND = "pip install learn2learn==0.2.0 --config-settings=--build-option=build_ext"


@pytest.fixture
def without_learn2learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "learn2learn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "learn2learn", None)


@pytest.mark.usefixtures("without_learn2learn")
def test_the_error_carries_the_exact_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError) as raised:
        import_learn2learn()
    message = str(raised.value)
    assert message.startswith("learn2learn: ")
    assert message.endswith(COMMAND)
    assert "\n" not in message


def test_the_command_is_the_one_that_requirements_txt_and_the_readme_carry() -> None:
    root = Path(__file__).parents[1]
    name, _, options = COMMAND.removeprefix("pip install ").partition(" ")
    lines = (root / "requirements.txt").read_text().splitlines()
    assert any(line.startswith(name) and "--build-option=build_ext" in line for line in lines)
    assert "--build-option=build_ext" in options
    assert f'"{name}"' in (root / "pyproject.toml").read_text()


@pytest.mark.usefixtures("without_learn2learn")
def test_metatrain_through_it_without_it_is_one_line_and_nothing_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert cli.main(["metatrain", "--meta.engine", "learn2learn", "--run.folder", str(folder)]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: learn2learn: ")
    assert err.endswith(f"{COMMAND}\n")
    assert err.count("\n") == 1
    assert out == "meta-training conv4 on the embedded digits\n"
    assert not folder.exists()


@pytest.mark.usefixtures("without_learn2learn")
def test_what_does_not_need_it_works_without(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8"]
    arguments += ["--data.per_class", "3", "--train.epochs", "1", "--run.folder", str(tmp_path / "run")]
    assert cli.main(["finetune", *arguments]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("without_learn2learn")
def test_a_run_that_needs_it_whatever_the_engine_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "why_not_vectorized", lambda *_: "vmap cannot run it")
    words = ["--model.name", "conv4_32", "--meta.steps", "1", "--run.folder", str(tmp_path / "run")]
    assert cli.main(["metatrain", *words]) == 2
    err = capfd.readouterr().err
    assert "this run (vmap cannot run it) needs it: pip install" in err
    assert not (tmp_path / "run").exists()


def test_importing_it_prints_nothing() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed (the extra `meta`)")
    code = "from arelu_meta.errors import import_learn2learn as load; print(load().__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("learn2learn\n", "")
