import dataclasses
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arelu_meta import config as configs
from arelu_meta.cli import TASKS, parse
from arelu_meta.config import LARGEST_IMAGE, ClaimsConfig, FinetuneConfig, MetatrainConfig, PredictConfig
from arelu_meta.errors import InputError
from arelu_meta.validation import flags_of, flatten, validate


def _set(config: Any, name: str, value: object) -> Any:
    holder, _, field = name.rpartition(".")
    setattr(getattr(config, holder) if holder else config, field, value)
    return config


def _config_of(name: str) -> Callable[[], Any]:
    return FinetuneConfig if name in flatten(FinetuneConfig()) else MetatrainConfig


def test_flatten_names_every_field_as_its_flag() -> None:
    flat = flatten(FinetuneConfig())
    assert flat["run.seed"] == 0
    assert flat["optim.lr"] == "default"
    assert list(flat)[:2] == ["run.folder", "run.seed"]
    assert all(name.count(".") == 1 for name in flat)
    assert flatten(PredictConfig("run", ["a.jpg"]))["images"] == ["a.jpg"]


def _example(kind: type) -> Any:
    """Make a task's config, with something in the fields that have no default."""
    required = [
        field for field in dataclasses.fields(kind) if dataclasses.MISSING is field.default is field.default_factory
    ]
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: _example_of(hints[field.name]) for field in required})


def _example_of(hint: object) -> object:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)[0]
    return ["x"] if typing.get_origin(hint) is list else "x"


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_every_task_are_valid(task: str) -> None:
    validate(_example(TASKS[task].config))


NUMBERS = [
    *[("run.seed", 0, -1), ("data.image_size", 1, 0), ("data.batch_size", 1, 0), ("data.per_class", 1, 0)],
    *[("optim.weight_decay", 0.0, -1e-9), ("optim.warmup_epochs", 0, -1), ("train.epochs", 1, 0)],
    *[("task.ways", 2, 1), ("task.shots", 1, 0), ("task.queries", 1, 0), ("meta.inner_steps", 1, 0)],
    *[("meta.batch_tasks", 1, 0), ("meta.steps", 1, 0), ("eval.tasks", 2, 1), ("eval.inner_steps", 1, 0)],
    ("eval.every", 1, 0),
]


@pytest.mark.parametrize(("name", "lowest", "below"), NUMBERS)
def test_a_number_below_its_range_is_refused_with_the_lowest_that_is_allowed(
    name: str, lowest: float, below: float
) -> None:
    make = _config_of(name)
    validate(_set(make(), name, lowest))
    with pytest.raises(InputError) as raised:
        validate(_set(make(), name, below))
    assert str(raised.value).startswith(f"{name}: {below!r} is not allowed; give a number at least {lowest:g}")


@pytest.mark.parametrize("name", ["optim.lr", "optim.head_lr", "optim.act_lr", "meta.inner_lr"])
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf"), float("-inf")])
def test_a_learning_rate_is_finite_and_above_zero(name: str, value: float) -> None:
    make = _config_of(name)
    validate(_set(make(), name, 1e-30))
    with pytest.raises(InputError) as raised:
        validate(_set(make(), name, value))
    assert str(raised.value).startswith(f"{name}: {value!r} is not allowed; give a number above 0")


@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_every_task_has_a_range(task: str) -> None:
    for name, (kind, _) in flags_of(TASKS[task].config).items():
        if _is_number(kind):
            with pytest.raises(InputError, match=rf"^{name}: -1"):
                validate(_set(_example(TASKS[task].config), name, -1000))  # beta may be below 0


def _is_number(hint: object) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        *[(name, 2**32 - 1) for name in ("run.seed", "data.batch_size", "train.epochs")],
        ("data.image_size", LARGEST_IMAGE),
    ],
)
def test_whole_numbers_that_overflow_are_refused(name: str, largest: int) -> None:
    validate(_set(FinetuneConfig(), name, largest))
    with pytest.raises(InputError, match=rf"^{name}: {largest + 1} is not allowed; .* at most {largest}$"):
        validate(_set(FinetuneConfig(), name, largest + 1))


