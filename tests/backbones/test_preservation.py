"""`preserve` moves no bit of any output, is checked, and names what would move; in place stays in place."""

import copy
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import InputError

X = torch.linspace(-2, 2, 12).reshape(3, 4)


class Residual(nn.Module):
    """The sum takes `h` after an activation has overwritten it."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), act, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h + self.second(self.act(h))  # type: ignore[no-any-return]


class View(Residual):
    """A part of `h` is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.act(h[:, :2])
        y: Tensor = self.second(h)
        return y


class Returned(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = self.first(x)
        return h, self.second(self.act(h))


class Loop(Residual):
    """One module for several calls, of which one's input is read again."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):
            h = h + self.second(self.act(h))
        return h  # type: ignore[no-any-return]


KINDS = (Residual, View, Returned, Loop)
ACTS = (nn.ReLU, nn.SiLU, nn.LeakyReLU)


def tensors(output: object) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]  # type: ignore[list-item]


def build(kind: type[Residual], act: Callable[..., nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(act(inplace=True))).eval()


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize(("kind", "act"), list(itertools.product(KINDS, ACTS)))
def test_preserve_keeps_outputs_and_gradients_where_an_in_place_input_is_read_again(
    kind: type[Residual], act: type[nn.Module], trace: bool
) -> None:
    model = build(kind, act)

    def run() -> list[Tensor]:
        model.zero_grad()
        outputs = tensors(model(X))
        sum(output.square().sum() for output in outputs).backward()  # type: ignore[union-attr]
        return [*outputs, *(p.grad for n, p in model.named_parameters() if n.endswith(("weight", "bias")))]  # type: ignore[list-item]

    before = run()
    report = swap_activations(model, init="preserve", example=X, trace=trace)
    assert report.complete is trace
    torch.testing.assert_close(run(), before, rtol=0, atol=1e-6)
    assert all(map(torch.equal, tensors(model(X)), before))
    unswap(model)
    assert all(map(torch.equal, tensors(model(X)), before))


@pytest.mark.parametrize("init", ["paper", "preserve", "open"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_works_in_place_exports_compiles_copies_and_learns_as_eager(kind: type[Residual], init: str) -> None:
    model = build(kind)
    swap_activations(model, init=init, example=X)  # type: ignore[arg-type]
    wanted = tensors(model(X))
    torch._dynamo.reset()
    for other in (
        torch.export.export(model, (X,)).module(),
        torch.compile(model, backend="eager", fullgraph=True),
        copy.deepcopy(model),
    ):
        torch.testing.assert_close(tensors(other(X)), wanted)
    torch._dynamo.reset()
    if kind in (Residual, Returned):
        h = model[0].first(X)  # type: ignore[index]
        activated = model[0].act(h)  # type: ignore[index]
        assert activated.data_ptr() == h.data_ptr()
    sum(output.square().sum() for output in wanted).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.endswith(("alpha", "beta")))


def test_an_input_that_is_not_read_again_is_not_written_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    swap_activations(model, init="preserve", example=X)
    assert type(model[1]) is GatedAReLU
    unswap(model)
    swap_activations(model, init="paper", example=X)
    assert type(model[1]) is AReLU  # type: ignore[comparison-overlap]


def test_an_activation_that_cannot_work_in_place_is_not_put_where_its_input_is_read_again() -> None:
    model = build(Residual)
    report = swap_activations(model, "gelu", example=X)
    assert report.swapped == []
    assert [entry.reason for entry in report.kept] == [
        "it works in place and its input is read again; 'gelu' cannot work in place"
    ]
    assert not report.complete
    report = swap_activations(model, "silu", example=X)
    assert report.complete
    assert model.get_submodule("0.act").inplace is True  # type: ignore[comparison-overlap]


# The check


class AsksForItsActivation(nn.Module):
    """Computes something else where its activation is of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.odd = nn.Linear(4, 4), nn.ReLU(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.body(x))
        y: Tensor = self.odd(x if isinstance(self.act, nn.ReLU) else x + 1e-7)
        return y


@pytest.mark.parametrize("again", [False, True], ids=["first swap", "after another"])
def test_an_output_that_would_move_is_refused_with_its_layer_and_the_model_is_as_it_was(again: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), AsksForItsActivation()).eval()
    if again:
        swap_activations(model, "silu", example=X)
    modules, before = dict(model.named_modules()), model(X)
    attributes = {path: dict(vars(module)) for path, module in modules.items()}
    with pytest.raises(InputError, match=r"^init: 'preserve' would move the output of '2\.odd'; the model is as it"):
        swap_activations(model, init="preserve", example=X)
    assert dict(model.named_modules()) == modules
    assert {path: dict(vars(module)) for path, module in modules.items()} == attributes
    assert torch.equal(model(X), before)
    assert swap_activations(model, init="preserve", exclude=["2.act"], example=X).swapped


def test_a_model_that_never_answers_alike_is_not_blamed() -> None:
    class Clock(AsksForItsActivation):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.body(x)) + next(TICKS)  # type: ignore[no-any-return]

    report = swap_activations(Clock(), init="preserve", example=X)
    assert len(report.swapped) == 1
    assert any("preserve was not checked: it answers otherwise each time" in note for note in report.notes)


TICKS = itertools.count()


def test_a_model_that_draws_random_numbers_is_checked_on_the_same_ones() -> None:
    class Draws(AsksForItsActivation):
        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.body(x)) + torch.rand(()) + random.random() + float(np.random.rand())
            return nn.functional.dropout(x)  # also in evaluation

    model = Draws()
    torch_state, state = torch.get_rng_state(), random.getstate()
    report = swap_activations(model, init="preserve", example=X)
    assert not any("checked" in note for note in report.notes)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("model", "arguments", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {}, "the model does not say what it takes; give example="),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
            {"example": torch.zeros(1, 9)},
            "it cannot take the example",
        ),
        (nn.Sequential(nn.Linear(4, 4, device="meta"), nn.ReLU()), {"example": X}, "is on the meta device"),
    ],
)
def test_where_preserve_cannot_be_checked_the_report_says_so(
    model: nn.Module, arguments: dict[str, Tensor], why: str
) -> None:
    report = swap_activations(model, init="preserve", **arguments)  # type: ignore[arg-type]
    assert any(note.startswith("preserve was not checked: ") and why in note for note in report.notes), report.notes
    assert why in str(report)
