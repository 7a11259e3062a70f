"""`arelu-meta swap MODEL`: what a swap replaces, as a table."""

from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.backbones.swap import SwapReport, swap_activations
from arelu_meta.config import SwapConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import print_table


def swap_task(config: SwapConfig) -> SwapReport:
    """Make a model, swap its activations, print what was replaced and what was kept.

    Args:
        config: model.name, pretrained, activation (default arelu), init.

    Returns:
        The report that was printed.
    """
    model_config = config.model
    activation = model_config.activation or "arelu"
    check_model_config(model_config)
    if isinstance(model_config.pretrained, str):
        raise InputError(f"model.pretrained: {model_config.pretrained!r} is a path; `swap` takes true or false")
    init = model_config.init
    if activation == "arelu" and init is None:
        init = "preserve" if model_config.pretrained else "paper"
    model = create_backbone(model_config.name, pretrained=bool(model_config.pretrained))
    report = swap_activations(model, activation, init=init)
    rows = [[entry.path, entry.role, entry.before, entry.after] for entry in report.swapped]
    rows += [[entry.path, entry.role, entry.before, f"kept: {entry.reason}"] for entry in report.kept]
    print_table(f"{model_config.name} → {activation}", ["path", "role", "before", "after"], rows)
    print(str(report).splitlines()[-1])
    return report
