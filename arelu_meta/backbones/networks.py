"""Networks: the AReLU authors' for MNIST, the few-shot literature's Conv-4 and ResNet-12, and any network's head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arelu_meta.errors import InputError


class SmallNet(nn.Module):
    """Features, then a linear head: the part of timm's model interface that the pipelines use.

    Args:
        features: maps images of shape (batch, in_chans, side, side) to a tensor that flattens to num_features.
        num_features: the length of the flattened features.
        num_classes: the head's outputs; 0 for none.
        in_chans: channels of an image.
        img_size: side of an image, in pixels.
    """

    def __init__(
        self, features: nn.Sequential, num_features: int, num_classes: int, in_chans: int, img_size: int
    ) -> None:
        super().__init__()
        self.features = features
        self.num_features = self.head_hidden_size = num_features
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (in_chans, img_size, img_size),
            "mean": (0.0,) * in_chans,
            "std": (1.0,) * in_chans,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Start a new head.

        Args:
            num_classes: its outputs; 0 takes the head away.
        """
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features before they are flattened."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Flatten features and classify them.

        Args:
            x: what `forward_features` returned.
            pre_logits: stop before the head.

        Returns:
            Shape (batch, num_classes), or (batch, num_features).
        """
        x = x.flatten(1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, num_classes)."""
        return self.forward_head(self.forward_features(x))


def mnist_conv(num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build the authors' MNIST-Conv: three blocks of convolution, 2 × 2 max-pooling, activation, in that order.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 28 pixels.

    Source: Chen et al. 2020, section 4.1, and the authors' published code for the order of the layers.
    """
    features = nn.Sequential(
        *[nn.Conv2d(in_chans, 10, 5), nn.MaxPool2d(2), nn.ReLU()],
        *[nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()],
        *[nn.Conv2d(20, 40, 3), nn.MaxPool2d(2), nn.ReLU()],
    )
    return _small_net(features, num_classes, in_chans, img_size, "mnist_conv")


def mnist_linear(num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build the authors' MNIST-Linear: one hidden layer of 512.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, in pixels.

    Source: Chen et al. 2020, section 4.1.
    """
    features = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, 512), nn.ReLU())
    return SmallNet(features, 512, num_classes, in_chans, img_size)


def conv4(num_classes: int = 5, in_chans: int = 1, img_size: int = 28, filters: int = 64) -> SmallNet:
    """Build Conv-4: four blocks of 3 × 3 convolution, batch normalisation, activation, 2 × 2 max-pooling.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.
        filters: channels of every block.

    Source: Vinyals et al. 2016, section 4.1.1; Finn et al. 2017, section 5.2.
    """
    layers: list[nn.Module] = []
    for block in range(4):
        layers += [nn.Conv2d(in_chans if block == 0 else filters, filters, 3, padding=1)]
        layers += [nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]
    return _small_net(nn.Sequential(*layers), num_classes, in_chans, img_size, "conv4")


def conv4_32(num_classes: int = 5, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build Conv-4 with 32 filters a block, as few-shot papers use where memory is short.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.
    """
    return conv4(num_classes, in_chans, img_size, filters=32)


class _ResidualBlock(nn.Module):
    """Three 3 × 3 convolutions beside a 1 × 1 convolution, then an activation and 2 × 2 max-pooling."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [nn.Conv2d(in_chans if number == 0 else width, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(in_chans, width, 1, bias=False), nn.BatchNorm2d(width))
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.convolutions(x) + self.shortcut(x)))  # type: ignore[no-any-return]


def resnet12(num_classes: int = 5, in_chans: int = 1, img_size: int = 28) -> SmallNet:
    """Build ResNet-12: four residual blocks of 64, 160, 320 and 640 channels, and the mean over places.

    Args:
        num_classes: the head's outputs.
        in_chans: channels of an image.
        img_size: side of an image, at least 16 pixels.

    Source: Lee et al. 2019, section 4.1 (MetaOptNet), without their dropout and DropBlock: an episode's engines are to
    give the same.
    """
    widths = (64, 160, 320, 640)
    blocks = [_ResidualBlock(*pair) for pair in zip((in_chans, *widths), widths, strict=False)]
    features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1))
    return _small_net(features, num_classes, in_chans, img_size, "resnet12")


def _small_net(features: nn.Sequential, num_classes: int, in_chans: int, img_size: int, name: str) -> SmallNet:
    """Add a head as wide as the features are at this image size."""
    # torch.nn.Module.eval, not the layers' own statistics: one image has no batch variance.
    training = features.training
    try:
        with torch.no_grad():
            width = features.eval()(torch.zeros(1, in_chans, img_size, img_size)).numel()
    except RuntimeError as error:
        raise ValueError(f"img_size: {img_size} is too small for {name}; its pooling leaves nothing") from error
    features.train(training)
    return SmallNet(features, width, num_classes, in_chans, img_size)


PAPER_NETS: dict[str, Callable[..., SmallNet]] = {
    "mnist_conv": mnist_conv,
    "mnist_linear": mnist_linear,
    "conv4": conv4,
    "conv4_32": conv4_32,
    "resnet12": resnet12,
}


def heads_of(model: nn.Module, head: str | None = None) -> list[nn.Module]:
    """List a model's heads: timm models have one or, where distilled, two.

    Args:
        model: any module.
        head: the path of the head, as `fc`; default: what timm's `get_classifier` gives, else the last linear layer.

    Raises:
        InputError: if there is no such module, or none that could be the head.
    """
    modules = dict(model.named_modules())
    if head is not None:
        if head not in modules:
            raise InputError(f"head: {head!r} is no module of the model; give the path of one, as 'fc'")
        return [modules[head]]
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()  # type: ignore[operator]
        return list(classifier) if isinstance(classifier, tuple | list) else [classifier]
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("head: the model has no linear layer that could be its head; name it, as head='fc'")
    return [linear[-1]]


class GainedLinear(nn.Linear):
    """A linear head whose input is multiplied by a constant: `linear(gain * x)`; what `control:gain` makes of a head.

    Attributes:
        gain: shape (1,), a buffer.
    """

    gain: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        return super().forward(input * self.gain)


def set_gain(model: nn.Module, gain: float) -> None:
    """Multiply what a model's head gets by a constant.

    Args:
        model: its head is changed in place.
        gain: the constant.

    Raises:
        InputError: if the head is not one linear layer.
    """
    heads = heads_of(model)
    if len(heads) != 1 or type(heads[0]) is not nn.Linear:
        raise InputError("activation: 'control:gain' needs a head that is one linear layer; give another model")
    heads[0].__class__ = GainedLinear
    heads[0].register_buffer("gain", heads[0].weight.detach().new_full((1,), gain))


def zero_head(model: nn.Module) -> None:
    """Start a new head on pretrained features at zero, so that its noise does not shake them in the first steps.

    Args:
        model: its head is changed in place.

    Source: the fine-tuning of Kolesnikov et al. 2020 (Big Transfer).
    """
    for head in heads_of(model):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
