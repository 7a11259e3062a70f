"""What one traced forward sees of a model: its calls, its functions; and what it is run with."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.backbones.call_tracing import example_input, functional_activations, trace_calls
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import swap_activations


class Calls(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.drop(self.function(self.norm(self.first(x)))))
        return logits


def trace(model: nn.Module, example: Tensor | None = None) -> list[tuple[str, str]] | None:
    found = functional_activations(model, torch.randn(2, 3) if example is None else example)
    return None if found is None else [(call.owner, call.function) for call in found]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: x.relu_(), "relu"),
        (torch.relu_, "relu"),
        (F.relu6, "relu6"),
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
        (F.silu, "silu"),
        (F.mish, "mish"),
        (F.hardswish, "hardswish"),
        (F.leaky_relu, "leaky_relu"),
        (F.elu, "elu"),
        (F.selu, "selu"),
        (F.celu, "celu"),
        (F.softplus, "softplus"),
        (F.hardtanh, "hardtanh"),
    ],
)
def test_an_activation_called_as_a_function_is_found_once_under_its_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    assert trace(Calls(function)) == [("", name)]


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, torch.exp, lambda x: x * 2, lambda x: F.softmax(x, -1)]
)
def test_gates_and_plain_arithmetic_are_no_hidden_activations(function: Callable[[Tensor], Tensor]) -> None:
    assert trace(Calls(function)) == []


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.PReLU(), nn.SELU()])
def test_what_an_activation_module_calls_inside_does_not_count(module: nn.Module) -> None:
    assert trace(Calls(module)) == []


def test_the_owner_is_the_module_whose_code_makes_the_call() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Identity(), Calls(F.relu)), nn.Linear(2, 3), Calls(F.gelu))
    assert trace(model) == [("1.1", "relu"), ("3", "gelu")]


def test_every_call_counts_in_the_order_of_the_forward_pass() -> None:
    assert trace(Calls(lambda x: F.relu(F.silu(F.relu(x))))) == [("", "relu"), ("", "silu"), ("", "relu")]


def test_a_function_over_a_parameter_is_no_layers_activation() -> None:
    scale = nn.Parameter(torch.ones(4))
    assert trace(Calls(lambda x: x * F.softplus(scale))) == []


def test_a_model_without_functions_has_none() -> None:
    assert trace(timm.create_model("test_resnet"), torch.zeros(1, 3, 32, 32)) == []


def test_the_model_is_left_as_it_was() -> None:
    model = Calls(F.relu).train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert [model.training, model.norm.training, model.drop.training] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError])
def test_a_forward_pass_that_fails_is_told_as_none_and_leaves_the_model_as_it_was(error: type[Exception]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("no")

    model = Calls(fail).train()
    assert trace(model) is None
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    # The recorder is off again: later calls are nobody's business.
    assert F.relu(torch.tensor(-1.0)).item() == 0


def test_an_example_of_the_wrong_shape_is_told_as_none() -> None:
    assert trace(Calls(F.relu), torch.zeros(2, 7)) is None


# Examples


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 160), ("test_vit", 160), ("mnist_conv", 28)])
def test_an_example_has_the_size_that_the_model_asks_for(name: str, size: int) -> None:
    model = create_backbone(name)
    example = example_input(model)
    assert isinstance(example, Tensor)
    assert example.shape == (1, 3, size, size)
    assert model.eval()(example).shape[0] == 1
    again = example_input(model)
    assert isinstance(again, Tensor)
    assert torch.equal(again, example)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "conv4"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_example_has_the_models_own_channels(name: str, channels: int) -> None:
    model = create_backbone(name, in_chans=channels)
    example = example_input(model)
    assert isinstance(example, Tensor)
    assert example.shape[1] == channels
    assert trace(model, example) == []


def test_an_example_follows_dtype_and_device() -> None:
    example = example_input(create_backbone("test_resnet").to(torch.bfloat16))
    assert isinstance(example, Tensor)
    assert example.dtype == torch.bfloat16
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    example = example_input(model)
    assert isinstance(example, Tensor)
    assert example.device.type == "meta"


def test_a_model_that_does_not_say_what_it_takes_has_no_example() -> None:
    assert example_input(nn.Linear(3, 3)) is None
    assert example_input(nn.ReLU()) is None


class Configured(nn.Module):
    """What a vision model of Hugging Face says of its input, and how it is called and answers."""

    main_input_name = "pixel_values"

    def __init__(self, image_size: object = 32, num_channels: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=image_size, num_channels=num_channels)
        self.embed, self.act, self.head = nn.Conv2d(num_channels, 4, 16, 16), GELUActivation(), nn.Linear(4, 2)

    def forward(self, pixel_values: Tensor | None = None, return_dict: bool = True) -> dict[str, Tensor]:
        assert pixel_values is not None
        return {"logits": self.head(self.act(self.embed(pixel_values)).mean((2, 3)))}


class GELUActivation(nn.Module):
    """Stands where transformers has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


