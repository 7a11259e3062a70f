"""timm's own function calls: led to activations, on every path that takes them, and back."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.swap import swap_activations, unswap

TAPPED = {
    "nasnetalarge": {"num_stem_features": 8, "num_features": 96},
    "pnasnet5large": {},
    "legacy_xception": {},
}


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("mobilevitv2_050", num_classes=5).eval()
    return model


def open_every_gate(model: nn.Module, value: float = 1.0) -> None:
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            nn.init.constant_(module.t, value)


def test_mobilevits_values_get_an_activation_of_their_own_that_learns(mobile: nn.Module) -> None:
    model = copy.deepcopy(mobile)
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    report = swap_activations(model, "arelu", init="preserve")
    values = [entry.path for entry in report.swapped if entry.path.endswith("value_act")]
    assert len(values) == 2 + 4 + 3
    assert report.complete
    assert torch.equal(model(x), before)
    model(x).square().sum().backward()
    assert all(model.get_parameter(f"{path}.t").grad is not None for path in values)
    open_every_gate(model)
    assert not torch.allclose(model(x), before)


def test_a_rewritten_model_is_still_timms_and_can_be_copied_pickled_and_unswapped(mobile: nn.Module) -> None:
    model = copy.deepcopy(mobile)
    x = torch.randn(2, 3, 64, 64)
    before, keys = model(x), set(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    swap_activations(model, "arelu", init="paper")
    swapped = model(x)
    attention = next(m for m in model.modules() if type(m).__name__ == "LinearSelfAttention")
    assert isinstance(attention, timm.models.mobilevit.LinearSelfAttention)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), swapped)
        unswap(other)
        assert torch.equal(other(x), before)
        assert set(other.state_dict()) == keys
        assert [type(module) for module in other.modules()] == kinds
    assert torch.equal(model(x), swapped)


@pytest.mark.parametrize("name", TAPPED)
def test_the_taps_between_cells_use_the_activation_of_the_next_cell(name: str) -> None:
    """On the path of `forward_intermediates`, as timm's feature hooks do."""
    with torch.device("meta"):
        model = timm.create_model(name)
    report = swap_activations(model, "arelu", init="paper")
    assert report.complete
    called: list[str] = []
    paths = [info["module"] for info in model.feature_info][1:-1]
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
    calls = []
    relu = torch.nn.functional.relu
    try:
        torch.nn.functional.relu = lambda *a, **k: calls.append(a) or relu(*a, **k)  # type: ignore[func-returns-value]
        with torch.no_grad():
            model.eval().forward_intermediates(
                torch.zeros(1, 3, 96, 96, device="meta"), indices=[1, 2], stop_early=True
            )
    finally:
        torch.nn.functional.relu = relu
    assert calls == []
    # The second tap is the features' end, too; where cells come between, the first one's is called by its cell.
    assert {path for path in paths if path in called} >= {paths[0], paths[1]}
    unswap(model)
    assert not any(hasattr(type(module), "_arelu_meta_original") for module in model.modules())


@pytest.mark.parametrize("name", ["nasnetalarge", "pnasnet5large"])
def test_a_pruned_network_keeps_its_last_taps_activation(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    swap_activations(model, "arelu", init="paper")
    model.prune_intermediate_layers([1])
    scalars = {key for key, _ in model.named_parameters() if key.startswith("tap_act.")}
    assert scalars == {"tap_act.alpha", "tap_act.beta"}
    called: list[bool] = []
    model.get_submodule("tap_act").register_forward_hook(lambda *_: called.append(True))
    model.eval().forward_features(torch.zeros(1, 3, 96, 96, device="meta"))
    assert called
