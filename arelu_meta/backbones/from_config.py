"""The backbone that a config asks for, with what it takes as input."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.calibration import reestimate_batch_norm
from arelu_meta.backbones.create import check_model_name, create_backbone, size_argument
from arelu_meta.backbones.initialization import OPENED, is_gate_that_learns
from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.backbones.saving import ModelSpec, load_tensors, read_spec, read_tensors
from arelu_meta.backbones.swap import swap_activations
from arelu_meta.config import ModelConfig
from arelu_meta.data.loading import InputSpec
from arelu_meta.errors import InputError, out_of_memory


def check_model_config(config: ModelConfig) -> None:
    """Refuse unknown names and contradictions before any data is read.

    Args:
        config: name, pretrained, activation, init.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    check_model_name(config.name)
    if config.activation is not None:
        try:
            create_activation(config.activation)
        except InputError as error:
            raise InputError(f"model.{error}") from error
    if config.init is not None and config.activation != "arelu":
        raise InputError(f"model.init: {config.init!r} starts an AReLU; give --model.activation arelu with it")
    if config.reset_head and not isinstance(config.pretrained, str):
        raise InputError(
            "model.reset_head: true is of a checkpoint's head; give --model.pretrained RUN with it, or leave it out"
        )
    if isinstance(config.pretrained, str):
        _, spec = read_spec(config.pretrained, "model.pretrained")
        if spec.name != config.name:
            raise InputError(
                f"model.pretrained: {config.pretrained!r} is of another architecture ({spec.name!r}) than "
                f"model.name {config.name!r}; give --model.name {spec.name}"
            )


Unlabelled = Callable[[InputSpec], list[Tensor]]
"""Gives a few batches of images as a model takes them, for a start that is fitted on them."""


