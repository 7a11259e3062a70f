"""The gates on which nothing but the head depends."""

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import InputError
from experiments.init_study.before_head import gates_before_head, open_last_gates


def _open(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, GatedAReLU) and module.t.item() == 1}


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("tf_efficientnet_lite0", {"bn2.act"}),  # inside a norm-act layer
        ("mobilenetv3_small_050", {"act2"}),  # after the pooling
        ("test_resnet", {"layer4.0.act2"}),  # after the residual sum
        ("test_vit", set()),  # ends in a norm, whose weights are pretrained
        ("test_convnext", set()),
        ("test_vit2", set()),
    ],
)
def test_last_opens_what_only_the_head_follows(name: str, opened: set[str]) -> None:
    model = create_backbone(name, num_classes=3, activation="arelu", init="preserve")
    open_last_gates(model)
    assert _open(model) == opened
    gates = [module for module in model.modules() if isinstance(module, GatedAReLU)]
    assert {gate.t.item() for gate in gates} == ({0.0, 1.0} if opened else {0.0})


def test_last_keeps_every_feature_below_the_gate_to_the_last_bit() -> None:
    torch.manual_seed(0)
    plain = create_backbone("tf_efficientnet_lite0", num_classes=3).eval()
    swapped = create_backbone("tf_efficientnet_lite0", num_classes=3, activation="arelu", init="preserve").eval()
    swapped.load_state_dict(plain.state_dict(), strict=False)
    open_last_gates(swapped)
    taken: list[Tensor] = []
    for model in (plain, swapped):
        act = model.get_submodule("bn2.act")
        act.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].clone()))
        with torch.no_grad():
            model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(*taken)


class _WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.act1, self.neck, self.act2 = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()
        self.head = nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.body(x))
        return self.head(self.act2(self.neck(x)) + x)  # type: ignore[no-any-return]


def test_an_output_that_a_pretrained_layer_takes_too_stays_shut() -> None:
    """act1 reaches the head both directly and through the neck."""
    model = _WithHead()
    swap_activations(model, init="preserve", trace=False)
    open_last_gates(model, torch.zeros(1, 3))
    assert _open(model) == {"act2"}


def test_a_frozen_layer_counts_as_pretrained() -> None:
    model = _WithHead().requires_grad_(False)
    swap_activations(model, init="preserve", trace=False)
    open_last_gates(model, torch.zeros(1, 3))
    assert _open(model) == {"act2"}
    assert not model.neck.weight.requires_grad


def test_an_open_gate_over_relu_is_arelu_as_published() -> None:
    model = _WithHead()
    swap_activations(model, init="preserve", trace=False)
    open_last_gates(model, torch.zeros(1, 3))
    x = torch.randn(5, 4)
    torch.testing.assert_close(model.act2(x), AReLU()(x))


def test_last_leaves_mode_statistics_and_hooks_as_they_were() -> None:
    model = create_backbone("test_resnet", num_classes=3, activation="arelu", init="preserve").train()
    model.get_submodule("layer1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(gates_before_head(model)) == 1
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_swap_can_be_taken_back_and_done_again() -> None:
    model = create_backbone("test_resnet", num_classes=3).eval()
    x = torch.randn(2, 3, 160, 160)
    before = model(x)
    swap_activations(model, init="preserve")
    open_last_gates(model)
    once = model(x)
    assert not torch.equal(once, before)
    unswap(model)
    assert torch.equal(model(x), before)
    swap_activations(model, init="preserve")
    open_last_gates(model)
    assert torch.equal(model(x), once)


def test_without_an_example_a_model_that_does_not_say_what_it_takes_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    swap_activations(model, init="preserve", trace=False)
    with pytest.raises(InputError, match="example: Sequential does not say what it takes; give an input of it"):
        open_last_gates(model)


def test_an_example_that_the_model_cannot_take_is_refused() -> None:
    model = _WithHead()
    swap_activations(model, init="preserve", trace=False)
    with pytest.raises(InputError, match="example: the model cannot take it"):
        open_last_gates(model, torch.zeros(1, 7))


def test_a_sequential_that_ends_in_a_linear_layer_has_that_as_its_head() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    swap_activations(model, init="preserve", trace=False)
    open_last_gates(model, torch.zeros(1, 3))
    assert _open(model) == {"3"}
