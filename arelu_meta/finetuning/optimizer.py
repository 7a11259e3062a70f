"""Parameter groups, timm's optimisers and timm's schedules."""

from typing import Any

import torch
from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.zoo import ELSA
from arelu_meta.backbones.networks import heads_of
from arelu_meta.config import OptimConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.validation import checked

_OF_ITS_SHAPE = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # as most optimisers call what they keep of a parameter
_FROM_CONFIG = ("lr", "initial_lr", "weight_decay")


def check_optimizer_name(name: str) -> None:
    """Refuse an unknown optimiser.

    Args:
        name: optim.name.

    Raises:
        InputError: with the nearest names, or because it needs more than gradients.
    """
    from timm.optim import get_optimizer_info, list_optimizers

    if name.lower() not in (known := list_optimizers()):
        raise InputError(f"optim.name: {name!r} is not known; {nearest_names(name, known)}")
    if get_optimizer_info(name.lower()).second_order:
        raise InputError(f"optim.name: {name!r} needs second derivatives; give one that steps by gradients, as adamw")


def head_parameters(model: nn.Module, head: str | None = None) -> list[nn.Parameter]:
    """List the head's parameters; a distilled model has two heads.

    Args:
        model: any module.
        head: its path; default: as `heads_of` finds it.
    """
    return [parameter for one in heads_of(model, head) for parameter in one.parameters()]


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the scalars alpha, beta and t of every AReLU in a model, a shared one once.

    Args:
        model: any module.
    """
    scalars: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, AReLU | GatedAReLU | ELSA):
            scalars |= {id(parameter): parameter for parameter in module.parameters(recurse=False)}
    return list(scalars.values())


def peak_rate(config: OptimConfig) -> float:
    """Return optim.lr as a number.

    Args:
        config: after what was chosen has taken the place of auto or default.

    Raises:
        InputError: if it is still none: only finetune chooses a learning rate.
    """
    if isinstance(config.lr, str):
        raise InputError(
            f"optim.lr: {config.lr!r} is not allowed here, only finetune chooses a rate; give a number above 0"
        )
    return config.lr


@checked
def parameter_groups(
    model: nn.Module,
    lr: float,
    act_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float = 1e-4,
    layer_decay: float | None = None,
    head: str | None = None,
) -> list[dict[str, Any]]:
    """Divide the trainable parameters into head, activations' scalars and backbone, each with its learning rate.

    Hugging Face's Trainer goes by names and decays the scalars: hand it `optimizers=(AdamW(groups), None)` of these.

    Args:
        model: any module; parameters that need no gradient are left out.
        lr: the learning rate.
        act_lr: that of the activations' scalars (alpha, beta, t); default: lr.
        head_lr: that of the head; default: lr.
        weight_decay: of weights; 1-D parameters, and those that the model or a part of it names itself (timm's
            `no_weight_decay`, as position embeddings), are spared.
        layer_decay: each layer of a timm model below the head learns at this share of the rate of the layer above it.
        head: the path of the head; default: what timm's `get_classifier` gives, else the last linear layer.

    Returns:
        Groups for a PyTorch optimiser, each with a `group_name`; empty ones are left out.

    Raises:
        InputError: if the model has no head that could be told, or no layers that timm knows of for a layer_decay.

    Example:
        >>> import torch
        >>> from arelu_meta import create_backbone, parameter_groups
        >>> model = create_backbone("mnist_conv", num_classes=10, in_chans=1, activation="arelu")
        >>> groups = parameter_groups(model, lr=0.03, act_lr=3e-4)
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
        >>> sorted({(group["group_name"], group["lr"]) for group in groups})
        [('activations', 0.0003), ('backbone', 0.03), ('head', 0.03)]
    """
    of_head = {id(parameter) for parameter in head_parameters(model, head)}
    scalars = {id(parameter) for parameter in activation_parameters(model)}
    rates = {"head": head_lr or lr, "activations": act_lr or lr, "backbone": lr}
    spared = _spared(model)
    scales = _layer_scales(model, layer_decay)
    groups: dict[tuple[str, bool, float], list[nn.Parameter]] = {}
    for full_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = id(parameter)
            name = "activations" if key in scalars else "head" if key in of_head else "backbone"
            decays = parameter.ndim > 1 and full_name not in spared
            groups.setdefault((name, decays, scales.get(key, 1.0)), []).append(parameter)
    return [
        {
            "group_name": name,
            "params": parameters,
            "lr": rates[name] * scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (name, decays, scale), parameters in groups.items()
    ]


def _spared(model: nn.Module) -> set[str]:
    """Name what the model, or a part of it, says of itself that it is not to decay."""
    return {
        f"{place}.{name}".removeprefix(".")
        for place, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def _layer_scales(model: nn.Module, decay: float | None) -> dict[int, float]:
    """Say at which share of the rate each parameter learns, by timm's layers; the head learns at all of it."""
    if decay is None:
        return {}
    if not hasattr(model, "group_matcher"):
        raise InputError(f"optim.layer_decay: {decay} needs a timm model, which names its layers; leave it out")
    from timm.optim import param_groups_layer_decay

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = param_groups_layer_decay(model, layer_decay=decay) if learning else []
    return {id(parameter): float(group["lr_scale"]) for group in groups for parameter in group["params"]}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make timm's optimiser over the model's parameter groups.

    Args:
        model: the model.
        config: its name and rates.

    Raises:
        InputError: if the name is unknown, or the optimiser cannot be made on this machine.
    """
    from timm.optim import create_optimizer_v2

    check_optimizer_name(config.name)
    rates = (peak_rate(config), config.act_lr, config.head_lr)
    groups = parameter_groups(model, *rates, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    try:
        return create_optimizer_v2(  # type: ignore[no-any-return]
            groups,
            opt=config.name,
            lr=peak_rate(config),
            weight_decay=config.weight_decay,
        )
    except (AssertionError, ImportError) as error:  # such as APEX's and bitsandbytes' on a machine without CUDA
        raise InputError(f"optim.name: {config.name!r} cannot be made here ({error}); give another") from error


def restore_optimizer(optimizer: torch.optim.Optimizer, schedule: Any, state: dict[str, Any], updates: int) -> None:
    """Take up a checkpoint's optimiser state, with the rates and the weight decay of this run's config.

    Args:
        optimizer: as `build_optimizer` made it; changed in place.
        schedule: of this run; moved to `updates`.
        state: of the optimiser that was saved.
        updates: steps that it had taken.

    Raises:
        ValueError: if it had other parameters.
    """
    own = [{key: group[key] for key in _FROM_CONFIG if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name in _OF_ITS_SHAPE:
            if name in values and values[name].shape != parameter.shape:
                raise ValueError(f"its optimiser's {name} has shape {tuple(values[name].shape)}")
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    if updates:
        schedule.step_update(updates)


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, epochs: int, updates_per_epoch: int) -> Any:
    """Make timm's schedule, stepped at every update.

    Args:
        optimizer: its groups' learning rates are the peaks.
        config: schedule and warm-up.
        epochs: the run's length, warm-up included.
        updates_per_epoch: optimiser steps an epoch.

    Returns:
        timm's scheduler; call its `step_update(updates_done)` after each update.
    """
    from timm.scheduler import create_scheduler_v2

    warmup = min(config.warmup_epochs, epochs)
    updates = (epochs - warmup) * updates_per_epoch  # after the warm-up
    decay = {"step": epochs / 3, "wsd": _wsd_share(updates)}
    scheduler, _ = create_scheduler_v2(
        optimizer,
        # Where the warm-up takes the whole run, the others would end it at a rate of 0, or not be made at all.
        sched=config.schedule if updates else "constant",
        num_epochs=epochs,
        warmup_epochs=warmup,
        warmup_lr=0.0,
        # timm calls the polynomial's power decay_rate too; 1 is the straight line.
        decay_rate=1.0 if config.schedule == "poly" else 0.1,
        decay_epochs=decay.get(config.schedule),
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    # Update 0 has the schedule's first rate, which warm-up puts at 0: the first step would teach nothing.
    scheduler.step_update(1 if config.warmup_epochs else 0)
    return scheduler


def _wsd_share(updates: int) -> float:
    """Choose the share of a wsd schedule that decays: a fifth, at least one update; timm reads 1 as an epoch."""
    return min(0.99, max(0.2, 1 / max(1, updates)))
