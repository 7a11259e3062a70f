"""What of a model is trained: all, the head, the activations, low-rank adapters, the last stages, or ever more."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.backbones.lora import add_lora, has_lora, lora_parameters
from arelu_meta.config import LAST_STAGES, Mode, TrainConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.optimizer import activation_parameters, head_parameters
from arelu_meta.validation import checked

_SMALL = ("norm", "bias")  # modes whose few parameters lie all over the backbone


def keeps_features(mode: str) -> bool:
    """Say whether a mode leaves everything but the head as it is.

    Args:
        mode: train.mode.
    """
    return mode in ("head", "probe")


def stages(model: nn.Module, head: str | None = None) -> list[list[str]]:
    """Divide a backbone's parameters into stages, from the stem on.

    Args:
        model: a timm model, whose own groups are taken (those of layer-wise decay, coarse), or another one, whose
            children are its stages.
        head: the path of the head; default: as `heads_of` finds it.

    Returns:
        Parameters' names, stage by stage; the head's are left out, and a last norm belongs to the stage before it.
    """
    parameters = dict(model.named_parameters())
    of_head = {id(parameter) for parameter in head_parameters(model, head)}
    found: list[list[str]] = []
    for names in _groups(model, parameters):
        names = [name for name in names if id(parameters[name]) not in of_head]
        if found and names and all(parameters[name].ndim < 2 for name in names):
            found[-1] += names
        elif names:
            found.append(names)
    return found


def _groups(model: nn.Module, parameters: Iterable[str]) -> list[list[str]]:
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
        return list(group_parameters(model, matcher).values())
    children: dict[str, list[str]] = {}
    for name in parameters:
        # A sequence's own children are the stages: one sequence holds all of a small network.
        parts = name.split(".")
        deep = len(parts) > 2 and isinstance(getattr(model, parts[0]), nn.Sequential)
        children.setdefault(".".join(parts[: 2 if deep else 1]), []).append(name)
    return list(children.values())


def unfrozen_stages(mode: str, stage_count: int, epoch: int, epochs: int) -> int:
    """Count the stages, from the last on, that learn in an epoch.

    Args:
        mode: train.mode.
        stage_count: stages that the backbone has.
        epoch: from 1.
        epochs: of the run.

    Returns:
        0 for a head alone; under `gradual` one more at a time, all of them when half of the epochs are over.

    Source: Howard and Ruder 2018 (ULMFiT), section 3.3, with the pace set by the run's length.
    """
    last = LAST_STAGES.fullmatch(mode)
    if last:
        return int(last[1])
    if mode == "gradual":
        half = max(1, epochs // 2)
        return min(stage_count, round(stage_count * (epoch - 1) / half))
    return stage_count if mode == "full" else 0


@checked
def set_trainable(model: nn.Module, mode: Mode, head: str | None = None) -> dict[str, tuple[int, int]]:
    """Let those parameters of a model learn that a mode of `--train.mode` trains, and no others.

    Only `requires_grad` is set: in one's own loop, `model.eval()` for what must not move its statistics is one's own.

    Args:
        model: any module; changed in place.
        mode: full, head, activations (their scalars and the head), norm (scale and shift of normalisation, and the
            head), bias (biases and the head), lora (low-rank adapters, which are put in, and the head), last-N (the
            last N stages and the head).
        head: the path of the head; default: what timm's `get_classifier` gives, else the last linear layer.

    Returns:
        For backbone, activations and head: how many parameters there are, and how many of them learn.

    Raises:
        InputError: if the mode is not known, or the model has not what it trains.

    Example:
        >>> from arelu_meta import create_backbone, set_trainable
        >>> model = create_backbone("mnist_conv", num_classes=10, in_chans=1, activation="arelu")
        >>> set_trainable(model, "activations")
        {'backbone': (12520, 0), 'activations': (6, 6), 'head': (410, 410)}
    """
    allowed = "full, head, activations, norm, bias, lora or last-N"
    if mode not in ("full", "head", "activations", "norm", "bias", "lora") and not LAST_STAGES.fullmatch(mode):
        raise InputError(f"mode: {mode!r} is not known; give {allowed}")
    set_learning(model, TrainConfig(mode=mode), head=head)
    return count_learning(model, head)


def set_learning(model: nn.Module, config: TrainConfig, epoch: int | None = None, head: str | None = None) -> None:
    """Let those parameters learn that a mode trains, and no others.

    Args:
        model: changed in place.
        config: mode, epochs, freeze_bn.
        epoch: from 1; None lets all learn that do so in any epoch.
        head: the path of the head; default: as `heads_of` finds it.

    Raises:
        InputError: if there are fewer stages than the mode asks for, or no activation that learns.
    """
    if config.mode == "lora" and not has_lora(model):
        add_lora(model, config.lora_rank, head)
    divided = stages(model, head)
    count = unfrozen_stages(config.mode, len(divided), config.epochs if epoch is None else epoch, config.epochs)
    if count > len(divided):
        raise InputError(
            f"train.mode: {config.mode!r} asks for more stages than the model has; give at most {len(divided)}"
        )
    if config.mode == "gradual" and epoch is None:
        count = len(divided)
    scalars = activation_parameters(model)
    if config.mode == "activations" and not scalars:
        raise InputError(
            "train.mode: 'activations' needs activations that learn; give --model.activation arelu with it"
        )
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    learning = [parameters[name] for names in divided[len(divided) - count :] for name in names]
    learning += head_parameters(model, head) + (scalars if config.mode == "activations" else [])
    learning += lora_parameters(model) if config.mode == "lora" else _small_parameters(model, config.mode)
    for parameter in learning:
        parameter.requires_grad_(True)
    if config.freeze_bn is True and config.mode not in _SMALL:
        for norm in _batch_norms(model):
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)


def _small_parameters(model: nn.Module, mode: str) -> list[nn.Parameter]:
    """List what the modes norm and bias train beside the head: scale and shift of normalisation, or all biases."""
    if mode not in _SMALL:
        return []
    owners = [module for module in model.modules() if mode == "bias" or _is_norm(module)]
    found = [
        parameter
        for owner in owners
        for name, parameter in owner.named_parameters(recurse=False)
        if name == "bias" or (mode == "norm" and name == "weight")
    ]
    if not found:
        raise InputError(f"train.mode: {mode!r} needs a model that has such parameters, and this one has none")
    return found


def _is_norm(module: nn.Module) -> bool:
    """Return True for what normalises: torch's and timm's layers, by their name, whatever acts behind them."""
    return "Norm" in type(module).__name__ or isinstance(module, _BatchNorm)


def set_training(model: nn.Module, config: TrainConfig) -> None:
    """Put a model into training mode, and what is frozen of it into evaluation mode.

    A frozen stage neither drops anything out nor moves its statistics. Under `activations` statistics move unless
    `freeze_bn` holds them, as it does by default where the activations start as the pretrained ones.

    Args:
        model: as `set_learning` left it; changed in place.
        config: mode and freeze_bn.
    """
    if keeps_features(config.mode):
        model.eval()
        return
    model.train()
    if config.mode != "activations":
        _still(model)
    if config.freeze_bn is True:
        for norm in _batch_norms(model):
            norm.eval()


_HEAD_DROPOUTS = {"head_drop", "head.drop"}


def set_drop_rate(model: nn.Module, rate: float | None) -> None:
    """Set the dropout before the head, wherever timm keeps it: a module, or a number that `forward_head` reads.

    Args:
        model: changed in place.
        rate: model.drop_rate; None leaves the model's own.

    Raises:
        InputError: if the model has no dropout before its head.
    """
    if rate is None:
        return
    modules = [module for name, module in model.named_modules() if name in _HEAD_DROPOUTS]
    dropouts = [module for module in modules if isinstance(module, nn.Dropout)]
    if not dropouts and not hasattr(model, "drop_rate"):
        raise InputError(f"model.drop_rate: {rate} is of dropout before the head, which this model lacks; leave it out")
    for dropout in dropouts:
        dropout.p = rate
    if hasattr(model, "drop_rate"):
        model.drop_rate = rate  # type: ignore[assignment]


def _still(module: nn.Module) -> None:
    """Put every module into evaluation mode that has parameters and none that learns, whole stages first."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _still(child)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def count_learning(model: nn.Module, head: str | None = None) -> dict[str, tuple[int, int]]:
    """Count parameters by what they are for.

    Args:
        model: as `set_learning` left it.
        head: the path of the head; default: as `heads_of` finds it.

    Returns:
        For backbone, activations and head: how many there are, and how many of them learn.
    """
    of_head = {id(parameter) for parameter in head_parameters(model, head)}
    scalars = {id(parameter) for parameter in activation_parameters(model)}
    counts = {"backbone": [0, 0], "activations": [0, 0], "head": [0, 0]}
    for parameter in model.parameters():
        key = "activations" if id(parameter) in scalars else "head" if id(parameter) in of_head else "backbone"
        counts[key][0] += parameter.numel()
        counts[key][1] += parameter.numel() * parameter.requires_grad
    return {name: (whole, learning) for name, (whole, learning) in counts.items() if whole}
