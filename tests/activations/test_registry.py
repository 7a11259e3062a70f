"""Names: complete, truthful, and helpful when wrong."""

import pytest
import timm.layers
import timm.layers.create_act as timm_activations
import torch
from torch import nn

from arelu_meta.activations import GatedAReLU
from arelu_meta.activations.registry import (
    ALIASES,
    PAPER_ACTIVATIONS,
    ActivationInfo,
    activation_info,
    create_activation,
    list_activations,
)
from arelu_meta.errors import InputError

INFOS = list_activations()
LEFT_OUT = {"GLU", "MultiheadAttention"}


def test_the_list_is_sorted_and_names_each_activation_and_each_alias_once() -> None:
    names = [info.name for info in INFOS]
    assert names == sorted(set(names))
    aliases = [alias for info in INFOS for alias in info.aliases]
    assert len({*names, *aliases}) == len(names) + len(aliases)
    assert {*aliases} == ALIASES.keys() - {"logsoftmax"}


@pytest.mark.parametrize("name", ["softmax", "softmax2d", "softmin", "log_softmax"])
def test_what_normalises_is_no_activation_but_can_be_created(name: str) -> None:
    assert name not in {info.name for info in INFOS}
    assert not activation_info(name).elementwise
    create_activation(name)


def test_everything_the_paper_compares_is_there() -> None:
    compared = {
        "apl",
        "celu",
        "elu",
        "gelu",
        "leaky_relu",
        "maxout",
        "mixture",
        "pau",
        "prelu",
        "relu",
        "relu6",
        "rrelu",
    }
    compared |= {"selu", "sigmoid", "slaf", "softplus", "swish", "tanh", "arelu"}
    today = {"silu", "mish", "hard_swish", "star_relu", "squared_relu", "acon_c"}
    assert set(PAPER_ACTIVATIONS) == compared
    assert compared | today | {"elsa"} <= {info.name for info in INFOS}


@pytest.mark.parametrize("class_name", sorted(set(nn.modules.activation.__all__) - LEFT_OUT))
def test_every_activation_of_torch_answers_to_its_own_name(class_name: str) -> None:
    assert isinstance(create_activation(class_name), getattr(nn, class_name))
    assert isinstance(create_activation(class_name.lower()), getattr(nn, class_name))


@pytest.mark.parametrize("name", sorted(timm_activations._ACT_LAYER_DEFAULT))
def test_every_activation_of_timm_answers_to_its_own_name_and_computes_the_same(name: str) -> None:
    assert name in {known for info in INFOS for known in (info.name, *info.aliases)}
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(create_activation(name)(x), timm_activations.create_act_layer(name)(x))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_the_list_tells_the_truth(info: ActivationInfo) -> None:
    module = create_activation(info.name)
    assert info.learnable == (len(list(module.parameters())) > 0)
    home, _, class_name = info.source.rpartition(".")
    if home == "torch.nn":
        assert isinstance(module, getattr(nn, class_name))
    elif home == "timm.layers":
        assert type(module) is getattr(timm.layers, class_name)
    else:
        assert info.source[-4:].isdigit()  # A paper: authors, year.
    for alias in info.aliases:
        assert type(module) is type(create_activation(alias))


def test_the_list_says_which_activations_look_across_channels() -> None:
    x = torch.randn(2, 4, 3, 3)
    moved = x.clone()
    moved[0, 0, 0, 0] += 10
    for info in INFOS:
        module = create_activation(info.name).eval()
        touched = int((module(moved) != module(x)).sum())
        assert info.elementwise == (touched <= 1), info.name


def test_listing_leaves_the_random_generator_alone() -> None:
    from arelu_meta.activations import registry

    registry.activation_info.cache_clear()
    before = torch.get_rng_state()
    list_activations()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^activation: 'areluu' is not known; nearest: 'arelu'$"):
        create_activation("areluu")


def test_an_unknown_base_of_elsa_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^activation base: 'gellu' is not known; nearest: 'gelu'$"):
        create_activation("elsa", base="gellu")


@pytest.mark.parametrize(("name", "why"), [("glu", "shape"), ("GLU", "shape"), ("MultiheadAttention", "three inputs")])
def test_what_cannot_be_used_as_an_activation_says_why(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        create_activation(name)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_inplace_device_and_dtype_are_accepted_everywhere(info: ActivationInfo) -> None:
    module = create_activation(info.name, inplace=False, device="cpu", dtype=torch.float64)
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())
    assert create_activation(info.name, inplace=True).training


def test_inplace_reaches_the_classes_that_have_it() -> None:
    for name in ("relu", "arelu", "leaky_relu", "silu"):
        assert repr(create_activation(name, inplace=True)).endswith("inplace=True)"), name


def test_an_unknown_argument_names_what_the_activation_takes() -> None:
    expected = r"^activation: 'leaky_relu' takes no 'slope'; it takes negative_slope, inplace, variant, device, dtype$"
    with pytest.raises(InputError, match=expected):
        create_activation("leaky_relu", slope=0.1)
    with pytest.raises(InputError, match="'mish' takes no 'variant'; it takes inplace, device, dtype"):
        create_activation("mish", variant="authors")


def test_a_value_that_the_class_refuses_is_a_readable_error() -> None:
    with pytest.raises(InputError, match=r"^alpha: 'large' is not allowed; give a number"):
        create_activation("arelu", alpha="large")
    with pytest.raises(InputError, match=r"'gelu' cannot be built from .*'approximate': 'tahn'"):
        create_activation("gelu", approximate="tahn")


@pytest.mark.parametrize("name", [*PAPER_ACTIVATIONS, "elsa"])
def test_what_the_paper_compares_takes_both_variants_and_no_third(name: str) -> None:
    create_activation(name, variant="paper")
    create_activation(name, variant="authors")
    with pytest.raises(InputError, match="activation variant: 'autors' is not known; it is 'paper' or 'authors'"):
        create_activation(name, variant="autors")


def test_arguments_reach_the_class() -> None:
    x = torch.tensor([-1.0])
    assert create_activation("leaky_relu", negative_slope=0.5)(x) == -0.5
    assert create_activation("threshold")(x) == 0
    assert create_activation("threshold", threshold=-2.0, value=7.0)(x) == -1
    assert create_activation("hard_tanh", min_val=-0.25)(x) == -0.25
    assert create_activation("softmax", dim=0)(x) == 1


def test_each_call_builds_a_module_of_its_own() -> None:
    first, second = create_activation("prelu"), create_activation("prelu")
    assert first.weight is not second.weight


def test_an_activation_by_name_serves_as_the_base_of_the_gated_residual() -> None:
    x = torch.randn(20)
    assert torch.equal(GatedAReLU(create_activation("mish"))(x), nn.functional.mish(x))
