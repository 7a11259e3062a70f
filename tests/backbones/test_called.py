"""Activations that a user's module calls as functions: replaced where that is surely the same, else listed with why."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import relu as imported_relu
from torch.utils.checkpoint import checkpoint

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.swap import swap_activations, unswap

X = torch.linspace(-2, 2, 12).reshape(3, 4)
Count = Callable[..., dict[str, int]]


class Part(nn.Module):
    """Two layers, and whatever a test does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.slope = 0.2
        self.prepare()

    def prepare(self) -> None: ...


# Replaced


class Function(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x))


class Imported(Part):
    def forward(self, x: Tensor) -> Tensor:
        return imported_relu(self.first(x))


class FullName(Part):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.first(x), approximate="tanh")


class TensorMethod(Part):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x).relu()
        return y


class OverSeveralLines(Part):
    def forward(self, x: Tensor) -> Tensor:
        # fmt: off
        y: Tensor = (
            self.first(x)
            .relu()
            .add(1)
        ) + F.silu(
            self.second(x),
            inplace=True,
        )
        # fmt: on
        return y


class Arguments(Part):
    limit: ClassVar[float] = 1.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.1) + F.leaky_relu(input=x, negative_slope=self.slope)
        return F.hardtanh(x, -2, max_val=2.0) + F.elu(x, alpha=0.5) + F.softplus(x, 2)


class ManyKinds(Part):
    def forward(self, x: Tensor) -> Tensor:
        x = F.mish(F.hardswish(F.celu(F.selu(F.relu6(self.first(x))))))
        return torch.selu(torch.relu(x))


