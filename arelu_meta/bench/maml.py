"""What a meta-step of MAML costs: all tasks at once beside learn2learn and TorchOpt, in the same run, on noise."""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.bench.op import PlainAReLU
from arelu_meta.bench.timing import Cases, Contender, Row, cuda_peak_bytes, kept_bytes, make_row, time_in_turns
from arelu_meta.data.fewshot import Episode, TaskBatch
from arelu_meta.errors import RunError
from arelu_meta.meta.algorithms import adapt, build_maml
from arelu_meta.meta.engine import Engine, Inner, Learn2learnEngine, VectorizedEngine
from arelu_meta.meta.inner_loop import HeadAlone, head_inputs, loop_of
from arelu_meta.meta.normalization import set_normalization


@dataclass(frozen=True)
class Case:
    """A set-up.

    Args:
        model: a name that `create_backbone` knows.
        activation: what to swap in, or None.
        ways: classes a task.
        shots: support images a class.
        queries: query images a class.
        tasks: tasks a meta-step.
        steps: inner steps.
        inner_lr: their learning rate.
    """

    model: str
    activation: str | None
    ways: int = 5
    shots: int = 1
    queries: int = 1
    tasks: int = 32
    steps: int = 5
    inner_lr: float = 0.01


CASES = {
    "authors-mnist-relu": Case("mnist_conv", None),
    "authors-mnist-arelu": Case("mnist_conv", "arelu"),
    "omniglot-5w1s": Case("conv4", None, steps=1, inner_lr=0.4),
    "omniglot-20w1s": Case("conv4", None, ways=20, tasks=16, steps=1, inner_lr=0.1),
}
ALGORITHMS = ("maml", "fomaml", "anil")
CONTENDERS = ("vectorized", "torchopt", "learn2learn", "learn2learn-plain")
GROWING_TASKS = (1, 2, 4, 8, 16, 32, 64, 128)
GROWING_STEPS = (1, 2, 3, 5, 7, 10)


def maml_cases(device: torch.device, rounds: int | None = None, growth: bool = False) -> Cases:
    """List the cases, with ids as `omniglot-5w1s`.

    Args:
        device: where to compute.
        rounds: over which medians are taken; default: 9, and 3 of the growth.
        growth: how a meta-step grows instead: `omniglot-5w1s/tasks8`, `omniglot-5w1s/steps3`.
    """
    if not growth:
        return {name: partial(_all_algorithms, name, rounds or 9, device) for name in CASES}
    by_tasks: Cases = {
        f"{name}/tasks{count}": partial(maml_rows, name, rounds or 3, device, tasks=count)
        for name in CASES
        for count in GROWING_TASKS
    }
    by_steps: Cases = {
        f"{name}/steps{count}": partial(maml_rows, name, rounds or 3, device, steps=count)
        for name in CASES
        for count in GROWING_STEPS
    }
    return by_tasks | by_steps


def _all_algorithms(name: str, rounds: int, device: torch.device) -> list[Row]:
    return [row for algorithm in ALGORITHMS for row in maml_rows(name, rounds, device, algorithm)]


def maml_rows(
    name: str,
    rounds: int = 9,
    device: torch.device | str = "cpu",
    algorithm: str = "maml",
    tasks: int | None = None,
    steps: int | None = None,
) -> list[Row]:
    """Time a meta-step's gradient by every contender in one case.

    Args:
        name: a key of `CASES`.
        rounds: over which medians are taken.
        device: where to compute.
        algorithm: one of `ALGORITHMS`: second-order MAML, first-order MAML, or ANIL (second-order).
        tasks: another number of tasks a meta-step than the case's.
        steps: another number of inner steps than the case's.

    Returns:
        One row for each contender. `learn2learn-plain` (the plain AReLU formula) takes part where there is an AReLU,
        and is the peer there; elsewhere `learn2learn` is. `torchopt` takes part in MAML where it is installed. What
        differs from the case is in the row's case: `authors-mnist-relu/fomaml/tasks8/steps1`.

    Raises:
        MissingExtraError: if learn2learn is not installed.
        RunError: if the contenders do not compute the same losses.
    """
    case = replace(CASES[name], tasks=tasks or CASES[name].tasks, steps=steps or CASES[name].steps)
    label = name + ("" if algorithm == "maml" else f"/{algorithm}")
    label += (f"/tasks{tasks}" if tasks else "") + (f"/steps{steps}" if steps else "")
    return _case_rows(label, case, rounds, torch.device(device), algorithm)


def _contenders_of(case: Case, algorithm: str) -> list[str]:
    left_out = set() if case.activation == "arelu" else {"learn2learn-plain"}
    if algorithm != "maml" or not has_torchopt():
        left_out.add("torchopt")
    return [name for name in CONTENDERS if name not in left_out]


def _case_rows(name: str, case: Case, rounds: int, device: torch.device, algorithm: str) -> list[Row]:
    tasks = _noise(case).to(device)
    inner = Inner(case.inner_lr, case.steps, algorithm == "fomaml", algorithm)
    engines: dict[str, tuple[Engine, nn.Module]] = {}
    kinds: dict[str, Any] = {"vectorized": VectorizedEngine, "torchopt": TorchoptEngine}
    learn2learn = Learn2learnAnil if algorithm == "anil" else Learn2learnEngine
    for contender in _contenders_of(case, algorithm):
        model = _model(case, plain=contender == "learn2learn-plain").to(device)
        engines[contender] = kinds.get(contender, learn2learn)(model, inner), model
    _check_agreement(name, engines, tasks)
    contenders = {contender: _contender(engine, model, tasks) for contender, (engine, model) in engines.items()}
    times = time_in_turns(contenders, rounds, device)
    peer = list(engines)[-1]
    return [
        make_row(name, contender, peer, times, peak_bytes=_peak_bytes(engine, model, contenders[contender], tasks))
        for contender, (engine, model) in engines.items()
    ]


