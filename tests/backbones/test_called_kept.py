"""Activations that a swap cannot take from a user's code: each listed with its line and why, and nothing touched."""

import functools

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from arelu_meta.backbones.swap import swap_activations

X = torch.linspace(-2, 2, 12).reshape(3, 4)


class Part(nn.Module):
    """Layers, and an activation that is a module and always taken."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU()
        self.scale = nn.Parameter(torch.ones(4))
        self.prepare()

    def prepare(self) -> None: ...

    def before(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.fc(x))
        return y


def free_gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


class FreeFunction(Part):
    def forward(self, x: Tensor) -> Tensor:
        return free_gelu(self.before(x))


class Lambda(Part):
    def prepare(self) -> None:
        self.function = lambda x: F.gelu(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.before(x))
        return y


class Partial(Part):
    def prepare(self) -> None:
        self.function = functools.partial(F.gelu, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x))


class ByName(Part):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(F, "ge" + "lu")(self.before(x))
        return y


class HandedOn(Part):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(F.gelu, self.before(x), use_reentrant=False)
        return y


class Static(Part):
    @staticmethod
    def function(x: Tensor) -> Tensor:
        return F.gelu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x))


class Decorated(Part):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.before(x))


class Plain(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.before(x))


class ThroughSuper(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OnTheInstance(Plain):
    def prepare(self) -> None:
        self.forward = lambda x: Plain.forward(self, x)  # type: ignore[method-assign]


class Variable(Part):
    def forward(self, x: Tensor) -> Tensor:
        approximate = "tanh"
        return F.gelu(self.before(x), approximate=approximate)


class Unpacked(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(*[self.before(x)])  # type: ignore[arg-type]


class OwnWeight(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(self.before(x), self.scale)


class LosesItself(Part):
    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.before(x))
        self = self.fc  # type: ignore[assignment]
        return y


class WatchesSubclasses(Part):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclass")

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.before(x))


class InAList(Part):
    def prepare(self) -> None:
        self.hidden = [nn.GELU()]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hidden[0](self.before(x))
        return y


class InADict(Part):
    def prepare(self) -> None:
        self.hidden = {"act": nn.GELU()}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hidden["act"](self.before(x))
        return y


class InAClosure(Part):
    def prepare(self) -> None:
        act = nn.GELU()
        self.function = lambda x: act(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.before(x))
        return y


class WrittenOut(Part):
    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return x * torch.sigmoid(x)


class UnseenMethod(Part):
    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return x.relu() if x.shape[0] > 99 else x


class UnseenFreeFunction(Part):
    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return free_gelu(x) if x.shape[0] > 99 else x


KEPT: dict[type[Part], str] = {
    FreeFunction: "in a function that is no module's method",
    Lambda: "in a lambda",
    Partial: "through a variable, a partial function or getattr",
    ByName: "through a variable, a partial function or getattr",
    HandedOn: "in a function that is no module's method",
    Static: "static",
    Decorated: "decorated",
    ThroughSuper: "super()",
    OnTheInstance: "set on the instance",
    Variable: "with arguments that are not constants",
    Unpacked: "its input or its module cannot be told from the code",
    OwnWeight: "its weight belongs to the module",
    LosesItself: "its input or its module cannot be told from the code",
    WatchesSubclasses: "its module's class takes no other code",
    InAList: "in a list, a dict or a closure",
    InADict: "in a list, a dict or a closure",
    InAClosure: "in a list, a dict or a closure",
    WrittenOut: "written out, not called",
    UnseenMethod: "which the trace did not reach",
    UnseenFreeFunction: "which the trace did not reach",
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_cannot_be_taken_is_listed_with_its_line_and_why(kind: type[Part]) -> None:
    model = nn.Sequential(kind())
    before, attributes = model(X), set(vars(model[0]))
    report = swap_activations(model, init="preserve", example=X)
    assert [entry.path for entry in report.swapped] == ["0.act"]
    assert not report.complete
    (entry,) = report.kept
    assert entry.path == "0"
    assert "test_called_kept.py:" in entry.reason
    assert KEPT[kind] in entry.reason
    assert type(model[0]) is kind
    assert set(vars(model[0])) == attributes
    assert torch.equal(model(X), before)


def test_a_class_without_source_is_listed() -> None:
    names: dict[str, type[nn.Module]] = {}
    code = "class NoSource(Part):\n    def forward(self, x):\n        return F.gelu(self.before(x))"
    exec(compile(code, "<nowhere>", "exec"), {"Part": Part, "F": F}, names)
    report = swap_activations(names["NoSource"](), example=X)
    assert [entry.reason for entry in report.kept] == ["called as a function in <nowhere>:3: its source is not at hand"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_an_activation_in_a_scripted_function_is_listed_though_no_trace_sees_it() -> None:
    scripted = torch.jit.script(_scripted)

    class CallsScripted(Part):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = scripted(self.before(x))
            return y

    report = swap_activations(CallsScripted(), example=X)
    assert [(entry.before, report.complete) for entry in report.kept] == [("relu", False)]
    assert report.kept[0].reason.endswith("in a scripted function")


def _scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


def test_an_activation_in_a_forward_hook_is_listed_with_and_without_an_example() -> None:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return F.gelu(output)

    for model, example in ((nn.Sequential(Plain()), X), (timm.create_model("test_resnet"), None)):
        next(model.children()).register_forward_hook(hook)
        report = swap_activations(model, example=example)
        line = hook.__code__.co_firstlineno + 1
        assert [f"test_called_kept.py:{line}" in entry.reason for entry in report.kept] == [True]
        assert not report.complete


class Raises(Part):
    def forward(self, x: Tensor) -> Tensor:
        F.gelu(self.before(x))
        raise KeyError("no")


@pytest.mark.parametrize(
    ("model", "example"), [(Raises(), X), (Plain(), None), (Plain(), torch.zeros(2, 7))], ids=lambda one: type(one)
)
def test_without_a_forward_pass_a_function_stays_and_is_listed(model: Part, example: Tensor | None) -> None:
    kind = type(model)
    report = swap_activations(model, example=example)
    assert [entry.path for entry in report.swapped] == ["act"]
    assert [entry.before for entry in report.kept] == ["gelu"]
    assert "give an example that reaches it" in report.kept[0].reason
    assert not report.complete
    assert type(model) is kind


def test_a_model_of_nothing_but_functions_that_stay_is_no_error() -> None:
    class OnlyFree(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return free_gelu(x)

    report = swap_activations(OnlyFree(), example=X)
    assert (report.swapped, len(report.kept), report.complete) == ([], 1, False)


# What stays because of what it is for does not count as missed


class HardSigmoid(Part):
    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return x * F.relu6(x + 3) / 6


class Kernel(Part):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.before(x)) + 1


class QueryKernel(Part):
    def forward(self, x: Tensor) -> Tensor:
        q = self.before(x)
        return F.relu(q)


class OnParameter(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.before(x) * F.softplus(self.scale)


class Gates(Part):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.before(x)) * torch.tanh(x) * F.softmax(x, -1) * F.hardsigmoid(x)


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        (HardSigmoid, ["gate"]),
        (Kernel, ["attention_kernel"]),
        (QueryKernel, ["attention_kernel"]),
        (OnParameter, ["position"]),
        (Gates, []),
    ],
)
def test_gates_kernels_and_parameters_stay_and_the_swap_is_complete(kind: type[Part], roles: list[str]) -> None:
    report = swap_activations(kind(), example=X)
    assert report.complete, str(report)
    assert [entry.role for entry in report.kept] == roles


def test_an_activation_in_squeeze_and_excite_is_known_as_such() -> None:
    class SELayer(Part):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.fc(F.relu(self.before(x))))

    report = swap_activations(SELayer(), example=X)
    assert {entry.path: entry.role for entry in report.swapped} == {"act": "se_hidden", "forward_relu": "se_hidden"}
