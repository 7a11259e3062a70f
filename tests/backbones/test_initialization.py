"""How a swapped-in activation starts."""

import re
from typing import Any, get_args

import pytest
import timm.models.metaformer
import torch
from torch import Tensor, nn

from arelu_meta import config, create_backbone
from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.initialization import (
    INITS,
    fold,
    leak_init,
    nearest_init,
    open_gates,
    open_init,
    paper_init,
    preserve_init,
)
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import InputError


def test_what_the_command_line_offers_is_what_there_is() -> None:
    assert set(get_args(config.Init)) == set(INITS)


@pytest.mark.parametrize("original", [nn.ReLU(), nn.GELU(), nn.PReLU(4), nn.ReLU6()])
def test_the_papers_start_is_the_papers_whatever_it_replaces(original: nn.Module) -> None:
    after = paper_init(original)
    assert type(after) is AReLU
    assert after.alpha.tolist() == pytest.approx([0.9])
    assert after.beta.tolist() == [2.0]


@pytest.mark.parametrize("inplace", [False, True])
def test_the_papers_start_works_in_place_where_the_original_did(inplace: bool) -> None:
    after = paper_init(nn.ReLU(inplace=inplace))
    assert isinstance(after, AReLU)
    assert after.inplace is inplace


@pytest.mark.parametrize("init", INITS)
def test_every_start_takes_device_and_dtype(init: str) -> None:
    after = INITS[init](nn.ReLU(), device=torch.device("meta"), dtype=torch.float16)
    assert {(p.device.type, p.dtype, tuple(p.shape)) for p in after.parameters()} == {("meta", torch.float16, (1,))}


@pytest.mark.parametrize("init", INITS)
def test_every_start_learns(init: str) -> None:
    assert all(p.requires_grad for p in INITS[init](nn.ReLU()).parameters())


def test_preserve_starts_with_a_closed_gate_over_the_same_function() -> None:
    after = preserve_init(nn.Hardtanh(-0.3, 0.7))
    assert isinstance(after, GatedAReLU)
    assert after.t.tolist() == [0.0]
    x = torch.randn(100)
    assert torch.equal(after(x), x.clamp(-0.3, 0.7))


def test_preserve_opens_to_the_papers_start() -> None:
    """With the gate at 1 over ReLU it is AReLU as published."""
    after = preserve_init(nn.ReLU())
    with torch.no_grad():
        after.get_parameter("t").fill_(1.0)
    x = torch.randn(100)
    torch.testing.assert_close(after(x), AReLU()(x))


def test_preserve_copies_the_original_and_leaves_it_alone() -> None:
    original = nn.PReLU(3, init=0.1)
    after = preserve_init(original)
    with torch.no_grad():
        after.get_parameter("base.weight").fill_(9.0)
    assert original.weight.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("original", [nn.ReLU(True), nn.SiLU(True), timm.models.metaformer.StarReLU(inplace=True)])
def test_preserve_over_an_in_place_original_overwrites_nothing(original: nn.Module) -> None:
    after = preserve_init(original)
    x = torch.randn(50)
    before = x.clone()
    y = after(x)
    assert torch.equal(x, before)
    assert torch.equal(y, original(before.clone()))
    assert any(getattr(module, "inplace", False) for module in original.modules())


def test_preserve_leaves_hooks_to_the_module_that_takes_over() -> None:
    ran: list[str] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran.append(type(module).__name__)

    original = nn.ReLU()
    original.register_forward_hook(note)
    preserve_init(original)(torch.randn(3))
    assert ran == []
    original(torch.randn(3))
    assert ran == ["ReLU"]


# The leak


@pytest.mark.parametrize("original", [nn.ReLU(True), nn.ReLU6(), nn.GELU(), nn.Hardswish(True), nn.PReLU()])
def test_the_leak_adds_its_slope_below_zero_and_next_to_nothing_above(original: nn.Module) -> None:
    after = leak_init(original)
    x = torch.randn(1000, dtype=torch.float64)
    expected = original(x.clone().float()).double() + 0.18 * x.clamp(max=0)
    assert (after(x.float()).double() - expected).abs().max().item() < 0.0005 * x.abs().max().item() + 1e-6


def test_all_that_the_leak_adds_learns_at_once() -> None:
    """A gate at 0 gives alpha and beta no gradient; this one does."""
    after = leak_init(nn.ReLU())
    after(torch.randn(100)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.item() != 0 for parameter in after.parameters())


def test_the_leak_lets_gradients_pass_where_relu_blocks_them() -> None:
    x = torch.full((5,), -1.0, requires_grad=True)
    leak_init(nn.ReLU())(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((5,), 0.18))


