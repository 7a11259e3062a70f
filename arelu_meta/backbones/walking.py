"""All modules of a model in a list: torch's own generators, one in another for each level, took most of a swap."""

from torch import nn


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List what `model.named_modules()` yields, in its order, several times faster in deep models.

    Args:
        model: any module.

    Returns:
        Path and module, each module once, the model itself first under "".
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> None:
        seen.add(module)
        found.append((path, module))
        for name, child in module._modules.items():
            if child is not None and child not in seen:
                walk(child, f"{path}.{name}" if path else name)

    walk(model, "")
    return found
