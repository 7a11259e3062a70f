"""The backbone that a config asks for, with what it takes as input."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from arelu_meta.activations.controls import CONTROLS, SWAPPED_IN, split_start
from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.calibration import reestimate_batch_norm
from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec, remember_file
from arelu_meta.backbones.initialization import INITS, OPENED, STARTED, is_gate_that_learns
from arelu_meta.backbones.networks import (
    PAPER_NETS,
    check_model_name,
    heads_of,
    inputs_of,
    is_stock,
    load_backbone,
    load_tensors,
    make_backbone,
    put_in,
    read_stock,
    read_tensors,
    size_argument,
    zero_head,
)
from arelu_meta.backbones.swap import check_scalars, copy_base, remember_base
from arelu_meta.config import ModelConfig
from arelu_meta.data.image_io import compose
from arelu_meta.data.loaders import InputSpec
from arelu_meta.errors import InputError, nearest_names, out_of_memory, printable


def check_model_config(config: ModelConfig) -> None:
    """Refuse unknown names and contradictions before any data is read.

    Args:
        config: name, pretrained, activation, init.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    check_model_name(config.name)
    given, config = config, with_start(config)
    if config.activation is not None and config.activation not in CONTROLS:
        try:
            create_activation(config.activation)
        except InputError as error:
            raise InputError(f"model.{error}") from error
    if config.pretrained and config.activation == "relu:he":
        raise InputError(
            f"model.activation: {given.activation!r} draws all weights anew; give --model.pretrained false with it"
        )
    if config.init is not None and config.activation not in STARTED:
        raise InputError(f"model.init: {config.init!r} starts an AReLU; give --model.activation arelu with it")
    if config.activation is None:
        for name, value in (("alpha", config.alpha), ("beta", config.beta)):
            if value is not None:
                raise InputError(f"model.{name}: {value} starts an AReLU; give --model.activation arelu with it")
    else:
        try:
            check_scalars(config.activation, config.init, config.alpha, config.beta)
        except InputError as error:
            raise InputError(f"model.{error}") from error
    if config.reset_head and not isinstance(config.pretrained, str):
        raise InputError(
            "model.reset_head: true is of a checkpoint's head; give --model.pretrained RUN with it, or leave it out"
        )
    if isinstance(config.pretrained, str) and not is_stock(config.pretrained):
        _, spec = read_spec(config.pretrained, "model.pretrained")
        if spec.name != config.name:
            raise InputError(
                f"model.pretrained: {config.pretrained!r} is of another architecture ({spec.name!r}) than "
                f"model.name {config.name!r}; give --model.name {spec.name}"
            )


def with_start(config: ModelConfig) -> ModelConfig:
    """Take an AReLU's start out of its name: `arelu:open` is `arelu` with init open, and frozen likewise.

    Args:
        config: left as it is.

    Raises:
        InputError: if the name's start is unknown, or init is another one.
    """
    if config.activation is None:
        return config
    try:
        activation, start = split_start(config.activation)
    except InputError as error:
        raise InputError(f"model.{error}") from error
    if start is None:
        return replace(config, activation=activation)
    if start not in INITS:
        raise InputError(f"model.activation: {config.activation!r} is not known; {nearest_names(start, INITS)}")
    if config.init not in (None, start):
        raise InputError(f"model.init: {config.init!r}, and model.activation is {config.activation!r}; leave one out")
    return replace(config, activation=activation, init=start)  # type: ignore[arg-type]  # checked just now


Unlabelled = Callable[[InputSpec], list[Tensor]]
"""Gives a few batches of images as a model takes them, for a start that is fitted on them."""


@dataclass(frozen=True)
class Head:
    """Where a model's head comes from.

    Args:
        new: whether nothing of it was learned.
        note: why it is new, where a checkpoint might have brought one; else what it is, as a line to print.
    """

    new: bool
    note: str = ""


