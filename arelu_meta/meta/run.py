"""A whole meta-training run: class splits, tasks, meta-steps, validation, test on unseen classes."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.backbones.from_config import build_backbone, check_forward, check_gates, check_model_config, zero_head
from arelu_meta.backbones.inits import gate_schedule
from arelu_meta.backbones.paper_nets import PAPER_NETS
from arelu_meta.backbones.saving import ModelSpec, load_tensors, read_tensors, save_model
from arelu_meta.checking import validate
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.episodes import (
    ClassSplits,
    Sampler,
    TaskBatch,
    TaskSampler,
    TensorSampler,
    load_class_splits,
    load_pool,
    unlabelled_images,
)
from arelu_meta.data.images import class_holders
from arelu_meta.errors import InputError, RunError, SharedRunError
from arelu_meta.extras import import_learn2learn
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, check_optimizer_name, restore_optimizer
from arelu_meta.intervals import accuracy_interval
from arelu_meta.meta.blame import first_nonfinite_step
from arelu_meta.meta.engines import VectorizedEngine, build_engine
from arelu_meta.meta.evaluation import adaptation_curves, curve_results, describe_curve
from arelu_meta.meta.inner import BASELINES, attach_loop, inner_of, step_weights
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.meta.ranks import check_shareable, gather_shares, share_of, shared_meta_gradient
from arelu_meta.meta.settings import check_act_lr, check_read, settle_head
from arelu_meta.runs.checkpoints import digest_of, has_digest
from arelu_meta.runs.compute import naming_anomaly, random_state, restore_random_state
from arelu_meta.runs.curves import draw_curves
from arelu_meta.runs.folder import RunFolder, check_apart, open_run, restoring, resumable
from arelu_meta.runs.progress import ProgressBar, progress
from arelu_meta.runs.ranks import Ranks, join
from arelu_meta.runs.results import finished_results, report_results
from arelu_meta.runs.savepoints import SavePoints

_EPISODE_SIZE = 28
_ALL_STEPS_COUNT = 0.1  # MAML++: the share of the training over which the loss after every step counts


def metatrain(config: MetatrainConfig | None = None) -> dict[str, Any]:
    """Meta-train on few-shot tasks and evaluate on tasks of unseen classes.

    Args:
        config: default: `MetatrainConfig()`, 5-way 1-shot on the embedded digits.

    Returns:
        What results.json holds: among others `test_accuracy` (mean over tasks, a fraction), `test_low` and `test_high`
        (95 % interval), `test_n` (tasks), `normalization`, `notes`, `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.
    """
    config = config or MetatrainConfig()
    validate(config)
    check_model_config(config.model)
    check_optimizer_name(config.optim.name)
    check_read(config)
    config = settle_head(config)
    ranks = join(config.run)
    folder = open_run(config.run, "metatrain", ranks)
    if folder.finished:
        return finished_results(folder, "metatrain")
    check_apart(folder, class_holders(config.data))
    if config.meta.engine == "learn2learn":
        import_learn2learn()
    splits = load_class_splits(config.data, config.task, config.run.seed)
    names = tuple(str(way) for way in range(config.task.ways))
    size = config.data.image_size or (_EPISODE_SIZE if config.model.name in PAPER_NETS else None)
    images = partial(unlabelled_images, splits.train, inverted=splits.inverted)
    model, spec = build_backbone(config.model, names, splits.train.channels, size, "metatrain", images)
    if config.model.head_init == "zero":
        zero_head(model)
    check_gates(model, config.optim.open_gates)
    check_forward(model, spec)
    set_normalization(model, config.meta.normalization)
    check_act_lr(model, inner_of(config.meta))  # says what is wrong before anything is written
    spec = replace(
        spec, classes=splits.describe()["train_classes"], meta=_meta_of(config, splits), config=asdict(config)
    )
    train_mode(model, config.meta.normalization)
    check_shareable(model, ranks)
    ranks.wait()  # before the first of them writes: the others would take its files for an older run
    return _Run(config, folder, splits, spec, model.to(ranks.device), ranks).go()


def _meta_of(config: MetatrainConfig, splits: ClassSplits) -> dict[str, Any]:
    return {
        **asdict(config.task),
        "algorithm": config.meta.algorithm,
        "adapt": config.meta.adapt,
        "inner_lr": config.meta.inner_lr,
        "inner_act_lr": config.meta.inner_act_lr,
        "train_steps": config.meta.inner_steps,
        "inner_steps": config.eval.inner_steps or config.meta.inner_steps,
        "normalization": config.meta.normalization,
        "inverted": splits.inverted,
    }


class _Run:
    """The parts of one run, and its course."""

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
        self.gates = gate_schedule(model, config.optim.open_gates)
        attach_loop(model, inner_of(config.meta))  # gates that a schedule opens do not adapt
        self.optimizer = build_optimizer(model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, config.meta.steps, updates_per_epoch=1)
        meta = config.meta
        self.inner = inner_of(meta)
        self.engine, self.engine_note = build_engine(
            meta.engine,
            model,
            self.inner,
            meta.normalization,
            self._sample_images(),
            None if meta.task_chunk == "auto" else meta.task_chunk,
            config.run.precision,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.precision == "fp16")
        self.engine.scaler = self.scaler
        kind = TaskSampler if self.engine.name == "learn2learn" else TensorSampler
        self.train_tasks = self._sampler(splits.train, "train", config.data.rotations, kind)
        self.validation_tasks = None if splits.validation is None else self._sampler(splits.validation, "validation")
        self.step, self.best, self.best_step, self.seconds = 0, -1.0, -1, 0.0
        self.started: float | None = None  # of the interval that is under way
        self.losses: list[float] = []  # likewise, one a step
        self.accuracies: list[float] = []
        self.checkpoint, self.curve, self.model_digest = "none", "", ""
        self.save_points = SavePoints(config.run.checkpoint_minutes, self._save_checkpoint, ranks)

    def _sample_images(self) -> torch.Tensor:
        """Make noise in the shape of two tasks' images, to try engines on."""
        inputs = self.spec.inputs
        shape = (2, self.config.task.ways, inputs.channels, inputs.image_size, inputs.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def _sampler(
        self,
        images: Any,
        part: str,
        rotations: bool = False,
        kind: type[TaskSampler] | type[TensorSampler] = TensorSampler,
    ) -> Sampler:
        pool = load_pool(images, self.spec.inputs, self.splits.inverted, rotations)
        if kind is TensorSampler:
            pool = pool.to(self.device)
        return kind(pool, self.config.task, f"{part} {self.config.run.seed}")

    def go(self) -> dict[str, Any]:
        with self.ranks.noticing_loss(), self.folder, resumable(lambda: self.checkpoint):
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
            bar.line(self._headline())
            bar.line(self._how_many_at_once())
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

    def _headline(self) -> str:
        described = self.splits.describe()
        counts = {name: len(described.get(f"{name}_classes", [])) for name in ("train", "validation", "test")}
        task, meta = self.config.task, self.config.meta
        return (
            f"{self.spec.name} ({self.spec.activation or 'its own activation'}), {task.ways}-way {task.shots}-shot, "
            f"{meta.algorithm} that adapts {self.inner.adapted_part}, order {1 if self.inner.first_order else 2}, "
            f"{meta.normalization} normalisation, "
            f"{self.engine_note}, on {self.device}{self._processes()}\n"
            f"{counts['train']} classes to train on, {counts['validation']} to validate on, "
            f"{counts['test']} unseen to test on"
            + "".join(f"; {note}" for note in self.splits.notes)
            + (f"; {len(self.splits.skipped)} files skipped that are not images" if self.splits.skipped else "")
        )

    def _how_many_at_once(self) -> str:
        """Say how the engine goes through a meta-batch: a fact of its tasks' size, the memory and the device."""
        if not isinstance(self.engine, VectorizedEngine):
            return f"{self.engine.name} engine: task after task"
        batch = range(len(share_of(range(self.config.meta.batch_tasks), *self.ranks.share)) or 1)
        train_mode(self.model, self.config.meta.normalization)
        with self._attention():
            how = self.engine.settle_chunk(self._draw(batch))
        faster = (
            ", on small tasks faster than task after task (arelu-meta bench maml compares)"
            if (self.engine.task_chunk or 1) > 1
            else ""
        )
        return f"{self.engine.name} engine: {how}{faster}"

    def _processes(self) -> str:
        return f", {self.ranks.processes} processes" if self.ranks.processes > 1 else ""

    def _interval(self, bar: ProgressBar, steps: int) -> None:
        """Take meta-steps up to the next validation, then validate and write everything down."""
        self.started = time.monotonic()
        for _ in range(steps):
            loss, accuracy = self._meta_step()
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

    def _meta_step(self) -> tuple[float, float]:
        """Average the query gradients of a batch of tasks and step once.

        Source: Finn et al. 2017, algorithm 2, line 10.
        """
        meta = self.config.meta
        train_mode(self.model, meta.normalization)
        self.optimizer.zero_grad(set_to_none=True)
        first = self.step * meta.batch_tasks
        tasks = range(first, first + meta.batch_tasks)
        if meta.algorithm == "mamlpp":
            self.engine.step_weights = step_weights(meta.inner_steps, self.step / meta.steps, _ALL_STEPS_COUNT)
        with self._attention(), naming_anomaly(lambda what: self._diverged(what, self.step + 1)):
            losses, accuracies = shared_meta_gradient(self.engine, self.model, self._draw, tasks, self.ranks)
        if not losses.isfinite().all():
            raise self._query_loss_diverged(losses, tasks)
        self.scaler.unscale_(self.optimizer)
        if self.config.optim.clip_grad is not None:
            learning = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
            nn.utils.clip_grad_norm_(learning, self.config.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.gates is not None:
            self.gates(self.step / meta.steps)
        self.schedule.step_update(self.step)
        return losses.double().mean().item(), accuracies.mean().item()

    def _draw(self, tasks: Sequence[int]) -> TaskBatch:
        return self.train_tasks.batch(tasks).to(self.device)

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        # Fused attention has no second derivative.
        return contextlib.nullcontext() if self.inner.first_order else sdpa_kernel(SDPBackend.MATH)

    def _query_loss_diverged(self, losses: torch.Tensor, tasks: Sequence[int]) -> RunError:
        """Name the task and, by adapting to it once more, the inner step and the layer."""
        first = int(losses.isfinite().int().argmin())
        where = first_nonfinite_step(self.engine, self._draw([tasks[first]]))
        what = f"the query loss of task {tasks[first]} became {losses[first].item()}"
        return self._diverged(what, self.step + 1, where, SharedRunError)

    def _diverged(self, what: object, step: int, where: str | None = None, kind: type[RunError] = RunError) -> RunError:
        return kind(
            f"{what} at step {step} (learning rate {self.config.optim.lr:.3g}, inner learning rate "
            f"{self.config.meta.inner_lr:.3g}){'' if where is None else f', first in {where}'}; "
            f"the last good checkpoint is {self.checkpoint}; "
            "try a smaller --meta.inner_lr or --optim.lr"
        )

    def _accuracies(self, sampler: Sampler, tasks: int) -> list[float]:
        return [row[-1] for row in self._curves(sampler, tasks, None, every=False)]

    def _curves(self, sampler: Sampler, tasks: int, bar: ProgressBar | None, every: bool = True) -> list[list[float]]:
        meta = self.spec.meta

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
                None if self.config.meta.task_chunk == "auto" else self.config.meta.task_chunk,
                every,
            )

        try:
            return gather_shares(compute, range(tasks), self.ranks)
        except RunError as error:
            raise self._diverged(error, self.step, kind=type(error)) from error

    def _validate(self) -> float | None:
        if self.validation_tasks is None:
            self._accuracies(self.train_tasks, 1)  # the next checkpoint is to be a good one all the same
            return None
        found = self._accuracies(self.validation_tasks, self.config.eval.validation_tasks)
        return sum(found) / len(found)

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def _save_model(self) -> None:
        if not self.ranks.main:
            return
        save_model(self.folder.model_file, self.model, self.spec)
        self.model_digest = digest_of(self.folder.model_file)

    def _save_checkpoint(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.config.optim.name,
            "scaler": self.scaler.state_dict(),
            "step": self.step,
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
            load_tensors(self.model, state["model"], where)
            restore_optimizer(self.optimizer, self.schedule, state["optimizer"], state["step"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
            self.best_step, self.model_digest = state["best_step"], state["model_digest"]
            self.losses, self.accuracies = list(state["losses"]), list(state["accuracies"])
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
        self.ranks.wait()  # the first one may still be writing what all read now
        load_tensors(self.model, read_tensors(self.folder.model_file), str(self.folder.model_file))
        tasks = self.config.eval.tasks
        own = len(share_of(range(tasks), *self.ranks.share))
        with progress("evaluating on unseen classes", own, "tasks") as bar:
            curves = self._curves(self._sampler(self.splits.test, "test"), tasks, bar)
        accuracies = [row[-1] for row in curves]
        self.curve = describe_curve(curves, self.config.meta.normalization)
        mean, low, high = accuracy_interval(accuracies)
        columns = ["train_accuracy"] + (["validation_accuracy"] if self.validation_tasks else [])
        if self.folder.rows and self.ranks.main and self.config.run.pictures:
            draw_curves(
                self.folder.path / "curves.png",
                self.folder.rows,
                "step",
                {"query accuracy": columns, "query loss": ["train_loss"]},
                f"{self.spec.name}, {self.spec.activation or 'own activation'}: accuracy on unseen classes {mean:.1%}",
            )
        results = {
            "task": "metatrain",
            "seed": self.config.run.seed,
            "test_accuracy": mean,
            "test_low": low,
            "test_high": high,
            "test_n": tasks,
            "normalization": self.config.meta.normalization,
            "algorithm": self.config.meta.algorithm,
            "order": 1 if self.inner.first_order else 2,
            "engine": self.engine.name,
            "ways": self.config.task.ways,
            "shots": self.config.task.shots,
            "queries": self.config.task.queries,
            "inner_steps": self.spec.meta["inner_steps"],
            "inner_lr": self.config.meta.inner_lr,
            **curve_results(curves),
            "adapt": self.inner.adapted_part,
            "steps": self.step,
            "model": self.spec.name,
            "activation": self.spec.activation,
            "init": self.spec.init,
            "notes": "; ".join(self.splits.notes),
            "skipped": len(self.splits.skipped),
            "processes": self.ranks.processes,
            "seconds": round(self.seconds, 2),
            "folder": str(self.folder.path),
        }
        self.folder.finish(results)
        return results