class InPlace(Part):
    """With code that looks at the input again, where it finds the result."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        z = y
        y.relu_()
        w = F.relu(self.second(z), inplace=True)
        s = w - 1
        v = F.leaky_relu(s, 0.1, inplace=True)
        u: Tensor = self.second(x)
        F.relu6(u[:, :2], inplace=True)
        return y + z + w + s + v + u


class Inherited(Function): ...


class CallsSuper(Part):
    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2
        super().prepare()
        return F.relu(self.first(x))


class Private(Part):
    def __hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.__hidden(x)


class HeldFunction(Part):
    def prepare(self) -> None:
        self.act = F.gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))


class Loop(Part):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(self.first(x))
        return torch.stack([F.silu(part) for part in (x, -x)]).sum(0)


class Recursion(Part):
    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = F.relu(self.first(x))
        return self.forward(x, depth - 1) if depth else x


class InnerFunction(Part):
    def forward(self, x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return F.relu(self.first(y))

        return inner(x) + (lambda y: F.gelu(y))(x)


class Checkpointed(Part):
    def block(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return y


class Branches(Part):
    """Only one of the branches is taken in a trace."""

    def prepare(self) -> None:
        self.other = False

    def forward(self, x: Tensor) -> Tensor:
        if self.other:
            return F.gelu(self.second(x))
        if self.training:
            x = x.relu()
        return F.relu(self.first(x))


REPLACED: dict[type[Part], int] = {
    Function: 1,
    Imported: 1,
    FullName: 1,
    TensorMethod: 1,
    OverSeveralLines: 2,
    Arguments: 5,
    ManyKinds: 7,
    InPlace: 4,
    Inherited: 1,
    CallsSuper: 1,
    Private: 1,
    HeldFunction: 2,
    Loop: 3 + 2,
    Recursion: 3,
    InnerFunction: 2,
    Checkpointed: 1,
    Branches: 3,
}


@pytest.mark.parametrize("kind", REPLACED)
def test_every_call_gets_scalars_of_its_own_and_the_outputs_stay(kind: type[Part], count_activations: Count) -> None:
    model = nn.Sequential(kind(), nn.Linear(4, 2))
    before = model(X)
    report = swap_activations(model, init="preserve", example=X)
    assert report.complete, str(report)
    assert [len(report.swapped), report.parameters_added] == [REPLACED[kind], 3 * REPLACED[kind]]
    assert torch.equal(model(X), before)
    unswap(model)
    swap_activations(model, init="paper", example=X)
    assert count_activations(model, X) == {}
    model(X).sum().backward()


@pytest.mark.parametrize("kind", REPLACED)
def test_unswap_gives_back_the_module_as_it_was(kind: type[Part]) -> None:
    model = nn.Sequential(kind(), nn.Linear(4, 2))
    before, keys, attributes = model(X), list(model.state_dict()), set(vars(model[0]))
    swap_activations(model, init="paper", example=X)
    unswap(model)
    assert type(model[0]) is kind
    assert torch.equal(model(X), before)
    assert list(model.state_dict()) == keys
    assert set(vars(model[0])) == attributes


@pytest.mark.parametrize("kind", REPLACED)
def test_swapping_a_second_time_changes_nothing(kind: type[Part]) -> None:
    model = nn.Sequential(kind(), nn.Linear(4, 2))
    swap_activations(model, init="paper", example=X)
    state, after = model.state_dict(), model(X)
    report = swap_activations(model, init="paper", example=X)
    assert (report.swapped, report.kept, report.complete) == ([], [], True)
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(X), after)


@pytest.mark.parametrize("kind", REPLACED)
def test_copies_and_pickles_are_the_users_class_and_can_be_swapped_back(kind: type[Part]) -> None:
    model = nn.Sequential(kind(), nn.Linear(4, 2))
    before = model(X)
    swap_activations(model, init="paper", example=X)
    after = model(X)
    assert isinstance(model[0], kind)
    assert type(model[0]).__qualname__ == kind.__qualname__
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), after)
        unswap(other)
        assert type(other[0]) is kind
        assert torch.equal(other(X), before)
    assert torch.equal(model(X), after)


@pytest.mark.parametrize("kind", REPLACED)
def test_a_state_dict_loads_strictly_into_a_model_swapped_afresh(kind: type[Part]) -> None:
    one, other = (nn.Sequential(kind(), nn.Linear(4, 2)) for _ in range(2))
    for model in (one, other):
        swap_activations(model, init="preserve", example=X)
    for parameter in one.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(X), one(X))


def test_the_other_branch_uses_its_activation_though_no_trace_saw_it(count_activations: Count) -> None:
    model = Branches()
    swap_activations(model, init="paper", example=X)
    model.other = True
    assert count_activations(model, X) == {}


def test_two_modules_of_one_class_are_two_and_the_class_is_left_alone() -> None:
    model = nn.Sequential(Function(), Function())
    swap_activations(model, include=["0.*"], example=X)
    assert [type(part) is Function for part in model] == [False, True]
    report = swap_activations(model, example=X)
    assert [entry.path for entry in report.swapped] == ["1.forward_relu"]
    assert "forward_relu" not in dict(Function().named_modules())


def test_a_module_that_stands_in_two_places_gets_one_activation_a_call() -> None:
    part = Function()
    model = nn.Sequential(part, nn.Sequential(part), nn.Linear(4, 4))
    report = swap_activations(model, example=X)
    assert [entry.path for entry in report.swapped] == ["0.forward_relu", "1.0.forward_relu"]
    assert (report.complete, report.parameters_added) == (True, 3)


def test_in_place_calls_pass_their_gradient_as_before() -> None:
    model = InPlace()
    x = X.clone().requires_grad_()
    (before,) = torch.autograd.grad(model(x).square().sum(), x)
    swap_activations(model, init="preserve", example=X)
    (after,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(after, before)


def test_a_class_of_a_function_keeps_what_it_closes_over() -> None:
    offset = 3.0

    class Closes(Part):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.first(x)) + offset

    model = Closes()
    before = model(X)
    assert swap_activations(model, example=X).complete
    assert torch.equal(model(X), before)
    offset = 4.0
    torch.testing.assert_close(model(X), before + 1)


def test_a_call_that_is_excluded_stays_in_the_users_own_code() -> None:
    model = nn.Sequential(Function(), nn.ReLU())
    report = swap_activations(model, exclude=["*forward_relu"], example=X)
    line = Function.forward.__code__.co_firstlineno + 1
    assert [entry.reason for entry in report.kept] == [f"called as a function in test_called.py:{line}: excluded"]
    assert type(model[0]) is Function


@pytest.mark.parametrize("arguments", [{"include": ["nothing"]}, {"init": "fit", "data": [X, torch.zeros(3, 5)]}])
def test_an_error_leaves_the_users_module_as_it_was(arguments: dict[str, Any]) -> None:
    model = nn.Sequential(Function(), nn.ReLU())
    with pytest.raises(ValueError, match=r"matches no activation|cannot take it"):
        swap_activations(model, example=X, **arguments)
    assert type(model[0]) is Function
    assert list(model[0]._modules) == ["first", "second"]


def test_the_start_fit_looks_at_what_goes_through_a_call() -> None:
    report = swap_activations(nn.Sequential(Function()), init="fit", data=[X])
    assert report.complete
    assert report.swapped[0].alpha != 0.9


def test_compiled_exported_and_traced_code_takes_the_activations() -> None:
    model = nn.Sequential(Loop()).eval()
    swap_activations(model, init="preserve", example=X)
    for number, module in enumerate(m for m in model.modules() if isinstance(m, GatedAReLU)):
        nn.init.constant_(module.t, 0.1 * number)
    after = model(X)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager")(X), after)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), after)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripting_is_refused_for_it_would_read_the_old_code() -> None:
    model = nn.Sequential(Function())
    swap_activations(model, example=X)
    with pytest.raises(RuntimeError, match=r"Function cannot be scripted.*unswap"):
        torch.jit.script(model)


def test_a_pickle_says_so_when_the_code_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Function()
    swap_activations(model, example=X)
    saved = pickle.dumps(model)
    monkeypatch.setattr(Function, "forward", Loop.forward)
    from arelu_meta.backbones import subclass

    subclass.made_class.cache_clear()
    with pytest.raises(TypeError, match=r"Function\.forward: .*it has changed.*unswap"):
        pickle.loads(saved)


# Several inputs


class TwoInputs(Part):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.first(x) + self.second(y))


class TakesDict(Part):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return F.relu(self.first(batch["x"]))


@pytest.mark.parametrize(
    ("kind", "example"), [(TwoInputs, (X, X)), (TwoInputs, {"x": X, "y": X}), (TakesDict, {"x": X})]
)
def test_an_example_may_be_several_inputs(kind: type[Part], example: Any) -> None:
    assert swap_activations(kind(), example=example).complete


# Torch's own transformer, which holds its activation as a function and in evaluation may not call it at all


def test_torchs_transformer_takes_the_activation_on_every_path(count_activations: Count) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 3, 8)
    before = model(x)
    report = swap_activations(model, init="preserve", example=x)
    assert [entry.path for entry in report.swapped] == ["layers.0.activation", "layers.1.activation"]
    assert report.complete
    assert torch.equal(model(x), before)
    unswap(model)
    assert model.layers[0].activation is F.relu
    assert torch.equal(model(x), before)
    swap_activations(model, init="paper", example=x)
    with torch.no_grad():
        without_gradients = model(x)
    torch.testing.assert_close(without_gradients, model(x))
    assert count_activations(model, x) == {}
