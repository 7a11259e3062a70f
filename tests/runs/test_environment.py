import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: 'abc' is not allowed; give a whole number from 1 to 100000"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: '0' is not allowed"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE: "),
        ({"WORLD_SIZE": "2"}, "RANK: missing beside WORLD_SIZE 2; start the run by torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK: 'x' is not allowed; give a whole number from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: '2' is not allowed"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK: missing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT: '99999' is not"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR: missing"),
        ({"ARELU_META_DATA": "~nobody_of_that_name/x"}, "ARELU_META_DATA: '~nobody_of_that_name/x': there is no such"),
    ],
)
def test_a_variable_that_torch_would_stumble_over_is_one_line_and_named(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["finetune", "--data.root", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1


def test_a_rank_of_no_run_hides_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["finetun"]) == 2
    assert capsys.readouterr().err.startswith("error: task: ")


def test_a_home_that_cannot_be_written_and_a_strange_plotting_backend_are_no_one_s_business(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from arelu_meta.runs.environment import check_environment\n"
        "check_environment()\n"
        "import matplotlib.pyplot\n"
        "matplotlib.pyplot.figure().savefig(sys.argv[1])\n"
    )
    variables = {**os.environ, "HOME": str(tmp_path / "gone"), "MPLBACKEND": "no_such_backend"}
    variables = {name: value for name, value in variables.items() if name not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    picture = tmp_path / "a.png"
    done = subprocess.run([sys.executable, "-c", code, picture], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert picture.is_file()
