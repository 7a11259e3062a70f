import pytest

from arelu_meta.cli import main


def test_env_prints_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    import timm
    import torch

    assert main(["env"]) == 0
    out = capsys.readouterr().out
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["torch"].startswith(torch.__version__.split("+")[0])
    assert lines["timm"] == timm.__version__
    assert int(lines["cores"]) >= 1
