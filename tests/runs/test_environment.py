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


def test_a_bug_ends_in_a_traceback_that_says_what_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from arelu_meta.runs import environment

    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setattr(environment, "environment", fail)
    with pytest.raises(KeyError) as raised:
        main(["env"])
    assert "`arelu-meta env`" in raised.value.__notes__[0]
