"""The trainer of fine-tuning: epochs, validation, checkpoints, the best model, the test, and how a run resumes."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model, save_as_adapter, save_model
from arelu_meta.backbones.lora import merge_lora
from arelu_meta.backbones.networks import load_tensors, read_tensors
from arelu_meta.backbones.report import scalars_results
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.loaders import Batches
from arelu_meta.data.splits import Splits
from arelu_meta.errors import InputError
from arelu_meta.finetuning.freezing import keeps_features, set_learning
from arelu_meta.finetuning.fsdp import Shards, gathered
from arelu_meta.finetuning.linear_probe import FeatureBatches, Tail, cached_batches, fit_once, why_not_cached
from arelu_meta.finetuning.lr_finder import Search, write_search
from arelu_meta.finetuning.metrics import loss_and_accuracy, predict_logits
from arelu_meta.finetuning.model_selection import Judged, Keeper
from arelu_meta.finetuning.recorders import GradientRecorder, ScalarRecorder
from arelu_meta.finetuning.results import draw_results, write_results
from arelu_meta.finetuning.training_step import Sums, TrainingState, check_finite, check_step, train_epoch
from arelu_meta.runs.checkpoints import check_kinds, digest_of, has_digest, restoring
from arelu_meta.runs.progress import Forecast, ProgressBar, progress
from arelu_meta.runs.reproducibility import random_state, restore_random_state
from arelu_meta.runs.run_folder import RunFolder, report_results, resumable
from arelu_meta.runs.signals import SavePoints
from arelu_meta.runs.tracking import open_trackers, tracker_names

_KINDS = {  # beside weights, tables and the optimiser's state
    "epoch": int,
    "updates": int,
    "peak_rate": float,
    "rate": float,
    "seconds": float,
    "model_digest": str,
}


OnEpoch = Callable[[dict[str, Any]], object]


def check_state(state: Mapping[str, Any], path: Path | None, optimizer: str) -> None:
    """Refuse another task's checkpoint, and one that no run could have written.

    Args:
        state: of the checkpoint.
        path: where it came from.
        optimizer: optim.name of this run.

    Raises:
        InputError: naming the first value that does not fit.
    """
    where = f"run.resume: {str(path)!r}"
    if "epoch" not in state:
        raise InputError(f"{where} is not one of a fine-tuning run; give one of arelu-meta finetune")
    with restoring(where, state, optimizer):
        check_kinds(state, _KINDS)
        judged = [float(row["validation_accuracy"] - row["validation_loss"]) for row in state["metrics"]]
        if len(judged) != state["epoch"]:
            raise ValueError(f"its metrics are of {len(judged)} epochs, not of {state['epoch']}")


def read_sums(values: Sequence[Any]) -> Sums:
    """Read what an epoch had come to.

    Args:
        values: steps, loss, right answers and images, as the checkpoint holds them.

    Raises:
        TypeError: if they are no numbers; ValueError likewise.
    """
    steps, loss, right, seen = values
    return Sums(int(steps), float(loss), int(right), int(seen))


class Trainer:
    """Trains one model: epochs, validation, checkpoints, the best model, the test.

    Args:
        config: of the run, resolved.
        folder: not yet started, or with a state to go on from.
        splits: the images.
        spec: rebuilds the model.
        batches: of the training, validation and test images.
        training: the model on the device, and what its steps need.
        search: how the learning rate was found, if it was looked for.
        shards: the model's parts, where it is shared out over the processes.
        on_epoch: called after each epoch by the first process, with its row of metrics.csv.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        folder: RunFolder,
        splits: Splits,
        spec: ModelSpec,
        batches: tuple[Batches, Batches, Batches],
        training: TrainingState,
        search: Search | None = None,
        shards: Shards | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.on_epoch = on_epoch
        self.config, self.folder, self.splits, self.spec = config, folder, splits, spec
        self.ranks, self.device = training.ranks, training.device
        self.train: Batches | FeatureBatches = batches[0]
        self.validation: Batches | FeatureBatches = batches[1]
        self.test = batches[2]
        self.training, self.search, self.shards = training, search, shards
        self.scalars = ScalarRecorder(folder.path)
        # At least four samples an epoch: a short run would have none but the first, when a head at zero passes nothing.
        every = max(1, min(50, training.all_updates // config.train.epochs // 4))
        self.gradients = GradientRecorder(folder.path, every, silent=not self.ranks.main)
        training.before_step = self._record_gradients
        self.compiled = training.model
        self.tail: Tail | None = None  # where features stand for images
        self.epoch, self.seconds = 0, 0.0
        self.keeper = Keeper(config.train.keep, len(splits.validation))
        self.started: float | None = None  # of the epoch that is under way
        self.rate, self.sums = 0.0, Sums()  # likewise
        self.checkpoint, self.model_digest = "none", ""
        self.save_points = SavePoints(config.run.checkpoint_minutes, self._save_checkpoint, self.ranks)
        if shards is not None:
            shards.check(spec, self.device)

    def fit(self, notes: list[str]) -> dict[str, Any]:
        """Train, test, and write it all down.

        Args:
            notes: lines to print first.

        Returns:
            What results.json holds.
        """
        with self.folder, resumable(lambda: self.checkpoint):
            resumed = self.folder.resumed
            if resumed is not None:
                self._restore(resumed)
            self.folder.start(self.config, self.splits.describe())
            if resumed is not None and self.ranks.main:
                with self._restoring(resumed):
                    self.scalars.restore(resumed.get("scalars"))
                    self.gradients.restore(resumed.get("gradients"))
            names = tracker_names(self.config.run.trackers)
            with open_trackers(names, self.folder.path, self.config, self.epoch + 1) as self.trackers:
                if resumed is None:
                    self._save_checkpoint()
                if self.config.train.mode == "probe":
                    self.started = time.monotonic()
                print("\n".join([*notes, *self._prepare_features()]), flush=True)
                self._report_search()
                if self.epoch == 0 and not self.sums.steps:
                    self._judge_the_start()
                else:
                    self._find_kept_model()
                self._train()
                results = self._finish()
        report_results(results)
        return results

    def _report_search(self) -> None:
        if self.search is not None:
            print(f"{self.search.why()}; lr_search.png", flush=True)
            if self.ranks.main:
                write_search(self.folder.path, self.search)

    def _prepare_features(self) -> list[str]:
        """Compute frozen features once where the head alone learns; say so, or why not."""
        model, why = self.training.model, None
        if keeps_features(self.config.train.mode):
            why = why_not_cached(self.config)
            found = cached_batches(self.training, self.train, self.validation, self.config) if why is None else why
            if not isinstance(found, str):
                self.train, self.validation, self.tail = found
                self.training.forward = self.ranks.wrap(self.tail(model))
                return ["frozen features are computed once; the head trains on them"]
            why = found
        if self.config.train.compile:
            self.compiled = torch.compile(model)  # type: ignore[assignment]
        self.training.forward = self.compiled if self.shards is not None else self.ranks.wrap(self.compiled)
        return [] if why is None else [f"features are not cached: {why}"]

    def _judge_the_start(self) -> None:
        """Count the model as it starts among those that validation chooses from: a fitted head is hard to beat."""
        if self.config.train.mode == "probe":  # all of its training is done here, and in the features
            fit_once(self.training, self.train, self.validation, self.config)
        loss, accuracy = self._validate(0)
        self.keeper.judge(Judged(0, accuracy, loss))
        self._save_model()

    def _train(self) -> None:
        if self.config.train.mode == "probe":
            if self.epoch == 0:
                self.seconds, self.started = self._elapsed(), None
                found = replace(self.keeper.kept, epoch=1)
                self._one_row(1, 0.0, None, None, found.loss, found.accuracy)
                self.epoch, self.keeper.kept = 1, found
            return
        epochs = self.config.train.epochs
        images = (epochs - self.epoch) * len(self.splits.train) - self.sums.seen
        self.forecast = Forecast(self.training.all_updates, self._shorter())
        with progress("fine-tuning", images, "images") as bar, self.save_points.active():
            self.say = bar.line
            while self.epoch < epochs and not self._stopped_early():
                self._one_epoch(bar)

    def _shorter(self) -> str:
        """Name what would make this run short, or smaller in memory."""
        data, side = self.config.data, self.spec.inputs.image_size
        found = [] if keeps_features(self.config.train.mode) else ["--train.mode probe (frozen features, one fit)"]
        if side > 64:
            found.append(f"--data.image_size {max(64, side // 2)}")
        if data.batch_size > 1:
            half, accumulate = -(-data.batch_size // 2), 2 * self.config.optim.accumulate
            found.append(f"--data.batch_size {half} --optim.accumulate {accumulate} (half the memory)")
        return ", ".join(found) or "fewer --train.epochs"

    def _stopped_early(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.epoch - self.keeper.best.epoch >= patience

    def _one_epoch(self, bar: ProgressBar) -> None:
        self.started = time.monotonic()
        number = self.epoch + 1
        self._unfreeze(number)
        if not self.sums.steps:
            self.rate = self.training.learning_rate()
        skip = self.sums.steps * self.config.optim.accumulate
        batches = self.train.epoch(number, skip)
        train_loss, train_accuracy = train_epoch(
            self.training, batches, bar, self.checkpoint, self.sums, self._between_steps
        )
        loss, accuracy = self._validate(number)
        self.seconds, self.started = self._elapsed(), None
        self.epoch, self.sums = number, Sums()
        self._one_row(number, self.rate, train_loss, train_accuracy, loss, accuracy)
        keeps = self.keeper.judge(Judged(number, accuracy, loss))
        # First the checkpoint, then the model made of its weights: what is chosen by it is never ahead of it.
        self._save_checkpoint()
        if keeps:
            self._save_model()
        self.save_points.regular()
        bar.line(
            f"epoch {number}/{self.config.train.epochs}  train loss {train_loss:.3f}, accuracy {train_accuracy:.1%}"
            f"  validation loss {loss:.3f}, accuracy {accuracy:.1%}  {self.seconds:.0f} s"
        )

    def _between_steps(self) -> None:
        if (told := self.forecast.after(self.training.updates)) is not None:
            self.say(told)
        self.save_points.between(self.training.updates)

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def _unfreeze(self, number: int) -> None:
        """Let more stages learn under `gradual`; what averages gradients over processes is told anew."""
        if self.config.train.mode == "gradual":
            set_learning(self.training.model, self.config.train, number)
            if self.training.gates is not None:  # they are the schedule's, and would learn again
                self.training.gates(self.training.updates / self.training.all_updates)
            self.training.forward = self.ranks.wrap(self.compiled)

    def _one_row(
        self,
        number: int,
        rate: float,
        train_loss: float | None,
        train_accuracy: float | None,
        loss: float,
        accuracy: float,
    ) -> None:
        row = {
            "epoch": number,
            "learning_rate": rate,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
        }
        self.folder.append_metrics(row)
        self.folder.append_time("epoch", number, self.seconds)
        self.trackers.log(row, number)
        whole = self._whole()
        if self.ranks.main:
            self.scalars.record(whole, number)
            if self.on_epoch is not None:
                self.on_epoch(dict(row))

    def _record_gradients(self, model: nn.Module) -> None:
        self.gradients.record(model, self.training.updates + 1)

    def _whole(self) -> nn.Module:
        """Return the model that is judged; where it is shared out, the first process gets all of it."""
        return self.training.judged if self.shards is None else self.shards.gather()

    def _validate(self, number: int) -> tuple[float, float]:
        model = self.training.judged
        if self.tail is not None:
            model = self.tail(model)
        batches = self._stoppable(self.validation.epoch(number))
        found = predict_logits(model, batches, self.device, self.config.run.precision)
        if self.shards is not None and isinstance(self.validation, Batches):
            self.shards.catch_up(self.validation)
        parts = self.ranks.gather(found)
        logits, labels = (torch.cat([part[index] for part in parts]) for index in (0, 1))
        loss, accuracy = loss_and_accuracy(logits, labels)
        if not math.isfinite(loss):
            images, _ = next(iter(self.validation.epoch(number)))
            check_finite(loss, "validation", self.training, self.checkpoint, images)
        return loss, accuracy

    def _stoppable(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Let a single process stop between two batches of a validation, too; several stop behind it, together."""
        for batch in batches:
            yield batch
            if self.ranks.processes == 1 and self.save_points.interrupts.waiting:
                self._between_steps()

    def _save_model(self) -> None:
        whole = self._whole()
        if self.ranks.main:
            save = save_as_adapter if self.config.run.save == "adapter" else save_model
            save(self.folder.model_file, whole, self.spec)
            self.model_digest = digest_of(self.folder.model_file)

    def _save_checkpoint(self) -> None:
        self.sums.settle(partial(check_step, self.training, self.checkpoint, None))
        apart = self.ranks.gather(
            {
                "random": random_state(),
                "sums": [self.sums.steps, self.sums.loss, self.sums.right, self.sums.seen],
            }
        )
        trained = self.training.state()
        state = (trained if self.shards is None else gathered(trained, self.ranks.main)) | {
            "optimizer_name": self.config.optim.name,
            "peak_rate": self.training.peak_rate,
            "epoch": self.epoch,
            "rate": self.rate,
            **self.keeper.state(),
            "model_digest": self.model_digest,
            "seconds": self._elapsed(),
            "processes": apart,
            "scalars": self.scalars.state(),
            "gradients": self.gradients.state(),
        }
        name = f"epoch-{self.epoch:04d}" + (f"-step-{self.sums.steps:06d}" if self.sums.steps else "")
        self.checkpoint = str(self.folder.save_checkpoint(name, state))

    def _restoring(self, state: dict[str, Any]) -> AbstractContextManager[None]:
        return restoring(f"run.resume: {str(self.folder.resumed_from)!r}", state, self.config.optim.name)

    def _restore(self, state: dict[str, Any]) -> None:
        with self._restoring(state):
            if self.shards is not None:
                state = self.shards.cut_state(state, self.training.optimizer)
            load_tensors(self.training.model, state["model"], f"run.resume: {str(self.folder.resumed_from)!r}")
            self.training.restore(state)
            self.epoch, self.rate, self.seconds = state["epoch"], state["rate"], state["seconds"]
            self.keeper.restore(state)
            self.model_digest = state["model_digest"]
            # With more processes than before, the new ones start from states of the old.
            own = state["processes"][self.ranks.rank % len(state["processes"])]
            self.sums = read_sums(own["sums"])
            if len(state["processes"]) != self.ranks.processes:
                self._share_anew(state["processes"])
            restore_random_state(own["random"])
        self.checkpoint = str(self.folder.resumed_from)

    def _share_anew(self, processes: list[dict[str, Any]]) -> None:
        """Let the first process count what another number of processes had counted of the epoch."""
        steps, loss, right, seen = (sum(values) for values in zip(*(one["sums"] for one in processes), strict=True))
        steps //= len(processes)
        self.sums = Sums(steps, loss, right, seen) if self.ranks.main else Sums(steps)

    def _find_kept_model(self) -> None:
        """Make sure that the model to keep so far lies in the folder; where it does not, count from here."""
        if self.keeper.kept.epoch == self.epoch and not self.sums.steps:
            self._save_model()
        elif not self.ranks.gather(has_digest(self.folder.model_file, self.model_digest))[0]:
            print("the best model so far is not in this folder; the best is counted from here", flush=True)
            self._count_from_here()

    def _count_from_here(self) -> None:
        self.keeper.restart(self.epoch)
        if not self.sums.steps:
            row = self.folder.rows[-1]
            self.keeper.judge(Judged(self.epoch, row["validation_accuracy"], row["validation_loss"]))
            self._save_model()

    def _kept_line(self) -> dict[str, str]:
        """Say which epoch's model is kept, and why."""
        return {} if self.config.train.mode == "probe" else {"kept": self.keeper.why(self.epoch)}

    def _kept_tensors(self) -> dict[str, Tensor]:
        if self.config.run.save == "adapter":  # loaded as anyone will load it, on the backbone's own weights
            return load_model(self.folder.model_file)[0].state_dict()
        return read_tensors(self.folder.model_file)

    def _finish(self) -> dict[str, Any]:
        self.ranks.wait()
        model, best = merge_lora(self.training.model), self._kept_tensors()
        load_tensors(model, best if self.shards is None else self.shards.cut_weights(best), str(self.folder.model_file))
        results: dict[str, Any] = {"task": "finetune", "seed": self.config.run.seed}
        if self.ranks.main or self.shards is not None:  # a model that is shared out runs in all processes at once
            logits, labels = predict_logits(model, self.test.epoch(0), self.device, self.config.run.precision)
            whole = model if self.shards is None else self.shards.gather()
        if self.ranks.main:
            pictures = self.config.run.pictures
            results |= write_results(
                self.folder.path, logits, labels, self.splits.test, whole, self.scalars, self.gradients, pictures
            )
            rates = self.training.peak_rate, self.config.optim.act_lr
            results |= scalars_results(whole, *rates)
            results["test_loss"] = loss_and_accuracy(logits, labels)[0]
            if pictures:
                draw_results(self.folder.path, self.folder.rows, self.spec, results["test_accuracy"])
        results |= {
            "validation_accuracy": self.keeper.kept.accuracy,
            "best_epoch": self.keeper.kept.epoch,
            "epochs": self.epoch,
            **self._kept_line(),
            "learning_rate": self.training.peak_rate,
            "model": self.spec.name,
            "activation": self.spec.activation,
            "init": self.spec.init,
            "mode": self.config.train.mode,
            "classes": len(self.splits.train.classes),
            "skipped": len(self.splits.skipped),
            "test_seen": self.splits.test_seen,
            "seconds": round(self.seconds, 2),
            "folder": str(self.folder.path),
        }
        results = self.ranks.gather(results)[0]
        self.folder.finish(results)
        return results
