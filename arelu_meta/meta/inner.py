"""The inner loop: what adapts, at which rate, and the rates that some algorithms learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.config import MetaConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.optimizer import activation_parameters, head_parameters

BASELINES = ("centroid", "logistic", "finetune")
"""They need no meta-training."""
RATES = "inner_rates"
"""The name under which a model carries learned inner rates, so that they are trained and saved with it."""
_LOSSES_UNTIL = 0.1


@dataclass(frozen=True)
class Inner:
    """The inner loop.

    Args:
        lr: learning rate.
        steps: gradient steps on a task's support set.
        first_order: leave second derivatives out.
        algorithm: one of the config's.
        adapt: all, head or activations.
        scalar_lr: learning rate of the activations' scalars; None for `lr`.
        normalization: one of `NORMALIZATIONS`; `support` lets queries be normalised by the support set.
    """

    lr: float
    steps: int
    first_order: bool = False
    algorithm: str = "maml"
    adapt: str = "all"
    scalar_lr: float | None = None
    normalization: str = "transductive"


def inner_of(meta: MetaConfig) -> Inner:
    """Read the inner loop of a config.

    Args:
        meta: the meta-learner.

    Raises:
        InputError: if ANIL is to adapt something else than the head.
    """
    if meta.algorithm == "anil" and meta.adapt == "activations":
        raise InputError("meta.adapt: 'activations' is not what anil adapts; give --meta.algorithm maml, or adapt head")
    return Inner(
        meta.inner_lr,
        meta.inner_steps,
        meta.order == 1 or meta.algorithm in {"fomaml", "reptile"},
        meta.algorithm,
        "head" if meta.algorithm == "anil" else meta.adapt,
        meta.inner_act_lr,
        meta.normalization,
    )


def adapted_parameters(model: nn.Module, adapt: str) -> dict[str, nn.Parameter]:
    """List the parameters that the inner loop changes; frozen ones never are.

    Args:
        model: any.
        adapt: all, head or activations.

    Raises:
        InputError: if nothing is left to adapt.
    """
    named = {name: value for name, value in model.named_parameters() if not name.startswith(f"{RATES}.")}
    if adapt == "head":
        chosen = {id(value) for value in head_parameters(model)}
        named = {name: value for name, value in named.items() if id(value) in chosen}
    elif adapt == "activations":
        chosen = {id(value) for value in activation_parameters(model)}
        named = {name: value for name, value in named.items() if id(value) in chosen}
    found = {name: value for name, value in named.items() if value.requires_grad}
    if not found and adapt != "all":
        extra = "; give --model.activation arelu" if adapt == "activations" else "; give all"
        raise InputError(f"meta.adapt: {adapt!r} leaves nothing to adapt in this model{extra}")
    return found


class Rates(nn.Module):
    """Inner rates that are learned.

    Args:
        parameters: what adapts.
        rates: where each starts.
        steps: None for a rate for every weight (Meta-SGD); otherwise a rate for every tensor and step (MAML++).

    Source: Li et al. 2017, section 3.2; Antoniou et al. 2019, section 4.
    """

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float], steps: int | None = None) -> None:
        super().__init__()
        self.per_step = steps is not None
        self.values = nn.ParameterList(
            [
                nn.Parameter(torch.full_like(value if steps is None else value.new_empty(steps), rate))
                for value, rate in zip(parameters, rates, strict=True)
            ]
        )

    def at(self, step: int) -> list[Tensor]:
        """Return the rates of a step, in the parameters' order; beyond the last trained step, the last one's."""
        if not self.per_step:
            return list(self.values)
        return [value[min(step, len(value) - 1)] for value in self.values]


def fixed_rates(model: nn.Module, names: Sequence[str], inner: Inner) -> list[float]:
    """List the configured rate of every adapted parameter.

    Args:
        model: holds them.
        names: theirs.
        inner: the rates.
    """
    if inner.scalar_lr is None:
        return [inner.lr] * len(names)
    scalars = {id(value) for value in activation_parameters(model)}
    named = dict(model.named_parameters())
    return [inner.scalar_lr if id(named[name]) in scalars else inner.lr for name in names]


def add_rates(model: nn.Module, inner: Inner) -> None:
    """Give a model the rates that its algorithm learns, as a part of it; other algorithms learn none.

    Args:
        model: changed in place; one that has rates keeps them.
        inner: the algorithm, and where the rates start.
    """
    if inner.algorithm not in {"metasgd", "mamlpp"} or hasattr(model, RATES):
        return
    parameters = adapted_parameters(model, inner.adapt)
    start = fixed_rates(model, list(parameters), inner)
    steps = inner.steps if inner.algorithm == "mamlpp" else None
    model.add_module(RATES, Rates(list(parameters.values()), start, steps))


def rates_at(model: nn.Module, names: Sequence[str], inner: Inner, step: int) -> Sequence[float | Tensor]:
    """Return every adapted parameter's rate at a step.

    Args:
        model: holds learned rates where its algorithm learns them.
        names: of the adapted parameters.
        inner: the inner loop.
        step: from 0.
    """
    rates = getattr(model, RATES, None)
    return rates.at(step) if isinstance(rates, Rates) else fixed_rates(model, names, inner)


def loss_weights(inner: Inner, progress: float) -> list[float]:
    """Weigh the query losses after each inner step.

    Args:
        inner: its algorithm; only MAML++ looks at more than the last loss.
        progress: share of the meta-training that is done.

    Returns:
        One weight a step; they add up to 1: all alike at the start, the last alone from a tenth of the training on.

    Source: Antoniou et al. 2019, section 4 (multi-step loss).
    """
    last = min(1.0, progress / _LOSSES_UNTIL) if inner.algorithm == "mamlpp" else 1.0
    weights = [(1 - last) / inner.steps] * inner.steps
    weights[-1] += last
    return weights
