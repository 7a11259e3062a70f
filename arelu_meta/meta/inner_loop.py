"""What happens on a task's support set, whatever engine computes it: which parameters adapt, and at which rates."""

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.config import Adapt, Algorithm, MetaConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.finetuning.linear_probe import linear_head
from arelu_meta.finetuning.optimizer import activation_parameters, head_parameters
from arelu_meta.meta.normalization import set_normalization

BASELINES = ("centroid", "logistic", "finetune")
"""They need no meta-training: a frozen backbone's features, or fine-tuning on the support set."""
COMPARING = ("protonet", "centroid", "logistic")
"""They compare features, and take no inner step."""
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
ADAPTS: tuple[str, ...] = get_args(Adapt)
_ATTRIBUTE = "inner_loop"
RATES_PREFIX = f"{_ATTRIBUTE}."
LARGEST_STEPS = 1000
"""What a saved learner may say that it was trained with: learned rates take a number a tensor and step."""


@dataclass(frozen=True)
class Inner:
    """The inner loop.

    Args:
        lr: learning rate; where rates are learned, what they start from.
        steps: gradient steps on a task's support set.
        first_order: leave second derivatives out.
        algorithm: one of `ALGORITHMS`.
        adapt: what takes the steps: all, head, or activations (the scalars of AReLU).
        act_lr: learning rate of the activations' scalars; None for `lr`.
    """

    lr: float
    steps: int
    first_order: bool = False
    algorithm: str = "maml"
    adapt: str = "all"
    act_lr: float | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            nearest = nearest_names(self.algorithm, ALGORITHMS)
            raise InputError(f"meta.algorithm: {self.algorithm!r} is not known; {nearest}")
        if self.adapt not in ADAPTS:
            raise InputError(f"meta.adapt: {self.adapt!r} is not known; {nearest_names(self.adapt, ADAPTS)}")
        if self.algorithm == "anil" and self.adapt == "activations":
            raise InputError("meta.adapt: 'activations' is not what anil adapts; leave it out, or give maml")
        if self.algorithm == "reptile" and self.adapt != "all":
            raise InputError(
                f"meta.adapt: reptile learns only what it adapts, {self.adapt!r} would leave the rest untrained; "
                "give all, or maml"
            )

    @property
    def differentiates_twice(self) -> bool:
        """Whether the meta-gradient goes through the inner steps' gradients."""
        return not self.first_order and self.algorithm not in ("fomaml", "reptile", "protonet")

    @property
    def learns_rates(self) -> bool:
        """Whether learning rates are meta-learned beside the weights."""
        return self.algorithm in ("metasgd", "mamlpp")

    @property
    def adapted_part(self) -> str:
        """What takes inner steps: one of `ADAPTS`; ANIL is MAML that adapts the head."""
        return "head" if self.algorithm == "anil" else self.adapt


class InnerLoop(nn.Module):
    """Which of a model's parameters adapt, and at which rates; learned rates are its parameters.

    Args:
        model: on its device, in its dtype; frozen parameters do not adapt.
        inner: the inner loop; `steps` is how many rates MAML++ learns for each tensor.

    Raises:
        InputError: if nothing is left to adapt.

    Source: Li et al. 2017 (Meta-SGD: a rate for every weight); Antoniou et al. 2019, section 4 (MAML++: a rate for
    every layer and step, here for every tensor and step); Raghu et al. 2020 (ANIL: the head alone adapts).
    """

    def __init__(self, model: nn.Module, inner: Inner) -> None:
        super().__init__()
        self.inner = inner
        self.names = _adapted_names(model, inner)
        scalars = {id(parameter) for parameter in activation_parameters(model)}
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in set(self.names)}
        self.fixed = {
            name: inner.act_lr if inner.act_lr is not None and id(parameter) in scalars else inner.lr
            for name, parameter in parameters.items()
        }
        self.learned = nn.ParameterDict()
        if inner.learns_rates:
            for name, parameter in parameters.items():
                start = parameter if inner.algorithm == "metasgd" else parameter.new_empty(inner.steps)
                self.learned[_key(name)] = nn.Parameter(torch.full_like(start, self.fixed[name]))

    def forward(self, images: Tensor) -> Tensor:
        """Return what is given: a model that is a `Sequential` runs all that it holds."""
        return images

    def no_weight_decay(self) -> set[str]:
        """Name the learned rates, as timm asks models: decay would pull them to zero, and tasks with them."""
        return {name for name, _ in self.named_parameters()}

    def rate(self, name: str, step: int) -> Tensor | float:
        """Return the rate of a parameter in an inner step.

        Args:
            name: the parameter's, one of `names`.
            step: from 0; steps beyond those that MAML++ learned take the last one's rate.

        Returns:
            A number, or a tensor that broadcasts with the parameter.
        """
        if _key(name) not in self.learned:
            return self.fixed[name]
        learned: Tensor = self.learned[_key(name)]
        return learned if self.inner.algorithm == "metasgd" else learned[min(step, len(learned) - 1)]


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dot in a parameter's own name


