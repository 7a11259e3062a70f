"""Let timm's models take `act_layer="arelu"` as soon as both packages are imported, in whichever order."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TABLES = "timm.layers.create_act"


def register_act_layer() -> None:
    """Register AReLU with timm now, or when timm is imported; this imports neither timm nor torch."""
    if _TABLES in sys.modules:
        _register(sys.modules[_TABLES])
    elif not any(isinstance(finder, _WaitsForTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitsForTimm())


class _WaitsForTimm(MetaPathFinder):
    """Stands before Python's own finders until timm's tables of activations are imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(tables: ModuleType) -> None:
    from arelu_meta.activations.arelu import AReLU

    for name in ("_ACT_LAYER_DEFAULT", "_ACT_LAYER_ME"):
        getattr(tables, name, {}).setdefault("arelu", AReLU)
