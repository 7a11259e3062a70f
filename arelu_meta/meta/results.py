"""What unseen classes said of a meta-learner: the flat values of results.json, and the picture of the run."""

from collections.abc import Sequence
from typing import Any

from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.config import MetatrainConfig
from arelu_meta.meta.evaluation import curve_results
from arelu_meta.meta.inner_loop import inner_of
from arelu_meta.runs.curves import draw_curves
from arelu_meta.runs.run_folder import RunFolder
from arelu_meta.statistics import groups_interval


def summarise(config: MetatrainConfig, spec: ModelSpec, curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Lay out accuracies on unseen tasks beside what they were reached with.

    Args:
        config: of the run.
        spec: of the model.
        curves: what `adaptation_curves` returned.

    Returns:
        Flat values: among others `test_accuracy` (mean over tasks), `test_low`, `test_high`, `accuracy_after_0`, ….
    """
    mean, low, high = groups_interval([row[-1] for row in curves], len(curves) * config.task.ways * config.task.queries)
    inner = inner_of(config.meta)
    return {
        "task": "metatrain",
        "seed": config.run.seed,
        "test_accuracy": mean,
        "test_low": low,
        "test_high": high,
        "test_n": len(curves),
        "normalization": config.meta.normalization,
        "algorithm": config.meta.algorithm,
        "order": 1 if inner.first_order else 2,
        "ways": config.task.ways,
        "shots": config.task.shots,
        "queries": config.task.queries,
        "inner_steps": spec.meta["inner_steps"],
        "inner_lr": config.meta.inner_lr,
        **curve_results(curves),
        "adapt": inner.adapted_part,
        "model": spec.name,
        "activation": spec.activation,
        "init": spec.init,
    }


def draw_run(folder: RunFolder, spec: ModelSpec, accuracy: float, validated: bool) -> None:
    """Draw curves.png: query accuracy and query loss over the meta-steps.

    Args:
        folder: of the run, with its rows.
        spec: of the model.
        accuracy: on unseen classes, for the title.
        validated: whether there is a validation to draw.
    """
    columns = ["train_accuracy"] + (["validation_accuracy"] if validated else [])
    draw_curves(
        folder.path / "curves.png",
        folder.rows,
        "step",
        {"query accuracy": columns, "query loss": ["train_loss"]},
        f"{spec.name}, {spec.activation or 'own activation'}: accuracy on unseen classes {accuracy:.1%}",
    )
