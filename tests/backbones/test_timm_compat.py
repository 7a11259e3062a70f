"""What timm offers around a model goes on working after a swap."""

import copy
import io
import itertools
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torch.fx
from timm.layers import convert_sync_batchnorm
from timm.models._features_fx import FeatureGraphNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3, reparameterize_model
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import swap_activations, unswap

SAMPLE = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_byobnet", "test_nfnet"]


def made(name: str, swapped: bool = True, init: str = "paper") -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5).eval()
    if swapped:
        swap_activations(model, "arelu", init=init)  # type: ignore[arg-type]
    return model


def image(name: str) -> Tensor:
    side = 160 if name in ("test_vit", "test_convnext") else 64
    return torch.randn(2, 3, side, side)


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("init", ["paper", "preserve"])
def test_a_state_dict_loads_strictly_into_a_freshly_swapped_model(name: str, init: str) -> None:
    model, other = made(name, init=init), timm.create_model(name, num_classes=5).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("alpha", ".t")):
                parameter.add_(0.05)
    swap_activations(other, "arelu", init=init)  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict(), strict=True)
    x = image(name)
    assert torch.equal(other(x), model(x))


def test_weights_from_before_the_swap_are_refused_with_the_way_out() -> None:
    plain, model = made("test_resnet", swapped=False).state_dict(), made("test_resnet")
    with pytest.raises(RuntimeError, match="weights of the model before the swap: load them first and swap then"):
        model.load_state_dict(plain)
    result = model.load_state_dict(plain, strict=False)
    assert result.unexpected_keys == []
    assert all(key.endswith(("alpha", "beta")) for key in result.missing_keys)


def test_swapped_weights_in_a_plain_model_are_refused_by_name_and_load_after_a_swap() -> None:
    state, plain = made("test_resnet").state_dict(), made("test_resnet", swapped=False)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: ".*alpha'):
        plain.load_state_dict(state)
    swap_activations(plain, "arelu", init="paper")
    plain.load_state_dict(state)


@pytest.mark.parametrize(("have", "wanted"), list(itertools.permutations([None, "paper", "preserve"], 2)))
@pytest.mark.parametrize("name", ["test_resnet", "legacy_seresnet18", "conv4"])
def test_weights_of_another_swap_are_refused_with_the_call_that_makes_them_fit(
    name: str, have: str | None, wanted: str | None
) -> None:
    def backbone(init: str | None) -> nn.Module:
        return create_backbone(name, num_classes=3, activation=init and "arelu", init=init)  # type: ignore[arg-type]

    model, state = backbone(have), backbone(wanted).state_dict()
    call = (
        "load them first and swap then" if wanted is None else rf'swap_activations\(model, "arelu", init="{wanted}"\)'
    )
    with pytest.raises(RuntimeError, match=f"^load_state_dict: .*{call}"):
        model.load_state_dict(state)
    if wanted is None:
        unswap(model)
    else:
        swap_activations(model, "arelu", init=wanted)  # type: ignore[arg-type]
    model.load_state_dict(state)
    if have is None:
        unswap(model)
        with pytest.raises(RuntimeError, match="this one is not swapped"):
            model.load_state_dict(state)


def test_after_unswap_the_plain_weights_load_again() -> None:
    model, state = made("test_resnet"), made("test_resnet", swapped=False).state_dict()
    unswap(model)
    assert model.load_state_dict(state).missing_keys == []
    assert "group_matcher" not in model.__dict__


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit", "densenet121", "regnety_002"])
def test_layer_decay_puts_each_scalar_into_the_group_of_its_layer(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    swap_activations(model, "arelu", init="preserve")
    scale = {}
    for group in param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5):
        for parameter in group["params"]:
            scale[id(parameter)] = (group["lr_scale"], group["weight_decay"])
    parameters = dict(model.named_parameters())
    before: str = ""
    for key, parameter in parameters.items():
        if re.search(r"\.(alpha|beta|t)$", key):
            assert scale[id(parameter)][1] == 0
            assert scale[id(parameter)][0] == scale[id(parameters[before])][0], (key, before)
        else:
            before = key
    stem = [key for key in parameters if key.startswith(("act1.", "bn1.act.", "features.norm0.act.", "stem."))]
    assert name == "test_vit" or {scale[id(parameters[key])][0] for key in stem} == {min(s for s, _ in scale.values())}


