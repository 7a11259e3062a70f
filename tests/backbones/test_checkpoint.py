"""Weights on disk: what is written comes back, and what is not ours is refused in one line and runs no code."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import ModelSpec, load_model, read_spec, save_model
from arelu_meta.backbones.networks import load_tensors, read_tensors
from arelu_meta.data.loaders import InputSpec
from arelu_meta.errors import InputError

META = {
    **{"ways": 4, "shots": 1, "queries": 5, "inner_lr": 0.4, "inner_steps": 1},
    **{"normalization": "transductive", "inverted": False},
}


def spec_of(name: str, activation: str | None = None, init: str | None = None, **changes: Any) -> ModelSpec:
    size, channels = {"test_resnet": (32, 3), "test_vit": (48, 3)}.get(name, (28, 1))
    inputs = InputSpec(size, channels, (0.3,) * channels, (0.2,) * channels, "bilinear", 0.9)
    spec = ModelSpec("finetune", name, 4, activation, init, inputs, classes=["a", "b", "ç", "d e"], mirrored=False)
    return replace(spec, **changes)


def trained(spec: ModelSpec) -> nn.Module:
    """A model whose every parameter and statistic is away from where it starts."""
    model = spec.build()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return model.eval()


def images(spec: ModelSpec) -> Tensor:
    return torch.randn(2, spec.inputs.channels, spec.inputs.image_size, spec.inputs.image_size)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of a trained network with AReLU."""
    spec = spec_of("conv4_32", "arelu", "preserve")
    save_model(tmp_path / "model.safetensors", trained(spec), spec)
    return tmp_path / "model.safetensors"


# There and back


@pytest.mark.parametrize("name", ["conv4_32", "mnist_conv", "mnist_linear", "test_resnet", "test_vit"])
@pytest.mark.parametrize(
    ("activation", "init"), [(None, None), ("arelu", "paper"), ("arelu", "preserve"), ("pau", None), ("gelu", None)]
)
def test_a_saved_model_comes_back_with_the_same_logits_and_spec(
    tmp_path: Path, name: str, activation: str | None, init: str | None
) -> None:
    spec = spec_of(name, activation, init)
    model = trained(spec)
    save_model(tmp_path / "model.safetensors", model, spec)
    again, found = load_model(tmp_path / "model.safetensors")
    assert found == spec
    assert not again.training
    x = images(spec)
    assert torch.equal(again(x), model(x))
    assert again(x).shape == (2, 4)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_run_folder_stands_for_the_model_in_it(saved: Path) -> None:
    assert read_spec(saved.parent) == read_spec(saved)
    assert read_spec(str(saved.parent))[0] == saved


def test_everything_that_a_run_notes_comes_back(tmp_path: Path) -> None:
    spec = spec_of("conv4_32", task="metatrain", meta=META, config={"optim": {"lr": 1e-3}})
    save_model(tmp_path / "m.safetensors", spec.build(), spec)
    assert read_spec(tmp_path / "m.safetensors")[1] == spec


def test_a_meta_learners_normalisation_comes_back(tmp_path: Path) -> None:
    spec = spec_of("conv4_32", task="metatrain", meta=META)
    model = trained(spec)
    save_model(tmp_path / "m.safetensors", model, spec)
    again, _ = load_model(tmp_path / "m.safetensors")
    x = images(spec)
    assert torch.equal(again(x), model(x))
    # The statistics of the batch at hand: an image's logits depend on its company, in eval mode too.
    assert not torch.allclose(again(x)[:1], again(torch.cat([x[:1], 3 * x[1:]]))[:1])


def test_other_programs_read_the_file_as_plain_tensors(saved: Path) -> None:
    tensors = load_file(saved)
    model, _ = load_model(saved)
    assert tensors.keys() == model.state_dict().keys()
    with safe_open(saved, framework="pt") as opened:
        assert set(opened.metadata()) == {"arelu_meta", "format"}


