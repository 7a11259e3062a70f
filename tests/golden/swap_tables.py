"""Write what a swap does to one small model of every file of timm, and how much it takes of torchvision.

`python tests/golden/swap_tables.py` writes swap_tables.json beside this file; `--check` compares instead. Made with
version 0.1, so that what a rebuilt swap changes is seen, and said.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from arelu_meta.backbones.swap import SwapReport, swap_activations, unswap

FILE = Path(__file__).with_name("swap_tables.json")


class EmptyOnMeta(TorchFunctionMode):
    """Make parameters without data; what a constructor computes from numbers keeps its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}
        return func(*args, **kwargs)


def timm_table(name: str) -> dict[str, Any]:
    """Swap a model of timm twice and write down the table of `preserve`, and what `paper` adds."""
    with torch.device("meta"):
        model = timm.create_model(name)
    report = swap_activations(model, "arelu", init="preserve")
    table = table_of(report)
    unswap(model)
    table["paper_adds"] = swap_activations(model, "arelu", init="paper").parameters_added
    return table


def table_of(report: SwapReport) -> dict[str, Any]:
    """Write a report's rows by what they say: `a.act*3` are three calls of `a.act`."""
    swapped: dict[str, list[str]] = {}
    for entry in report.swapped:
        swapped.setdefault(f"{entry.role}: {entry.before} -> {entry.after}", []).append(entry.path)
    kept: dict[str, list[str]] = {}
    for left in report.kept:
        kept.setdefault(f"{left.role}: {left.before}: {left.reason}", []).append(left.path)
    return {
        "count": len(report.swapped),
        "complete": report.complete,
        "preserve_adds": report.parameters_added,
        "swapped": {what: short(paths) for what, paths in swapped.items()},
        "kept": {what: short(paths) for what, paths in kept.items()},
    }


def short(paths: list[str]) -> str:
    """Join paths; what all begin with is left out after the first, and calls are counted."""
    calls: Counter[str] = Counter()
    known = set(paths)
    for path in paths:
        owner, _, number = path.rpartition(".")
        several = number.isdigit() and f"{owner}.0" in known and f"{owner}.1" in known and owner.endswith("act")
        calls[owner if several else path] += 1
    return " ".join(path if count == 1 else f"{path}*{count}" for path, count in calls.items())


def torchvision_counts(name: str) -> list[Any]:
    """Count what a swap takes of one of torchvision's classification models, and what it leaves by role."""
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with EmptyOnMeta():
        model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    size = 299 if name == "inception_v3" else 224
    report = swap_activations(model.to("meta"), init="paper", example=torch.zeros(1, 3, size, size, device="meta"))
    return [len(report.swapped), dict(Counter(entry.role for entry in report.kept)), report.complete]


def tables() -> dict[str, Any]:
    """Swap all of them."""
    known = json.loads(FILE.read_text())["timm"]
    names = torchvision.models.list_models(module=torchvision.models)
    return {
        "timm": {name: timm_table(name) for name in known},
        "torchvision": {name: torchvision_counts(name) for name in names},
    }


def main() -> None:
    """Write the file, or compare with it and print what differs."""
    found = tables()
    if "--check" not in sys.argv:
        FILE.write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")
        return
    wanted = json.loads(FILE.read_text())
    for library in wanted:
        for name, table in wanted[library].items():
            if found[library][name] != table:
                print(f"{library} {name}\n  was {table}\n  is  {found[library][name]}")


if __name__ == "__main__":
    main()
