import pytest
import timm
import torch
from torch import nn

from arelu_meta import create_backbone, swap_activations
from arelu_meta.config import FinetuneConfig, TrainConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.freezing import (
    count_learning,
    set_drop_rate,
    set_learning,
    set_trainable,
    set_training,
    stages,
    unfrozen_stages,
)
from arelu_meta.finetuning.optimizer import parameter_groups
from arelu_meta.validation import validate


@pytest.fixture
def model() -> nn.Module:
    backbone: nn.Module = timm.create_model("test_resnet", num_classes=4)
    swap_activations(backbone, "arelu", init="preserve", example=torch.zeros(1, 3, 64, 64))
    return backbone


def _learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("mode", ["full", "head", "activations", "last-1", "last-12", "gradual", "probe"])
def test_every_offered_mode_is_known(mode: str) -> None:
    validate(FinetuneConfig(train=TrainConfig(mode=mode)), FinetuneConfig)


@pytest.mark.parametrize("mode", ["last", "last-0", "last--1", "Head", "last-2x"])
def test_an_unknown_mode_is_refused_with_what_is_allowed(mode: str) -> None:
    with pytest.raises(InputError, match=r"train\.mode: .* is not known; give full, head, .*last-N"):
        validate(FinetuneConfig(train=TrainConfig(mode=mode)), FinetuneConfig)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_stages_hold_every_parameter_once_but_the_heads(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    head = {f"{prefix}" for prefix, module in model.named_modules() if module is model.get_classifier()}
    listed = [parameter for stage in stages(model) for parameter in stage]
    expected = [key for key, _ in model.named_parameters() if key.rpartition(".")[0] not in head]
    assert sorted(listed) == sorted(expected)
    assert len(stages(model)) > 2


def test_the_papers_networks_have_stages_too() -> None:
    assert len(stages(create_backbone("conv4_32", num_classes=3, in_chans=1))) == 4


def test_a_last_norm_belongs_to_the_stage_before_it() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    assert {name for name in stages(model)[-1] if name.startswith("norm.")}
    assert any(name.startswith("blocks.") for name in stages(model)[-1])


def test_full_trains_everything_and_head_nothing_else(model: nn.Module) -> None:
    set_learning(model, TrainConfig(mode="full"))
    assert len(_learning(model)) == len(list(model.parameters()))
    set_learning(model, TrainConfig(mode="head"))
    assert _learning(model) == {"fc.weight", "fc.bias"}


def test_activations_trains_the_scalars_and_the_head(model: nn.Module) -> None:
    set_learning(model, TrainConfig(mode="activations"))
    assert {name.rpartition(".")[2] for name in _learning(model)} == {"alpha", "beta", "t", "weight", "bias"}
    counts = count_learning(model)
    assert counts["backbone"][1] == 0 < counts["backbone"][0]
    assert counts["activations"][0] == counts["activations"][1]


def test_activations_of_a_model_without_any_that_learn_is_refused() -> None:
    with pytest.raises(InputError, match=r"'activations' needs activations that learn; give --model\.activation arelu"):
        set_learning(timm.create_model("test_resnet"), TrainConfig(mode="activations"))


def test_last_n_trains_the_last_stages(model: nn.Module) -> None:
    set_learning(model, TrainConfig(mode="last-2"))
    assert _learning(model) == {*stages(model)[-1], *stages(model)[-2], "fc.weight", "fc.bias"}


def test_more_stages_than_there_are_is_refused_with_their_number(model: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"'last-99' asks for more stages .* at most {len(stages(model))}"):
        set_learning(model, TrainConfig(mode="last-99"))


def test_gradual_begins_with_the_head_and_has_all_by_half_of_the_training(model: nn.Module) -> None:
    config = TrainConfig(mode="gradual", epochs=10)
    sizes = []
    for epoch in range(1, 11):
        set_learning(model, config, epoch)
        sizes.append(len(_learning(model)))
    assert sizes[0] == 2
    assert sizes == sorted(sizes)
    assert sizes[4] < sizes[5] == sizes[9] == len(list(model.parameters()))
    set_learning(model, config)
    assert len(_learning(model)) == sizes[-1]


def test_gradual_reaches_every_stage_in_a_short_run() -> None:
    assert [unfrozen_stages("gradual", 5, epoch, 2) for epoch in (1, 2)] == [0, 5]


def test_frozen_stages_keep_their_statistics_and_the_others_move(model: nn.Module) -> None:
    config = TrainConfig(mode="last-1")
    set_learning(model, config)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_mean" in name}
    set_training(model, config)
    model(torch.rand(4, 3, 64, 64))
    moved = {name for name, buffer in model.named_buffers() if name in before and not torch.equal(buffer, before[name])}
    last = {name.rpartition(".")[0] for name in stages(model)[-1]}
    assert moved
    assert all(name.rpartition(".")[0] in last for name in moved)


@pytest.mark.parametrize("mode", ["full", "activations"])
def test_frozen_batch_norm_neither_learns_nor_moves(model: nn.Module, mode: str) -> None:
    config = TrainConfig(mode=mode, freeze_bn=True)
    set_learning(model, config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(
        p.requires_grad for norm in norms for p in norm.parameters(recurse=False) if p.ndim == 1 and p.numel() > 1
    )
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    set_training(model, config)
    model(torch.rand(4, 3, 64, 64))
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_scalar_inside_a_frozen_norm_still_learns() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    swap_activations(model, "arelu", init="preserve", example=torch.zeros(1, 3, 64, 64))
    set_learning(model, TrainConfig(mode="full", freeze_bn=True))
    assert all(p.requires_grad for name, p in model.named_parameters() if name.endswith(("alpha", "beta", ".t")))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_a_drop_rate_drops_before_the_head_in_training_alone(name: str) -> None:
    backbone = timm.create_model(name, num_classes=4)
    set_drop_rate(backbone, 0.5)
    features = torch.randn(
        backbone.forward_features(torch.zeros(2, 3, *backbone.pretrained_cfg["input_size"][1:])).shape
    )
    backbone.eval()
    assert torch.equal(backbone.forward_head(features), backbone.forward_head(features))
    backbone.train()
    assert not torch.equal(backbone.forward_head(features), backbone.forward_head(features))


def test_a_drop_rate_of_a_model_without_dropout_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.drop_rate: 0\.5 is of dropout before the head"):
        set_drop_rate(create_backbone("conv4_32"), 0.5)


def test_small_modes_train_what_they_name_and_the_head_and_hold_what_else_there_is(model: nn.Module) -> None:
    counts = set_trainable(model, "norm")
    assert 0 < counts["backbone"][1] < counts["backbone"][0] / 10
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.rpartition(".")[0] for name in _learning(model)} == {*norms, "fc"}
    set_trainable(model, "bias")
    assert {name.rpartition(".")[2] for name in _learning(model) - {"fc.weight"}} == {"bias"}


def test_what_norm_and_bias_train_is_trained_though_statistics_are_held(model: nn.Module) -> None:
    config = TrainConfig(mode="norm", freeze_bn=True)
    set_learning(model, config)
    set_training(model, config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.requires_grad and not norm.training for norm in norms)


def test_a_module_of_ones_own_has_groups_and_modes_with_its_head_found_or_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    swap_activations(net, "arelu", example=torch.zeros(1, 3, 3, 3))
    assert set_trainable(net, "activations") == {"backbone": (112, 0), "activations": (2, 2), "head": (10, 10)}
    assert set_trainable(net, "head", head="0")["head"] == (112, 112)
    set_trainable(net, "full")
    groups = parameter_groups(net, lr=0.1, act_lr=0.01, head_lr=0.2)
    assert {(group["group_name"], group["lr"]) for group in groups} == {
        ("backbone", 0.1),
        ("activations", 0.01),
        ("head", 0.2),
    }
    with pytest.raises(InputError, match=r"^head: 'fc' is no module of the model"):
        set_trainable(net, "head", head="fc")
    with pytest.raises(InputError, match=r"^head: the model has no linear layer"):
        parameter_groups(nn.Sequential(nn.Conv2d(3, 4, 3)), lr=0.1)
    with pytest.raises(InputError, match=r"^mode: 'probe' is not known; give full, head"):
        set_trainable(net, "probe")