@pytest.mark.parametrize("change", [lambda m: m.to(memory_format=torch.channels_last), lambda m: m.bfloat16()])
def test_layout_and_precision_in_memory_do_not_matter(tmp_path: Path, change: Callable[[nn.Module], nn.Module]) -> None:
    spec = spec_of("conv4_32", "arelu", "paper")
    model = change(trained(spec))
    save_model(tmp_path / "m.safetensors", model, spec)
    again, _ = load_model(tmp_path / "m.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(again.state_dict()[name].dtype))


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    spec = spec_of("conv4_32", "arelu", "paper")
    model = trained(spec).train()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    save_model(tmp_path / "m.safetensors", model, spec)
    assert model.training
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name][1])


def test_saving_over_a_file_replaces_it_whole_and_leaves_nothing_beside(saved: Path) -> None:
    spec = spec_of("mnist_linear")
    save_model(saved, trained(spec), spec)
    assert load_model(saved)[1].name == "mnist_linear"
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    spec = spec_of("mnist_linear", config={"not": object()})
    with pytest.raises(TypeError):
        save_model(saved, spec.build(), spec)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]


# What is not ours, or no longer whole


def rewrite(file: Path, content: object = None, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write the file anew with another header, or other tensors."""
    spec = asdict(read_spec(file)[1]) if content is None else content
    # Beside it first: the tensors are mapped from the file, which older safetensors would cut short under them.
    beside = file.with_suffix(".new")
    save_file(read_tensors(file) if tensors is None else tensors, beside, metadata={"arelu_meta": json.dumps(spec)})
    return beside.replace(file)


def refused(file: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(file, "model.pretrained")
    message = str(caught.value)
    assert message.startswith(
        ("model.pretrained: ", "model.name: ", "num_classes: ", "activation: ", "init: ", "meta.")
    )
    for part in parts:
        assert part in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.safetensors", "nowhere.safetensors", "does not exist; give a run folder")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "holds no model.safetensors; give a run folder that has one")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"\xff" * 1000,
        lambda data: data[:8] + b"\0" + data[9:],
        lambda data: b"not a model at all\n" * 50,
    ],
    ids=["half", "last byte", "five bytes", "empty", "ones", "header", "text"],
)
def test_a_damaged_file_is_named(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    refused(saved, str(saved), "is damaged or no model of this toolkit")


def test_a_checkpoint_to_resume_from_is_answered_with_the_model_that_its_run_kept(saved: Path) -> None:
    checkpoint = saved.parent / "checkpoints" / "epoch-0020.pt"
    checkpoint.parent.mkdir()
    torch.save({"epoch": 20}, checkpoint)
    refused(checkpoint, "is what --run.resume goes on from; the model its run kept is", str(saved))


def test_a_file_of_another_program_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, file, metadata=metadata)
        refused(file, str(file), "does not say what model it holds; give one that a run here wrote")


@pytest.mark.parametrize("content", ["text", 3, None, [], {}, {"inputs": {}}, {"inputs": 3}, {"name": "conv4"}])
def test_a_header_that_holds_something_else_is_a_damaged_file(saved: Path, content: object) -> None:
    tensors = read_tensors(saved)
    save_file(tensors, saved, metadata={"arelu_meta": json.dumps(content)})
    refused(saved, "is damaged or no model of this toolkit")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("name", None),
        ("name", "no_such_model"),
        ("name", "hf-hub:someone/something"),
        ("num_classes", "many"),
        ("num_classes", -3),
        ("num_classes", 2.5),
        ("activation", 7),
        ("activation", "no_such_activation"),
        ("init", 5),
        ("init", "no_such_start"),
        ("meta", 3),
        ("meta", {"normalization": "no_such"}),
        ("classes", "abc"),
        ("classes", ["a", 2, "c", "d"]),
        ("task", "no_such_task"),
        ("task", "metatrain"),  # it has no meta
        ("surprise", 1),
    ],
)
def test_a_header_with_a_wrong_value_is_bad_input_not_a_crash(saved: Path, field: str, value: object) -> None:
    refused(rewrite(saved, asdict(read_spec(saved)[1]) | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"), [("image_size", "a"), ("channels", None), ("mean", 0.5), ("crop_pct", "x")]
)
def test_a_header_with_wrong_inputs_is_bad_input_not_a_crash(saved: Path, field: str, value: object) -> None:
    content = asdict(read_spec(saved)[1])
    content["inputs"][field] = value
    refused(rewrite(saved, content), "is damaged or no model of this toolkit")


@pytest.mark.parametrize(("field", "value"), [("channels", 3), ("mean", [0.5] * 3), ("std", [0.2, 0.2]), ("mean", [])])
def test_a_header_whose_inputs_contradict_each_other_is_bad_input(saved: Path, field: str, value: object) -> None:
    content = asdict(read_spec(saved)[1])
    content["inputs"][field] = value
    refused(rewrite(saved, content), "inputs.mean and inputs.std do not fit")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("image_size", 0), ("image_size", 10**9), ("mean", ["0.5"]), ("mean", [float("nan")]), ("std", [True])],
        *[("std", [0.0]), ("std", [1e-320]), ("std", [1e300]), ("image_size", 13_377)],
        *[("crop_pct", 0.0), ("crop_pct", -1.0), ("crop_pct", 1e9), ("interpolation", "no_such")],
    ],
)
def test_a_header_whose_inputs_nobody_can_compute_with_is_bad_input(saved: Path, field: str, value: object) -> None:
    content = asdict(read_spec(saved)[1])
    content["inputs"][field] = value
    refused(rewrite(saved, content), "is damaged or no model of this toolkit")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("ways", None), ("ways", "x"), ("ways", -1), ("ways", 50), ("shots", 0), ("queries", 1.5), ("inner_lr", "x")],
        *[("inner_lr", float("nan")), ("inner_lr", 0), ("inner_steps", -1), ("inner_steps", True)],
        *[("inner_steps", 10**9), ("shots", 10**9), ("queries", 10**9), ("inner_lr", 1e308)],
        *[("normalization", 3), ("normalization", "no_such"), ("inverted", "x")],
    ],
)
def test_a_meta_learner_s_header_with_a_wrong_value_is_bad_input(saved: Path, field: str, value: object) -> None:
    content = asdict(read_spec(saved)[1]) | {"task": "metatrain", "meta": META}
    assert read_spec(rewrite(saved, content))[1].meta == META
    refused(rewrite(saved, content | {"meta": META | {field: value}}), "is damaged or no model of this toolkit")
    lacking = {key: kept for key, kept in META.items() if key != field}
    refused(rewrite(saved, content | {"meta": lacking}), "is damaged or no model of this toolkit")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("algorithm", "sgd"), ("alphabets", "all"), ("adapt", "none"), ("train_steps", 10**9), ("train_steps", 0)],
        *[("inner_act_lr", -1), ("inner_act_lr", 1e308), ("split_file", 3), ("order", 7), ("task_chunk", "much")],
    ],
)
def test_what_a_meta_learner_s_header_may_leave_out_is_checked_as_a_config_s(
    saved: Path, field: str, value: object
) -> None:
    content = asdict(read_spec(saved)[1]) | {"task": "metatrain", "meta": META | {field: value}}
    refused(rewrite(saved, content), f"its header's meta.{field}: ")


def test_a_header_nested_without_end_is_a_damaged_file(saved: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(saved).items()}
    save_file(tensors, saved, metadata={"arelu_meta": "[" * 100_000})
    refused(saved, "is damaged or no model of this toolkit")


def test_a_number_in_a_header_that_no_float_holds_is_bad_input(saved: Path) -> None:
    content = asdict(read_spec(saved)[1])
    learner = content | {"task": "metatrain", "meta": META | {"inner_lr": 10**400}}
    refused(rewrite(saved, learner), "is damaged or no model of this toolkit")
    content["inputs"]["mean"] = [10**400]
    refused(rewrite(saved, content), "is damaged or no model of this toolkit")


@pytest.mark.parametrize(
    ("name", "classes", "size"),
    [
        *[("test_resnet", 10**4, 64), ("mnist_linear", 5, 2**12), ("test_vit", 5, 2**12)],
        *[("eva02_enormous_patch14_clip_224", 5, 224), ("resnet18", 10**4, 224)],
    ],
)
def test_a_small_file_whose_header_asks_for_a_huge_model_is_refused_before_memory_is_reserved(
    saved: Path, name: str, classes: int, size: int
) -> None:
    content = asdict(read_spec(saved)[1]) | {"name": name, "num_classes": classes, "task": "metatrain"}
    content["inputs"]["image_size"], content["meta"] = size, META | {"ways": classes}
    refused(rewrite(saved, content), "its header's model has", "numbers")


def test_weights_that_are_no_fractions_are_refused(saved: Path) -> None:
    tensors = {name: tensor.long() for name, tensor in read_tensors(saved).items()}
    with safe_open(saved, framework="pt") as opened:
        save_file(tensors, saved, metadata=opened.metadata())
    refused(saved, "holds torch.int64, not torch.float32")


def test_a_header_that_names_another_number_of_classes_than_the_head_has_is_bad_input(saved: Path) -> None:
    refused(rewrite(saved, asdict(read_spec(saved)[1]) | {"classes": ["a", "b"]}), "classes are 2, its num_classes 4")


def test_whole_numbers_in_the_inputs_are_numbers_too(saved: Path) -> None:
    content = asdict(read_spec(saved)[1])
    content["inputs"] |= {"crop_pct": 1, "mean": [0], "std": [1]}
    assert load_model(rewrite(saved, content))[1].inputs.crop_pct == 1


def test_weights_of_another_architecture_than_the_header_says_are_refused(saved: Path) -> None:
    content = asdict(read_spec(saved)[1])
    refused(rewrite(saved, content | {"name": "mnist_conv"}), "another architecture", "features.")
    refused(rewrite(saved, content | {"activation": None, "init": None}), "another architecture", "alpha")
    refused(rewrite(saved, content | {"init": "paper"}), "another architecture", "'features.10.t' is in the file")


def test_a_tensor_that_lacks_is_too_many_or_has_another_shape_is_named(saved: Path) -> None:
    tensors = read_tensors(saved)
    less = {name: tensor for name, tensor in tensors.items() if name != "features.4.weight"}
    refused(rewrite(saved, tensors=less), "'features.4.weight' is not in the file")
    refused(rewrite(saved, tensors=tensors | {"extra": torch.zeros(1)}), "'extra' is in the file but not in the model")
    longer = tensors | {"head.weight": torch.zeros(9, 32)}
    refused(rewrite(saved, tensors=longer), "'head.weight' has shape (9, 32), not (4, 32)")


# Code


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_checkpoint_that_would_run_code_runs_none(tmp_path: Path, dump: Callable[[object, Any], None]) -> None:
    file, target = tmp_path / "model.safetensors", tmp_path / "ran"
    with file.open("wb") as opened:
        dump({"weight": _Evil(target)}, opened)
    refused(file, "is damaged or no model of this toolkit")
    assert not target.exists()
    # It would have run: the trap is no dud.
    content = io.BytesIO(file.read_bytes())
    torch.load(content, weights_only=False) if dump is torch.save else pickle.load(content)
    assert target.exists()


# Tensors into a model


def test_load_tensors_changes_nothing_if_one_tensor_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: torch.ones_like(tensor) for name, tensor in before.items()} | {"1.weight": torch.ones(5, 3)}
    with pytest.raises(
        InputError, match=r"here is of another architecture.*'1\.weight' has shape \(5, 3\), not \(2, 3\)"
    ):
        load_tensors(model, tensors, "here")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_load_tensors_skips_what_it_is_told_to_in_file_and_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    head = model.get_parameter("1.weight").detach().clone()
    tensors = {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3), "1.weight": torch.ones(7, 3)}
    load_tensors(model, tensors, "here", skip=("1.",))
    assert torch.equal(model.get_parameter("0.weight"), torch.ones(3, 3))
    assert torch.equal(model.get_parameter("1.weight"), head)