@pytest.mark.parametrize("name", ["run.seed", "optim.lr"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_that_no_float_holds_and_python_does_not_print_is_refused(name: str, sign: str) -> None:
    with pytest.raises(InputError, match=name):
        parse("finetune", [f"--{name}={sign}0x{'f' * 5000}"])
    with pytest.raises(InputError, match=rf"^{name}: a number of so many digits is not allowed"):
        validate(_set(FinetuneConfig(), name, int(f"{sign}1" + "0" * 4000) ** 2))


@pytest.mark.parametrize("name", ["run.folder", "data.root", "data.name", "model.name", "run.resume", "optim.name"])
@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_an_empty_text_is_refused_and_not_taken_for_the_default(name: str, value: str) -> None:
    with pytest.raises(InputError) as raised:
        validate(_set(FinetuneConfig(), name, value))
    assert str(raised.value).startswith(f"{name}: {value!r} is empty; ")


@pytest.mark.parametrize("value", ["a\0b", "bl\udcfcte"])
def test_a_text_that_names_no_file_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"^data\.root: .* give UTF-8 without nulls$"):
        validate(_set(FinetuneConfig(), "data.root", value))
    with pytest.raises(InputError, match=r"^images: "):
        validate(PredictConfig("run", ["fine.jpg", value]))


def test_a_text_too_long_for_a_file_is_refused_and_not_repeated_whole() -> None:
    validate(_set(FinetuneConfig(), "run.folder", "/".join(["x" * 255] * 10)))
    for value in ("x" * 256, "ü" * 128, "/".join(["x" * 200] * 30)):
        with pytest.raises(InputError, match=r"^run\.folder: .* is too long") as raised:
            validate(_set(FinetuneConfig(), "run.folder", value))
        assert len(str(raised.value)) < 120


def test_many_names_with_commas_between_may_be_longer_than_one_name() -> None:
    config = ClaimsConfig("architectures")
    config.model.name = config.model.activation = ",".join(f"network{number}" for number in range(60))
    validate(config)
    config.model.name = f"resnet18,{'x' * 256}"
    with pytest.raises(InputError, match=r"^model\.name: .* is too long"):
        validate(config)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_devices_that_torch_knows_are_allowed(device: str) -> None:
    validate(_set(FinetuneConfig(), "run.device", device))


@pytest.mark.parametrize("device", ["gpu", "CUDA", "tpu", "0"])
def test_a_device_that_nobody_has_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=rf"^run\.device: '{device}' is not known; give auto, cpu, cuda"):
        validate(_set(FinetuneConfig(), "run.device", device))


def test_configs_do_not_share_their_parts() -> None:
    first, second = FinetuneConfig(), FinetuneConfig()
    first.optim.lr = 7.0
    first.data.root = "x"
    assert second == FinetuneConfig()
    assert second.optim.lr == "default"


def test_every_field_is_described() -> None:
    """`--help` shows these texts; a field without one would be a flag without an explanation."""
    for name, kind in vars(configs).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == configs.__name__:
            for field in dataclasses.fields(kind):
                assert f"\n        {field.name}: " in (kind.__doc__ or ""), f"{name}.{field.name}"


def test_the_config_needs_no_torch() -> None:
    code = "import sys, arelu_meta.config; print({'torch', 'numpy', 'timm', 'jsonargparse'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("optim.lr", "0.1", "a number or one of 'auto', 'default'"),
        ("optim.lr", True, "a number or one of 'auto', 'default'"),
        ("train.epochs", 2.5, "a whole number"),
        ("data.per_class", True, "a whole number"),
        ("data.root", 5, "a text"),
        ("data.skip_broken", "no", "true or false"),
        ("model.pretrained", None, "true or false or a text"),
        ("run.precision", "fp32", "one of 'float32', 'bf16', 'fp16'"),
        ("run.seed", None, "a whole number"),
        ("data", None, "a DataConfig"),
    ],
)
def test_a_value_of_another_type_set_in_python_is_refused(name: str, value: object, allowed: str) -> None:
    with pytest.raises(InputError) as raised:
        validate(_set(FinetuneConfig(), name, value))
    assert str(raised.value) == f"{name}: {value!r} is not allowed; give {allowed}"


def test_a_field_mistyped_in_python_is_refused_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"^DataConfig has no field 'per_clas'; nearest: 'per_class'"):
        _set(FinetuneConfig(), "data.per_clas", 5)


def test_a_path_set_in_python_becomes_its_text(tmp_path: Path) -> None:
    config = FinetuneConfig()
    config.data.root = tmp_path  # type: ignore[assignment]
    validate(config)
    assert config.data.root == str(tmp_path)