def _adapted_names(model: nn.Module, inner: Inner) -> list[str]:
    if inner.algorithm in COMPARING:
        return []
    part = inner.adapted_part
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(RATES_PREFIX)}
    if part != "all":
        chosen = {id(p) for p in (head_parameters if part == "head" else activation_parameters)(model)}
        named = {name: parameter for name, parameter in named.items() if id(parameter) in chosen}
        if not named:
            hint = "swap in --model.activation arelu" if part == "activations" else "give all"
            raise InputError(f"meta.adapt: {part!r} leaves nothing to adapt in this model; {hint}")
    return list(named)


def support_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's inner loss: the mean over its classes of a class's mean cross-entropy.

    Each class weighs the same, however many images it has: it has as many queries to come as any other. Where all have
    as many, this is the mean over images.

    Args:
        logits: shape (tasks, images, outputs).
        labels: shape (tasks, images), int64 in [0, outputs).

    Returns:
        Shape (tasks,).
    """
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    counts = F.one_hot(labels, logits.shape[2]).sum(1)
    shares = 1 / (counts.gather(1, labels) * (counts > 0).sum(1, keepdim=True)).to(losses.dtype)
    return (losses * shares).sum(1)


def attach_loop(model: nn.Module, inner: Inner) -> InnerLoop:
    """Give a model its inner loop: learned rates are saved, moved and optimised with the weights.

    Args:
        model: changed in place; it gains the sub-module `inner_loop`.
        inner: the inner loop.

    Returns:
        The inner loop.
    """
    loop = InnerLoop(model, inner)
    model.add_module(_ATTRIBUTE, loop)
    return loop


def detach_loop(model: nn.Module) -> None:
    """Take an inner loop without learned rates from a model again: it is of no use to who owns the model.

    Args:
        model: changed in place.
    """
    loop = getattr(model, _ATTRIBUTE, None)
    if isinstance(loop, InnerLoop) and not len(loop.learned):
        delattr(model, _ATTRIBUTE)


def loop_of(model: nn.Module, inner: Inner) -> InnerLoop:
    """Return the inner loop that a model carries, or make one; rates that are learned are attached.

    Args:
        model: any.
        inner: for a model that carries none, or another algorithm's.
    """
    loop = getattr(model, _ATTRIBUTE, None)
    if isinstance(loop, InnerLoop) and replace(loop.inner, first_order=inner.first_order) == inner:
        return loop
    return attach_loop(model, inner) if inner.learns_rates else InnerLoop(model, inner)


def saved_loop(model: nn.Module, lr: float, steps: int) -> InnerLoop:
    """Return the inner loop that a model carries, or plain MAML's, to adapt to a task with.

    Args:
        model: any.
        lr: for a model that carries none.
        steps: likewise.
    """
    loop = getattr(model, _ATTRIBUTE, None)
    return loop if isinstance(loop, InnerLoop) else InnerLoop(model, Inner(lr, steps))


def inner_of_meta(meta: dict[str, Any]) -> Inner:
    """Read the inner loop from a saved model's header.

    Args:
        meta: of its `ModelSpec`; files from before there was a choice are MAML's.
    """
    return Inner(
        meta["inner_lr"],
        meta.get("train_steps", meta["inner_steps"]),
        algorithm=meta.get("algorithm", "maml"),
        adapt=meta.get("adapt", "all"),
        act_lr=meta.get("inner_act_lr"),
    )


def finish_learner(model: nn.Module, meta: dict[str, Any]) -> None:
    """Make of a plain backbone what a meta-training run saves: with its normalisation and its inner loop.

    Args:
        model: changed in place.
        meta: of its `ModelSpec`; empty for a run that is only about to start from it.
    """
    if meta.get("normalization"):
        set_normalization(model, meta["normalization"])
    if "inner_lr" in meta:
        attach_loop(model, inner_of_meta(meta))


def inner_of(meta: MetaConfig) -> Inner:
    """Read the inner loop of a config.

    Args:
        meta: the meta-learner.

    Raises:
        InputError: if its parts contradict each other, or it takes more steps than a saved learner may.
    """
    if meta.inner_steps > LARGEST_STEPS:
        raise InputError(f"meta.inner_steps: {meta.inner_steps} is not allowed; give at most {LARGEST_STEPS}")
    first_order = meta.order == 1 or meta.algorithm in {"fomaml", "reptile"}
    return Inner(meta.inner_lr, meta.inner_steps, first_order, meta.algorithm, meta.adapt, meta.inner_act_lr)


def step_weights(steps: int, share_done: float, share: float) -> list[float]:
    """Weigh the query losses after each inner step, for MAML++'s multi-step loss.

    Args:
        steps: inner steps.
        share_done: how much of the meta-training is done, in [0, 1].
        share: over how much of it all steps count; 0 for never.

    Returns:
        One weight a step, 1 in all: equal ones at the start, the last alone when `share` is done.

    Source: Antoniou et al. 2019, section 4, multi-step loss optimisation; they anneal over epochs, this over a share.
    """
    left = max(0.0, 1 - share_done / share) if share > 0 else 0.0
    early = left / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]


class HeadAlone(nn.Module):
    """A model's head under the name that it has in the model; its images are the model's features.

    Args:
        model: with one linear layer as its head.
        loop: its inner loop, which comes with it.
    """

    def __init__(self, model: nn.Module, loop: InnerLoop) -> None:
        super().__init__()
        head = linear_head(model)
        assert head is not None
        self.path = next(name for name, module in model.named_modules() if module is head)
        above: nn.Module = self
        for part in self.path.split(".")[:-1]:
            above.add_module(part, nn.Module())
            above = getattr(above, part)
        above.add_module(self.path.rpartition(".")[2], head)
        self.add_module(_ATTRIBUTE, loop)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.get_submodule(self.path)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what was given: it is features already."""
        return images

    def forward_head(self, images: Tensor, pre_logits: bool = False) -> Tensor:
        """Return features, or their logits."""
        return images if pre_logits else self.forward(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        found: Tensor = self.get_classifier()(images)
        return found


def head_inputs(model: nn.Module, path: str, images: Tensor) -> Tensor | None:
    """Return what a model's head is given.

    Args:
        model: any.
        path: the head's name in it.
        images: as the model takes them.

    Returns:
        Shape (images, features), with the body's graph; None where the head is not called just once, on one vector an
        image, and last.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    try:
        logits = model(images)
    finally:
        hook.remove()
    return seen[0][0] if len(seen) == 1 and seen[0][1] is logits and seen[0][0].dim() == 2 else None


def head_that_adapts_alone(model: nn.Module, loop: InnerLoop, images: Tensor) -> HeadAlone | None:
    """Take a model's head for itself, where nothing else takes inner steps.

    Args:
        model: in the mode in which it is to be used, no batch normalisation updating averages.
        loop: its inner loop.
        images: one task's, to try it on.

    Returns:
        The head; None where more than it adapts, where it is not one linear layer that acts last, or where the body
        shares a weight with it.

    Source: Raghu et al. 2020 (ANIL): without inner steps of the body, a task's features stay what they are.
    """
    if loop.inner.adapted_part != "head" or not loop.names or not hasattr(model, "get_classifier"):
        return None
    head = linear_head(model)
    if head is None:
        return None
    body = [p for module in model.modules() if module is not head for p in module.parameters(recurse=False)]
    if {id(p) for p in body} & {id(p) for p in head.parameters()}:
        return None
    alone = HeadAlone(model, loop)
    with torch.no_grad():
        return None if head_inputs(model, alone.path, images) is None else alone
