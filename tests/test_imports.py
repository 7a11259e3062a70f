"""Which module may import which: config, data, backbones, trainers, reports, in one direction."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import arelu_meta

ROOT = Path(arelu_meta.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# Each floor may import itself and what stands before it; the longest name that fits counts.
FLOORS: list[tuple[str, ...]] = [
    ("config", "errors", "exit_status", "statistics", "validation", "runs"),
    ("activations", "timm_act_layer", "data"),
    ("runs.checkpoints", "runs.run_folder"),
    ("backbones",),
    ("finetuning",),
    ("meta",),
    ("evaluation", "prediction", "evaluate", "predict", "report", "export", "bench", "claims", "demo"),
    ("cli", "recipes", "sweep", "__main__"),
]


def floor_of(module: str) -> int:
    name = module.removeprefix("arelu_meta").removeprefix(".")
    if not name:
        return len(FLOORS)  # the package itself names what stands on every floor
    fitting = [
        (len(start), number)
        for number, floor in enumerate(FLOORS)
        for start in floor
        if name == start or name.startswith(start + ".")
    ]
    assert fitting, f"{module} stands on no floor: name it in FLOORS"
    return max(fitting)[1]


@cache
def imported_by(module: str) -> dict[str, int]:
    """Find the modules of the package that one imports, anywhere in it, with the line."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.setdefault(whole if whole in MODULES else node.module, node.lineno)
        elif isinstance(node, ast.Import):
            found.update({name.name: node.lineno for name in node.names})
    return {name: line for name, line in found.items() if name in MODULES and name != module}


def test_no_module_reaches_up_to_a_higher_floor() -> None:
    reaching = [
        f"{module}:{line} imports {other}"
        for module in MODULES
        for other, line in imported_by(module).items()
        if floor_of(other) > floor_of(module) and not is_of_the_package_alone(module, other)
    ]
    assert not reaching, "\n".join(reaching)


def is_of_the_package_alone(module: str, other: str) -> bool:
    """Return True if a module asks the package for its version."""
    return other == "arelu_meta" and floor_of(module) >= floor_of("arelu_meta.evaluation")


def test_no_lower_floor_names_a_trainer_in_a_string() -> None:
    naming = [
        f"{module} names {found}"
        for module, path in MODULES.items()
        if floor_of(module) <= floor_of("arelu_meta.backbones")
        for found in re.findall(r"arelu_meta\.(?:meta|finetuning|claims|report)\.\w+", path.read_text(encoding="utf-8"))
    ]
    assert not naming, "\n".join(naming)


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: set(imported_by(module)) - {"arelu_meta"} for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def importers() -> dict[str, list[str]]:
    """List who imports each module; tasks, which the command line runs by name, have nobody."""
    found: dict[str, list[str]] = {module: [] for module in MODULES}
    for module in MODULES:
        for other in imported_by(module):
            found[other].append(module)
    return found


def test_no_module_of_data_or_runs_has_a_single_importer() -> None:
    alone = [f"{module} <- {found[0]}" for module, found in importers().items() if len(found) == 1]
    print(f"{len(alone)} modules with exactly one importer:", *alone, sep="\n")  # pytest -s shows them
    others = ("arelu_meta.data.own_datasets ", "arelu_meta.data.fewshot.given_tasks ")  # a floor above takes them up
    floors = ("arelu_meta.data", "arelu_meta.runs")
    assert not [one for one in alone if one.startswith(floors) and not one.startswith(others)]


def test_a_module_on_a_lower_floor_would_be_found() -> None:
    assert floor_of("arelu_meta.backbones.saving") < floor_of("arelu_meta.meta.engine")
    assert floor_of("arelu_meta.runs.atomic_io") < floor_of("arelu_meta.runs.run_folder")
    assert "arelu_meta.meta.inner_loop" in imported_by("arelu_meta.meta.engine")
