"""All contenders of a study differ in their activation, and in its learning rate, alone: every setting is compared."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.claims import (
    architectures,
    focus,
    gradients,
    maml,
    mnist,
    small_lr,
    transfer,
)
from arelu_meta.claims.controls import HELD, PROBE, RIVALS
from arelu_meta.claims.gradients import PlainNet
from arelu_meta.claims.in_memory_training import Tensors
from arelu_meta.claims.small_lr import MATCHED
from arelu_meta.claims.study import resolve
from arelu_meta.claims.transfer import read_pairs
from arelu_meta.cli import parse
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.defaults import settle, settle_rates
from arelu_meta.finetuning.finetune import finetune
from arelu_meta.meta.metatrain import resolve_head_init
from arelu_meta.validation import flatten

EVERY = "original,arelu,arelu:paper,arelu:open,arelu:leak,arelu:nearest,gelu,leaky_relu,prelu"
STUDIES = [
    "mnist",
    "mnist --size full",
    "mnist --variant paper --optim.name adam",
    "gradients",
    "gradients --size full --model.name plain",
    "meta",
    "meta --variant paper --meta.shots 1,5 --optim.name adamw",
    "small-lr --data.root flowers17",
    f"small-lr --study.regime plain --data.root flowers17 --model.activation {EVERY}",
    "small-lr --regime careful --model.pretrained false",
    "small-lr --size full --data.root flowers17",
    f"small-lr --data.root flowers17 --model.activation {EVERY}",
    "small-lr --model.pretrained false --optim.name adamw --data.per_class 5 --data.batch_size 7",
    f"small-lr --optim.name lamb --optim.lr 1e-4 --train.epochs 9 --model.activation {EVERY}",
    "small-lr --pipeline maml",
    f"small-lr --pipeline maml --size full --optim.name adamw --model.activation {EVERY.replace('arelu,', '')}",
    f"small-lr --pipeline maml --model.pretrained true --model.name test_resnet --model.activation {EVERY}",
    "transfer",
    "transfer --study.regime plain --pairs imagenet-to-flowers17",
    "transfer --size full",
    "transfer --optim.name adam --data.per_class 3",
    "focus",
    f"focus --optim.name adamw --data.per_class 2 --model.activation {EVERY}",
    "architectures",
    "architectures --size full --optim.name sgd --data.per_class 9",
]
CONTENDER = ("contender", "activation")
OWN = {"model.activation", "model.init", "model.alpha", "model.beta", "optim.act_lr", "run.folder"}
OWN |= {"optim.head_lr", "meta.algorithm"}  # what one control, and the two rivals, are; checked apart
"""What contenders may differ in; a rate for the activation where there is none that learns would be refused."""


def _config(words: str) -> ClaimsConfig:
    return resolve(parse("claims", words.split()))


def _trials(config: ClaimsConfig) -> list[Any]:
    if config.study == "transfer":
        small, large = transfer.list_trials(config, read_pairs(config.pairs))
        return [*small, *(trial for trials in large.values() for trial in trials)]
    modules = {"mnist": mnist, "gradients": gradients, "meta": maml, "small-lr": small_lr}
    modules |= {"architectures": architectures, "focus": focus}
    return list(modules[config.study].list_trials(config))


def _settings(config: ClaimsConfig, trial: Any) -> dict[str, Any]:
    """Resolve all that decides a run's figures, but what its contender is."""
    if not isinstance(trial, small_lr.Trial):
        return {name: value for name, value in asdict(trial).items() if name not in CONTENDER}
    made: Any
    if trial.pipeline == "maml":
        made = resolve_head_init(small_lr.metatrain_config(config, trial, Path("run")))
        assert made.meta.algorithm == RIVALS.get(trial.contender, "maml")
    else:
        made = settle_rates(settle(small_lr.finetune_config(config, trial, Path("run"))), images=100)
        assert made.optim.head_lr == (10 * trial.lr if trial.contender == "control:head10" else None)
    assert made.optim.act_lr in (None, made.optim.lr)
    found = {name: value for name, value in flatten(made).items() if name not in OWN}
    # A trial of a study on a folder takes its images from the study's own config.
    return found | {name: value for name, value in asdict(trial).items() if name not in CONTENDER}


@pytest.mark.parametrize("words", STUDIES)
def test_the_contenders_of_a_study_share_every_setting_but_the_activation(words: str) -> None:
    config = _config(words)
    trials = _trials(config)
    by_contender: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        name = getattr(trial, "contender", None) or trial.activation
        by_contender.setdefault(name, []).append(_settings(config, trial))
    assert len(by_contender) > 1
    matched = {name: by_contender.pop(name) for name in list(by_contender) if name.startswith((MATCHED, PROBE))}
    held = by_contender.pop(HELD, None)
    first, *others = by_contender.values()
    for other in others:
        assert other == first  # at every rate, seed and place, in this order
    if held is not None:  # which is what it is there for
        assert all(one.pop("train.freeze_bn") for one in held)
        assert held == [{name: value for name, value in one.items() if name != "train.freeze_bn"} for one in first]
    for found in matched.values():
        assert all(one in first for one in found)  # but for the rate, which is looked for before the run


