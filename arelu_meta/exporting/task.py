"""`arelu-meta export`."""

from pathlib import Path
from typing import Any

from arelu_meta.config import ExportConfig
from arelu_meta.exporting.files import export
from arelu_meta.exporting.hub import check_repository, push
from arelu_meta.validation import validate


def export_task(config: ExportConfig) -> dict[str, Any]:
    """Export from the command line: say what was written and how exact it is.

    Args:
        config: the checkpoint and where it goes.

    Returns:
        As `export`; with `hub`, the repository's address.
    """
    validate(config)
    found: dict[str, Any] = {}
    if config.hub is not None:
        check_repository(config.hub)
    if config.hub is None or config.output is not None or config.format is not None:
        found = export(config.checkpoint, config.output, config.format, config.fold, config.overwrite)
        _report(found, config.fold)
    if config.hub is not None:
        found["hub"] = push(config.checkpoint, config.hub, config.private)
        print(f"pushed to {found['hub']}", flush=True)
    return found


def _report(found: dict[str, Any], fold: bool) -> None:
    print(
        f"{found['file']}: {found['format']}, {found['bytes'] / 1e6:.1f} MB, any batch size; largest difference from "
        f"the model's logits on random images: {found['largest_difference']:.2g}"
    )
    if fold:
        print(f"gates folded: {found['gates_folded']} of {found['gates']}; the others are no AReLU's and stay")
    card = found["card"] or "(README.md is not ours and was left as it is)"
    print(f"beside it: {Path(found['file']).name}.json (classes, preprocessing), model card {card}", flush=True)
