"""Make a backbone: a timm name or one of the papers' networks, weights, a head, an activation."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.backbones.timm_compat import explain_weights_that_do_not_fit
from arelu_meta.backbones.weights import (
    StockWeights,
    embedded_models,
    embedded_weights,
    is_stock,
    make_stock,
    read_stock,
)
from arelu_meta.errors import InputError, nearest_names, out_of_memory
from arelu_meta.validation import checked

_log = logging.getLogger(__name__)


@checked
def create_backbone(
    name: str,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    activation: str | None = None,
    init: str | None = None,
    data: Tensor | Iterable[object] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone with timm's interface.

    Args:
        name: any timm model, or `mnist_conv`, `mnist_linear`, `conv4`, `conv4_32`, `resnet12`.
        pretrained: true loads weights: those installed with this package where there are any, else through timm's hub
            code. Or where weights lie: a file of timm or PyTorch (safetensors, or a state dict of torch.save, bare or
            in a checkpoint), a folder of timm's save_for_hf, `hf-hub:OWNER/NAME`; a head of another size is new.
        num_classes: outputs of a new head; default: the model's own.
        in_chans: channels of an image; pretrained first layers are adapted as timm does.
        activation: what to swap in, a name of `list_activations()`; default: the model's own stays.
        init: how an AReLU starts; default: `preserve` with pretrained weights, `paper` otherwise.
        data: a few batches of images, which `init="fit"` looks at.
        **kwargs: passed to the model (`img_size`, `drop_rate`, …).

    Returns:
        The model, in training mode, with `pretrained_cfg`, `get_classifier` and `reset_classifier`.

    Raises:
        InputError: if the name is unknown (with the nearest), an argument does not fit, or weights cannot be had.
    """
    for what, value, least in (("in_chans", in_chans, 1), ("num_classes", num_classes, 0)):
        if value is not None and value < least:
            raise InputError(f"{what}: {value} is not allowed; give {least} or more")
    if isinstance(pretrained, str | Path):
        model, own = load_backbone(name, read_stock(_stock_source(pretrained)), num_classes, in_chans, **kwargs)
        if not own:
            _log.info("%s: the head is new", pretrained)
    else:
        if num_classes is not None:
            kwargs["num_classes"] = num_classes
        make = _paper_net if name in PAPER_NETS else _timm_model
        model = make(name, pretrained, in_chans=in_chans, **kwargs)
    if activation is not None:
        start = (init or ("preserve" if pretrained else "paper")) if activation == "arelu" else init
        swap_activations(model, activation, init=start, data=data)
    explain_weights_that_do_not_fit(model)
    return model


def _stock_source(pretrained: str | Path) -> str:
    source = str(pretrained)
    if is_stock(source):
        return source
    if Path(source).expanduser().exists():
        raise InputError(
            f"model.pretrained: {source!r} is a run, or no whole file of weights; arelu_meta.load_model loads a run"
        )
    raise InputError(f"model.pretrained: {source!r} does not exist; give true, false, or a file or folder of weights")


def load_backbone(
    name: str, stock: StockWeights, num_classes: int | None, in_chans: int, **kwargs: Any
) -> tuple[nn.Module, bool]:
    """Make a backbone with weights that somebody saved.

    Args:
        name: as in `create_backbone`.
        stock: the weights.
        num_classes: the head's outputs; None for as many as the weights have.
        in_chans: channels of an image.
        **kwargs: passed to the model.

    Returns:
        The model, in training mode, and whether its head is that of the weights; a head of another size is new.

    Raises:
        InputError: if the name is unknown, or the weights are of another architecture.
    """
    if name not in PAPER_NETS:
        check_model_name(name)
        return make_stock(name, stock, num_classes, in_chans=in_chans, **kwargs)
    outputs = len(stock.tensors["head.weight"]) if "head.weight" in stock.tensors else 0
    model = _paper_net(name, False, num_classes=outputs, in_chans=in_chans, **kwargs)
    try:
        model.load_state_dict(stock.tensors)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model.pretrained: {stock.source!r} does not fit {name!r} ({reason})") from error
    own_head = outputs > 0 and num_classes in (None, outputs)
    if not own_head and num_classes is not None:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model, own_head


def model_names() -> list[str]:
    """Name every model that `create_backbone` makes."""
    import timm

    return sorted([*PAPER_NETS, *timm.list_models()])


def check_model_name(name: str) -> None:
    """Refuse an unknown model.

    Args:
        name: of a model; timm's tags (`resnet18.a1_in1k`) are allowed.

    Raises:
        InputError: with the nearest names.
    """
    import timm

    if name not in PAPER_NETS and not timm.is_model(name):
        raise InputError(f"model.name: {name!r} is not known; {nearest_names(name, model_names())}")


def size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """Give the argument that builds a model for another image size, where its layers depend on it.

    Args:
        name: a known model.
        image_size: side in pixels; None for the model's own.

    Returns:
        `{"img_size": …}` for the papers' networks and timm's fixed-size models (vision transformers), else nothing.
    """
    import timm

    if image_size is None:
        return {}
    if name in PAPER_NETS:
        return {"img_size": image_size}
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that there is not: `create_backbone` says so
        return {}
    fixed = config is not None and config.fixed_input_size and config.input_size[-1] != image_size
    return {"img_size": image_size} if fixed else {}


def _paper_net(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if pretrained:
        raise InputError(f"model.pretrained: there are no published weights of {name!r}; give false or a checkpoint")
    try:
        return PAPER_NETS[name](**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"model.name: {name!r} cannot be made: {str(error).splitlines()[0]}") from error


def _timm_model(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    import timm

    check_model_name(name)
    weights = embedded_weights(name) if pretrained else None
    if weights is not None:
        kwargs["pretrained_cfg_overlay"] = {"state_dict": weights}
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries are told once, in the error below
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (OSError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        if not pretrained:
            raise InputError(f"model.name: {name!r} cannot be made: {str(error).splitlines()[0]}") from error
        reason = str(error).split("\n")[0].split("'[Errno")[0]
        raise InputError(
            f"model.pretrained: weights of {name!r} cannot be had ({reason.strip()}); "
            f"without a network there are: {', '.join(embedded_models())}"
        ) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"model.name: {name!r} cannot be made: {error}") from error
    finally:
        hub.setLevel(level)
    # The tensors have been copied into the model; the config is what people print and save.
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)
    return model