def _noise(case: Case) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(case.ways).repeat_interleave(per_class).repeat(case.tasks, 1)
        return torch.rand(*labels.shape, 1, 28, 28, generator=generator), labels

    return TaskBatch(*draw(case.shots), *draw(case.queries))


def _model(case: Case, plain: bool) -> nn.Module:
    torch.manual_seed(0)
    model = create_backbone(
        case.model, num_classes=case.ways, in_chans=1, img_size=28, activation=case.activation, init="paper"
    )
    set_normalization(model, "transductive")
    for module in list(model.modules()) if plain else []:
        for name, child in module.named_children():
            if isinstance(child, AReLU):
                setattr(module, name, PlainAReLU())
    return model.train()


def _contender(engine: Engine, model: nn.Module, tasks: TaskBatch) -> Contender:
    return Contender(lambda _: engine.meta_gradient(tasks), lambda: model.zero_grad(set_to_none=True))


def _check_agreement(name: str, engines: dict[str, tuple[Engine, nn.Module]], tasks: TaskBatch) -> None:
    """Refuse to compare what is not the same."""
    first, *others = ((contender, engine.meta_gradient(tasks)[0]) for contender, (engine, _) in engines.items())
    for contender, losses in others:
        if not torch.allclose(losses, first[1], rtol=1e-3, atol=1e-4):
            raise RunError(f"bench maml: {contender} and {first[0]} differ in {name}; the times would mean nothing")


def _peak_bytes(engine: Engine, model: nn.Module, contender: Contender, tasks: TaskBatch) -> int:
    if tasks.support_images.is_cuda:
        contender.prepare()
        return cuda_peak_bytes(lambda: contender.call(None))
    at_once = tasks if engine.name == "vectorized" else next(tasks.split(1))
    owned = [*model.parameters(), *vars(tasks).values()]
    return kept_bytes(lambda: engine.query_losses(at_once), owned=owned)


def has_torchopt() -> bool:
    """Return True if TorchOpt is installed and can be imported; it needs packages that it does not always bring."""
    try:
        importlib.import_module("torchopt")
    except ImportError:
        return False
    return True


class TaskAfterTask(ABC):
    """An engine that adapts to one task after the other."""

    @abstractmethod
    def query_logits(self, episode: Episode) -> Tensor:
        """Adapt to a task's support set, and return its queries' logits, shape (queries, ways), with their graph."""

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Add the gradient of the mean query loss to the `.grad` of the model's parameters; see `Engine`."""
        found = []
        for one in tasks.split(1):
            loss, accuracy = self.query_losses(one)
            (loss.sum() / len(tasks)).backward()
            found.append((loss.detach(), accuracy))
        losses, accuracies = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(accuracies)

    def query_losses(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Adapt to each task's support set, and measure on its query set; see `Engine`."""
        losses, accuracies = [], []
        for number in range(len(tasks)):
            labels, logits = tasks[number].query_labels, self.query_logits(tasks[number])
            losses.append(F.cross_entropy(logits, labels))
            accuracies.append((logits.argmax(1) == labels).double().mean())
        return torch.stack(losses), torch.stack(accuracies)


class TorchoptEngine(TaskAfterTask):
    """MAML with TorchOpt's differentiable optimiser, task after task, as its documentation shows.

    Args:
        model: its parameters are the initial weights that are meta-learned.
        inner: the inner loop; second-order.

    Source: Ren et al. 2022, "TorchOpt: An Efficient Library for Differentiable Optimization".
    """

    name = "torchopt"

    def __init__(self, model: nn.Module, inner: Inner) -> None:
        import torchopt

        self.torchopt, self.model, self.inner = torchopt, model, inner
        self.optimizer = torchopt.MetaSGD(model, lr=inner.lr)
        self.start = [torchopt.extract_state_dict(part, by="reference") for part in (model, self.optimizer)]

    def query_logits(self, episode: Episode) -> Tensor:
        """See `TaskAfterTask`."""
        for _ in range(self.inner.steps):
            self.optimizer.step(F.cross_entropy(self.model(episode.support_images), episode.support_labels))
        logits: Tensor = self.model(episode.query_images)
        for part, state in zip((self.model, self.optimizer), self.start, strict=True):
            self.torchopt.recover_state_dict(part, state)
        return logits


class Learn2learnAnil(TaskAfterTask):
    """ANIL through learn2learn's MAML on the head, a task's images passing the body once: its examples' way.

    Args:
        model: its parameters are the initial weights that are meta-learned; its head is one linear layer.
        inner: the inner loop.

    Source: Raghu et al. 2020 (ANIL).
    """

    name = "learn2learn"

    def __init__(self, model: nn.Module, inner: Inner) -> None:
        self.model, self.inner = model, inner
        self.head = HeadAlone(model, loop_of(model, inner))
        self.maml = build_maml(self.head, inner.lr, inner.first_order)

    def query_logits(self, episode: Episode) -> Tensor:
        """See `TaskAfterTask`."""
        known, asked = (self._features(images) for images in (episode.support_images, episode.query_images))
        learner = self.maml.clone()
        adapt(learner, known, episode.support_labels, self.inner.steps)
        logits: Tensor = learner(asked)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        found = head_inputs(self.model, self.head.path, images)
        assert found is not None
        return found
