import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.config import Keep
from arelu_meta.errors import InputError
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.model_selection import Judged, Keeper, standard_error

COURSE = (0.50, 0.90, 0.80, 0.88, 0.87, 0.70)  # of 100 images, the highest is 0.90 and its standard error 0.031


def _kept(rule: Keep, accuracies: tuple[float, ...], images: int = 100) -> list[int]:
    keeper = Keeper(rule, images)
    return [number for number, one in enumerate(accuracies) if keeper.judge(Judged(number, one, 1.0))]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("best", [0, 1]), ("last", [0, 1, 2, 3, 4, 5]), ("one_se", [0, 1, 3, 4])],
)
def test_of_epochs_that_validation_cannot_tell_apart_the_last_is_kept(rule: Keep, kept: list[int]) -> None:
    assert _kept(rule, COURSE) == kept


def test_epochs_do_not_slide_down_step_by_step_from_the_highest() -> None:
    assert _kept("one_se", tuple(0.9 - 0.02 * step for step in range(5))) == [0, 1]


def test_more_images_tell_more() -> None:
    assert _kept("one_se", COURSE, 10_000) == [0, 1]


def test_of_equal_accuracies_the_lower_loss_is_best_and_patience_counts_from_it() -> None:
    keeper = Keeper("best", 100)
    assert [keeper.judge(Judged(number, 0.5, loss)) for number, loss in enumerate((1.0, 0.9, 0.95))] == [1, 1, 0]
    assert keeper.best.epoch == 1


def test_a_restored_keeper_goes_on_as_the_one_before() -> None:
    whole, before, after = (Keeper("one_se", 100) for _ in range(3))
    for number, accuracy in enumerate(COURSE[:4]):
        whole.judge(Judged(number, accuracy, 1.0))
        before.judge(Judged(number, accuracy, 1.0))
    after.restore(before.state())
    for number, accuracy in enumerate(COURSE[4:], 4):
        assert whole.judge(Judged(number, accuracy, 1.0)) == after.judge(Judged(number, accuracy, 1.0))
    assert (whole.best, whole.kept) == (after.best, after.kept)


def test_the_standard_error_is_that_of_a_share_and_never_nothing() -> None:
    assert standard_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    assert standard_error(1.0, 136) == pytest.approx(math.sqrt(138 / 140 * 2 / 140 / 140))
    assert standard_error(0.0, 136) == pytest.approx(standard_error(1.0, 136))


@pytest.mark.parametrize("keep", ["one_se", "best", "last"])
def test_a_run_writes_and_tests_the_epoch_that_its_rule_keeps(digits: Any, keep: Keep) -> None:
    # A rate that is too high for the end: the last epochs differ from the best one.
    results = finetune(digits(train_epochs=6, optim_lr=3.0, optim_schedule="constant", train_keep=keep))
    with (Path(results["folder"]) / "metrics.csv").open(newline="") as file:
        accuracies = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    kept = results["best_epoch"]
    assert results["validation_accuracy"] == accuracies[kept - 1]
    if keep == "best":
        assert accuracies[kept - 1] == max(accuracies)
    if keep == "last":
        assert kept == 6
    if keep == "one_se":
        images = len(json.loads((Path(results["folder"]) / "split.json").read_text())["validation"])
        near = max(accuracies) - standard_error(max(accuracies), images)
        assert all(one < near for one in accuracies[kept:])


def test_a_probe_has_one_epoch_to_keep(digits: Any) -> None:
    with pytest.raises(InputError, match=r"train\.keep: 'last' is not read by finetune --train\.mode probe"):
        finetune(digits(train_mode="probe", train_keep="last"))
