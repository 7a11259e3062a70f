"""Contenders of the studies by their names: the original, an activation, an AReLU by its start, or a control."""

from arelu_meta.activations.controls import CONTROLS, is_control, split_start
from arelu_meta.activations.registry import canonical_name
from arelu_meta.backbones.initialization import INITS
from arelu_meta.claims.tables import Table
from arelu_meta.config import ModelConfig
from arelu_meta.errors import InputError, nearest_names

ORIGINAL, HELD, PROBE = "original", "original:held", "probe"
"""The model's own activations; with batch normalisation held; and logistic regression on its frozen features."""

RIVALS = {"original:meta-sgd": "metasgd", "original:maml++": "mamlpp"}
"""Meta-learners that learn their inner rates, with the model's own activations: what else could explain a gain."""


def check_contender(name: str) -> str:
    """Refuse an unknown activation, start or control.

    Args:
        name: `original`, an activation, `elsa:ACTIVATION`, `arelu:START`, `arelu:START:frozen` or a control.

    Returns:
        It, the activation under the name by which it is listed.

    Raises:
        InputError: with what is allowed.
    """
    if name in (ORIGINAL, HELD, *RIVALS) or name in CONTROLS:
        return name
    if name.lower().startswith("elsa:"):
        return canonical_name(name, "model.activation")
    try:
        activation, start = split_start(name)
    except InputError as error:
        raise InputError(f"model.{error}") from error
    if start is not None and start not in INITS:
        raise InputError(f"model.activation: {name!r} is not known; {nearest_names(start, INITS)}")
    first, colon, _ = name.partition(":")
    if colon and start is None and not is_control(name) and first not in {one.partition(":")[0] for one in CONTROLS}:
        raise InputError(f"model.activation: {name!r} has a start, and only arelu has starts; give {first}")
    return name.lower() if start is not None else canonical_name(activation, "model.activation")


def contender_model(name: str, pretrained: bool | str, contender: str) -> ModelConfig:
    """Return the model that a contender is; control:head10 has its head's rate from fine-tuning's defaults.

    Args:
        name: of the backbone.
        pretrained: as model.pretrained.
        contender: as `check_contender` takes it; behind an `@` where alpha and beta start, as `arelu:paper@0.5/1`.
    """
    contender, _, scalars = contender.partition("@")
    alpha, _, beta = scalars.partition("/")
    activation, init = (None, None) if contender in (ORIGINAL, HELD, *RIVALS) else split_start(contender)
    return ModelConfig(
        name=name,
        pretrained=pretrained,
        activation=activation,
        alpha=float(alpha) if alpha else None,
        beta=float(beta) if beta else None,
        init=init,  # type: ignore[arg-type]  # checked by check_contender
        reset_head=isinstance(pretrained, str),
        head_init="zero" if pretrained else "random",
    )


def scalars_learn(contender: str) -> bool:
    """Return True if a contender swaps in an activation that may have scalars with a learning rate of their own."""
    return contender not in (ORIGINAL, HELD, *RIVALS) and not is_control(contender)


def explained(names: list[str]) -> Table:
    """List controls with what they compute and what they explain.

    Args:
        names: contenders; those that are no controls are left out.
    """
    found = [name for name in names if is_control(name)]
    rows: list[list[object]] = []
    for name in found:
        control = CONTROLS[name if name in CONTROLS else "arelu:frozen"]
        rows.append([name, control.formula, control.why])
    return Table("Controls", ["control", "formula", "what it explains"], rows)
