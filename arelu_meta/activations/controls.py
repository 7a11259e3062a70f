"""Controls: what a reviewer would try in AReLU's place, each by a name that stands where an activation's name stands.

Those that act at an activation are modules here and have nothing that learns; what acts on the head, its rate or the
weights is put in by `create_backbone` (`arelu_meta.backbones.networks`) and by fine-tuning's defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.errors import InputError, nearest_names

LEAK_SLOPE = 0.18
"""What the starts `leak` and `open` add to a slope: 0.2 (their gate) times 0.9 (alpha)."""

SCRATCH_GAIN = 1.88
"""The positive slope of AReLU as the paper starts it, 1 + sigmoid(2), to two digits."""

HEAD_GAIN = 1.94
"""By how much `open` raises the root mean square of EfficientNet-Lite0's pooled features on flowers17."""

HEAD_RATE = 10.0


@dataclass(frozen=True)
class Control:
    """One control.

    Args:
        formula: what it computes.
        why: what it explains, in a line.
        at: where it acts: every activation, the last one, the head, the head's rate, or the weights.
    """

    formula: str
    why: str
    at: str = "activations"


FROZEN = "arelu:frozen"
CONTROLS: Mapping[str, Control] = {
    "control:gain": Control(
        "features * g, g = rms(open's features) / rms(features), both before training",
        "a constant in front of the head: how much of open's gain is a larger scale",
        "head",
    ),
    "control:head10": Control(
        "act(x), and the head learns at 10 * lr",
        "the model's own activations: how much of the gain is a head that learns faster",
        "rate",
    ),
    "control:leak": Control(
        "act(x) + 0.18 * x, everywhere", "open without anything that learns: how much of the gain is any fixed leak"
    ),
    "control:negative-leak": Control(
        "act(x) + 0.18 * min(x, 0), everywhere", "the leak on the negative side alone, where a ReLU blocks gradients"
    ),
    "control:last": Control(
        "act(x) + 0.18 * x in the last activation, act(x) in all others",
        "the leak where it reaches the head at once: how much of it is about the features' last step",
        "last",
    ),
    FROZEN: Control(
        "arelu(x; alpha, beta, t) with alpha, beta and t as they start; arelu:open:frozen and so on by any start",
        "AReLU whose scalars do not learn: how much of the gain is learning them",
    ),
    "relu:he": Control(
        "relu(x), weights drawn with variance 2 / fan_in",
        "from scratch: how much of AReLU's gain is an initialization that keeps the signal's size",
        "weights",
    ),
    "relu:gain": Control("1.88 * relu(x)", "from scratch: AReLU's positive slope as a constant, and no leak"),
    "linear:gain": Control("1.88 * x", "from scratch: the same slope on both sides, so that nothing is cut off"),
}
"""Controls by name."""

SWAPPED_IN = tuple(name for name, control in CONTROLS.items() if control.at in ("activations", "last"))


def is_control(name: str | None) -> bool:
    """Return True if a name is a control's, or of an AReLU whose scalars are frozen.

    Args:
        name: where an activation's name stands; None is none.
    """
    return name is not None and (name in CONTROLS or (name.startswith("arelu:") and name.endswith(":frozen")))


def split_start(name: str) -> tuple[str, str | None]:
    """Take the start out of an activation's name.

    Args:
        name: as `arelu:open`, `arelu:open:frozen` or `relu`.

    Returns:
        `arelu`, `arelu:frozen` or the name as it is, and the start or None.
    """
    first, _, rest = name.partition(":")
    if first.lower() != "arelu" or not rest:
        return name, None
    parts = rest.lower().split(":")
    frozen = parts[-1] == "frozen"
    starts = parts[:-1] if frozen else parts
    if len(starts) > 1:
        raise InputError(f"activation: {name!r} is not known; give arelu:START or arelu:START:frozen")
    return FROZEN if frozen else "arelu", starts[0] if starts else None


def check_control_name(name: str) -> None:
    """Refuse an unknown name that begins as a control's does.

    Args:
        name: of an activation.

    Raises:
        InputError: with the nearest.
    """
    if name.partition(":")[0] in {one.partition(":")[0] for one in CONTROLS} and ":" in name and name not in CONTROLS:
        raise InputError(f"activation: {name!r} is not known; {nearest_names(name, CONTROLS, most=1)}")


class FixedLeak(nn.Module):
    """Another activation plus a fixed leak: `base(x) + slope * x`, or `base(x) + slope * min(x, 0)`; nothing learns.

    Args:
        base: the activation; used as it is.
        slope: of what is added.
        negative: add it on the negative side alone.
    """

    def __init__(self, base: nn.Module, slope: float = LEAK_SLOPE, negative: bool = False) -> None:
        super().__init__()
        self.base = base
        self.slope, self.negative = slope, negative

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, of x's shape and dtype."""
        leaked = x.clamp(max=0) if self.negative else x
        return self.base(x) + self.slope * leaked  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the slope."""
        return f"slope={self.slope:g}" + (", negative=True" if self.negative else "")


class Scaled(nn.Module):
    """A constant times another activation: `gain * base(x)`.

    Args:
        base: the activation.
        gain: the constant.
    """

    def __init__(self, base: nn.Module, gain: float = SCRATCH_GAIN) -> None:
        super().__init__()
        self.base, self.gain = base, gain

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, of x's shape and dtype."""
        return self.gain * self.base(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"gain={self.gain:g}"


def freeze_scalars(module: nn.Module) -> nn.Module:
    """Make the scalars of an AReLU buffers: they are saved under the same names, and nothing ever trains them.

    Args:
        module: an AReLU or a gated residual, changed in place; its base goes on learning, if it can.

    Returns:
        The module.
    """
    if isinstance(module, AReLU | GatedAReLU):
        for name, value in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, value.detach())
    return module


def scaled_relu() -> nn.Module:
    """Make `relu:gain`."""
    return Scaled(nn.ReLU())


def scaled_line() -> nn.Module:
    """Make `linear:gain`."""
    return Scaled(nn.Identity())


def draw_he(model: nn.Module) -> None:
    """Draw all weights of convolutions and linear layers anew, with variance 2 / fan_in, and set their biases to 0.

    Args:
        model: changed in place.

    Source: He et al. 2015, equation 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
