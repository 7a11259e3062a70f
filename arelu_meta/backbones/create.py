"""`create_backbone`: a network by its name, weights from anywhere, a head, an activation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import is_stock, make_backbone
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.config import Activation, Init
from arelu_meta.errors import InputError
from arelu_meta.validation import checked, expanded


@checked
def create_backbone(
    name: str,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    activation: Activation | None = None,
    init: Init | None = None,
    data: Tensor | Iterable[object] | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone with timm's interface.

    Args:
        name: any timm model, or `mnist_conv`, `mnist_linear`, `conv4`, `conv4_32`, `resnet12`.
        pretrained: true loads weights: those installed with this package where there are any, else through timm's hub
            code. Or where weights lie: a file of timm or PyTorch (safetensors, or a state dict of torch.save, bare or
            in a checkpoint), a folder of timm's save_for_hf, `hf-hub:OWNER/NAME`; or a run folder of `finetune`, its
            model.safetensors, or an adapter, with what was swapped in there. A head of another size is new.
        num_classes: outputs of a new head; default: the model's own.
        in_chans: channels of an image; pretrained first layers are adapted as timm does.
        activation: what to swap in, a name of `list_activations()` or a control's; default: the model's own stays.
        init: how an AReLU starts; default: `preserve` with pretrained weights, `paper` otherwise.
        data: a few batches of images, which `init="fit"` looks at.
        alpha: where an AReLU's alpha starts, in [0.01, 0.99]; default: what `init` says, mostly the paper's 0.9.
        beta: where its beta starts; default: what `init` says, mostly the paper's 2.
        **kwargs: passed to the model (`img_size`, `drop_rate`, …).

    Returns:
        The model, in training mode, with `pretrained_cfg`, `get_classifier` and `reset_classifier`.

    Raises:
        InputError: if the name is unknown (with the nearest), an argument does not fit, or weights cannot be had.

    Example:
        >>> from arelu_meta import create_backbone
        >>> model = create_backbone("resnet18", num_classes=17, activation="arelu", init="preserve")
        >>> model.act1
        GatedAReLU(
          alpha=0.9, beta=2.0, t=0.0
          (base): ReLU()
        )
    """
    for what, value, least, most in (("in_chans", in_chans, 1, 10_000), ("num_classes", num_classes, 0, 1_000_000)):
        if value is not None and not least <= value <= most:
            allowed = f"{least} or more" if value < least else f"at most {most:,}"
            raise InputError(f"{what}: {value} is not allowed; give {allowed}")
    if activation is None and (alpha is not None or beta is not None):
        raise InputError("alpha, beta: they start an AReLU; give activation='arelu' with them")
    source = pretrained if isinstance(pretrained, bool) else str(pretrained)
    if isinstance(source, bool) or is_stock(source):
        return make_backbone(name, source, num_classes, in_chans, activation, init, data, alpha, beta, **kwargs)
    model = _of_a_run(name, source, num_classes, in_chans, **kwargs)
    if activation is not None:  # without an init, what the run swapped in stays
        swap_activations(model, activation, init=init, data=data, alpha=alpha, beta=beta)
    return model


def _of_a_run(name: str, source: str, num_classes: int | None, in_chans: int, **kwargs: Any) -> nn.Module:
    """Load the model of a fine-tuning run or of an adapter; a head of another size is new."""
    where = f"model.pretrained: {source!r}"
    if not expanded(source).exists():
        raise InputError(f"{where} does not exist; give true, false, a run, or a file or folder of weights")
    model, spec = load_model(expanded(source), "model.pretrained")
    if spec.task != "finetune":
        raise InputError(f"{where} is a meta-learner; arelu_meta.Learner.load and load_model load it")
    if spec.name.partition(".")[0] != name.partition(".")[0]:
        raise InputError(f"{where} is of another architecture ({spec.name!r}) than {name!r}; give its name")
    if spec.inputs.channels != in_chans:
        raise InputError(f"in_chans: {in_chans} does not fit {where}, which takes {spec.inputs.channels} channels")
    for key, value in kwargs.items():
        if key != "img_size" or value != spec.inputs.image_size:
            raise InputError(f"{key}: {value!r} does not go with {where}, which says how it is made; leave it out")
    if num_classes is not None and num_classes != spec.num_classes:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model.train()
