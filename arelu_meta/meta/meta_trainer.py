"""The trainer of a meta-learner: meta-steps, validations, checkpoints, the best model, its test on unseen classes."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.backbones.checkpoint import ModelSpec, save_model
from arelu_meta.backbones.initialization import gate_schedule
from arelu_meta.backbones.networks import load_tensors, read_tensors
from arelu_meta.backbones.report import scalars_results
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot.class_splits import ClassSplits, present_classes
from arelu_meta.data.fewshot.given_tasks import GivenTasks, TaskSplits
from arelu_meta.data.fewshot.task_sampler import TensorSampler, load_pool
from arelu_meta.data.fewshot.tasks import Sampler, TaskBatch
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError, RunError, SharedRunError
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, restore_optimizer
from arelu_meta.meta.distributed import gather_shares, share_of, shared_meta_gradient
from arelu_meta.meta.engine import VectorizedEngine, build_engine
from arelu_meta.meta.evaluation import adaptation_curves, curve_results, describe_curve, first_nonfinite_step
from arelu_meta.meta.inner_loop import BASELINES, attach_loop, inner_of, step_weights
from arelu_meta.meta.normalization import train_mode
from arelu_meta.runs.atomic_io import write_text
from arelu_meta.runs.checkpoints import check_kinds, digest_of, has_digest, restoring
from arelu_meta.runs.curves import draw_curves
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.progress import Forecast, ProgressBar, progress
from arelu_meta.runs.reproducibility import naming_anomaly, random_state, restore_random_state
from arelu_meta.runs.run_folder import RunFolder, report_results, resumable
from arelu_meta.runs.signals import SavePoints
from arelu_meta.statistics import groups_interval

_OF_THE_LEARNER = ("algorithm", "adapt", "normalization")
_ALL_STEPS_COUNT = 0.1  # MAML++: the share of the training over which the loss after every step counts

Draw = Callable[[Sequence[int]], TaskBatch]


class OuterLoop:
    """What a meta-step changes: the model, its optimiser, its schedules.

    Args:
        config: of the run.
        model: on the device, in training mode as its normalisation asks for; it gains its inner loop.
        images: two tasks' images, shape (2, images, channels, height, width), to try engines on.
        ranks: the processes.
        checkpoint: says which one is the last good one, for errors.
    """

    def __init__(
        self,
        config: MetatrainConfig,
        model: nn.Module,
        images: torch.Tensor,
        ranks: Ranks,
        checkpoint: Callable[[], str],
    ) -> None:
        self.config, self.model, self.ranks, self._checkpoint = config, model, ranks, checkpoint
        meta = config.meta
        self.inner = inner_of(meta)
        self.gates = gate_schedule(model, config.optim.open_gates)
        attach_loop(model, self.inner)  # gates that a schedule opens do not adapt
        self.optimizer = build_optimizer(model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, meta.steps, updates_per_epoch=1)
        chunk, precision = None if meta.task_chunk == "auto" else meta.task_chunk, config.run.precision
        self.engine, self.engine_note = build_engine(
            meta.engine, model, self.inner, meta.normalization, images, chunk, precision
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision == "fp16")
        self.engine.scaler = self.scaler
        self.step = 0

    def take_step(self, draw: Draw) -> tuple[float, float]:
        """Average the query gradients of a batch of tasks and step once.

        Args:
            draw: gives tasks by their numbers, on the model's device.

        Returns:
            The mean query loss and query accuracy of the tasks.

        Raises:
            RunError: if a query loss is not finite; it names the task and, where it can, the inner step and the layer.

        Source: Finn et al. 2017, algorithm 2, line 10.
        """
        meta = self.config.meta
        train_mode(self.model, meta.normalization)
        self.optimizer.zero_grad(set_to_none=True)
        first = self.step * meta.batch_tasks
        tasks = range(first, first + meta.batch_tasks)
        if meta.algorithm == "mamlpp":
            self.engine.step_weights = step_weights(meta.inner_steps, self.step / meta.steps, _ALL_STEPS_COUNT)
        with self._attention(), naming_anomaly(lambda what: self.diverged(what, self.step + 1)):
            losses, accuracies = shared_meta_gradient(self.engine, self.model, draw, tasks, self.ranks)
        if not losses.isfinite().all():
            raise self._query_loss_diverged(losses, tasks, draw)
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

    def how_many_at_once(self, draw: Draw) -> str:
        """Settle how the engine goes through a meta-batch, and say it.

        Args:
            draw: gives tasks by their numbers, on the model's device.
        """
        if not isinstance(self.engine, VectorizedEngine):
            return f"{self.engine.name} engine: task after task"
        batch = range(len(share_of(range(self.config.meta.batch_tasks), *self.ranks.share)) or 1)
        train_mode(self.model, self.config.meta.normalization)
        with self._attention():
            how = self.engine.settle_chunk(draw(batch))
        return f"{self.engine.name} engine: {how}"

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        # Fused attention has no second derivative.
        return contextlib.nullcontext() if self.inner.first_order else sdpa_kernel(SDPBackend.MATH)

    def _query_loss_diverged(self, losses: torch.Tensor, tasks: Sequence[int], draw: Draw) -> RunError:
        """Name the task and, by adapting to it once more, the inner step and the layer."""
        first = int(losses.isfinite().int().argmin())
        where = first_nonfinite_step(
            self.model, self.engine.loop, draw([tasks[first]]), self.inner.steps, self.engine.precision
        )
        what = f"the query loss of task {tasks[first]} became {losses[first].item()}"
        return self.diverged(what, self.step + 1, where, SharedRunError)

    def diverged(self, what: object, step: int, where: str | None = None, kind: type[RunError] = RunError) -> RunError:
        """Make the error of a run that diverged.

        Args:
            what: became infinite.
            step: the meta-step.
            where: the inner step and the layer, where they are known.
            kind: of error.
        """
        return kind(
            f"{what} at step {step} (learning rate {self.config.optim.lr:.3g}, inner learning rate "
            f"{self.config.meta.inner_lr:.3g}){'' if where is None else f', first in {where}'}; "
            f"the last good checkpoint is {self._checkpoint()}; "
            "try a smaller --meta.inner_lr or --optim.lr"
        )

    def state(self) -> dict[str, Any]:
        """Collect what a checkpoint keeps."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.config.optim.name,
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "learner": self._learner(),
        }

    def _learner(self) -> dict[str, str]:
        return {name: getattr(self.config.meta, name) for name in _OF_THE_LEARNER}

    def check_same(self, state: dict[str, Any]) -> None:
        """Refuse to go on with another learner, whose results would be recorded as if it had been one from the start.

        Args:
            state: of a checkpoint; one from before it was noted is taken.

        Raises:
            ValueError: saying what differs.
        """
        for name, value in state.get("learner", {}).items():
            if (mine := self._learner().get(name)) != value:
                raise ValueError(f"its meta.{name} is {value!r}, not {mine!r}")

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint whose weights the model has already.

        Args:
            state: what `state` returned.
        """
        restore_optimizer(self.optimizer, self.schedule, state["optimizer"], state["step"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


_PARTS = ("train", "validation", "test")
_KINDS = {
    "step": int,
    "best": float,
    "seconds": float,
    "model_digest": str,
}  # of a checkpoint, beside weights and lists


OnEpoch = Callable[[dict[str, Any]], object]


class MetaTrainer:
    """The parts of one run, and its course.

    Args:
        config: of the run.
        folder: not yet started, or with a state to go on from.
        splits: the classes, or tasks that were handed over.
        spec: rebuilds the model.
        model: on the device, in training mode as its normalisation asks for.
        ranks: the processes.
        on_epoch: called by the first process after each interval, with its row of metrics.csv.
    """

    def __init__(
        self,
        config: MetatrainConfig,
        folder: RunFolder,
        splits: ClassSplits | TaskSplits,
        spec: ModelSpec,
        model: nn.Module,
        ranks: Ranks,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.on_epoch = on_epoch
        self.config, self.folder, self.splits, self.spec = config, folder, splits, spec
        self.model, self.ranks, self.device = model, ranks, ranks.device
        self.checkpoint, self.curve, self.model_digest = "none", "", ""
        self.train_tasks = self._sampler("train")
        noise = make_noise(self.train_tasks, config.task.ways, self.device)
        self.outer = OuterLoop(config, model, noise, ranks, lambda: self.checkpoint)
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

    def fit(self) -> dict[str, Any]:
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
        side = self.spec.inputs.image_size
        shorter = "fewer --meta.steps, a smaller --meta.batch_tasks"
        shorter += f", --data.image_size {side // 2}" if side > 40 else ""
        self.forecast = Forecast(steps, f"{shorter}, --meta.algorithm protonet (no inner steps)")
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
            if (told := self.forecast.after(self.step)) is not None:
                bar.line(told)
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
        if self.on_epoch is not None and self.ranks.main:
            self.on_epoch(dict(row))

    def _curves(
        self, sampler: Sampler, tasks: Sequence[int], bar: ProgressBar | None, every: bool = True
    ) -> list[list[float]]:
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
            return gather_shares(compute, tasks, self.ranks)
        except RunError as error:
            raise self.outer.diverged(error, self.step, kind=type(error)) from error

    def _between_tasks(self) -> None:
        """Let a single process stop within a validation, too; several stop behind it, together."""
        if self.ranks.processes == 1 and self.save_points.interrupts.waiting:
            self.save_points.between(self.step)

    def _validate(self) -> float | None:
        if self.validation_tasks is None:
            # The next checkpoint is to be a good one all the same.
            last = self.step * self.config.meta.batch_tasks - 1
            self._curves(self.train_tasks, range(last, last + 1), None, every=False)
            return None
        count = _at_most(self.validation_tasks, self.config.eval.validation_tasks)
        found = self._curves(self.validation_tasks, range(count), None, every=False)
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

    def _kept_line(self) -> dict[str, str]:
        """Say which step's model is kept, and why; nothing of a method that takes no steps."""
        if self.config.meta.algorithm in BASELINES:
            return {}
        why = f"the best by validation (accuracy {self.best:.1%})"
        if self.validation_tasks is None:
            why = "the last (there are no classes to validate on)"
        return {"kept": f"kept: step {self.best_step} of {self.step}, {why}"}

    def _finish(self) -> dict[str, Any]:
        """Judge the best model on unseen classes, and write results.json."""
        self.ranks.wait()  # the first one may still be writing what all read now
        load_tensors(self.model, read_tensors(self.folder.model_file), str(self.folder.model_file))
        sampler = self._sampler("test")
        tasks = range(_at_most(sampler, self.config.eval.tasks))
        with progress("evaluating on test tasks", len(share_of(tasks, *self.ranks.share)), "tasks") as bar:
            curves = self._curves(sampler, tasks, bar)
        self.curve = describe_curve(curves, self.config.meta.normalization)
        classes = None if isinstance(self.splits, TaskSplits) else len(present_classes(self.splits.test))
        images = None if isinstance(self.splits, TaskSplits) else len(self.splits.test.distinct())
        results = (
            summarise(self.config, self.spec, curves, images)
            | scalars_results(self.model)
            | {
                "engine": self.outer.engine.name,
                "steps": self.step,
                **self._kept_line(),
                "notes": "; ".join(self.splits.notes),
                "skipped": len(self.splits.skipped),
                "test_seen": self.splits.test_seen,
                "test_classes": classes,
                "processes": self.ranks.processes,
                "seconds": round(self.seconds, 2),
                "folder": str(self.folder.path),
            }
        )
        if self.folder.rows and self.ranks.main and self.config.run.pictures:
            draw_run(self.folder, self.spec, results["test_accuracy"], self.validation_tasks is not None)
        if self.ranks.main:  # `report --compare` pairs two runs task by task
            lines = [f"{task},{row[-1]!r}" for task, row in zip(tasks, curves, strict=True)]
            write_text(self.folder.path / "tasks.csv", "\n".join(["task,accuracy", *lines, ""]))
        self.folder.finish(results)
        return results