def test_an_open_gate_adds_nearly_the_same_on_both_sides() -> None:
    x = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(open_init(nn.ReLU())(x), torch.tensor([-0.18, 1.18]), atol=0.01, rtol=0)


@pytest.mark.parametrize("init", ["leak", "open"])
def test_an_opened_start_is_taken_back_to_the_last_bit(init: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(), nn.Linear(288, 2)).eval()
    x = torch.randn(4, 3, 8, 8)
    before = model(x)
    swap_activations(model, init=init, trace=False)  # type: ignore[arg-type]
    assert not torch.equal(model(x), before)
    unswap(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("init", ["leak", "open"])
def test_with_images_an_opened_start_finds_the_statistics_that_follow_it_anew(init: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(64, 3, 8, 8)
    swap_activations(model, init=init, data=images, batch_norm=True, trace=False)  # type: ignore[arg-type]
    y = model.eval()(images)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


# The nearest AReLU


@pytest.mark.parametrize(
    ("original", "alpha", "beta"),
    [
        (nn.LeakyReLU(0.2), 0.2, -6.0),  # slope 1 above 0 is AReLU's limit
        (nn.ReLU(), 0.01, -6.0),
        (nn.PReLU(5, init=0.4), 0.4, -6.0),
        (AReLU(0.35, 1.5), 0.35, 1.5),
        (nn.Identity(), 0.99, -6.0),
        (nn.ReLU6(), 0.01, -6.0),
    ],
)
def test_nearest_finds_the_slopes_where_an_arelu_has_them(original: nn.Module, alpha: float, beta: float) -> None:
    after = nearest_init(original)
    assert isinstance(after, AReLU)
    assert after.alpha.item() == pytest.approx(alpha, abs=1e-6)
    assert after.beta.item() == pytest.approx(beta, abs=1e-4)


@pytest.mark.parametrize("original", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.Softplus(), nn.Tanh()])
def test_nearest_is_the_least_squares_solution_over_normal_inputs(original: nn.Module) -> None:
    after = nearest_init(original)
    assert isinstance(after, AReLU)
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)

    def error(alpha: float, beta: float) -> float:
        return float((AReLU(alpha, beta, dtype=torch.float64)(x) - original(x)).detach().square().mean())

    alpha, beta = after.alpha.item(), after.beta.item()
    best = error(alpha, beta)
    for change in (-0.05, 0.05):
        assert error(min(max(alpha + change, 0.01), 0.99), beta) >= best - 1e-9
        assert error(alpha, max(beta + change, -6.0)) >= best - 1e-9


def test_nearest_leaves_the_original_and_its_dtype_alone() -> None:
    original = nn.PReLU(3, dtype=torch.bfloat16)
    nearest_init(original)
    assert original.weight.dtype == torch.bfloat16


# Folding and opening gates


