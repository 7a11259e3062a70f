"""Controls: each computes its formula, nothing of it learns that should not, and it is saved and read like the rest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU, arelu
from arelu_meta.activations.controls import CONTROLS, FixedLeak, split_start
from arelu_meta.activations.registry import create_activation, list_activations
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import with_start
from arelu_meta.backbones.networks import GainedLinear, heads_of
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.claims.controls import check_contender, contender_model, explained
from arelu_meta.cli import main
from arelu_meta.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.defaults import settle, settle_rates
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.finetuning.optimizer import activation_parameters

X = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0, 9.0])


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))


def leaks(model: nn.Module) -> list[FixedLeak]:
    return [module for module in model.modules() if isinstance(module, FixedLeak)]


def test_the_leak_is_the_activation_plus_a_fixed_share_of_its_input() -> None:
    model = two_layers()
    swap_activations(model, "control:leak", trace=False)
    first, second = leaks(model)
    torch.testing.assert_close(first(X), X.clamp(0, 6) + 0.18 * X)
    torch.testing.assert_close(second(X), X.relu() + 0.18 * X)
    assert len(list(first.parameters())) == 0


def test_the_negative_leak_leaves_the_positive_side_alone() -> None:
    model = two_layers()
    swap_activations(model, "control:negative-leak", trace=False)
    torch.testing.assert_close(leaks(model)[1](X), torch.where(X < 0, 0.18 * X, X))


def test_the_last_leak_is_in_the_last_activation_alone() -> None:
    model = two_layers()
    report = swap_activations(model, "control:last", trace=False)
    assert [entry.path for entry in report.swapped] == ["3"]
    assert [entry.path for entry in report.kept] == ["1"]
    assert type(model[1]) is nn.ReLU6
    torch.testing.assert_close(model[3](X), X.relu() + 0.18 * X)


def test_a_block_that_calls_its_activation_twice_leaks_in_the_last_call_alone() -> None:
    model = create_backbone("test_resnet", num_classes=3, activation="control:last")
    before = create_backbone("test_resnet", num_classes=3)
    before.load_state_dict(model.state_dict())
    assert leaks(model)
    images = torch.randn(2, 3, 32, 32)
    unswap(model)
    torch.testing.assert_close(model.eval()(images), before.eval()(images))


@pytest.mark.parametrize("init", ["paper", "open", "leak", "preserve", "nearest"])
def test_a_frozen_arelu_computes_what_its_start_computes_and_has_nothing_that_learns(init: str) -> None:
    learning, frozen = two_layers(), two_layers()
    swap_activations(learning, "arelu", init=init, trace=False)  # type: ignore[arg-type]
    swap_activations(frozen, f"arelu:{init}:frozen", trace=False)
    images = torch.randn(7, 4)
    torch.testing.assert_close(frozen(images), learning(images))
    assert not activation_parameters(frozen)
    assert activation_parameters(learning)
    assert learning.state_dict().keys() == frozen.state_dict().keys()
    assert any(isinstance(module, AReLU | GatedAReLU) for module in frozen.modules())


def test_from_scratch_the_gains_are_constants() -> None:
    torch.testing.assert_close(create_activation("relu:gain")(X), 1.88 * X.relu())
    torch.testing.assert_close(create_activation("linear:gain")(X), 1.88 * X)
    frozen = create_activation("arelu:frozen")
    torch.testing.assert_close(frozen(X), arelu(X, 0.9, 2.0))
    for name in ("relu:gain", "linear:gain", "arelu:frozen"):
        assert not list(create_activation(name).parameters())


def test_he_draws_weights_of_variance_two_by_fan_in() -> None:
    model = create_backbone("mnist_linear", in_chans=1, num_classes=10, img_size=28, activation="relu:he")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in layers[:-1]:
        assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
        assert not layer.bias.any()
    with pytest.raises(InputError, match="draws all weights anew"):
        create_backbone("tf_efficientnet_lite0", pretrained=True, activation="relu:he")


def test_the_gain_multiplies_the_features_and_matches_the_second_moment_of_open() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)

    def pooled(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            model.eval()
            return torch.as_tensor(model.forward_head(model.forward_features(images), pre_logits=True))  # type: ignore[operator]

    plain = create_backbone("tf_efficientnet_lite0", pretrained=True, num_classes=4)
    gained = create_backbone(
        "tf_efficientnet_lite0", pretrained=True, num_classes=4, activation="control:gain", data=images
    )
    opened = create_backbone("tf_efficientnet_lite0", pretrained=True, num_classes=4)
    swap_activations(opened, "arelu", init="open", data=images, batch_norm=True)
    head = heads_of(gained)[0]
    assert isinstance(head, GainedLinear)
    wanted = (pooled(opened).square().mean() / pooled(plain).square().mean()).sqrt()
    torch.testing.assert_close(float(head.gain), float(wanted), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        gained.eval()(images), nn.functional.linear(head.gain * pooled(plain), head.weight, head.bias)
    )


def test_the_heads_rate_of_head10_is_ten_times_the_rate() -> None:
    config = FinetuneConfig(model=ModelConfig(activation="control:head10"), optim=OptimConfig(lr=0.02))
    assert settle_rates(settle(config), 100).optim.head_lr == pytest.approx(0.2)
    plain = FinetuneConfig(model=ModelConfig(), optim=OptimConfig(lr=0.02))
    others = replace(settle_rates(settle(config), 100).optim, head_lr=None)
    assert others == settle_rates(settle(plain), 100).optim


def test_controls_are_explained_and_are_no_listed_activations() -> None:
    assert not {one.name for one in list_activations()} & CONTROLS.keys()
    for control in CONTROLS.values():
        assert control.formula
        assert control.why
    assert [row[0] for row in explained(["original", "control:gain", "arelu:open:frozen"]).rows] == [
        "control:gain",
        "arelu:open:frozen",
    ]


@pytest.mark.parametrize("name", [*CONTROLS, "arelu:open", "arelu:open:frozen", "original", "gelu"])
def test_every_contender_is_taken_by_its_name(name: str) -> None:
    assert check_contender(name) == name
    made = contender_model("tf_efficientnet_lite0", False, name)
    assert with_start(made) == made


@pytest.mark.parametrize(
    "name", ["control:gian", "control:", "relu:open", "arelu:opn", "arelu:opn:frozen", "linear:he"]
)
def test_a_mistyped_contender_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as refused:
        check_contender(name)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_a_start_is_split_from_its_name() -> None:
    assert split_start("arelu:open") == ("arelu", "open")
    assert split_start("arelu:open:frozen") == ("arelu:frozen", "open")
    assert split_start("arelu:frozen") == ("arelu:frozen", None)
    assert split_start("relu:gain") == ("relu:gain", None)


def images_of_two_colours(folder: Path) -> Path:
    for name, colour in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixel = [20 + 9 * number, 30, 30]
            pixel[colour] = 200 + number
            Image.new("RGB", (32, 32), tuple(pixel)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["control:gain", "control:last", "arelu:open:frozen", "control:head10"])
def test_a_control_is_fine_tuned_saved_and_read_again(name: str, tmp_path: Path) -> None:
    config = FinetuneConfig(
        run=RunConfig(folder=str(tmp_path / "run"), pictures=False, device="cpu"),
        data=DataConfig(root=str(images_of_two_colours(tmp_path / "images")), image_size=32, batch_size=8),
        model=ModelConfig(name="tf_efficientnet_lite0", activation=name),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(epochs=1),
    )
    results = finetune(config)
    model, spec = load_model(tmp_path / "run")
    assert results["test_accuracy"] >= 0
    assert spec.activation is not None
    if name == "control:gain":
        assert float(heads_of(model)[0].gain) > 1  # type: ignore[arg-type]
        assert results["test_accuracy"] == 1.0  # the probe's head stands for features that are multiplied
    if name.endswith("frozen"):
        gates = [float(module.t) for module in model.modules() if isinstance(module, GatedAReLU)]
        assert gates == pytest.approx([0.2] * len(gates))


def test_the_command_line_names_the_control_that_was_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images_of_two_colours(tmp_path / "images")
    assert main(["finetune", str(folder), "--model.activation", "control:laek"]) == 2
    assert "control:leak" in capsys.readouterr().err
