"""A whole fine-tuning run: data, backbone, epochs, best checkpoint, test."""

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import nn

from arelu_meta.backbones.from_config import build_backbone, check_forward, check_gates, check_model_config
from arelu_meta.backbones.inits import gate_schedule
from arelu_meta.backbones.paper_nets import PAPER_NETS
from arelu_meta.backbones.saving import ModelSpec, load_tensors, read_tensors, save_model
from arelu_meta.config import FinetuneConfig, validate
from arelu_meta.data.images import Splits, class_holders, load_images
from arelu_meta.data.loading import Batches, build_transform, unlabelled_batches
from arelu_meta.errors import InputError
from arelu_meta.finetuning.loop import (
    Trainer,
    check_finite,
    freeze_all_but_head,
    loss_and_accuracy,
    predict_logits,
    train_epoch,
)
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, check_optimizer_name
from arelu_meta.intervals import proportion_interval
from arelu_meta.runs.compute import prepare, random_state, restore_random_state
from arelu_meta.runs.curves import draw_curves
from arelu_meta.runs.folder import RunFolder, check_apart, open_run, restoring, resumable
from arelu_meta.runs.progress import ProgressBar, progress
from arelu_meta.runs.results import finished_results, report_results

_DIGITS_SIZE = 64


def finetune(config: FinetuneConfig | None = None) -> dict[str, Any]:
    """Fine-tune a backbone on labelled images and test it.

    Args:
        config: default: `FinetuneConfig()`, the embedded digits.

    Returns:
        What results.json holds: among others `test_accuracy` (a fraction), `test_low` and `test_high` (95 % interval),
        `test_n` (images), `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.
    """
    config = config or FinetuneConfig()
    validate(config)
    check_model_config(config.model)
    check_optimizer_name(config.optim.name)
    device = prepare(config.run)
    folder = open_run(config.run, "finetune")
    if folder.finished:
        return finished_results(folder, "finetune")
    check_apart(folder, class_holders(config.data))
    splits = load_images(config.data, config.run.seed)
    model, spec = build_backbone(
        config.model,
        splits.train.classes,
        splits.train.channels,
        _image_size(config),
        "finetune",
        partial(unlabelled_batches, splits.train),
    )
    check_gates(model, config.optim.open_gates)
    head_only = config.train.mode == "head"
    check_forward(model, spec, None if head_only else min(config.data.batch_size, len(splits.train)))
    spec = replace(spec, mirrored=splits.mirrored, config=asdict(config))
    if head_only:
        freeze_all_but_head(model)
    run = _Run(config, folder, splits, spec, model.to(device), device)
    return run.go()


def _image_size(config: FinetuneConfig) -> int | None:
    """Choose 64 px for the embedded digits, which have 8: a pretrained model's own 224 would only take longer."""
    small_images = config.data.root is None and config.data.name in (None, "digits")
    return config.data.image_size or (_DIGITS_SIZE if small_images and config.model.name not in PAPER_NETS else None)