@pytest.mark.parametrize("base", [nn.ReLU(), nn.LeakyReLU(0.1)])
@pytest.mark.parametrize(("alpha", "beta", "t"), [(0.9, 2.0, 1.0), (0.5, -1.0, 0.3), (0.2, 0.0, 0.9), (3.0, 1.0, 0.5)])
def test_a_trained_gate_over_relu_folds_into_the_arelu_of_the_same_values(
    base: nn.Module, alpha: float, beta: float, t: float
) -> None:
    gated = GatedAReLU(base, alpha, beta, t)
    if isinstance(base, nn.LeakyReLU) and alpha > 0.85:
        t = 0.5
        nn.init.constant_(gated.t, t)
    folded = gated.fold()
    assert isinstance(folded, AReLU)
    x = torch.randn(1000)
    torch.testing.assert_close(folded(x), gated(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "gated",
    [
        GatedAReLU(nn.ReLU()),  # t = 0: plain ReLU, whose slope below 0 no AReLU has
        GatedAReLU(nn.ReLU(), t=-0.5),
        GatedAReLU(nn.ReLU(), t=1.5),  # slope 1.5 · sigmoid(2) > 1 above
        GatedAReLU(nn.GELU(), t=0.5),
        GatedAReLU(nn.ReLU6(), t=0.5),
    ],
)
def test_a_gate_whose_function_no_arelu_has_stays(gated: GatedAReLU) -> None:
    with pytest.raises(ValueError, match="AReLU"):
        gated.fold()


def test_fold_takes_what_can_be_folded_and_keeps_the_function() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    original = dict(model.named_modules())
    swap_activations(model, init="preserve", trace=False)
    open_gates(model, 0.3, share=0.5)
    x = torch.randn(5, 3)
    before = model(x)
    assert fold(model) == ["1"]
    assert [type(model[1]), type(model[3])] == [AReLU, GatedAReLU]
    torch.testing.assert_close(model(x), before)
    unswap(model)
    assert dict(model.named_modules()) == original


def test_gates_open_over_their_share_of_the_training_and_do_not_learn() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    swap_activations(model, init="preserve", trace=False)
    assert [open_gates(model, progress, share=0.5) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    gate = model.get_parameter("1.t")
    assert (gate.item(), gate.requires_grad) == (1.0, False)
    torch.testing.assert_close(model[1](torch.tensor([-2.0, 3.0])), AReLU()(torch.tensor([-2.0, 3.0])))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share: {share} is not allowed; give a number above 0 and at most 1"):
        open_gates(nn.ReLU(), 0.5, share)


@pytest.mark.parametrize(
    ("base", "t", "why"),
    [(nn.ReLU6(), 0.5, "only over ReLU can a gate be folded"), (nn.ReLU(), 0.0, r"t: 0 gives the slopes 1 and 0")],
)
def test_a_gate_that_is_not_folded_is_listed_with_why(base: nn.Module, t: float, why: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), GatedAReLU(base, t=t), GatedAReLU(nn.ReLU(), t=0.5))
    folded = fold(model)
    assert folded == ["2"]
    assert list(folded.kept) == ["1"]
    assert re.search(why, folded.kept["1"])
    assert str(folded).splitlines()[0] == "2: folded"
    assert str(folded).splitlines()[-1] == "1 folded, 1 stay"


def test_a_folded_gate_whose_input_is_read_again_still_overwrites_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = x + 1
            y: Tensor = self.act(h)
            return h + 2 * y

    model, x = Residual(), torch.randn(5, 3)
    swap_activations(model, init="preserve", example=x)
    nn.init.constant_(model.get_parameter("act.t"), 0.5)
    before = model(x)
    assert fold(model) == ["act"]
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("init", ["paper", "preserve", "open", "leak"])
def test_alpha_and_beta_start_where_they_are_asked_to(init: config.Init) -> None:
    model = create_backbone("mnist_conv", in_chans=1, activation="arelu", init=init, alpha=0.25, beta=-1.0)
    scalars = [
        (module.alpha.item(), module.beta.item())
        for module in model.modules()
        if isinstance(module, AReLU | GatedAReLU)
    ]
    assert scalars == [(0.25, -1.0)] * 3
    # A second swap to other values replaces the first.
    swap_activations(model, "arelu", init=init, alpha=0.5)
    assert {module.alpha.item() for module in model.modules() if isinstance(module, AReLU | GatedAReLU)} == {0.5}


def test_preserve_keeps_every_bit_from_any_start() -> None:
    model = create_backbone("mnist_conv", in_chans=1).eval()
    images = torch.rand(2, 1, 28, 28)
    before = model(images)
    swap_activations(model, "arelu", init="preserve", alpha=0.1, beta=-3.0)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, r"alpha: 1\.5 is not allowed; give 0\.01 to 0\.99"),
        ({"beta": float("nan")}, "beta: nan is not allowed; give -20 to 20"),
        ({"alpha": 0.5, "init": "nearest"}, r"alpha: 0\.5, and init 'nearest' computes its own; leave one out"),
        ({"beta": 1.0, "activation": "gelu"}, r"beta: 1\.0 is of an AReLU, and 'gelu' has none; leave it out"),
        ({"beta": 1.0, "activation": "control:gain"}, r"beta: 1\.0 is of an AReLU, and 'control:gain' has none"),
        ({"beta": 1.0, "activation": None}, "alpha, beta: they start an AReLU; give activation='arelu' with them"),
    ],
)
def test_a_start_of_alpha_or_beta_that_goes_nowhere_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_backbone("mnist_conv", in_chans=1, **{"activation": "arelu", **changes})


def test_elsa_goes_over_any_activation_by_its_name() -> None:
    model = create_backbone("mnist_conv", in_chans=1, activation="elsa:relu6", alpha=0.5, beta=0.0)
    first = model.get_submodule("features.2")
    x = torch.tensor([-2.0, 1.0, 8.0])
    assert torch.allclose(first(x), torch.tensor([-1.0, 1.5, 10.0]))
    report = swap_activations(create_backbone("mnist_conv", in_chans=1), "elsa:relu6")
    assert report.swapped[0].after == "ELSA(ReLU6)"
    assert report.swapped[0].alpha == pytest.approx(0.9)
    assert report.parameters_added == 6
    with pytest.raises(InputError, match=r"'elsa:rely6': base: 'rely6' is not known; .*relu6"):
        create_backbone("mnist_conv", in_chans=1, activation="elsa:rely6")
