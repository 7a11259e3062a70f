"""What Python code can get wrong in a call of a public function: one sentence, as on the command line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from arelu_meta import (
    AReLU,
    Learner,
    arelu,
    create_activation,
    create_backbone,
    evaluate,
    finetune,
    fold,
    metatrain,
    swap_activations,
    unswap,
)
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.config import FinetuneConfig, RunConfig
from arelu_meta.errors import InputError
from arelu_meta.export.export import export
from arelu_meta.meta.few_shot_learner import AdaptedLearner
from arelu_meta.prediction import predict

GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    AReLU: {},
    create_activation: {"name": "gelu"},
    create_backbone: {"name": "mnist_linear"},
    swap_activations: {"model": nn.Sequential(nn.ReLU()), "activation": "gelu"},
    unswap: {"model": nn.ReLU()},
    fold: {"model": nn.ReLU()},
    load_model: {"path": "nowhere"},
    finetune: {"config": FinetuneConfig()},
    metatrain: {"config": None},
    evaluate: {"checkpoint": "nowhere"},
    predict: {"checkpoint": "nowhere", "images": ["nowhere.jpg"]},
    export: {"checkpoint": "nowhere"},
    Learner.load: {"name": "nowhere"},
    AdaptedLearner.predict: {"self": None, "images": []},
}
NOBODY_TAKES: list[object] = [object(), 3j, b"x", {1: 2}, {3}, range(3), [object()], np.zeros(2), Exception("x"), int]
ARGUMENTS = [
    (function, name)
    for function in GOOD
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in ("self", "data", "example", "on_epoch")  # these take tensors in many forms, or what is called
    and parameter.kind is not parameter.VAR_KEYWORD
    and parameter.annotation is not Any
]


@pytest.mark.parametrize(("function", "name"), ARGUMENTS, ids=lambda value: getattr(value, "__qualname__", value))
def test_an_argument_of_a_wrong_type_is_told_in_one_sentence(function: Callable[..., Any], name: str) -> None:
    for wrong in NOBODY_TAKES:
        with pytest.raises(InputError) as raised:
            function(**{**GOOD[function], name: wrong})
        said = str(raised.value)
        assert "\n" not in said
        assert len(said) < 400
        assert name in said or "is not allowed" in said


@pytest.mark.parametrize("config", [0, "", {}, [], RunConfig(), FinetuneConfig])
def test_what_is_no_config_is_told_so_and_is_not_taken_for_the_defaults(config: Any) -> None:
    for function, kind in ((finetune, "FinetuneConfig"), (metatrain, "MetatrainConfig")):
        with pytest.raises(InputError, match=rf"^config: .* is not allowed; give a {kind}$"):
            function(config)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tasks": 0}, "eval.tasks: 0 is not allowed; give a number at least 2"),
        ({"tasks": 1.5}, "eval.tasks: 1.5 is not allowed; give a whole number"),
        ({"tasks": 10**9}, "eval.tasks: 1000000000 is not allowed; .* at most 1000000"),
        ({"inner_steps": 10**9}, "eval.inner_steps: 1000000000 is not allowed; .* at most 1000"),
        ({"data": "folder"}, "data: 'folder' is not allowed; give a DataConfig"),
        ({"run": RunConfig(seed=-1)}, "run.seed: -1 is not allowed"),
        ({"support": 5}, "support: 5 is not allowed; give a text"),
    ],
)
def test_an_evaluation_is_checked_as_on_the_command_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        evaluate("nowhere", **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": None}, "data.batch_size: None is not allowed; give a whole number"),
        ({"batch_size": 0}, "data.batch_size: 0 is not allowed"),
        ({"top_k": 0}, "top_k: 0 is not allowed"),
        ({"images": "a.jpg"}, "images: 'a.jpg' is not allowed; give a list of texts"),
        ({"images": [5]}, r"images: \[5\] is not allowed"),
    ],
)
def test_a_prediction_is_checked_as_on_the_command_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        predict(**{"checkpoint": "nowhere", "images": ["a.jpg"], **arguments})


def test_numbers_of_numpy_and_paths_are_taken_as_python_s(tmp_path: Path) -> None:
    numpy: Any = np
    with pytest.raises(InputError, match=r"^checkpoint: .* holds no model"):
        evaluate(tmp_path, tasks=numpy.int64(10))
    with pytest.raises(InputError, match=r"^images: .* holds no image"):
        predict(tmp_path, (tmp_path,), top_k=numpy.int32(1))
    assert AReLU(numpy.float32(0.5)).alpha.item() == 0.5


def test_a_call_with_an_unknown_or_missing_argument_says_what_the_function_takes() -> None:
    with pytest.raises(
        InputError, match=r"^swap_activations: missing a required argument: 'model'; it takes \(model: "
    ):
        swap_activations()  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"unexpected keyword argument 'inits'"):
        swap_activations(nn.ReLU(), inits="paper")  # type: ignore[call-arg]


def test_a_model_that_is_none_is_told_so() -> None:
    with pytest.raises(InputError, match=r"^model: None is not allowed; give a Module$"):
        swap_activations(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: AReLU(device="gpu"), "device: 'gpu'"),
        (lambda: AReLU(device=5), "device: 5"),  # type: ignore[arg-type]
        (lambda: AReLU(dtype=torch.int32), "dtype: torch.int32"),
        (lambda: AReLU()("x"), "x: 'x'"),
        (lambda: arelu(torch.ones(3), "a", 1), "alpha: 'a'"),  # type: ignore[arg-type]
        (lambda: arelu(torch.ones(3), 1, None), "beta: None"),  # type: ignore[arg-type]
        (lambda: arelu(None, 1, 1), "x: None"),  # type: ignore[arg-type]
        (lambda: create_backbone("resnet18", num_classes=10**9), "num_classes: 1000000000"),
        (lambda: create_backbone("resnet18", in_chans=10**9), "in_chans: 1000000000"),
    ],
)
def test_what_torch_would_refuse_in_words_of_its_own_is_refused_in_a_sentence(
    call: Callable[[], object], says: str
) -> None:
    with pytest.raises(InputError, match=f"^{says} (is not allowed|cannot be used)"):
        call()
