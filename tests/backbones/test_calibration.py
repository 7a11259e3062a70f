"""Starts that look at images, what they change, and what is refused."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.calibration import reestimate_batch_norm
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import InputError


def network(act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), act or nn.SiLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(64, 4) for _ in range(3)]


def test_fit_minimises_the_squared_error_on_the_layers_own_inputs(batches: list[Tensor]) -> None:
    model = network().eval()
    x = model[0](torch.cat(batches)).detach()
    y = model[1](x)
    swap_activations(model, "arelu", init="fit", data=batches)
    act = model.get_submodule("1")
    assert isinstance(act, AReLU)

    def error(alpha: float, beta: float) -> float:
        return float((AReLU(alpha, beta)(x) - y).detach().square().sum())

    alpha, beta = act.alpha.item(), act.beta.item()
    best = error(alpha, beta)
    for change in (-0.02, 0.02):
        assert error(max(alpha + change, 0.01), beta) >= best
        assert error(alpha, max(beta + change, -6.0)) >= best


def test_fit_recovers_an_arelu_exactly(batches: list[Tensor]) -> None:
    model = network(nn.Sequential(nn.LeakyReLU(0.3))).eval()
    before = model(batches[0])
    report = swap_activations(model, "arelu", init="fit", data=batches)
    # The slope 1 above 0 is AReLU's limit for beta → −∞; a start goes no further than −6.
    assert report.swapped[0].alpha == pytest.approx(0.3, abs=1e-5)
    assert report.swapped[0].beta == pytest.approx(-6)
    torch.testing.assert_close(model(batches[0]), before, rtol=0.02, atol=0.02)


def test_fit_takes_labels_along_without_looking_at_them_and_a_single_batch_too(batches: list[Tensor]) -> None:
    results = []
    for data in (batches, [(batch, torch.zeros(64)) for batch in batches], torch.cat(batches)):
        model = network().eval()
        results.append(swap_activations(model, "arelu", init="fit", data=data).swapped[0])
    assert results[0].alpha == results[1].alpha == pytest.approx(results[2].alpha)
    assert results[0].beta == results[1].beta == pytest.approx(results[2].beta)


def test_each_call_of_one_module_is_fitted_to_its_own_inputs(batches: list[Tensor]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(4, 8), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(100 * self.act(0.1 * self.fc(x)))
            return y

    report = swap_activations(Twice(), "arelu", init="fit", data=batches)
    assert [entry.path for entry in report.swapped] == ["act.0", "act.1"]
    # Near 0 a GELU is half a line; far out it is a ReLU.
    assert report.swapped[0].alpha is not None
    assert report.swapped[1].alpha is not None
    assert report.swapped[0].alpha > 0.3 > report.swapped[1].alpha
    assert all(entry.drift is not None for entry in report.swapped)


@pytest.mark.parametrize("init", ["preserve", "paper", "nearest", "fit"])
def test_the_report_says_how_far_features_and_logits_moved(init: str, batches: list[Tensor]) -> None:
    model = network(nn.ReLU()).eval()
    before = model(batches[0]).detach()
    hidden = model[1](model[0](batches[0])).detach()
    report = swap_activations(model, "arelu", init=init, data=batches)  # type: ignore[arg-type]
    after = model[1](model[0](batches[0])).detach()
    assert report.logit_drift == pytest.approx(
        float((model(batches[0]).detach() - before).norm() / before.norm()), rel=1e-4
    )
    assert report.swapped[0].drift == pytest.approx(float((after - hidden).norm() / hidden.norm()), rel=1e-4)
    assert (report.logit_drift == 0) == (init == "preserve")
    assert "logits moved by" in str(report)


def test_starts_come_nearer_in_the_order_paper_nearest_fit() -> None:
    """On a pretrained network, by the change of its logits."""
    x = torch.randn(4, 3, 64, 64)
    drift = {}
    for init in ("paper", "nearest", "fit"):
        model = create_backbone("tf_efficientnet_lite0", pretrained=True)
        drift[init] = swap_activations(model, "arelu", init=init, data=[x]).logit_drift or 0.0
    assert drift["fit"] < drift["paper"]
    assert drift["nearest"] < drift["paper"]


def test_batch_norm_is_re_estimated_on_request_and_nothing_else_changes(batches: list[Tensor]) -> None:
    model, other = network().train(), network().train()
    swap_activations(model, "arelu", init="paper", data=batches, batch_norm=True)
    swap_activations(other, "arelu", init="paper", data=batches)
    assert all(module.training for module in model.modules())
    norm, kept = model[3], other[3]
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(kept, nn.BatchNorm1d)
    features = torch.stack([model[2](model[1](model[0](batch))) for batch in batches]).detach()
    torch.testing.assert_close(norm.running_mean, features.mean(1).mean(0))
    torch.testing.assert_close(norm.running_var, features.var(1).mean(0))
    assert norm.momentum == 0.1
    assert torch.equal(kept.running_mean, torch.zeros(16))  # type: ignore[arg-type]
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_re_estimating_a_network_without_batch_norm_does_nothing() -> None:
    assert reestimate_batch_norm(nn.Sequential(nn.Linear(2, 2)), [torch.zeros(1, 2)]) == 0


# What is refused, and leaves the model as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "fit"}, "init: 'fit' looks at images; give data="),
        ({"batch_norm": True}, "batch_norm: True looks at images; give data="),
        ({"init": "fit", "data": []}, "data: it holds no batch; give at least one"),
        ({"init": "fit", "data": ["photo.jpg"]}, "data: expected batches of images, got str; give tensors"),
        ({"init": "fit", "data": torch.zeros(3, 7)}, r"data: the model cannot take it \(.*shapes.*\)"),
        ({"batch_norm": True, "data": [torch.zeros(3, 4), torch.zeros(3, 7)]}, "data: the model cannot take it"),
        ({"share": "modul"}, "share: 'modul' is not known; nearest: 'module'"),
    ],
)
def test_data_that_does_not_fit_is_named_and_the_model_is_as_it_was(arguments: dict[str, object], message: str) -> None:
    model = network()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        swap_activations(model, "arelu", **arguments)  # type: ignore[arg-type]
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert not model._forward_pre_hooks


def scripted() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def frozen() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(scripted().eval())  # type: ignore[no-any-return]


def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager")  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.compile(backend="eager")
    return model


def parametrised() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "is scripted or frozen and cannot be changed; swap before torch.jit"),
        (lambda: nn.Sequential(scripted(), nn.ReLU()), "'0' is scripted or frozen"),
        (frozen, "is scripted or frozen"),
        (compiled, "is under torch.compile already; swap before it"),
        (compiled_in_place, "is under torch.compile already; swap before it"),
        (
            lambda: nn.Sequential(nn.LazyLinear(3), nn.ReLU()),
            "has lazy layers that have not seen an input",
        ),
        (parametrised, "'1' is parametrised; remove its parametrisation before the swap, or exclude it"),
    ],
)
def test_a_model_that_cannot_be_changed_is_refused_in_a_sentence(make: object, message: str) -> None:
    model = make()  # type: ignore[operator]
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match=message) as caught:
        swap_activations(model, "arelu", trace=False)
    assert "\n" not in str(caught.value)
    assert [name for name, _ in model.named_modules()] == before


def test_parametrised_weights_around_an_activation_are_no_obstacle() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    x = torch.randn(2, 4)
    before = model(x)
    assert swap_activations(model, "arelu", init="preserve", example=x).complete
    assert torch.equal(model(x), before)


def test_buffers_of_a_replaced_module_carry_over() -> None:
    model = network(nn.ReLU())
    model[1].register_buffer("seen", torch.tensor(3.0))
    swap_activations(model, "arelu", init="paper", trace=False)
    assert model.state_dict()["1.seen"] == 3


def test_an_error_while_rewriting_leaves_timms_classes_alone() -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilevitv2_050")
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match="matches no activation"):
        swap_activations(model, "arelu", include=["nowhere"])
    assert [type(module) for module in model.modules()] == kinds


def test_unswap_after_fit_gives_back_the_original_bit_for_bit(batches: list[Tensor]) -> None:
    model = network()
    model.eval()
    before = model(batches[0])
    swap_activations(model, "arelu", init="fit", data=batches)
    assert not any(isinstance(module, GatedAReLU) for module in model.modules())
    unswap(model)
    assert torch.equal(model(batches[0]), before)
