import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.trainer import Trainer

Make = Callable[..., FinetuneConfig]
State = dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that was stopped before its test, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("written") / "run"
    config = FinetuneConfig()
    config.run.folder, config.run.device, config.run.pictures = str(folder), "cpu", False
    config.data.image_size, config.data.per_class = 12, 20
    config.model.name, config.model.pretrained = "mnist_linear", False
    config.optim.lr, config.train.epochs = 0.1, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finish", _stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    return folder / "checkpoints" / "epoch-0001.pt"


def _stop(trainer: Trainer) -> State:
    raise KeyboardInterrupt


def _with(**changes: Any) -> Callable[[State], State]:
    return lambda state: state | changes


def _spoilt(name: str, *values: object) -> list[Callable[[State], State]]:
    return [_with(**{name: value}) for value in values]


def _without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _momentum(state: State) -> State:
    for values in state["optimizer"]["state"].values():
        values.update({name: torch.zeros(7) for name, value in values.items() if isinstance(value, Tensor)})
    return state


@pytest.mark.parametrize(
    "change",
    [
        *map(_without, ("peak_rate", "epoch", "model", "optimizer", "best", "kept", "processes", "optimizer_name")),
        *_spoilt("model", None, [1], torch.zeros(3), {"a": 1}),
        *_spoilt("optimizer", None, {}, 10**30, "x"),
        *_spoilt("epoch", None, -5, 10**30, [1, 2], torch.zeros(3), 7),
        *_spoilt("updates", None, {}, -1),
        *_spoilt("processes", [], {}, [{}], [{"sums": ["x"] * 4, "random": {}}], torch.zeros(3)),
        *_spoilt("metrics", [], [{"epoch": 1}], [{"epoch": 1}, {"step": 2}]),
        *_spoilt("times", None, "x", [3]),
        *_spoilt("scalars", 3, [1, 2]),
        *_spoilt("gradients", 3, [None]),
        *_spoilt("best", None, [], ["x", None]),
        *_spoilt("kept", None, [1, 2], [torch.zeros(3), 0.5, 1.0]),
        _with(seconds="long"),
        _momentum,
    ],
)
def test_a_checkpoint_that_no_run_could_have_written_is_refused_in_a_sentence(
    change: Callable[[State], State], written: Path, digits: Make, tmp_path: Path
) -> None:
    strange = tmp_path / "strange.pt"
    torch.save(change(torch.load(written, weights_only=True)), strange)
    with pytest.raises(InputError, match=r"^run\.resume: "):
        finetune(digits(train_epochs=2, run_resume=str(strange)))


def test_a_meta_learners_checkpoint_is_refused_by_name_whatever_else_it_lacks(digits: Make, tmp_path: Path) -> None:
    torch.save({"metrics": [], "step": 3, "optimizer_name": "sgd"}, tmp_path / "step-000003.pt")
    with pytest.raises(InputError, match="is not one of a fine-tuning run"):
        finetune(digits(run_resume=str(tmp_path / "step-000003.pt")))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"run_seed": 1}, r"^run\.seed: 1, and the run"), ({"data_per_class": 10}, r"^data\.per_class: 10, and the run")],
)
def test_a_run_does_not_go_on_with_another_split_which_would_test_on_what_was_trained_on(
    change: dict[str, Any], says: str, written: Path, digits: Make, tmp_path: Path
) -> None:
    shutil.copytree(written.parent.parent, tmp_path / "run")
    before = (tmp_path / "run" / "split.json").read_bytes()
    with pytest.raises(InputError, match=says + ".* began with .*; give what it had"):
        finetune(digits(run_resume="auto", **change))
    assert (tmp_path / "run" / "split.json").read_bytes() == before
    assert finetune(digits(run_resume="auto"))["epochs"] == 2


def test_runs_that_ended_under_another_config_are_not_averaged_with_new_ones(digits: Make, tmp_path: Path) -> None:
    config = digits("series", train_epochs=1, data_folds=5, data_per_class=None)
    finetune(replace(config, run=replace(config.run, folder=str(tmp_path / "series" / "fold-1")), data=_first(config)))
    again = digits("series", train_epochs=1, data_folds=3, data_per_class=None, run_resume="auto")
    with pytest.raises(InputError, match=r"^data\.folds: 3, and the run in '.*fold-1' ended with 5; give"):
        finetune(again)


def _first(config: FinetuneConfig) -> Any:
    return replace(config.data, fold=1)


def test_a_series_whose_rates_were_left_open_takes_in_more_seeds(digits: Make) -> None:
    series = {"train_epochs": 1, "optim_lr": "default", "model_name": "test_resnet.r160_in1k", "data_image_size": 16}
    finetune(digits("series", train_repeats=2, **series))
    results = finetune(digits("series", train_repeats=3, run_resume="auto", **series))
    assert sum(name.startswith("test_accuracy_") for name in results) >= 3