class _Run:
    """The parts of one run, and its course."""

    def __init__(
        self,
        config: FinetuneConfig,
        folder: RunFolder,
        splits: Splits,
        spec: ModelSpec,
        model: nn.Module,
        device: Any,
    ) -> None:
        self.config, self.folder, self.splits, self.spec, self.device = config, folder, splits, spec, device
        evaluation = build_transform(spec.inputs, training=False)
        training = build_transform(spec.inputs, training=True, mirrored=splits.mirrored)
        size = config.data.batch_size
        self.train = Batches(splits.train, training, size, seed=config.run.seed)
        self.validation = Batches(splits.validation, evaluation, size)
        self.test = Batches(splits.test, evaluation, size)
        gates = gate_schedule(model, config.optim.open_gates)
        optimizer = build_optimizer(model, config.optim)
        schedule = build_schedule(optimizer, config.optim, config.train.epochs, len(self.train))
        self.trainer = Trainer(
            model,
            optimizer,
            schedule,
            device,
            config.run.precision,
            config.optim.lr,
            head_only=config.train.mode == "head",
            gates=gates,
            all_updates=config.train.epochs * len(self.train),
        )
        self.epoch, self.best, self.seconds = 0, (-1.0, 0.0), 0.0
        self.checkpoint, self.first = "none", 0

    def go(self) -> dict[str, Any]:
        if self.folder.resumed is not None:
            self._restore(self.folder.resumed)
        self.folder.start(self.config, self.splits.describe())
        if self.epoch == 0:
            self._save_checkpoint()
        elif not self.folder.model_file.exists():
            self._count_from_here()
        with resumable(lambda: self.checkpoint):
            self._train()
            results = self._finish()
        report_results(results)
        return results

    def _train(self) -> None:
        epochs = self.config.train.epochs
        with progress("fine-tuning", (epochs - self.epoch) * len(self.splits.train), "images") as bar:
            bar.line(self._headline())
            while self.epoch < epochs:
                self._one_epoch(bar)

    def _headline(self) -> str:
        parts = f"{len(self.splits.train)} training, {len(self.splits.validation)} validation and "
        parts += f"{len(self.splits.test)} test images of {len(self.splits.train.classes)} classes"
        learning = sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)
        notes = "".join(f"; {note}" for note in self.splits.notes)
        if self.splits.skipped:
            notes += f"; {len(self.splits.skipped)} files skipped that are not images"
        name = f"{self.spec.name} ({self.spec.activation or 'its own activation'}"
        name += f", {self.spec.init})" if self.spec.init else ")"
        where = f"{self.spec.inputs.image_size} px on {self.device}"
        return f"{name}, {learning:,} parameters learn at {where}\n{parts}{notes}"

    def _one_epoch(self, bar: ProgressBar) -> None:
        started = time.monotonic()
        number = self.epoch + 1
        rate = self.trainer.learning_rate()
        train_loss, train_accuracy = train_epoch(self.trainer, self.train.epoch(number), bar, self.checkpoint)
        logits, labels = predict_logits(
            self.trainer.model, self.validation.epoch(number), self.device, self.config.run.precision
        )
        loss, accuracy = loss_and_accuracy(logits, labels)
        check_finite(loss, "validation", self.trainer, self.checkpoint)
        self.epoch = number
        self.seconds += time.monotonic() - started
        row = {
            "epoch": number,
            "learning_rate": rate,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "seconds": round(self.seconds, 2),
        }
        self.folder.append_metrics(row)
        if (accuracy, -loss) > self.best:
            self.best = (accuracy, -loss)
            save_model(self.folder.model_file, self.trainer.model, self.spec)
        self._save_checkpoint()
        bar.line(
            f"epoch {number}/{self.config.train.epochs}  train loss {train_loss:.3f}, accuracy {train_accuracy:.1%}"
            f"  validation loss {loss:.3f}, accuracy {accuracy:.1%}  {self.seconds:.0f} s"
        )

    def _save_checkpoint(self) -> None:
        state = self.trainer.state() | {
            "optimizer_name": self.config.optim.name,
            "epoch": self.epoch,
            "best": list(self.best),
            "seconds": self.seconds,
            "random": random_state(),
        }
        self.checkpoint = str(self.folder.save_checkpoint(f"epoch-{self.epoch:04d}", state))

    def _restore(self, state: dict[str, Any]) -> None:
        where = f"run.resume: {str(self.folder.resumed_from)!r}"
        if "epoch" not in state:
            raise InputError(f"{where} is not one of a fine-tuning run; give one of arelu-meta finetune")
        with restoring(where, state, self.config.optim.name):
            load_tensors(self.trainer.model, state["model"], where)
            self.trainer.restore(state)
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.best = (state["best"][0], state["best"][1])
            restore_random_state(state["random"])
        self.checkpoint = str(self.folder.resumed_from)

    def _count_from_here(self) -> None:
        """Start over with the best epoch: the weights of the best so far lie in the folder that was left."""
        row = self.folder.rows[-1]
        self.first, self.best = self.epoch, (row["validation_accuracy"], -row["validation_loss"])
        save_model(self.folder.model_file, self.trainer.model, self.spec)

    def _finish(self) -> dict[str, Any]:
        load_tensors(self.trainer.model, read_tensors(self.folder.model_file), str(self.folder.model_file))
        logits, labels = predict_logits(self.trainer.model, self.test.epoch(0), self.device, self.config.run.precision)
        loss, accuracy = loss_and_accuracy(logits, labels)
        low, high = proportion_interval(int((logits.argmax(1) == labels).sum()), len(labels))
        draw_curves(
            self.folder.path / "curves.png",
            self.folder.rows,
            "epoch",
            {"accuracy": ["train_accuracy", "validation_accuracy"], "loss": ["train_loss", "validation_loss"]},
            f"{self.spec.name}, {self.spec.activation or 'own activation'}: test accuracy {accuracy:.1%}",
        )
        rows = [row for row in self.folder.rows if row["epoch"] >= self.first]
        results = {
            "task": "finetune",
            "seed": self.config.run.seed,
            "test_accuracy": accuracy,
            "test_low": low,
            "test_high": high,
            "test_n": len(labels),
            "test_loss": loss,
            "validation_accuracy": self.best[0],
            "best_epoch": max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"],
            "epochs": self.epoch,
            "model": self.spec.name,
            "activation": self.spec.activation,
            "init": self.spec.init,
            "classes": len(self.splits.train.classes),
            "skipped": len(self.splits.skipped),
            "seconds": round(self.seconds, 2),
            "folder": str(self.folder.path),
        }
        self.folder.finish(results)
        return results
