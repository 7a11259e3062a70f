"""MAML as other packages do it, for `bench maml`; none of them is needed elsewhere."""

import importlib
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.data.episodes import Episode, TaskBatch
from arelu_meta.meta.algorithms import adapt, build_maml
from arelu_meta.meta.engines import Inner
from arelu_meta.meta.head_alone import HeadAlone, head_inputs
from arelu_meta.meta.inner import loop_of


def has_torchopt() -> bool:
    """Say whether TorchOpt is installed and can be imported; it needs packages that it does not always bring."""
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
