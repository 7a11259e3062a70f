"""The course of one meta-training run: its meta-steps, validations, checkpoints, best model, test."""

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_tensors, read_tensors, save_model
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import ClassSplits, Sampler, TaskBatch
from arelu_meta.data.fewshot.class_splits import present_classes
from arelu_meta.errors import InputError, RunError
from arelu_meta.meta.distributed import gather_shares, share_of
from arelu_meta.meta.evaluation import adaptation_curves, describe_curve
from arelu_meta.meta.inner_loop import BASELINES
from arelu_meta.meta.outer import OuterLoop
from arelu_meta.meta.preparing import headline, make_noise, make_sampler
from arelu_meta.meta.results import draw_run, summarise
from arelu_meta.runs.checkpoints import check_kinds, digest_of, has_digest, restoring
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.progress import ProgressBar, progress
from arelu_meta.runs.reproducibility import random_state, restore_random_state
from arelu_meta.runs.run_folder import RunFolder, report_results, resumable
from arelu_meta.runs.signals import SavePoints

_KINDS = {
    "step": int,
    "best": float,
    "seconds": float,
    "model_digest": str,
}  # of a checkpoint, beside weights and lists


class MetaTrainer:
    """The parts of one run, and its course.

    Args:
        config: of the run.
        folder: not yet started, or with a state to go on from.
        splits: the classes.
        spec: rebuilds the model.
        model: on the device, in training mode as its normalisation asks for.
        ranks: the processes.
    """

    def __init__(
        self,
        config: MetatrainConfig,
        folder: RunFolder,
        splits: ClassSplits,
        spec: ModelSpec,
        model: nn.Module,
        ranks: Ranks,
    ) -> None:
        self.config, self.folder, self.splits, self.spec = config, folder, splits, spec
        self.model, self.ranks, self.device = model, ranks, ranks.device
        self.checkpoint, self.curve, self.model_digest = "none", "", ""
        noise = make_noise(config, spec, self.device)
        self.outer = OuterLoop(config, model, noise, ranks, lambda: self.checkpoint)
        self.train_tasks = self._sampler("train")
        self.validation_tasks = None if splits.validation is None else self._sampler("validation")
        self.best, self.best_step, self.seconds = -1.0, -1, 0.0
        self.started: float | None = None  # of the interval that is under way
        self.losses: list[float] = []  # likewise, one a step
        self.accuracies: list[float] = []
        self.save_points = SavePoints(config.run.checkpoint_minutes, self._save_checkpoint, ranks)

    @property
    def step(self) -> int:
        """How many meta-steps are done."""
        return self.outer.step

    def _sampler(self, part: str) -> Sampler:
        return make_sampler(self.config, self.spec, self.splits, part, self.device)

    def _draw(self, tasks: Sequence[int]) -> TaskBatch:
        return self.train_tasks.batch(tasks).to(self.device)

    def go(self) -> dict[str, Any]:
        """Meta-train, test on unseen classes, and write it all down.

        Returns:
            What results.json holds.
        """
        with self.ranks.naming_lost_processes(), self.folder, resumable(lambda: self.checkpoint):
            if self.folder.resumed is not None:
                self._restore(self.folder.resumed)
            self.folder.start(self.config, self.splits.describe())
            if self.folder.resumed is None:
                self._save_checkpoint()
            else:
                self._find_best_model()
            if self.config.meta.algorithm in BASELINES:
                self._save_model()
            else:
                self._train()
            results = self._finish()
        report_results(results)
        print(self.curve, flush=True)
        return results

    def _train(self) -> None:
        steps, batch = self.config.meta.steps, self.config.meta.batch_tasks
        every = self.config.eval.every
        with progress("meta-training", (steps - self.step) * batch, "tasks") as bar, self.save_points.active():
            bar.line(headline(self.config, self.spec, self.splits, self.outer.engine_note, self.ranks))
            bar.line(self.outer.how_many_at_once(self._draw))
            while (self.step < steps or self.losses) and not self._is_late(bar):
                self._interval(bar, max(0, min(every - len(self.losses), steps - self.step)))

    def _is_late(self, bar: ProgressBar) -> bool:
        """Say whether the best validation lies eval.patience validations back."""
        patience = self.config.eval.patience
        found = [row["validation_accuracy"] for row in self.folder.rows]
        if patience is None or not found or self.validation_tasks is None:
            return False
        late = not self.losses and len(found) - 1 - found.index(max(found)) >= patience
        if late:
            bar.line(f"stopped at step {self.step}: no better validation accuracy for {patience} validations")
        return late

    def _interval(self, bar: ProgressBar, steps: int) -> None:
        """Take meta-steps up to the next validation, then validate and write everything down."""
        self.started = time.monotonic()
        for _ in range(steps):
            loss, accuracy = self.outer.take_step(self._draw)
            self.losses.append(loss)
            self.accuracies.append(accuracy)
            bar.advance(self.config.meta.batch_tasks, loss=loss, accuracy=accuracy)
            self.save_points.between(self.step)
        validation = self._validate()
        self.seconds, self.started = self._elapsed(), None
        row = {
            "step": self.step,
            "train_loss": sum(self.losses) / len(self.losses),
            "train_accuracy": sum(self.accuracies) / len(self.accuracies),
            "validation_accuracy": validation,
        }
        self.losses, self.accuracies = [], []
        self.folder.append_metrics(row)
        self.folder.append_time("step", self.step, self.seconds)
        better = validation is None or validation > self.best
        if better:
            self.best, self.best_step = -1.0 if validation is None else validation, self.step
        # First the checkpoint, then the model made of its weights: what is chosen by it is never ahead of it.
        self._save_checkpoint()
        if better:
            self._save_model()
        self.save_points.regular()
        shown = "" if validation is None else f"  validation accuracy {validation:.1%}"
        bar.line(
            f"step {self.step}/{self.config.meta.steps}  train loss {row['train_loss']:.3f}, "
            f"accuracy {row['train_accuracy']:.1%}{shown}  {self.seconds:.0f} s"
        )

    def _curves(self, sampler: Sampler, tasks: int, bar: ProgressBar | None, every: bool = True) -> list[list[float]]:
        meta, chunk = self.spec.meta, self.config.meta.task_chunk

        def compute(own: Sequence[int]) -> list[list[float]]:
            return adaptation_curves(
                self.model,
                sampler,
                own,
                meta["inner_lr"],
                meta["inner_steps"],
                self.device,
                self.config.run.precision,
                bar,
                None if chunk == "auto" else chunk,
                every,
                self._between_tasks,
            )

        try:
            return gather_shares(compute, range(tasks), self.ranks)
        except RunError as error:
            raise self.outer.diverged(error, self.step, kind=type(error)) from error

    def _between_tasks(self) -> None:
        """Let a single process stop within a validation, too; several stop behind it, together."""
        if self.ranks.processes == 1 and self.save_points.interrupts.waiting:
            self.save_points.between(self.step)

    def _validate(self) -> float | None:
        if self.validation_tasks is None:
            self._curves(self.train_tasks, 1, None, every=False)  # the next checkpoint is to be a good one all the same
            return None
        found = self._curves(self.validation_tasks, self.config.eval.validation_tasks, None, every=False)
        return sum(row[-1] for row in found) / len(found)

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def _save_model(self) -> None:
        if not self.ranks.main:
            return
        save_model(self.folder.model_file, self.model, self.spec)
        self.model_digest = digest_of(self.folder.model_file)

    def _save_checkpoint(self) -> None:
        state = self.outer.state() | {
            "best": self.best,
            "best_step": self.best_step,
            "model_digest": self.model_digest,
            "losses": self.losses,
            "accuracies": self.accuracies,
            "seconds": self._elapsed(),
            "random": self.ranks.gather(random_state()),
        }
        self.checkpoint = str(self.folder.save_checkpoint(f"step-{self.step:06d}", state))

    def _restore(self, state: dict[str, Any]) -> None:
        where = f"run.resume: {str(self.folder.resumed_from)!r}"
        if "step" not in state:
            raise InputError(f"{where} is not one of a meta-training run; give one of arelu-meta metatrain")
        with restoring(where, state, self.config.optim.name):
            self.outer.check_same(state)
            check_kinds(state, _KINDS)
            load_tensors(self.model, state["model"], where)
            self.outer.restore(state)
            self.best, self.seconds = state["best"], state["seconds"]
            self.best_step, self.model_digest = int(state["best_step"]), state["model_digest"]
            self.losses, self.accuracies = ([float(one) for one in state[name]] for name in ("losses", "accuracies"))
            restore_random_state(state["random"][self.ranks.rank % len(state["random"])])
        self.checkpoint = str(self.folder.resumed_from)

    def _find_best_model(self) -> None:
        """Make sure that the best model so far lies in the folder; where it does not, count from here."""
        if self.best_step == self.step:
            self._save_model()
        elif self.folder.rows and not self.ranks.gather(has_digest(self.folder.model_file, self.model_digest))[0]:
            print("the best model so far is not in this folder; the best is counted from here", flush=True)
            self.best, self.best_step = -1.0, self.step
            if not self.losses:
                validation = self.folder.rows[-1]["validation_accuracy"]
                self.best = -1.0 if validation is None else validation
                self._save_model()

    def _finish(self) -> dict[str, Any]:
        """Judge the best model on unseen classes, and write results.json."""
        self.ranks.wait()  # the first one may still be writing what all read now
        load_tensors(self.model, read_tensors(self.folder.model_file), str(self.folder.model_file))
        tasks = self.config.eval.tasks
        own = len(share_of(range(tasks), *self.ranks.share))
        with progress("evaluating on unseen classes", own, "tasks") as bar:
            curves = self._curves(self._sampler("test"), tasks, bar)
        self.curve = describe_curve(curves, self.config.meta.normalization)
        results = summarise(self.config, self.spec, curves) | {
            "engine": self.outer.engine.name,
            "steps": self.step,
            "notes": "; ".join(self.splits.notes),
            "skipped": len(self.splits.skipped),
            "test_seen": self.splits.test_seen,
            "test_classes": len(present_classes(self.splits.test)),
            "processes": self.ranks.processes,
            "seconds": round(self.seconds, 2),
            "folder": str(self.folder.path),
        }
        if self.folder.rows and self.ranks.main and self.config.run.pictures:
            draw_run(self.folder, self.spec, results["test_accuracy"], self.validation_tasks is not None)
        self.folder.finish(results)
        return results