def test_what_is_compared_is_all_that_a_run_resolves(tmp_path: Path) -> None:
    config = _config("small-lr --model.name mnist_linear --model.pretrained false --train.epochs 1 --data.per_class 3")
    written = []
    for name in ("original", "arelu:preserve"):
        trial = next(one for one in _trials(config) if one.contender == "original")
        made = small_lr.finetune_config(config, replace(trial, contender=name), tmp_path / name.replace(":", "-"))
        finetune(made)
        found = yaml.safe_load((Path(str(made.run.folder)) / "config.yaml").read_text())
        flat = {f"{group}.{field}": value for group, fields in found.items() for field, value in fields.items()}
        written.append({field: value for field, value in flat.items() if field not in OWN})
    assert written[0]["optim.clip_grad"] == small_lr.UNCLIPPED
    assert all(one == written[0] for one in written)


@pytest.mark.parametrize(
    ("words", "regime"),
    [
        ("--model.pretrained false", "plain"),
        ("", "careful"),
        ("--study.regime plain", "plain"),
        ("--model.pretrained false --study.regime careful", "careful"),
    ],
)
def test_the_regime_is_the_same_for_all_and_no_default_clips_holds_or_slows_some(words: str, regime: str) -> None:
    careful = regime == "careful"
    config = _config(f"small-lr {words} --model.activation original,arelu:preserve,arelu:paper")
    heads = set()
    for trial in _trials(config):
        made = settle_rates(settle(small_lr.finetune_config(config, trial, Path("run"))), 100)
        assert made.optim.clip_grad == (1.0 if careful else small_lr.UNCLIPPED)
        assert made.train.freeze_bn == (careful or trial.contender == HELD)
        assert made.optim.act_lr in (None, made.optim.lr)
        heads.add(made.model.head_init)
    assert len(heads) == 1
    assert ("probe" in heads) == careful


def test_the_regime_is_read_from_a_file_as_from_the_command_line(tmp_path: Path) -> None:
    for content in ("study: small-lr\nstudy.regime: plain\n", "study: small-lr\nregime: plain\n"):
        (tmp_path / "study.yaml").write_text(content)
        assert parse("claims", ["--config", str(tmp_path / "study.yaml")]).regime == "plain"
    assert parse("claims", ["focus", "--study.regime", "careful"]).regime == "careful"


@pytest.mark.parametrize("study", ["mnist", "gradients", "meta", "small-lr --pipeline maml"])
def test_a_regime_of_fine_tuning_is_refused_where_nothing_is_fine_tuned(study: str) -> None:
    with pytest.raises(InputError, match=r"^regime: 'plain' is not read by claims"):
        _config(f"{study} --study.regime plain")


def test_a_plain_study_of_pretrained_weights_has_the_held_original_and_every_study_its_probe() -> None:
    careful, plain, scratch = (
        {trial.contender for trial in _trials(_config(f"small-lr {words}"))}
        for words in ("", "--study.regime plain", "--model.pretrained false")
    )
    assert HELD in plain
    assert HELD not in careful | scratch  # where all hold it, or nothing is worth holding
    assert PROBE in careful & plain & scratch


def test_all_contenders_of_a_seed_begin_with_the_same_weights() -> None:
    states = []
    for name in ("original", "gelu", "prelu", "arelu:paper", "arelu:preserve"):
        torch.manual_seed(0)
        config = small_lr.model_config("test_resnet", False, name)
        states.append(build_backbone(config, ("a", "b"), 3, 32, "finetune")[0].state_dict())
    for state in states[1:]:
        assert states[0].keys() <= state.keys()
        assert all(torch.equal(value, state[key]) for key, value in states[0].items())


def test_all_contenders_of_a_seed_begin_with_the_same_weights_in_the_small_networks_too() -> None:
    data = Tensors(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4), *_nothing(), 4)
    trial = transfer.Trial("a-to-b", "mnist_conv", "original", "sgd", 0.1, 0, 1, 1, None, 32)
    models = [transfer.build(replace(trial, contender=name), data) for name in ("original", "prelu", "arelu:fit")]
    plain = []
    for name in ("relu", "pau", "arelu", "maxout"):
        torch.manual_seed(0)
        plain.append(PlainNet(28 * 28, 4, 3, name))
    for some in (models, plain):
        weights = [[value for value in model.parameters() if value.dim() > 1] for model in some]
        for other in weights[1:]:
            assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=False))


def _nothing() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
