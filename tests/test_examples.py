"""Each example runs from its own file, in small, and does what its first line says."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "hf_trainer": ["--epochs", "1", "--images", "200"],
    "maml_learn2learn": ["--steps", "2", "--tasks", "2"],
    "own_loop": ["--epochs", "1", "--images", "60", "--side", "32"],
    "own_tasks": ["--steps", "3", "--tasks", "4"],
    "timm_loop": ["--epochs", "1", "--images", "100"],
}
NEEDS = {"hf_trainer": "transformers", "maml_learn2learn": "learn2learn"}


def test_every_example_is_tried_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(SMALL))
def test_an_example_runs_and_is_above_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL[name]])
    accuracy = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert 0 < accuracy <= 1
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(SMALL))
def test_an_example_can_be_read_in_one_sitting(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 120
