"""What a meta-step of MAML costs: all tasks at once beside learn2learn and TorchOpt, in the same run, on noise."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from arelu_meta.activations.arelu import AReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.bench.op import PlainAReLU
from arelu_meta.bench.peers import Learn2learnAnil, TorchoptEngine, has_torchopt
from arelu_meta.bench.timing import Contender, Row, cuda_peak_bytes, kept_bytes, make_row, time_in_turns
from arelu_meta.data.episodes import TaskBatch
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.meta.engines import Engine, Inner, Learn2learnEngine, VectorizedEngine
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


def maml_rows(
    cases: Iterable[str] = tuple(CASES),
    rounds: int = 9,
    device: torch.device | str = "cpu",
    algorithm: str = "maml",
    tasks: int | None = None,
    steps: int | None = None,
) -> list[Row]:
    """Time a meta-step's gradient by every contender in every case.

    Args:
        cases: keys of `CASES`.
        rounds: over which medians are taken.
        device: where to compute.
        algorithm: one of `ALGORITHMS`: second-order MAML, first-order MAML, or ANIL (second-order).
        tasks: another number of tasks a meta-step than the case's.
        steps: another number of inner steps than the case's.

    Returns:
        One row for each case and contender. `learn2learn-plain` (the plain AReLU formula) takes part where there is an
        AReLU, and is the peer there; elsewhere `learn2learn` is. `torchopt` takes part in MAML where it is
        installed. What differs from the case is in the row's case: `authors-mnist-relu/fomaml/tasks8/steps1`.

    Raises:
        InputError: if a case is unknown.
        MissingExtraError: if learn2learn is not installed.
        RunError: if the contenders do not compute the same losses.
    """
    rows = []
    for name in cases:
        if name not in CASES:
            raise InputError(f"case: {name!r} is not known; {nearest_names(name, CASES)}")
        case = replace(CASES[name], tasks=tasks or CASES[name].tasks, steps=steps or CASES[name].steps)
        label = name + ("" if algorithm == "maml" else f"/{algorithm}")
        label += (f"/tasks{tasks}" if tasks else "") + (f"/steps{steps}" if steps else "")
        rows += _case_rows(label, case, rounds, torch.device(device), algorithm)
    return rows


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
