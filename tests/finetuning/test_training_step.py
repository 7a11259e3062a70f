import pytest
import torch
from torch import nn

from arelu_meta import create_backbone
from arelu_meta.config import OptimConfig
from arelu_meta.errors import RunError
from arelu_meta.finetuning.metrics import loss_and_accuracy, predict_logits
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule
from arelu_meta.finetuning.training_step import (
    TrainingState,
    check_finite,
    train_epoch,
)
from arelu_meta.runs.progress import ProgressBar

CPU = torch.device("cpu")


def _training(model: nn.Module, lr: float = 0.1, updates: int = 1) -> TrainingState:
    config = OptimConfig(name="momentum", lr=lr, weight_decay=0.0, schedule="constant")
    optimizer = build_optimizer(model, config)
    return TrainingState(model, optimizer, build_schedule(optimizer, config, 1, updates), CPU, "float32", lr)


def _batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, 1, 12, 12), torch.arange(size) % 3


def test_one_step_is_the_optimisers_step_on_the_mean_cross_entropy() -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12)
    images, labels = _batch()
    loss = nn.functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(model.parameters(), gradients, strict=True)]
    mean_loss, _ = train_epoch(_training(model), [(images, labels)], ProgressBar("", 6, "images"), "none")
    assert mean_loss == pytest.approx(loss.item())
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)


def test_the_mean_loss_weighs_images_not_batches() -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12)
    images, labels = _batch(7)
    batches = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    training = _training(model, lr=1e-12, updates=2)  # so small that both batches meet the same weights
    mean_loss, accuracy = train_epoch(training, batches, ProgressBar("", 7, "images"), "none")
    loss, right = loss_and_accuracy(*predict_logits(model, [(images, labels)], CPU))
    assert mean_loss == pytest.approx(loss, rel=1e-5)
    assert accuracy == pytest.approx(right)


def test_training_stops_at_the_first_loss_that_is_not_finite_and_keeps_the_weights() -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12)
    before = [p.detach().clone() for p in model.parameters()]
    images, labels = _batch()
    images[0] = float("nan")
    with pytest.raises(RunError, match=r"training loss became nan at step 1 .*last good checkpoint is here\.pt"):
        train_epoch(_training(model), [(images, labels)], ProgressBar("", 6, "images"), "here.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_predicting_does_not_change_batch_statistics_and_does_not_depend_on_the_batch_size() -> None:
    model = create_backbone("conv4_32", num_classes=3, in_chans=1, img_size=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.rand(6, 1, 16, 16), torch.arange(6) % 3
    whole, _ = predict_logits(model, [(images, labels)], CPU)
    single, _ = predict_logits(model, [(images[i : i + 1], labels[i : i + 1]) for i in range(6)], CPU)
    torch.testing.assert_close(whole, single)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fp16_steps_are_scaled_and_unscaled() -> None:
    # On the CPU PyTorch's scaler works too; the result must be near the float32 step.
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12)
    images, labels = _batch()
    reference = _training(create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12))
    reference.model.load_state_dict(model.state_dict())
    half = _training(model)
    half = TrainingState(model, half.optimizer, half.schedule, CPU, "fp16", 0.1)
    for training in (reference, half):
        train_epoch(training, [(images, labels)], ProgressBar("", 6, "images"), "none")
    for ours, theirs in zip(half.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.002)


def test_a_validation_that_is_not_finite_stands_behind_the_step_that_spoilt_it() -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, img_size=12)
    config = OptimConfig(name="momentum", lr=0.1, schedule="cosine")
    optimizer = build_optimizer(model, config)
    training = TrainingState(model, optimizer, build_schedule(optimizer, config, 1, 1), CPU, "float32", 0.1)
    with pytest.raises(RunError, match=r"became nan before the first step: the model gives no finite numbers"):
        check_finite(float("nan"), "validation", training, "here.pt")
    train_epoch(training, [_batch()], ProgressBar("", 6, "images"), "here.pt")
    assert training.learning_rate() == 0  # of a step that will not come
    with pytest.raises(RunError, match=r"became nan after step 1 \(optim\.lr 0\.1, learning rate 0\.1 at that step\)"):
        check_finite(float("nan"), "validation", training, "here.pt")