def _at_most(sampler: Sampler, tasks: int) -> int:
    """Return how many tasks there are to evaluate on: of a list that was handed over, each once."""
    return min(tasks, sampler.count or tasks) if isinstance(sampler, GivenTasks) else tasks


def make_noise(sampler: Sampler, ways: int, device: torch.device) -> torch.Tensor:
    """Make noise in the shape of two tasks' images, to try engines on.

    Args:
        sampler: of the tasks.
        ways: images of noise a task.
        device: where to.

    Returns:
        Shape (2, ways, channels, height, width), float32.
    """
    shape = (2, ways, *sampler.batch([0]).support_images.shape[2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def make_sampler(
    config: MetatrainConfig,
    spec: ModelSpec,
    splits: ClassSplits | TaskSplits,
    part: str,
    device: torch.device,
) -> Sampler:
    """Decode the images of a part, and draw tasks from them: task i of a seed is the same for every engine.

    Args:
        config: the tasks' size, and the seed.
        spec: what the model takes.
        splits: the parts.
        part: train, validation or test; training classes are also turned where data.rotations says so.
        device: where the images lie, if they fit.
    """
    if isinstance(splits, TaskSplits):
        given: GivenTasks = getattr(splits, part)
        return given.to(device)
    images: ImageSet = getattr(splits, part)
    rotations = part == "train" and config.data.rotations
    pool = load_pool(images, spec.inputs, splits.inverted, rotations)
    return TensorSampler(pool.to(device), config.task, f"{part} {config.run.seed}")


def headline(
    config: MetatrainConfig, spec: ModelSpec, splits: ClassSplits | TaskSplits, engine_note: str, ranks: Ranks
) -> str:
    """Say in two lines what is meta-trained, how, and on what.

    Args:
        config: of the run.
        spec: of the model.
        splits: the classes.
        engine_note: what `build_engine` said.
        ranks: the processes.
    """
    described = splits.describe()
    if isinstance(splits, TaskSplits):
        found = {name: described.get(f"{name}_tasks", []) for name in _PARTS}
        counts = {name: "tasks as they come" if got is None else f"{len(got)} tasks" for name, got in found.items()}
    else:
        found = {name: described.get(f"{name}_classes", []) for name in _PARTS}
        counts = {name: f"{len(classes)}{' unseen' * (name == 'test')} classes" for name, classes in found.items()}
    task, meta, inner = config.task, config.meta, inner_of(config.meta)
    processes = f", {ranks.processes} processes" if ranks.processes > 1 else ""
    return (
        f"{spec.name} ({spec.activation or 'its own activation'}), {task.ways}-way {task.shots}-shot, "
        f"{meta.algorithm} that adapts {inner.adapted_part}, order {1 if inner.first_order else 2}, "
        f"{meta.normalization} normalisation, "
        f"{engine_note}, on {ranks.device}{processes}\n"
        f"{counts['train']} to train on, {counts['validation']} to validate on, {counts['test']} to test on"
        + "".join(f"; {note}" for note in splits.notes)
        + (f"; {len(splits.skipped)} files skipped that are not images" if splits.skipped else "")
    )


def summarise(
    config: MetatrainConfig, spec: ModelSpec, curves: Sequence[Sequence[float]], images: int | None
) -> dict[str, Any]:
    """Lay out accuracies on unseen tasks beside what they were reached with.

    Args:
        config: of the run.
        spec: of the model.
        curves: what `adaptation_curves` returned.
        images: how many different ones the tasks were drawn from: they are no surer than so many; None if not known.

    Returns:
        Flat values: among others `test_accuracy` (mean over tasks), `test_low`, `test_high`, `accuracy_after_0`, ….
    """
    queries = len(curves) * config.task.ways * config.task.queries
    mean, low, high = groups_interval([row[-1] for row in curves], queries, images)
    inner = inner_of(config.meta)
    return {
        "task": "metatrain",
        "seed": config.run.seed,
        "test_accuracy": mean,
        "test_low": low,
        "test_high": high,
        "test_n": len(curves),
        "normalization": config.meta.normalization,
        "algorithm": config.meta.algorithm,
        "order": 1 if inner.first_order else 2,
        "ways": config.task.ways,
        "shots": config.task.shots,
        "queries": config.task.queries,
        "inner_steps": spec.meta["inner_steps"],
        "inner_lr": config.meta.inner_lr,
        **curve_results(curves),
        "adapt": inner.adapted_part,
        "model": spec.name,
        "activation": spec.activation,
        "init": spec.init,
    }


def draw_run(folder: RunFolder, spec: ModelSpec, accuracy: float, validated: bool) -> None:
    """Draw curves.png: query accuracy and query loss over the meta-steps.

    Args:
        folder: of the run, with its rows.
        spec: of the model.
        accuracy: on unseen classes, for the title.
        validated: whether there is a validation to draw.
    """
    columns = ["train_accuracy"] + (["validation_accuracy"] if validated else [])
    draw_curves(
        folder.path / "curves.png",
        folder.rows,
        "step",
        {"query accuracy": columns, "query loss": ["train_loss"]},
        f"{spec.name}, {spec.activation or 'own activation'}: accuracy on unseen classes {accuracy:.1%}",
    )
