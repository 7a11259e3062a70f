"""MAML as the AReLU authors ran it: on all classes of a set, or on some of them, to be judged on the others."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from arelu_meta.claims.in_memory_training import make_network
from arelu_meta.claims.ledger import Row
from arelu_meta.config import DataConfig, OptimConfig, TaskConfig
from arelu_meta.data.episodes import Pool, TensorSampler, load_class_splits, load_pool, load_whole
from arelu_meta.data.images import ImageSet, concatenate
from arelu_meta.data.loading import InputSpec
from arelu_meta.errors import RunError
from arelu_meta.finetuning.optimizer import build_optimizer
from arelu_meta.meta.engine import Inner, build_engine
from arelu_meta.meta.evaluation import adaptation_curves
from arelu_meta.meta.normalization import set_normalization, train_mode
from arelu_meta.statistics import groups_interval

WAYS, INNER_STEPS, BATCH_TASKS = 5, 5, 32  # as the authors' launcher has them, and the rate below
_OUTER_LR = 0.005
_MEAN, _STD = 0.1307, 0.3081  # likewise, of MNIST's pixels
_SIDE = 28
_NORMALIZATION = "transductive"
_KEPT = 4  # sets in memory

ALL, DIVIDED = "all", "divided"


@dataclass(frozen=True)
class MetaTrial:
    """One run: all that decides its figures.

    Args:
        data: name or root of the images.
        network: of `PAPER_NETS`.
        shots: support images a class, and query images as well.
        activation: in the network.
        variant: of the activation: authors or paper.
        optimizer: a name of timm's, of the outer loop; its rate is 0.005.
        lr: of the inner loop.
        seed: of the classes, the weights and the tasks.
        steps: meta-steps.
        classes: `ALL` trains on every class, as the authors did; `DIVIDED` on some, and is judged on the others.
        tasks: of unseen classes at the end; 0 where there are none.
    """

    data: str
    network: str
    shots: int
    activation: str
    variant: str
    optimizer: str
    lr: float
    seed: int
    steps: int
    classes: str
    tasks: int = 0

    @property
    def task(self) -> TaskConfig:
        """What a task is: as many query as support images."""
        return TaskConfig(WAYS, self.shots, self.shots)


def run(trial: MetaTrial, data: DataConfig, device: torch.device) -> list[Row]:
    """Meta-train, and judge on unseen classes where there are any.

    Args:
        trial: the run.
        data: where its images lie.
        device: where to compute.

    Returns:
        `ALL`: a row a meta-step, `step` and `accuracy` (mean over the query images, before the step). `DIVIDED`:
        one row, `step`, `accuracy` (mean over tasks of unseen classes), `low`, `high` (95 % interval over these) and
        `curve` (that accuracy after 0, 1, … inner steps). A run that diverged: one row of accuracy 0 that says how in
        `diverged`. Accuracies are fractions.
    """
    pools = _pools(trial, data)
    try:
        model, batches = meta_train(trial, pools[0], device)
        if trial.classes == ALL:
            return [{"step": step, "accuracy": accuracy} for step, accuracy in enumerate(batches, 1)]
        unseen = TensorSampler(pools[1].to(device), trial.task, f"test {trial.seed}")
        curves = adaptation_curves(model, unseen, range(trial.tasks), trial.lr, INNER_STEPS, device)
    except RunError as error:
        return [{"step": 0, "accuracy": 0.0, "low": 0.0, "high": 0.0, "curve": [], "diverged": str(error)}]
    mean, low, high = groups_interval([curve[-1] for curve in curves], len(curves) * WAYS * trial.shots)
    course = np.asarray(curves, dtype=np.float64).mean(0).tolist()
    return [{"step": trial.steps, "accuracy": mean, "low": low, "high": high, "curve": course}]


def meta_train(trial: MetaTrial, pool: Pool, device: torch.device) -> tuple[nn.Module, list[float]]:
    """Meta-train a network with the authors' settings, with no look at other tasks on the way.

    Args:
        trial: network, activation, rates, seed and length.
        pool: the images of the training tasks.
        device: where to compute.

    Returns:
        The network after the last step, and the mean query accuracy of every meta-batch, before its step.

    Raises:
        RunError: if a loss becomes NaN or infinite.

    Source: Chen et al. 2020, section 4.3; the authors' published code.
    """
    _, channels, side, _ = pool.pixels.shape
    model = make_network(trial.network, trial.activation, trial.variant, trial.seed, WAYS, channels, side).to(device)
    set_normalization(model, _NORMALIZATION)
    noise = torch.randn(2, WAYS, channels, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    train_mode(model, _NORMALIZATION)
    engine, _ = build_engine("auto", model, Inner(trial.lr, INNER_STEPS), _NORMALIZATION, noise)
    # The authors' code divides the query loss, a mean already, by the number of query images once more.
    engine.step_weights = [0.0] * (INNER_STEPS - 1) + [1 / (WAYS * trial.shots)]
    optimizer = build_optimizer(model, OptimConfig(trial.optimizer, _OUTER_LR, weight_decay=0.0))
    sampler = TensorSampler(pool.to(device), trial.task, f"train {trial.seed}")
    batches = []
    for step in range(trial.steps):
        optimizer.zero_grad(set_to_none=True)
        tasks = sampler.batch(range(step * BATCH_TASKS, (step + 1) * BATCH_TASKS)).to(device)
        losses, accuracies = engine.meta_gradient(tasks)
        if not losses.isfinite().all():
            raise RunError(f"a query loss became NaN or infinite at step {step + 1}")
        optimizer.step()
        batches.append(accuracies.mean().item())
    return model, batches


_loaded: dict[tuple[object, ...], list[Pool]] = {}  # a process decodes a set once for all activations


def _pools(trial: MetaTrial, data: DataConfig) -> list[Pool]:
    """Decode what a trial trains on and, where classes are divided, the unseen ones."""
    key = (data.name, data.root, data.image_size, trial.classes, trial.shots, trial.seed * (trial.classes == DIVIDED))
    if key not in _loaded:
        while len(_loaded) >= _KEPT:
            del _loaded[next(iter(_loaded))]
        splits = load_class_splits(data, trial.task, trial.seed)
        parts = [_all_classes(data)] if trial.classes == ALL else [splits.train, splits.test]
        channels = splits.train.channels
        inputs = InputSpec(data.image_size or _SIDE, channels, (_MEAN,) * channels, (_STD,) * channels)
        _loaded[key] = [load_pool(part, inputs, splits.inverted) for part in parts]
    return _loaded[key]


def _all_classes(data: DataConfig) -> ImageSet:
    """Take the training images of every class, as the authors did; all images where the parts hold other classes."""
    parts = load_whole(data)
    together = concatenate(parts)
    return parts[0] if set(parts[0].classes) == set(together.classes) else together
