"""The head of a model: what turns features into logits, in a timm model or any other."""

from torch import nn

from arelu_meta.errors import InputError


def heads_of(model: nn.Module, head: str | None = None) -> list[nn.Module]:
    """List a model's heads: timm models have one or, where distilled, two.

    Args:
        model: any module.
        head: the path of the head, as `fc`; default: what timm's `get_classifier` gives, else the last linear layer.

    Raises:
        InputError: if there is no such module, or none that could be the head.
    """
    modules = dict(model.named_modules())
    if head is not None:
        if head not in modules:
            raise InputError(f"head: {head!r} is no module of the model; give the path of one, as 'fc'")
        return [modules[head]]
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()  # type: ignore[operator]
        return list(classifier) if isinstance(classifier, tuple | list) else [classifier]
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("head: the model has no linear layer that could be its head; name it, as head='fc'")
    return [linear[-1]]


def zero_head(model: nn.Module) -> None:
    """Start a new head on pretrained features at zero, so that its noise does not shake them in the first steps.

    Args:
        model: its head is changed in place.

    Source: the fine-tuning of Kolesnikov et al. 2020 (Big Transfer).
    """
    for head in heads_of(model):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
