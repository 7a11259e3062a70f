import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import InputError, MissingExtraError
from arelu_meta.runs.tracking import PACKAGES, Trackers, check_trackers, open_trackers

pytest.importorskip("accelerate", reason="accelerate is not installed")


def _scalars(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Read TensorBoard's files back with its own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own imports are deprecated ones
        module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = module.EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        return {
            tag: [(event.step, pytest.approx(event.value, abs=1e-6)) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }


def _open(folder: Path, first_step: int = 0) -> Trackers:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorboard")
        pytest.importorskip("torch.utils.tensorboard")
    return open_trackers(["tensorboard", "tensorboard"], folder, FinetuneConfig(), first_step)


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with _open(tmp_path) as trackers:
        for epoch in (1, 2):
            trackers.log({"epoch": epoch, "accuracy": epoch / 4, "note": "text", "missing": None, "best": True}, epoch)
    assert _scalars(tmp_path) == {"epoch": [(1, 1.0), (2, 2.0)], "accuracy": [(1, 0.25), (2, 0.5)]}


def test_after_a_resume_each_step_stands_once(tmp_path: Path) -> None:
    with _open(tmp_path) as trackers:
        for epoch in (1, 2, 3):
            trackers.log({"accuracy": 0.1 * epoch}, epoch)
    with _open(tmp_path, first_step=2) as trackers:
        trackers.log({"accuracy": 0.9}, 2)
    assert _scalars(tmp_path) == {"accuracy": [(1, 0.1), (2, 0.9)]}


def test_the_config_is_logged(tmp_path: Path) -> None:
    _open(tmp_path).finish()
    text = "".join(path.read_text() for path in (tmp_path / "tensorboard").rglob("hparams.yml"))
    assert f"optim.lr: {FinetuneConfig().optim.lr}" in text


def test_an_unknown_tracker_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^run\.trackers: 'tensorbord' is not known; nearest: 'tensorboard'"):
        open_trackers(["tensorbord"], tmp_path, FinetuneConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["accelerate", "tensorboard"])
def test_a_missing_package_comes_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"^run\.trackers: 'tensorboard' .*: pip install {missing}$"):
        check_trackers(["tensorboard"])


def test_every_tracker_that_accelerate_has_is_known() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(PACKAGES) >= set(LOGGER_TYPE_TO_CLASS)


class _Fails:
    def __init__(self, **_: object) -> None:
        self.logged: list[dict[str, Any]] = []

    def start(self) -> None:
        """Connect."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        raise ConnectionError("no\nlogin")

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append(values)
        raise ConnectionError("the network\nis gone")

    def finish(self) -> None:
        raise AssertionError("a dropped tracker is left alone")


def test_a_tracker_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", _Fails)
    monkeypatch.setitem(PACKAGES, "wandb", ("accelerate", "wandb"))
    with pytest.raises(InputError, match=r"^run\.trackers: 'wandb' could not be started \(ConnectionError: no login\)"):
        open_trackers(["wandb"], tmp_path, FinetuneConfig())


def test_a_tracker_that_fails_on_the_way_is_dropped_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    failing = _Fails()
    trackers = Trackers({"wandb": failing})
    trackers.log({"loss": 1}, 1)
    trackers.log({"loss": 2}, 2)
    trackers.finish()
    assert failing.logged == [{"loss": 1.0}]
    err = capsys.readouterr().err
    assert err == "tracker wandb: dropped (ConnectionError: the network is gone); the run goes on\n"


def test_no_tracker_needs_nothing(tmp_path: Path) -> None:
    with open_trackers([], tmp_path, FinetuneConfig()) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []
