"""Fine-tuning beside a meta-learner: a rate that diverges is not what it is judged at."""

from pathlib import Path

import pytest
import torch

from arelu_meta import create_backbone, evaluate, metatrain
from arelu_meta.config import MetatrainConfig, TaskConfig
from arelu_meta.data.fewshot import Pool, TensorSampler
from arelu_meta.errors import RunError
from arelu_meta.meta.evaluation import task_accuracies, with_lr_backoff

CPU = torch.device("cpu")


def _sampler() -> TensorSampler:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(10)
    pixels = torch.randint(0, 90, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, label] += 120  # each class has a bright row of its own
    return TensorSampler(Pool(pixels, labels, (0.5,), (0.5,)), TaskConfig(3, 2, 2), "test")


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=8).eval()


@pytest.mark.parametrize(("lr", "refused"), [(0.05, ()), (1e3, (1e3, 1e2, 1e1, 1e0))])
def test_the_first_rate_that_lowers_the_support_loss_is_taken(lr: float, refused: tuple[float, ...]) -> None:
    model, sampler = _net(), _sampler()
    before = {name: value.clone() for name, value in model.named_parameters()}

    def judge() -> list[float]:
        return task_accuracies(model, sampler, range(20), 0.01, 5, CPU)

    accuracies, backoff = with_lr_backoff(model, sampler, range(20), lr, 5, CPU, "float32", judge)
    assert backoff.refused == pytest.approx(refused)
    assert sum(accuracies) / 20 > 0.6  # chance is a third, which is where a network that diverged stays
    assert bool(str(backoff)) == bool(refused)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_task_that_diverges_later_on_refuses_the_rate_too_and_all_rates_may_be() -> None:
    model, sampler = _net(), _sampler()
    asked: list[int] = []

    def fail_twice() -> str:
        asked.append(len(asked))
        if len(asked) < 3:
            raise RunError("the predictions for task 7 became NaN or infinite after 5 inner steps")
        return "judged"

    found, backoff = with_lr_backoff(model, sampler, range(9), 0.05, 5, CPU, "float32", fail_twice)
    assert found == "judged"
    assert backoff.refused == pytest.approx((0.05, 0.005))
    assert str(backoff) == "finetune takes its steps at inner rate 0.0005: at 0.05 and 0.005 it diverged"
    with pytest.raises(RunError, match=r"^fine-tuning .* each inner rate from 1e\+30 to 1e\+26; leave finetune out of"):
        with_lr_backoff(model, sampler, range(9), 1e30, 5, CPU, "float32", lambda: None)


def test_evaluating_against_finetune_survives_the_inner_rate_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MetatrainConfig()
    config.run.folder, config.run.device = str(tmp_path / "run"), "cpu"
    config.model.name, config.data.image_size, config.task.queries = "mnist_linear", 8, 3
    config.meta.algorithm, config.meta.inner_lr, config.meta.inner_steps = "centroid", 1e3, 5
    config.eval.tasks = 10
    run = metatrain(config)["folder"]
    capsys.readouterr()
    found = evaluate(run, tasks=10, against="logistic, finetune")
    assert "against_inner_lr" not in found
    assert found["against_inner_lr_2"] < 1e3
    rate = f"finetune takes its steps at inner rate {found['against_inner_lr_2']:.3g}: at 1e+03 and "
    assert rate in capsys.readouterr().out
