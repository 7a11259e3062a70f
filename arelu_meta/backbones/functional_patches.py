"""The classes of timm, torchvision and torch that call an activation as a function: the same code, calling a module.

A patched module belongs to a subclass of its class with one line changed: it pickles, compiles, exports.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.mobilevit import LinearSelfAttention
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.fcos import FCOSRegressionHead
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv2d
from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
from torchvision.models.inception import BasicConv2d as InceptionConv2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

_FUNCTION = "_arelu_meta_function"
_FUNCTIONS = {F.relu: nn.ReLU, torch.relu: nn.ReLU, F.gelu: nn.GELU}


class PatchedLinearSelfAttention(LinearSelfAttention):  # type: ignore[misc]
    """timm's linear self-attention (mobilevitv2): `F.relu(value)` is `value_act(value)`."""

    def _forward_self_attn(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_proj(x).split([1, self.embed_dim, self.embed_dim], dim=1)
        context_scores = self.attn_drop(F.softmax(query, dim=-1))
        context_vector = (key * context_scores).sum(dim=-1, keepdim=True)
        out = self.value_act(value) * context_vector.expand_as(value)
        y: Tensor = self.out_drop(self.out_proj(out))
        return y


class PatchedDenseNet(DenseNet):  # type: ignore[misc]
    """torchvision's DenseNet: `F.relu(features, inplace=True)` is `relu(features)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        out = self.relu(self.features(x))
        out = torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1)
        y: Tensor = self.classifier(out)
        return y


class PatchedInceptionConv2d(InceptionConv2d):  # type: ignore[misc]
    """torchvision's Inception's convolution: `F.relu(x, inplace=True)` is `relu(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class PatchedGoogLeNetConv2d(GoogLeNetConv2d):  # type: ignore[misc]
    """torchvision's GoogLeNet's convolution: `F.relu(x, inplace=True)` is `relu(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class PatchedGoogLeNetAux(GoogLeNetAux):  # type: ignore[misc]
    """torchvision's GoogLeNet's auxiliary head: `F.relu(self.fc1(x), inplace=True)` is `relu(fc1(x))`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, (4, 4))), 1)
        y: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return y


class PatchedTwoMLPHead(TwoMLPHead):  # type: ignore[misc]
    """torchvision's detectors' head: `F.relu` of each of its two layers is a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the boxes."""
        y: Tensor = self.relu7(self.fc7(self.relu6(self.fc6(x.flatten(start_dim=1)))))
        return y


class PatchedLastLevelP6P7(LastLevelP6P7):  # type: ignore[misc]
    """The last levels of torchvision's RetinaNet and FCOS: `p7(F.relu(p6))` is `p7(relu(p6))`."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Return the pyramid's levels with two more, and their names."""
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        p.extend([p6, self.p7(self.relu(p6))])
        names.extend(["p6", "p7"])
        return p, names


class PatchedDecoderLayer(nn.TransformerDecoderLayer):
    """torch's decoder layer, whose own `__setstate__` gives a copy `F.relu` where the activation is a module."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "activation" in self._modules:
            vars(self).pop("activation", None)


_PATCHES: dict[type[nn.Module], tuple[type[nn.Module], dict[str, bool]]] = {
    LinearSelfAttention: (PatchedLinearSelfAttention, {"value_act": False}),
    DenseNet: (PatchedDenseNet, {"relu": True}),
    InceptionConv2d: (PatchedInceptionConv2d, {"relu": True}),
    GoogLeNetConv2d: (PatchedGoogLeNetConv2d, {"relu": True}),
    GoogLeNetAux: (PatchedGoogLeNetAux, {"relu": True}),
    TwoMLPHead: (PatchedTwoMLPHead, {"relu6": False, "relu7": False}),
    LastLevelP6P7: (PatchedLastLevelP6P7, {"relu": False}),
}
"""By class: the one with modules, and the names of its ReLUs, each with whether it works in place."""
_ORIGINALS = {patched: (kind, names) for kind, (patched, names) in _PATCHES.items()}


ROLES_OF_FUNCTIONS: dict[type[nn.Module], str] = {FCOSRegressionHead: "position"}
"""The classes whose function call is no hidden activation: FCOS's relu makes distances to a box's sides."""


def patch_functional_calls(model: nn.Module) -> list[nn.Module]:
    """Let the modules of the classes that are known here call modules, where they call functions.

    Args:
        model: changed in place.

    Returns:
        The modules that were changed; `unpatch` takes it back.
    """
    changed = []
    for module in list(model.modules()):
        if type(module) in _PATCHES:
            module.__class__, names = _PATCHES[type(module)]
            for name, inplace in names.items():
                module.add_module(name, nn.ReLU(inplace).train(module.training))
            changed.append(module)
        elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            function: Any = vars(module).get("activation")
            if function in _FUNCTIONS:
                vars(module)[_FUNCTION] = function
                module.activation = _FUNCTIONS[function]().train(module.training)
                if type(module) is nn.TransformerDecoderLayer:
                    module.__class__ = PatchedDecoderLayer
                changed.append(module)
    return changed


def activations_of(module: nn.Module) -> list[str]:
    """Name the activations that `patch_functional_calls` gave a module.

    Args:
        module: any module.
    """
    if _FUNCTION in vars(module):
        return ["activation"]
    return list(_ORIGINALS[type(module)][1]) if type(module) in _ORIGINALS else []


def unpatch(module: nn.Module) -> None:
    """Take back `patch_functional_calls`.

    Args:
        module: a patched one; any other stays as it is.
    """
    names = activations_of(module)
    for name in names:
        module._modules.pop(name, None)
    if _FUNCTION in vars(module):
        module.activation = vars(module).pop(_FUNCTION)
        if type(module) is PatchedDecoderLayer:
            module.__class__ = nn.TransformerDecoderLayer  # type: ignore[assignment]
    elif names:
        module.__class__ = _ORIGINALS[type(module)][0]


def match_fast_paths(model: nn.Module) -> None:
    """Let each of torch's transformer layers take its fast path only over the activation that this computes.

    Args:
        model: changed in place; the layers' note of which activation they hold is made again, by torch's own rule.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            held = getattr(module, "activation", None)
            relu, gelu = held is F.relu or isinstance(held, nn.ReLU), held is F.gelu or isinstance(held, nn.GELU)
            module.activation_relu_or_gelu = 1 if relu else 2 if gelu else 0
