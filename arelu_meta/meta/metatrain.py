"""A whole meta-training run, from its config to its results: class splits, model, course."""

from dataclasses import replace
from typing import Any

from arelu_meta.backbones.checkpoint import provenance_of
from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.config import MetatrainConfig
from arelu_meta.data.fewshot import load_class_splits
from arelu_meta.data.fewshot.class_splits import note_seen
from arelu_meta.data.image_folder import class_holders
from arelu_meta.errors import import_learn2learn
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.meta.meta_trainer import MetaTrainer
from arelu_meta.meta.preparing import make_model
from arelu_meta.meta.settings import check_patience, check_read, settle_head
from arelu_meta.runs.distributed import join
from arelu_meta.runs.run_folder import check_apart, finished_results, open_run
from arelu_meta.validation import validate


def metatrain(config: MetatrainConfig | None = None) -> dict[str, Any]:
    """Meta-train on few-shot tasks and evaluate on tasks of unseen classes.

    Args:
        config: default: `MetatrainConfig()`, 5-way 1-shot on the embedded digits.

    Returns:
        What results.json holds: among others `test_accuracy` (mean over tasks, a fraction), `test_low` and `test_high`
        (95 % interval), `test_n` (tasks), `normalization`, `notes`, `folder`.

    Raises:
        InputError: if something in the config does not fit; nothing is written then.
        RunError: if the run diverges or the disk refuses.
    """
    config = MetatrainConfig() if config is None else config
    validate(config, MetatrainConfig)
    check_model_config(config.model)
    check_optimizer_name(config.optim.name)
    check_read(config)
    config = settle_head(config)
    ranks = join(config.run)
    folder = open_run(config.run, "metatrain", ranks)
    folder.check_same(lambda _: config)
    seen = provenance_of(config.model.pretrained)
    if folder.finished:
        folder.check_split(load_class_splits(config.data, config.task, config.run.seed).describe())
        return finished_results(folder, "metatrain")
    check_apart(folder, class_holders(config.data))
    if config.meta.engine == "learn2learn":
        import_learn2learn()
    splits = note_seen(load_class_splits(config.data, config.task, config.run.seed), seen)
    folder.check_split(splits.describe())
    config = replace(config, data=replace(config.data, range=splits.train.range))
    check_patience(config, splits)
    model, spec, notes = make_model(config, splits)
    splits = replace(splits, notes=(*splits.notes, *notes))
    spec = replace(spec, provenance=seen.joined(splits.train, splits.validation, splits.test).as_header())
    ranks.wait()  # before the first of them writes: the others would take its files for an older run
    return MetaTrainer(config, folder, splits, spec, model.to(ranks.device), ranks).go()
