"""The outer loop: the meta-gradient of a batch of tasks, and one step of the optimiser."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arelu_meta.backbones.initialization import gate_schedule
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.errors import RunError, SharedRunError
from arelu_meta.finetuning.optimizer import build_optimizer, build_schedule, restore_optimizer
from arelu_meta.meta.blame import first_nonfinite_step
from arelu_meta.meta.distributed import share_of, shared_meta_gradient
from arelu_meta.meta.engine import VectorizedEngine, build_engine
from arelu_meta.meta.inner_loop import attach_loop, inner_of, step_weights
from arelu_meta.meta.normalization import train_mode
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.reproducibility import naming_anomaly

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