GELUActivation.__module__ = "transformers.activations"


@pytest.mark.parametrize(
    ("image_size", "channels", "shape"), [(32, 3, (3, 32, 32)), ((32, 48), 1, (1, 32, 48)), ([16, 16], 3, (3, 16, 16))]
)
def test_a_model_of_hugging_face_is_swapped_and_checked_without_an_example(
    image_size: object, channels: int, shape: tuple[int, ...]
) -> None:
    model = Configured(image_size, channels).eval()
    example = example_input(model)
    assert isinstance(example, dict)
    assert [(name, image.shape) for name, image in example.items()] == [("pixel_values", (1, *shape))]
    before = model(**example)["logits"]
    report = swap_activations(model, init="preserve")
    assert [entry.before for entry in report.swapped] == ["GELUActivation"]
    assert report.complete
    assert report.notes == []
    assert torch.equal(model(**example)["logits"], before)


def test_a_text_model_of_hugging_face_has_no_example_and_the_report_says_so() -> None:
    model = Configured()
    model.config = SimpleNamespace(vocab_size=10)
    report = swap_activations(model, init="preserve")
    assert [entry.path for entry in report.swapped] == ["act"]
    assert not report.complete
    assert any("does not say what it takes (give example=)" in note for note in report.notes)


# Both modes


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.act(x), p=0.5, training=self.training)
        y: Tensor = self.act(x) if self.training else x
        return y


def test_a_forward_that_branches_on_training_is_traced_in_both_modes() -> None:
    found = trace_calls(Branches(), torch.randn(2, 3))
    assert [len(trace.calls["act"]) for trace in found.both()] == [1, 2]


def test_a_training_forward_that_fails_is_told_and_the_rest_is_known() -> None:
    class NeedsTargets(Branches):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training, "targets should not be None"
            return super().forward(x)

    model = NeedsTargets()
    report = swap_activations(model, init="paper", example=torch.randn(2, 3))
    assert report.complete
    assert report.notes == [
        "the model failed in training on the example (AssertionError: targets should not be None): "
        "what training alone calls is not known"
    ]


class Remembers(nn.Module):
    """Changes itself in its forward in every way that plain Python has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.steps = 0
        self.last: Tensor | None = None
        self.by_device: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.tied(self.first(x))))
        self.steps += 1
        self.last = y
        self.by_device[str(y.device)] = y
        self.seen.append(y)
        self.register_buffer("late", y)
        self.add_module("grown", nn.ReLU())
        return y


@pytest.mark.parametrize("before", [False, True], ids=["fresh", "after a forward with a graph"])
def test_what_a_forward_changes_stays_on_the_copy(before: bool) -> None:
    model, hooked = Remembers(), []
    model.act.register_forward_hook(lambda *_: hooked.append(1))
    if before:
        model(torch.randn(2, 3))
        del model.grown, model.late
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, seen, generator = dict(vars(model)), list(model.seen), torch.get_rng_state()
    assert trace_calls(model, torch.ones(2, 3)).failure == ""
    assert dict(vars(model)) == attributes
    assert len(model.seen) == len(seen)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert model.tied.weight is model.first.weight
    assert len(hooked) == before


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "levit_128s", "sequencer2d_s"])
def test_a_network_gives_the_same_logits_after_a_look_as_before(name: str) -> None:
    model = timm.create_model(name, num_classes=3, **({"layers": (1, 1, 1, 1)} if "seq" in name else {})).eval()
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        before = model(images)
        assert trace_calls(model, images).failure == ""
        assert torch.equal(model(images), before)
