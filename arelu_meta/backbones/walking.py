"""All modules of a model in a list: torch's own generators, one in another for each level, took most of a swap."""

from torch import nn


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List what `model.named_modules()` yields, in its order, several times faster in deep models.

    Args:
        model: any module.

    Returns:
        Path and module, each module once, the model itself first under "".
    """
    found: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[nn.Module] = {model}

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                path = prefix + name
                found.append((path, child))
                if child._modules:
                    walk(child, f"{path}.")

    walk(model, "")
    return found