def build_backbone(
    config: ModelConfig,
    classes: tuple[str, ...],
    data_channels: int,
    image_size: int | None,
    task: str,
    images: Unlabelled | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Make a config's backbone with a head for these classes.

    Args:
        config: the model.
        classes: the classes' names.
        data_channels: 1 or 3; pretrained backbones take 3 whatever the data has.
        image_size: side in pixels; None for the model's own.
        task: finetune or metatrain.
        images: what `model.init: fit`, `leak` and `open` look at.

    Returns:
        The model, and the spec that rebuilds it.

    Raises:
        InputError: if the model cannot be made so, or a checkpoint does not fit.
    """
    if isinstance(config.pretrained, str):
        return _from_checkpoint(config, classes, image_size, task, images)
    channels = data_channels if config.name in PAPER_NETS or not config.pretrained else 3
    sized = size_argument(config.name, image_size)
    model = create_backbone(config.name, bool(config.pretrained), len(classes), channels, **sized)
    inputs = inputs_of(model, channels, image_size)
    init = _swap_in(model, config, "preserve" if config.pretrained else "paper", inputs, images)
    if config.pretrained and task == "finetune":
        zero_head(model)
    spec = ModelSpec(
        task=task,
        name=config.name,
        num_classes=len(classes),
        activation=config.activation,
        init=init,
        inputs=inputs,
        classes=list(classes),
    )
    return model, spec


def check_forward(model: nn.Module, spec: ModelSpec, smallest_batch: int | None = None) -> None:
    """Run a model once, so that an image size or a batch that it cannot take is found before a run begins.

    Args:
        model: left as it is, on the CPU.
        spec: names it, and says what it takes.
        smallest_batch: of training, if it is to be tried: batch normalisation may have no variance over one image.

    Raises:
        InputError: naming data.image_size or data.batch_size.
    """
    inputs = spec.inputs
    image = torch.zeros(1, inputs.channels, inputs.image_size, inputs.image_size)
    training = model.training
    where = f"data.image_size: {inputs.image_size}"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(image)
            if smallest_batch == 1:
                where = f"data.batch_size: 1 at {inputs.image_size} px"
                copy.deepcopy(model).train()(image)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"{where} is too small, or does not fit {spec.name!r} ({reason}); give another") from error
    finally:
        model.train(training)


def _swap_in(
    model: nn.Module, config: ModelConfig, default: str, inputs: InputSpec, images: Unlabelled | None
) -> str | None:
    """Swap in the activation that a config asks for, if any; return the start that an AReLU got."""
    if config.activation is None:
        return None
    init = (config.init or default) if config.activation == "arelu" else None
    data = _shuffled(images(inputs)) if init in ("fit", *OPENED) and images is not None else None
    batch_norm = init in OPENED and data is not None
    swap_activations(model, config.activation, init=init, data=data, batch_norm=batch_norm)
    return init


def _shuffled(batches: list[Tensor]) -> list[Tensor]:
    """Mix images that come class by class: within one class they vary less, and batch statistics would say so."""
    images = torch.cat(batches)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return list(images[order].split(len(batches[0])))


def check_gates(model: nn.Module, open_gates: float | None) -> None:
    """Refuse a schedule for gates where there are none.

    Args:
        model: of the run.
        open_gates: optim.open_gates.

    Raises:
        InputError: if a schedule is asked for and the model has no gated residual that learns.
    """
    if open_gates is not None and not any(is_gate_that_learns(module) for module in model.modules()):
        raise InputError(
            f"optim.open_gates: {open_gates} opens the gates of preserve, and this model has none that learns; "
            "give --model.activation arelu --model.init preserve with it"
        )


def heads_of(model: nn.Module) -> list[nn.Module]:
    """List a model's heads: timm models have one or, where distilled, two.

    Args:
        model: with timm's `get_classifier`.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    return list(classifier) if isinstance(classifier, tuple | list) else [classifier]


def zero_head(model: nn.Module) -> None:
    """Start a new head on pretrained features at zero, so that its noise does not shake them in the first steps.

    Args:
        model: with timm's `get_classifier`; its head is changed in place.

    Source: the fine-tuning of Kolesnikov et al. 2020 (Big Transfer).
    """
    for head in heads_of(model):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def inputs_of(model: nn.Module, channels: int, image_size: int | None) -> InputSpec:
    """Say what a model takes as input.

    Args:
        model: a timm model or one of the papers' networks.
        channels: of an image, 1 or 3.
        image_size: side in pixels; None for the model's own.
    """
    from timm.data import resolve_data_config

    found = resolve_data_config({}, model=model)
    mean, std = tuple(found["mean"]), tuple(found["std"])
    if len(mean) != channels:  # published for colour, used on grey
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return InputSpec(
        image_size=image_size or found["input_size"][-1],
        channels=channels,
        mean=mean,
        std=std,
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
    )


def _from_checkpoint(
    config: ModelConfig, classes: tuple[str, ...], image_size: int | None, task: str, images: Unlabelled | None
) -> tuple[nn.Module, ModelSpec]:
    where = f"model.pretrained: {config.pretrained!r}"
    file, old = read_spec(str(config.pretrained), "model.pretrained")
    if old.num_classes != len(classes) and not config.reset_head:
        raise InputError(
            f"{where} has {old.num_classes} classes, the data has {len(classes)}; give --model.reset_head true"
        )
    if old.activation not in (None, config.activation) and config.activation is not None:
        raise InputError(
            f"{where} was trained with {old.activation!r}, model.activation is {config.activation!r}; leave it out"
        )
    if old.activation == "arelu" and config.init not in (None, old.init):
        raise InputError(f"{where} was started with {old.init!r}, model.init is {config.init!r}; leave it out")
    inputs = replace(old.inputs, image_size=image_size or old.inputs.image_size)
    spec = replace(old, task=task, num_classes=len(classes), classes=list(classes), inputs=inputs, meta={}, config={})
    model = spec.build()
    head = _head_prefixes(model) if config.reset_head else ()
    tensors = read_tensors(file)
    fitting = _without_the_learner(model, old, tensors, where) if old.task == "metatrain" else tensors
    try:
        load_tensors(model, fitting, where, skip=head)
    except InputError as error:
        if inputs.image_size == old.inputs.image_size:
            raise
        raise InputError(
            f"data.image_size: {inputs.image_size} does not go with {where}, whose weights are those of "
            f"{old.inputs.image_size} px ({old.name!r} has some for each place in an image); give "
            f"{old.inputs.image_size} or leave it out"
        ) from error
    if task == "finetune" and images is not None and fitting.keys() - tensors.keys():
        reestimate_batch_norm(model, _shuffled(images(inputs)))  # the learner had no statistics of its own
    if head and task == "finetune":
        zero_head(model)
    if old.activation is None:
        init = _swap_in(model, config, "preserve", inputs, images)
        spec = replace(spec, activation=config.activation, init=init)
    return model.train(), spec


def _without_the_learner(model: nn.Module, old: ModelSpec, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Take from a meta-learner what a plain model has: no inner loop, and batch normalisation with statistics.

    Args:
        model: a plain one; what the learner lacks is left as it is there.
        old: the learner's.
        tensors: the learner's, each checked against its own model.
        where: what an error starts with.
    """
    load_tensors(old.build(), tensors, where)
    return {name: tensors.get(name, value) for name, value in model.state_dict().items()}


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Name the head's parameters."""
    found = {id(parameter) for head in heads_of(model) for parameter in head.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in found)