def test_the_scalars_have_no_weight_decay() -> None:
    model = made("test_efficientnet", init="preserve")
    decayed = [
        id(p) for group in param_groups_weight_decay(model, 0.1) if group["weight_decay"] for p in group["params"]
    ]
    assert decayed
    assert not any(id(p) in decayed for n, p in model.named_parameters() if n.endswith(("alpha", "beta", ".t")))
    assert create_optimizer_v2(copy.deepcopy(model), opt="adamw", layer_decay=0.9).param_groups


@pytest.mark.parametrize("name", SAMPLE)
def test_copies_pickles_and_averages_give_the_same_logits(name: str) -> None:
    model, x = made(name, init="preserve"), image(name)
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    others.append(ModelEmaV3(model).module)
    for other in others:
        assert torch.equal(other(x), wanted)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_features_are_the_same_swapped_before_or_after_wrapping(name: str) -> None:
    torch.manual_seed(0)
    wrapped = timm.create_model(name, features_only=True).eval()
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = image(name)
    plain, intermediates = wrapped(x), model.forward_intermediates(x, intermediates_only=True)
    assert swap_activations(wrapped, "arelu", init="preserve", example=x).complete
    swap_activations(model, "arelu", init="preserve")
    for one, other in zip(wrapped(x), plain, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(model.forward_intermediates(x, intermediates_only=True), intermediates, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", SAMPLE)
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    x = image(name)

    def gradients(checkpointing: bool) -> list[Tensor]:
        model = made(name)
        model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(x).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_new_head_and_channels_last_and_bfloat16_work(name: str) -> None:
    model, x = made(name), image(name)
    wanted = model(x)
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, wanted, rtol=1e-3, atol=1e-3 * float(wanted.detach().abs().max()))
    model.reset_classifier(7)  # type: ignore[operator]
    assert model(x).shape == (2, 7)
    again = swap_activations(model, "arelu", init="paper")
    assert again.complete
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_after_a_head_is_built_anew_the_report_can_be_renewed() -> None:
    model = timm.create_model("caformer_s18", num_classes=3).eval()
    first = swap_activations(model, "arelu", init="paper", example=torch.zeros(1, 3, 64, 64))
    model.reset_classifier(4)
    second = swap_activations(model, "arelu", init="paper", example=torch.zeros(1, 3, 64, 64))
    assert {entry.path for entry in second.swapped} <= {entry.path for entry in first.swapped}
    assert second.complete


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_compile_export_and_trace_give_the_same_logits(name: str) -> None:
    model, x = made(name, init="preserve"), image(name)
    wanted = model(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), wanted)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.testing.assert_close(torch.jit.trace(model, x)(x), wanted)


