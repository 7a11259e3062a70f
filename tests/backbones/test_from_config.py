"""The backbone that a config asks for: channels, size, head, start, and what a checkpoint allows."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.checkpoint import ModelSpec, save_model
from arelu_meta.backbones.from_config import build_backbone, build_with_head, check_forward, check_model_config
from arelu_meta.config import ModelConfig
from arelu_meta.errors import InputError

LITE0 = "tf_efficientnet_lite0"
CLASSES = ("ant", "bee", "cat")


def fresh(name: str = "conv4_32", **changes: Any) -> ModelConfig:
    return replace(ModelConfig(name=name, pretrained=False), **changes)


def build(
    config: ModelConfig,
    classes: tuple[str, ...] = CLASSES,
    channels: int = 1,
    image_size: int | None = None,
    task: str = "finetune",
) -> tuple[nn.Module, ModelSpec]:
    return build_backbone(config, classes, channels, image_size, task)


def image(spec: ModelSpec) -> Tensor:
    return torch.randn(2, spec.inputs.channels, spec.inputs.image_size, spec.inputs.image_size)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[str, nn.Module]:
    """A run folder with a trained Conv-4 of three classes, and the network itself."""
    model, spec = build(fresh(activation="arelu", init="paper"), image_size=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    save_model(tmp_path / "model.safetensors", model, spec)
    return str(tmp_path), model.eval()


# A new network


@pytest.mark.parametrize("name", ["conv4_32", "mnist_conv", "mnist_linear", "test_resnet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_network_takes_the_datas_channels(name: str, channels: int) -> None:
    model, spec = build(fresh(name), channels=channels)
    assert spec.inputs.channels == channels
    assert len(spec.inputs.mean) == len(spec.inputs.std) == channels
    assert model.eval()(image(spec)).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pretrained_network_takes_three_channels_whatever_the_data_has(channels: int) -> None:
    model, spec = build(ModelConfig(), channels=channels, image_size=64)
    assert spec.inputs.channels == 3
    assert (spec.inputs.mean, spec.inputs.std) == ((0.5,) * 3, (0.5,) * 3)
    assert model.eval()(image(spec)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "own", "asked"),
    [("conv4_32", 28, 40), ("mnist_linear", 28, 12), ("test_resnet", 160, 48), ("vit_tiny_patch16_224", 224, 64)],
)
def test_the_image_size_is_the_models_own_unless_another_is_asked_for(name: str, own: int, asked: int) -> None:
    assert build(fresh(name), channels=3)[1].inputs.image_size == own
    model, spec = build(fresh(name), channels=3, image_size=asked)
    assert spec.inputs.image_size == asked
    assert model.eval()(image(spec)).shape == (2, 3)


def test_what_was_published_for_colour_is_averaged_for_grey() -> None:
    _, spec = build(fresh("resnet18"), channels=1)
    assert list(spec.inputs.mean) == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert list(spec.inputs.std) == pytest.approx([(0.229 + 0.224 + 0.225) / 3])


def test_the_small_networks_see_images_as_they_are_in_zero_to_one() -> None:
    _, spec = build(fresh("conv4_32"))
    assert (spec.inputs.mean, spec.inputs.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("config", "start", "kind"),
    [
        (fresh(), None, None),
        (fresh(activation="arelu"), "paper", AReLU),
        (fresh(activation="arelu", init="preserve"), "preserve", GatedAReLU),
        (fresh(activation="arelu", init="leak"), "leak", GatedAReLU),
        (fresh(activation="arelu", init="open"), "open", GatedAReLU),
        (fresh(activation="silu"), None, nn.SiLU),
        (ModelConfig(activation="arelu"), "preserve", GatedAReLU),
        (ModelConfig(activation="arelu", init="paper"), "paper", AReLU),
    ],
)
def test_the_spec_says_how_the_activations_started(
    config: ModelConfig, start: str | None, kind: type[nn.Module] | None
) -> None:
    model, spec = build(config)
    assert (spec.activation, spec.init) == (config.activation, start)
    assert (spec.name, spec.num_classes, spec.classes, spec.task) == (config.name, 3, list(CLASSES), "finetune")
    if kind is not None:
        assert any(isinstance(module, kind) for module in model.modules())
    rebuilt = spec.build()
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_a_new_head_on_pretrained_features_starts_at_zero_for_finetuning_only() -> None:
    model, spec = build(ModelConfig(), image_size=64)
    assert torch.equal(model.eval()(image(spec)), torch.zeros(2, 3))
    for config, task in ((ModelConfig(), "metatrain"), (fresh(LITE0), "finetune")):
        model, spec = build(config, channels=3, image_size=64, task=task)
        assert model.eval()(image(spec)).std() > 0


@pytest.mark.parametrize("start", ["leak", "open"])
def test_an_opened_start_sees_images_of_all_classes_in_each_batch(start: Any) -> None:
    """Images come class by class; in batches of one class the statistics would be too narrow."""
    dark, bright = torch.zeros(32, 3, 64, 64), torch.ones(32, 3, 64, 64)
    config, size = fresh("test_resnet", activation="arelu", init=start), 64
    model, spec = build_backbone(config, CLASSES, 3, size, "finetune", lambda inputs: [dark, bright])
    first = model.get_submodule("conv1.1")
    seen = model.get_submodule("conv1.0")(torch.cat([dark, bright])).detach()
    assert isinstance(first, nn.BatchNorm2d)
    assert first.running_var is not None
    torch.testing.assert_close(first.running_var, seen.var((0, 2, 3)), rtol=0.1, atol=1e-6)
    assert spec.init == start


# From a checkpoint


def test_a_checkpoint_goes_on_where_it_was(checkpoint: tuple[str, nn.Module]) -> None:
    path, trained = checkpoint
    model, spec = build(fresh(pretrained=path))
    assert model.training
    assert (spec.activation, spec.init, spec.inputs.image_size) == ("arelu", "paper", 16)
    x = image(spec)
    assert torch.equal(model.eval()(x), trained(x))


@pytest.mark.parametrize(
    ("classes", "rows", "note"),
    [
        (("ant", "bee", "cat"), (0, 1, 2), "head: as the checkpoint has it"),
        (("cat", "ant", "bee"), (2, 0, 1), "head: as the checkpoint has it"),
        (("bee", "cat"), (1, 2), "head: as the checkpoint has it"),
        (("bee", "cat", "dog"), (1, 2, None), "head: as the checkpoint has it, with new rows for 1 class (dog)"),
        (("aa", *CLASSES, "z"), (None, 0, 1, 2, None), "head: as the checkpoint has it, with new rows for 2 classes"),
    ],
)
def test_a_checkpoints_head_goes_by_the_names_of_its_classes(
    classes: tuple[str, ...], rows: tuple[int | None, ...], note: str, checkpoint: tuple[str, nn.Module]
) -> None:
    path, trained = checkpoint
    model, spec, head = build_with_head(fresh(pretrained=path), classes, 1, None, "finetune")
    x = image(spec)
    before, after = trained(x), model.eval()(x)
    for place, row in enumerate(rows):
        torch.testing.assert_close(after[:, place], before[:, row] if row is not None else torch.zeros(2))
    assert not head.new
    assert head.note.startswith(note)
    assert (spec.num_classes, spec.classes) == (len(classes), list(classes))


def test_a_head_of_other_classes_is_new_though_they_are_as_many(checkpoint: tuple[str, nn.Module]) -> None:
    path, trained = checkpoint
    model, spec, head = build_with_head(fresh(pretrained=path), ("x", "y", "z"), 1, None, "finetune")
    x = image(spec)
    assert torch.equal(model.eval()(x), torch.zeros(2, 3))
    assert torch.equal(model.forward_features(x), trained.forward_features(x))  # type: ignore[operator]
    assert (head.new, head.note) == (True, "none of the classes is one of the checkpoint's")


def test_names_composed_and_decomposed_are_one_class_to_a_head(tmp_path: Path) -> None:
    model, spec = build(fresh("mnist_linear"), ("caf\u00e9", "th\u00e9"), image_size=8)
    old = replace(spec, classes=["cafe\u0301", "the\u0301"])  # as a run of 0.1 on macOS has them
    save_model(tmp_path / "model.safetensors", model, old)
    head = build_with_head(fresh("mnist_linear", pretrained=str(tmp_path)), tuple(spec.classes), 1, None, "finetune")[2]
    assert (head.new, head.note) == (False, "head: as the checkpoint has it")


@pytest.mark.parametrize(
    ("start", "ways", "new"), [("metatrain", 3, False), ("metatrain", 5, True), ("finetune", 3, True)]
)
def test_a_meta_learner_keeps_the_head_of_one_with_as_many_ways_alone(
    start: str, ways: int, new: bool, tmp_path: Path
) -> None:
    model, spec = build(fresh("mnist_linear"), image_size=8, task=start)
    save_model(tmp_path / "model.safetensors", model, _as_learner(spec) if start == "metatrain" else spec)
    config = fresh("mnist_linear", pretrained=str(tmp_path))
    names = tuple(str(way) for way in range(ways))
    assert build_with_head(config, names, 1, None, "metatrain")[2].new == new
    assert build_with_head(config, CLASSES, 1, None, "finetune")[2].new == (start == "metatrain")


def _as_learner(spec: ModelSpec) -> ModelSpec:
    loop = {"inner_lr": 0.1, "inner_steps": 2, "algorithm": "maml", "normalization": "transductive"}
    meta = {"ways": spec.num_classes, "shots": 1, "queries": 1, "inverted": False, **loop}
    return replace(spec, task="metatrain", meta=meta)


def test_with_reset_head_the_head_is_new_and_the_features_stay(checkpoint: tuple[str, nn.Module]) -> None:
    path, trained = checkpoint
    model, spec = build(fresh(pretrained=path, reset_head=True), classes=tuple("abcde"))
    x = image(spec)
    model.eval()
    assert torch.equal(model.forward_features(x), trained.forward_features(x))  # type: ignore[operator]
    assert torch.equal(model(x), torch.zeros(2, 5))
    assert (spec.num_classes, spec.classes) == (5, list("abcde"))


def test_a_checkpoint_of_another_image_size_is_not_taken_for_another_architecture(tmp_path: Path) -> None:
    model, spec = build_backbone(ModelConfig(name="test_vit", pretrained=False), ("a", "b"), 3, 64, "finetune")
    save_model(tmp_path / "model.safetensors", model, spec)
    config = ModelConfig(name="test_vit", pretrained=str(tmp_path))
    with pytest.raises(
        InputError, match=r"data\.image_size: 32 does not go with .* those of 64 px .*; give 64 or leave"
    ):
        build_backbone(config, ("a", "b"), 3, 32, "finetune")


def test_a_reset_head_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.reset_head: true is of a checkpoint's head"):
        check_model_config(fresh(reset_head=True))


def test_a_meta_learner_starts_from_a_random_head_not_from_zero(checkpoint: tuple[str, nn.Module]) -> None:
    config = fresh(pretrained=checkpoint[0], reset_head=True)
    model, spec = build(config, classes=tuple("abcde"), task="metatrain")
    assert spec.task == "metatrain"
    assert model.eval()(image(spec)).std() > 0


def test_arelu_can_be_swapped_into_a_checkpoint_that_was_trained_without(tmp_path: Path) -> None:
    plain, spec = build(fresh("mnist_conv"))
    save_model(tmp_path / "model.safetensors", plain.eval(), spec)
    x = image(spec)
    model, swapped = build(fresh("mnist_conv", pretrained=str(tmp_path), activation="arelu"))
    assert (swapped.activation, swapped.init) == ("arelu", "preserve")
    assert torch.equal(model.eval()(x), plain(x))
    model, swapped = build(fresh("mnist_conv", pretrained=str(tmp_path), activation="arelu", init="paper"))
    assert (swapped.activation, swapped.init) == ("arelu", "paper")
    assert not torch.equal(model.eval()(x), plain(x))
    model, swapped = build(fresh("mnist_conv", pretrained=str(tmp_path), activation="gelu"))
    assert (swapped.activation, swapped.init) == ("gelu", None)


def test_a_checkpoint_of_another_activation_is_refused(checkpoint: tuple[str, nn.Module]) -> None:
    with pytest.raises(InputError, match=r"was trained with 'arelu', model\.activation is 'gelu'; leave it out"):
        build(fresh(pretrained=checkpoint[0], activation="gelu"))


def test_a_checkpoint_that_started_otherwise_is_refused(checkpoint: tuple[str, nn.Module]) -> None:
    with pytest.raises(InputError, match=r"was started with 'paper', model\.init is 'preserve'; leave it out"):
        build(fresh(pretrained=checkpoint[0], activation="arelu", init="preserve"))
    assert build(fresh(pretrained=checkpoint[0], activation="arelu", init="paper"))[1].init == "paper"


def test_a_convolutional_checkpoint_takes_images_of_another_size(tmp_path: Path) -> None:
    plain, spec = build(fresh("test_resnet"), image_size=32)
    save_model(tmp_path / "model.safetensors", plain.eval(), spec)
    model, spec = build(fresh("test_resnet", pretrained=str(tmp_path)), image_size=64)
    assert spec.inputs.image_size == 64
    x = image(spec)
    assert torch.equal(model.eval()(x), plain(x))


# Before a run begins


def test_a_size_that_the_model_cannot_take_is_named_with_the_model() -> None:
    model, spec = build(fresh(), image_size=32)
    check_forward(model, spec)
    other = replace(spec, inputs=replace(spec.inputs, image_size=48))
    with pytest.raises(InputError, match=r"data\.image_size: 48 is too small, or does not fit 'conv4_32' \(.*\); give"):
        check_forward(model, other)


def test_a_training_batch_of_one_image_is_refused_only_where_normalisation_has_no_variance() -> None:
    model, spec = build(fresh("test_resnet"), channels=3, image_size=32)
    check_forward(model, spec, smallest_batch=2)
    with pytest.raises(InputError, match=r"data\.batch_size: 1 at 32 px"):
        check_forward(model, spec, smallest_batch=1)
    check_forward(model, replace(spec, inputs=replace(spec.inputs, image_size=64)), smallest_batch=1)


@pytest.mark.parametrize("size", [64, 32])
def test_trying_a_model_out_leaves_it_and_the_random_numbers_as_they_were(size: int) -> None:
    model, spec = build(fresh("test_resnet"), channels=3, image_size=size)
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with contextlib.suppress(InputError):
        check_forward(model, spec, smallest_batch=1)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


# Before any data is read


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (fresh("resnet81"), r"model\.name: 'resnet81' is not known; nearest: .*'resnet18'"),
        (fresh(activation="aerlu"), r"model\.activation: 'aerlu' is not known; nearest: 'arelu'"),
        (fresh(init="paper"), r"model\.init: 'paper' starts an AReLU; give --model\.activation arelu with it"),
        (fresh(activation="gelu", init="paper"), r"model\.init: 'paper' starts an AReLU"),
        (fresh(pretrained="no/such/run"), r"model\.pretrained: 'no/such/run' does not exist"),
    ],
)
def test_a_wrong_config_is_refused_with_what_would_be_right(config: ModelConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_model_config(config)


def test_a_checkpoint_of_another_architecture_is_refused_with_its_name(checkpoint: tuple[str, nn.Module]) -> None:
    check_model_config(fresh(pretrained=checkpoint[0]))
    with pytest.raises(
        InputError, match=r"another architecture \('conv4_32'\) than .*'conv4'; give --model\.name conv4_32"
    ):
        check_model_config(fresh("conv4", pretrained=checkpoint[0]))


@pytest.mark.parametrize("normalization", ["transductive", "support", "running", "group", "none"])
@pytest.mark.parametrize("algorithm", ["maml", "metasgd"])
@pytest.mark.parametrize("task", ["finetune", "metatrain"])
def test_what_a_meta_learner_learned_is_a_start_without_its_inner_loop(
    normalization: str, algorithm: str, task: str, tmp_path: Path
) -> None:
    _, spec = build(fresh(), image_size=16)
    loop = {"inner_lr": 0.1, "inner_steps": 2, "algorithm": algorithm, "normalization": normalization}
    spec = replace(spec, task="metatrain", meta={"ways": 3, "shots": 1, "queries": 1, "inverted": False, **loop})
    learner = spec.build()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1)
    save_model(tmp_path / "model.safetensors", learner, spec)
    images = torch.randn(64, spec.inputs.channels, 16, 16)
    model, _ = build_backbone(fresh(pretrained=str(tmp_path)), CLASSES, 3, 16, task, lambda inputs: [images])
    taken = {name: value for name, value in learner.named_parameters() if task == "metatrain" or "head" not in name}
    assert all(torch.equal(value, taken[name]) for name, value in model.named_parameters() if name in taken)
    assert len(taken.keys() & {name for name, _ in model.named_parameters()}) >= 8
    means = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(mean is not None for mean in means)
    if task == "finetune" and normalization != "running":
        assert all(mean is not None and mean.abs().sum() > 0 for mean in means)
