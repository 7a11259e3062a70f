"""`arelu-meta activations`: every activation by name, as a table and a picture."""

from arelu_meta.activations.plot import plot_activations
from arelu_meta.activations.registry import ActivationInfo, list_activations
from arelu_meta.config import ActivationsConfig
from arelu_meta.runs.progress import print_table


def activations_task(config: ActivationsConfig) -> list[ActivationInfo]:
    """Print every activation's name, whether it learns, and its source; draw them where config.plot says.

    Args:
        config: where to draw.

    Returns:
        What was printed.

    Raises:
        InputError: if the picture cannot be written.
    """
    drawn = plot_activations(config.plot) if config.plot is not None else None
    found = list_activations()
    rows = [[one.name, "yes" if one.learnable else "", one.source] for one in found]
    print_table(f"{len(found)} activations", ["name", "learns", "source"], rows)
    if drawn is not None:
        print(f"drawn to {drawn}")
    return found