def build_backbone(
    config: ModelConfig,
    classes: tuple[str, ...],
    data_channels: int,
    image_size: int | None,
    task: str,
    images: Unlabelled | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Make a config's backbone with a head for these classes: `build_with_head`, without a word on the head."""
    model, spec, _ = build_with_head(config, classes, data_channels, image_size, task, images)
    return model, spec


def build_with_head(
    config: ModelConfig,
    classes: tuple[str, ...],
    data_channels: int,
    image_size: int | None,
    task: str,
    images: Unlabelled | None = None,
) -> tuple[nn.Module, ModelSpec, Head]:
    """Make a config's backbone with a head for these classes.

    The head of a checkpoint goes by the classes' names, row by row: classes that it does not know get new rows.

    Args:
        config: the model.
        classes: the classes' names.
        data_channels: 1 or 3; pretrained backbones take 3 whatever the data has.
        image_size: side in pixels; None for the model's own.
        task: finetune or metatrain.
        images: what `model.init: fit`, `leak` and `open` look at.

    Returns:
        The model, the spec that rebuilds it, and where its head comes from.

    Raises:
        InputError: if the model cannot be made so, or a checkpoint does not fit.
    """
    config = with_start(config)
    if isinstance(config.pretrained, str) and not is_stock(config.pretrained):
        return _from_checkpoint(config, classes, image_size, task, images)
    channels = data_channels if config.name in PAPER_NETS or not config.pretrained else 3
    sized = size_argument(config.name, image_size)
    head = Head(new=True)
    if isinstance(config.pretrained, str):
        model, head = _with_stock(config, classes, channels, task, sized)
        remember_base(model, config.name, config.pretrained, channels)
    else:
        model = make_backbone(config.name, config.pretrained, len(classes), channels, **sized)
    inputs = inputs_of(model, channels, image_size)
    init = _swap_in(model, config, "preserve" if config.pretrained else "paper", inputs, images)
    if config.pretrained and head.new and task == "finetune":
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
    return model, spec, head


def _with_stock(
    config: ModelConfig, classes: tuple[str, ...], channels: int, task: str, sized: dict[str, int]
) -> tuple[nn.Module, Head]:
    """Make a backbone with stock weights; a head that fits stays, unless it is known to be of other classes."""
    stock = read_stock(str(config.pretrained))
    wanted = None if stock.classes else len(classes)
    model, own = load_backbone(config.name, stock, wanted, channels, **sized)
    if config.reset_head or task != "finetune" or not own:
        model.reset_classifier(len(classes))  # type: ignore[operator]
        return model, Head(True, "" if config.reset_head else "that of the weights is for other classes")
    if not stock.classes:
        note = "head: as the weights have it, whose classes nobody named; --model.reset_head true starts a new one"
        return model, Head(False, note)
    tensors, names = dict(model.state_dict()), _head_prefixes(model)
    model.reset_classifier(len(classes))  # type: ignore[operator]
    zero_head(model)
    head, rows = _carry_rows(model, tensors, names, list(stock.classes), list(classes))
    model.load_state_dict(rows, strict=False)
    return model, head


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
    activation = config.activation
    init = (config.init or default) if activation in STARTED else None
    opened = init in OPENED or (activation in SWAPPED_IN and activation.startswith("control:"))
    looks = init == "fit" or opened or activation == "control:gain"
    data = _shuffled(images(inputs)) if looks and images is not None else None
    batch_norm = opened and data is not None
    put_in(model, activation, init, data, batch_norm=batch_norm, alpha=config.alpha, beta=config.beta)
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


def _from_checkpoint(
    config: ModelConfig, classes: tuple[str, ...], image_size: int | None, task: str, images: Unlabelled | None
) -> tuple[nn.Module, ModelSpec, Head]:
    where = f"model.pretrained: {config.pretrained!r}"
    file, old = read_spec(str(config.pretrained), "model.pretrained")
    if old.activation not in (None, config.activation) and config.activation is not None:
        raise InputError(
            f"{where} was trained with {old.activation!r}, model.activation is {config.activation!r}; leave it out"
        )
    for name, value in (("alpha", config.alpha), ("beta", config.beta)):
        if value is not None and old.activation is not None:
            raise InputError(f"model.{name}: {value}, and {where} has learned its own; leave it out")
    if old.activation == "arelu" and config.init not in (None, old.init):
        raise InputError(f"{where} was started with {old.init!r}, model.init is {config.init!r}; leave it out")
    inputs = replace(old.inputs, image_size=image_size or old.inputs.image_size)
    spec = replace(old, task=task, num_classes=len(classes), classes=list(classes), inputs=inputs)
    spec = replace(spec, meta={}, config={}, adapter={})
    model = spec.build()
    if task == "finetune":
        zero_head(model)
    whole, _ = load_model(file, "model.pretrained") if old.adapter else (None, None)
    tensors = read_tensors(file) if whole is None else dict(whole.state_dict())
    fitting = _without_the_learner(model, old, tensors, where) if old.task == "metatrain" else tensors
    names = _head_prefixes(model)
    if config.reset_head:
        head, rows = Head(new=True), {}
    elif old.task == task == "metatrain" and old.num_classes == len(classes):
        head, rows = Head(False, "head: as the checkpoint has it"), {name: fitting[name] for name in names}
    else:
        of_rows = old.classes if old.task == task == "finetune" else []  # a learner's outputs are no classes
        head, rows = _carry_rows(model, fitting, names, of_rows, list(classes))
    kept = {name: value for name, value in model.state_dict().items() if name in names} | rows
    try:
        load_tensors(model, {**fitting, **kept}, where)
    except InputError as error:
        if inputs.image_size == old.inputs.image_size:
            raise
        raise InputError(
            f"data.image_size: {inputs.image_size} does not go with {where}, whose weights are those of "
            f"{old.inputs.image_size} px ({old.name!r} has some for each place in an image); give "
            f"{old.inputs.image_size} or leave it out"
        ) from error
    if whole is None:
        remember_file(model, file, old)
    else:
        copy_base(whole, model)
    if task == "finetune" and images is not None and fitting.keys() - tensors.keys():
        reestimate_batch_norm(model, _shuffled(images(inputs)))  # the learner had no statistics of its own
    if old.activation is None:
        init = _swap_in(model, config, "preserve", inputs, images)
        spec = replace(spec, activation=config.activation, init=init)
    return model.train(), spec, head


def _carry_rows(
    model: nn.Module, tensors: dict[str, Tensor], names: tuple[str, ...], old: list[str], new: list[str]
) -> tuple[Head, dict[str, Tensor]]:
    """Carry a head's rows over by the names of their classes; whose name it does not know starts as the model has it.

    Args:
        model: with a head for the new classes.
        tensors: the old weights.
        names: the head's tensors.
        old: the classes of the old rows.
        new: of the new.

    Returns:
        Where the head comes from, and its tensors.
    """
    known = {compose(name): row for row, name in enumerate(old)}
    pairs = [(row, known[compose(name)]) for row, name in enumerate(new) if compose(name) in known]
    if not pairs:
        return Head(True, "none of the classes is one of the checkpoint's"), {}
    to, of = (list(rows) for rows in zip(*pairs, strict=True))
    rows = {}
    for name, value in model.state_dict().items():
        if name in names and (before := tensors.get(name)) is not None:
            whole = len(before) == len(old) and len(value) == len(new) and before.shape[1:] == value.shape[1:]
            rows[name] = value.clone() if whole else before
            if whole:
                rows[name][to] = before[of].to(value.dtype)
    if len(pairs) == len(new):
        return Head(False, "head: as the checkpoint has it"), rows
    others = [name for name in new if compose(name) not in known]
    named = ", ".join(map(printable, others[:3])) + (", …" if len(others) > 3 else "")
    unknown = "1 class" if len(others) == 1 else f"{len(others)} classes"
    return Head(False, f"head: as the checkpoint has it, with new rows for {unknown} ({named})"), rows


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