@pytest.mark.parametrize("activation", ["paper", "preserve", "elsa"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_nfnet"])
def test_what_scripts_in_timm_scripts_after_a_swap(name: str, activation: str) -> None:
    model = timm.create_model(name, num_classes=5, scriptable=True).double().eval()
    if activation == "elsa":
        swap_activations(model, activation)
    else:
        swap_activations(model, "arelu", init=activation)  # type: ignore[arg-type]
    scatter_scalars(model)
    x = image(name).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        script = torch.jit.script(model)
    for _ in range(2):
        torch.testing.assert_close(script(x), model(x))
    torch.testing.assert_close(gradients_of(script, model, x), gradients_of(model, model, x))


@pytest.mark.parametrize("init", ["paper", "preserve"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_nfnet", "legacy_seresnet18"])
def test_the_graphs_of_fx_compute_and_learn_the_same(name: str, init: str) -> None:
    model = made(name, init=init).double()
    scatter_scalars(model)
    x = image(name).double()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    torch.testing.assert_close(gradients_of(traced, model, x), gradients_of(model, model, x))
    features = FeatureGraphNet(model, (0, 1))(x)
    taps = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)  # type: ignore[operator]
    torch.testing.assert_close(features, taps)


def scatter_scalars(model: nn.Module) -> None:
    """Give every scalar a value of its own, so that none can be taken for another."""
    for parameter in model.parameters():
        if parameter.numel() == 1:
            nn.init.uniform_(parameter, 0.1, 0.9)


def gradients_of(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    run(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("init", ["paper", "preserve"])
@pytest.mark.parametrize("name", [*SAMPLE, "test_mambaout", "test_efficientnet_ln"])
def test_every_parameter_gets_a_gradient_and_heads_and_shapes_are_timms(name: str, init: str) -> None:
    plain, model, x = made(name, swapped=False), made(name, init=init), image(name)
    model.train()(x).mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    assert model.forward_features(x).shape == plain.forward_features(x).shape  # type: ignore[operator]
    for head in ((7,), (0,), (0, "")):
        for one in (model, plain):
            one.reset_classifier(*head)  # type: ignore[operator]
        assert model(x).shape == plain(x).shape


@pytest.mark.parametrize("name", ["caformer_s18", "pit_ti_224", "resnet18d"])
def test_layer_decay_moves_no_parameter_and_takes_a_base_with_its_scalars(name: str) -> None:
    """Models that timm cuts into pieces, and bases with parameters of their own: StarReLU's and PReLU's."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5, **({"act_layer": "prelu"} if name == "resnet18d" else {}))

    def scales() -> dict[str, float]:
        groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
        scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        return {key: scale[id(p)] for key, p in model.named_parameters()}

    before = scales()
    swap_activations(model, "arelu", init="preserve")
    after, layer = scales(), 0.0
    assert {key: after[key] for key in before if key in after} == {k: v for k, v in before.items() if k in after}
    for key, scale in after.items():
        if re.search(r"\.(alpha|beta|t|base\.weight)$", key):
            assert scale == layer, key
        elif ".base." not in key:  # timm itself may cut between a StarReLU's scale and its bias
            layer = scale
        elif name == "caformer_s18":
            assert scale == before[key.replace(".base", "")]
    unswap(model)
    assert scales() == before


def test_branches_can_be_merged_after_a_swap() -> None:
    torch.manual_seed(0)
    model = timm.create_model("repvit_m0_9", num_classes=3).eval()
    swap_activations(model, "arelu", init="paper")
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    merged = reparameterize_model(model)
    torch.testing.assert_close(merged(x), before, rtol=1e-3, atol=1e-3 * float(before.detach().abs().max()))


def test_timms_conversion_to_synchronised_batchnorm_keeps_the_swapped_activations() -> None:
    model = made("test_efficientnet")
    count = sum(isinstance(module, AReLU) for module in model.modules())
    converted = convert_sync_batchnorm(model)
    assert sum(isinstance(module, AReLU) for module in converted.modules()) == count > 0


ACT_LAYER = """
import sys
{imports}
import timm
model = timm.create_model("{name}", act_layer="arelu")
assert any(type(module).__name__ == "AReLU" for module in model.modules())
assert not any(type(finder).__module__.startswith("arelu_meta") for finder in sys.meta_path)
"""


@pytest.mark.parametrize(
    "imports",
    ["import arelu_meta\nassert not {'timm', 'torch'} & set(sys.modules)", "import timm\nimport arelu_meta"],
    ids=["before timm", "after timm"],
)
def test_arelu_is_a_name_for_timms_own_constructors_once_both_are_imported(imports: str) -> None:
    code = ACT_LAYER.format(imports=imports, name="test_resnet")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_arelu_is_a_name_for_backbones(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name, act_layer="arelu")
    assert any(isinstance(module, AReLU) for module in model.modules())
