"""Classes of timm, torchvision and torch that call an activation as a function: patched, on every path, and back."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.optical_flow import raft_small

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.functional_patches import patch_functional_calls, unpatch
from arelu_meta.backbones.swap import swap_activations, unswap

Count = Callable[..., dict[str, int]]

PATCHED = {
    "mobilevitv2": (lambda: timm.create_model("mobilevitv2_050", num_classes=5), (1, 3, 64, 64)),
    "densenet": (lambda: torchvision.models.DenseNet(8, (1, 1), 16, num_classes=5), (1, 3, 32, 32)),
    "inception": (lambda: torchvision.models.inception.BasicConv2d(3, 4, kernel_size=3), (1, 3, 8, 8)),
    "googlenet": (lambda: torchvision.models.GoogLeNet(5, init_weights=False), (2, 3, 64, 64)),
    "detectors' head": (lambda: TwoMLPHead(12, 6), (2, 3, 2, 2)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
    "encoder layer, gelu": (lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu), (2, 3, 8)),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), (2, 3, 8)),
}


def build(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = PATCHED[kind]
    return nn.Sequential(make()).eval(), torch.randn(shape)


@pytest.mark.parametrize("kind", PATCHED)
def test_a_patched_class_computes_as_before_in_both_modes(kind: str) -> None:
    model, x = build(kind)
    for training in (False, True):
        model.train(training)
        results = []
        for patch in (False, True):
            torch.manual_seed(0)
            other = copy.deepcopy(model)
            assert bool(patch_functional_calls(other) if patch else True)
            y = other(x)
            results.append(list(y) if isinstance(y, tuple) else [y])
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("kind", PATCHED)
def test_no_function_is_called_any_more_and_copies_are_taken_back_to_the_bit(
    kind: str, count_activations: Count
) -> None:
    model, x = build(kind)
    kinds, keys, before = [type(module) for module in model.modules()], list(model.state_dict()), model(x)
    assert swap_activations(model, init="preserve", example=x).complete
    assert torch.equal(model(x), before)
    unswap(model)
    report = swap_activations(model, init="paper", example=x)
    assert count_activations(model, x) == {}
    assert isinstance(model[0], kinds[1])  # type: ignore[index]
    swapped = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert torch.equal(other(x), swapped)
        unswap(other)
        assert torch.equal(other(x), before)
        assert [type(module) for module in other.modules()] == kinds
        assert list(other.state_dict()) == keys
    assert len(report.swapped) > 0


@pytest.mark.parametrize("kind", ["mobilevitv2", "densenet", "detectors' head", "encoder layer"])
def test_what_is_patched_compiles_and_exports(kind: str) -> None:
    model, x = build(kind)
    swap_activations(model, init="paper", example=x)
    wanted = model(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), wanted)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)


def test_a_decoder_layer_and_its_copies_take_the_activation() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    before = model(*x)
    report = swap_activations(model, init="preserve", example=x)
    assert [entry.path for entry in report.swapped] == ["layers.0.activation", "layers.1.activation"]
    assert report.complete
    assert torch.equal(model(*x), before)
    for module in model.modules():
        if isinstance(module, GatedAReLU):
            nn.init.constant_(module.t, 0.5)
    after = model(*x)
    assert not torch.equal(after, before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*x), after)
        unswap(other)
        assert torch.equal(other(*x), before)
        assert type(other.layers[0]) is nn.TransformerDecoderLayer


def test_torchs_transformer_takes_the_activation_where_its_fast_path_would_not() -> None:
    model, x = build("encoder")
    swap_activations(model, init="paper", example=x)
    with torch.no_grad():
        without_gradients = model(x)
    torch.testing.assert_close(without_gradients, model(x))
    unswap(model)
    assert model.get_submodule("0.layers.0").activation is F.relu
    assert model.get_submodule("0.layers.0").activation_relu_or_gelu == 1


def test_mobilevits_values_get_an_activation_of_their_own_that_learns() -> None:
    model, x = build("mobilevitv2")
    report = swap_activations(model, init="preserve", example=x)
    values = [entry.path for entry in report.swapped if entry.path.endswith("value_act")]
    assert len(values) == 2 + 4 + 3
    model(x).square().sum().backward()
    assert all(model.get_parameter(f"{path}.t").grad is not None for path in values)


def test_an_activation_that_is_excluded_leaves_the_class_as_it_is() -> None:
    model, x = build("detectors' head")
    report = swap_activations(model, init="paper", exclude=["0.relu6"], example=x)
    assert [entry.path for entry in report.swapped] == ["0.relu7"]
    unswap(model)
    swap_activations(model, init="paper", exclude=["0.relu?"], example=x)
    assert type(model[0]) is TwoMLPHead  # type: ignore[index]


def test_a_detector_is_complete_in_evaluation_and_the_report_says_that_training_needs_targets() -> None:
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, box_score_thresh=0.0
    ).eval()
    images = [torch.rand(3, 48, 64)]
    before = model(images)[0]
    report = swap_activations(model, init="preserve", example=(images,))
    assert report.complete, str(report)
    assert {"roi_heads.box_head.relu6", "roi_heads.box_head.relu7"} <= {entry.path for entry in report.swapped}
    assert ["targets" in note for note in report.notes] == [True]
    assert all(torch.equal(before[name], after) for name, after in model(images)[0].items())
    swap_activations(model, init="paper", example=(images,))
    assert sum(isinstance(module, AReLU) for module in model.modules()) == len(report.swapped)


@pytest.mark.parametrize(("make", "positions"), [(retinanet_resnet50_fpn, 0), (fcos_resnet50_fpn, 1)])
def test_the_last_levels_of_a_pyramid_are_replaced_and_distances_stay(
    make: Callable[..., nn.Module], positions: int
) -> None:
    model = make(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64).eval()
    report = swap_activations(model, init="paper", example=([torch.rand(3, 48, 64)],))
    assert report.complete, str(report)
    assert [entry.role for entry in report.kept] == ["position"] * positions
    assert "backbone.fpn.extra_blocks.relu" in [entry.path for entry in report.swapped]


def test_a_function_in_a_library_is_told_with_the_librarys_own_line() -> None:
    model = raft_small(weights=None).eval()
    images = torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)
    report = swap_activations(model, init="paper", example=images)
    assert [entry.before for entry in report.kept] == ["relu"]
    assert report.kept[0].reason.startswith("called as a function in raft.py:")


def test_unpatching_what_was_never_patched_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    unpatch(model)
    assert type(model) is nn.Linear
