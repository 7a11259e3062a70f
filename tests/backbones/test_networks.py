"""The small networks of the papers: their layers and parameter counts, worked out by hand from the papers."""

import pytest
import torch
from torch import nn

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.networks import PAPER_NETS, conv4, conv4_32, mnist_conv, mnist_linear, resnet12
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.errors import InputError


def kinds(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.get_submodule("features")]  # type: ignore[attr-defined]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mnist_conv_has_three_blocks_of_convolution_pooling_activation_and_a_linear_head() -> None:
    model = mnist_conv()
    assert kinds(model) == ["Conv2d", "MaxPool2d", "ReLU"] * 3
    assert shapes(model) == {
        "features.0.weight": (10, 1, 5, 5),
        "features.0.bias": (10,),
        "features.3.weight": (20, 10, 5, 5),
        "features.3.bias": (20,),
        "features.6.weight": (40, 20, 3, 3),
        "features.6.bias": (40,),
        "head.weight": (10, 40),
        "head.bias": (10,),
    }
    # 28 → 24 → 12 → 8 → 4 → 2 → 1 pixels a side, so 40 features.
    assert count(model) == (250 + 10) + (5000 + 20) + (7200 + 40) + (400 + 10) == 12_930


def test_mnist_conv_follows_the_published_codes_order_to_the_number() -> None:
    """Convolution, then pooling, then activation: for AReLU, unlike ReLU, the last two do not commute."""
    model = mnist_conv().eval()
    swap_activations(model, "arelu", init="paper", trace=False)
    x = torch.randn(2, 1, 28, 28)
    y = x
    for index in (0, 3, 6):
        convolution = model.features[index]
        y = nn.functional.conv2d(y, convolution.weight, convolution.bias)  # type: ignore[arg-type]
        y = nn.functional.max_pool2d(y, 2)
        y = torch.where(y >= 0, (1 + torch.sigmoid(torch.tensor(2.0))) * y, 0.9 * y)
    torch.testing.assert_close(model(x), model.head(y.flatten(1)))


def test_mnist_linear_has_one_hidden_layer_of_512() -> None:
    model = mnist_linear()
    assert kinds(model) == ["Flatten", "Linear", "ReLU"]
    assert shapes(model) == {
        "features.1.weight": (512, 784),
        "features.1.bias": (512,),
        "head.weight": (10, 512),
        "head.bias": (10,),
    }
    assert count(model) == 784 * 512 + 512 + 512 * 10 + 10 == 407_050


@pytest.mark.parametrize(
    ("in_chans", "img_size", "filters", "features", "parameters"),
    [
        # Omniglot, 28 → 14 → 7 → 3 → 1: 9·64 + 64, three times 9·64² + 64, four times 2·64, and 5·64 + 5.
        (1, 28, 64, 64, 640 + 3 * 36_928 + 4 * 128 + 325),
        (1, 28, 32, 32, 320 + 3 * 9_248 + 4 * 64 + 165),
        # mini-ImageNet, 84 → 42 → 21 → 10 → 5, in colour.
        (3, 84, 32, 32 * 25, 896 + 3 * 9_248 + 4 * 64 + 5 * 800 + 5),
        (3, 84, 64, 64 * 25, 1_792 + 3 * 36_928 + 4 * 128 + 5 * 1_600 + 5),
        (1, 16, 64, 64, 640 + 3 * 36_928 + 4 * 128 + 325),
    ],
)
def test_conv4_has_four_blocks_of_convolution_norm_activation_pooling(
    in_chans: int, img_size: int, filters: int, features: int, parameters: int
) -> None:
    model = conv4(5, in_chans, img_size, filters)
    assert kinds(model) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 4
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.padding) for c in convolutions] == [
        (in_chans if block == 0 else filters, filters, (3, 3), (1, 1)) for block in range(4)
    ]
    assert model.num_features == features
    assert count(model) == parameters
    assert model(torch.randn(3, in_chans, img_size, img_size)).shape == (3, 5)


def test_conv4_32_is_conv4_with_32_filters() -> None:
    assert shapes(conv4_32()) == shapes(conv4(filters=32))


def test_resnet12_has_four_residual_blocks_of_twelve_convolutions_beside_four_shortcuts() -> None:
    model = resnet12(5, in_chans=3, img_size=84)
    assert kinds(model) == ["_ResidualBlock"] * 4 + ["AdaptiveAvgPool2d"]
    parameters = 640 * 5 + 5
    for before, width in ((3, 64), (64, 160), (160, 320), (320, 640)):
        parameters += 9 * before * width + 2 * 9 * width**2 + before * width + 4 * 2 * width
    assert count(model) == parameters
    report = swap_activations(model, "arelu", init="preserve")
    assert len(report.swapped) == 12
    assert report.complete


@pytest.mark.parametrize("name", PAPER_NETS)
def test_the_networks_have_timms_interface(name: str) -> None:
    model = create_backbone(name, num_classes=7, in_chans=3)
    x = torch.randn(2, 3, 28, 28)
    model.eval()
    features = model.forward_features(x)  # type: ignore[operator]
    pooled = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features))  # type: ignore[operator]
    assert model.get_classifier() is model.head  # type: ignore[operator]
    assert model(x).shape == (2, 7)
    assert model.pretrained_cfg["input_size"] == (3, 28, 28)  # type: ignore[index]


@pytest.mark.parametrize("name", PAPER_NETS)
def test_a_new_head_has_the_classes_asked_for_and_none_means_features(name: str) -> None:
    model = create_backbone(name, in_chans=1).eval()
    x = torch.randn(2, 1, 28, 28)
    features = model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]
    model.reset_classifier(3)  # type: ignore[operator]
    assert model(x).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)  # type: ignore[operator]
    assert torch.equal(model(x), features)


@pytest.mark.parametrize("name", PAPER_NETS)
def test_building_one_leaves_it_in_training_mode_with_fresh_statistics(name: str) -> None:
    model = PAPER_NETS[name]()
    assert all(module.training for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            assert module.num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("name", "smallest"), [("mnist_conv", 28), ("conv4", 16), ("conv4_32", 16), ("mnist_linear", 1), ("resnet12", 16)]
)
def test_the_smallest_image_that_fits_is_the_one_the_documentation_names(name: str, smallest: int) -> None:
    assert PAPER_NETS[name](img_size=smallest).eval()(torch.zeros(1, 1, smallest, smallest)).ndim == 2
    if smallest > 1:
        with pytest.raises(InputError, match=f"img_size: {smallest - 1} is too small for {name.removesuffix('_32')}"):
            create_backbone(name, img_size=smallest - 1)


def test_no_weights_were_published_and_the_error_says_so() -> None:
    with pytest.raises(InputError, match="no published weights of 'conv4'"):
        create_backbone("conv4", pretrained=True)
