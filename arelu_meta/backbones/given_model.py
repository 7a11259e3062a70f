"""Networks that Python code hands over: any module that maps images to logits."""

import copy

import torch
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.backbones.initialization import default_init
from arelu_meta.backbones.networks import given_name, inputs_of, name_head
from arelu_meta.backbones.swap import check_model
from arelu_meta.config import Init, ModelConfig
from arelu_meta.errors import InputError, out_of_memory, shown

_STAY = ("head_init", "drop_rate")  # what of a config's model is read of a network that was handed over


def config_of_given(model: nn.Module, config: ModelConfig, head: str | None) -> ModelConfig:
    """Say of a network that was handed over what a config says of one that is made.

    Args:
        model: its head is noted in it, where it is named.
        config: must leave open what the network settles.
        head: the path of its head.

    Returns:
        Its name, what is swapped in, and whether its weights look trained, by which rates and what is held still are
        chosen where the config leaves that open.

    Raises:
        InputError: if the config asks for another model, or the network cannot be trained.
    """
    if hasattr(model, "_orig_mod"):
        raise InputError(
            "model: it is under torch.compile already; give model._orig_mod, and --train.compile true with it"
        )
    check_model(model)
    untouched = ModelConfig()
    for name, value in vars(config).items():
        if name not in _STAY and value != getattr(untouched, name):
            raise InputError(
                f"model.{name}: {shown(value)} is of a model that is made here, and one is given; leave it out"
            )
    if not any(True for _ in model.parameters()):
        raise InputError(f"model: {type(model).__name__} has no parameters, so that nothing of it can learn")
    name_head(model, head)
    found = [module for module in model.modules() if isinstance(module, AReLU | GatedAReLU)]
    init: Init = "preserve" if all(isinstance(module, GatedAReLU) for module in found) else "paper"
    return ModelConfig(
        name=given_name(model),
        pretrained=default_init(model) == "preserve",
        activation="arelu" if found else None,
        init=init if found else None,
        head_init=config.head_init,
        drop_rate=config.drop_rate,
    )


def spec_of_given(
    model: nn.Module, config: ModelConfig, classes: tuple[str, ...], channels: int, image_size: int | None, task: str
) -> ModelSpec:
    """Say what a network that was handed over takes, and what it names.

    Args:
        model: any module.
        config: what `config_of_given` made.
        classes: their names.
        channels: of the images.
        image_size: side in pixels; None for the model's own, where it says one, else 224.
        task: finetune or metatrain.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels in (1, 3):
        channels = first.in_channels
    said = getattr(getattr(model, "config", None), "image_size", None)  # Hugging Face's
    inputs = inputs_of(model, channels, image_size or (said if isinstance(said, int) else None))
    return ModelSpec(task, config.name, len(classes), config.activation, config.init, inputs, list(classes))


def check_given(model: nn.Module, images: Tensor, classes: tuple[str, ...], trains: bool) -> None:
    """Run a network once in each mode on images as it will get them, before a run begins.

    Args:
        model: left as it is.
        images: shape (images, …), two or more where it is trained.
        classes: that its logits are for.
        trains: whether it is put into training mode in the run.

    Raises:
        InputError: if it cannot take the images, or gives no logits of the classes.
    """
    name, before = type(model).__name__, model.training
    images = images.to(next(model.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = [model.eval()(images)]
            if trains:
                outputs.append(copy.deepcopy(model).train()(images))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(
            f"model: {name} cannot take images of shape {tuple(images.shape[1:])} ({reason}); give data.image_size, "
            "or a data set whose images fit"
        ) from error
    finally:
        model.train(before)
    for output in outputs:
        if not isinstance(output, Tensor):
            way = "its .logits" if hasattr(output, "logits") else "the logits alone"
            raise InputError(
                f"model: {name} gives a {type(output).__name__} and not logits; wrap it in a module that returns {way}"
            )
        if output.ndim != 2 or len(output) != len(images):
            raise InputError(
                f"model: {name} gives a tensor of shape {tuple(output.shape)} for {len(images)} images; give one that "
                f"gives logits of shape ({len(images)}, {len(classes)})"
            )
        if output.shape[1] != len(classes):
            raise InputError(
                f"model: {name} gives {output.shape[1]} logits, and {len(classes)} classes have images; give it a head "
                f"of {len(classes)} (timm: model.reset_classifier({len(classes)}); torchvision: model.fc = "
                f"torch.nn.Linear(model.fc.in_features, {len(classes)}))"
            )
