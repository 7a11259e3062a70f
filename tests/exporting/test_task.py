from pathlib import Path

import pytest

from arelu_meta.cli import main


def test_it_says_what_was_written_and_how_exact_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--output", str(run / "a.pt2"), "--fold"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "a.pt2: pt2, " in out
    assert "largest difference from the model's logits on random images: " in out
    assert "gates folded: " in out
    assert "a.pt2.json (classes, preprocessing), model card " in out


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
