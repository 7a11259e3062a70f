import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arelu_meta import create_backbone, load_adapter, save_adapter, set_trainable, swap_activations, unswap
from arelu_meta.backbones.checkpoint import load_model
from arelu_meta.backbones.networks import OUR_HEADER
from arelu_meta.backbones.swap import base_of
from arelu_meta.errors import InputError


class Net(nn.Module):
    """A person's own network, with batch normalisation and an activation with a parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


EXAMPLE = torch.rand(2, 3, 8, 8)


def train(model: nn.Module, images: Tensor, held: bool = True) -> None:
    model.train(not held)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    model.eval()


def header_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        content: dict[str, Any] = json.loads(opened.metadata()[OUR_HEADER])
    return content


def rewrite(file: Path, header: object, tensors: dict[str, Tensor] | None = None) -> Path:
    save_file(load_file(file) if tensors is None else tensors, file, {OUR_HEADER: json.dumps(header)})
    return file


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = Net()
    swap_activations(net, "arelu", init="preserve", example=EXAMPLE)
    set_trainable(net, "activations")
    train(net, EXAMPLE)
    save_adapter(net, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_an_adapter_of_99_scalars_and_a_head_is_mailed_loaded_and_predicts_the_same_bits(tmp_path: Path) -> None:
    model = create_backbone("tf_efficientnet_lite0", pretrained=True, num_classes=17, activation="arelu")
    assert set_trainable(model, "activations")["activations"] == (99, 99)
    images = torch.rand(2, 3, 32, 32)
    train(model, images)
    file = tmp_path / "flowers.safetensors"
    save_adapter(model, file, classes=[f"flower {number}" for number in range(17)])
    assert file.stat().st_size < 100_000
    whole, spec = load_model(file)
    assert spec.classes[3] == "flower 3"
    loaded = create_backbone("tf_efficientnet_lite0", pretrained=True)  # not swapped, and with a head of 1,000
    load_adapter(loaded, file)
    for again in (whole, loaded.eval(), create_backbone("tf_efficientnet_lite0", pretrained=file).eval()):
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("mode", ["full", "head", "activations", "norm", "bias", "lora", "last-1"])
@pytest.mark.parametrize("held", [True, False])
def test_every_mode_comes_back_to_the_bit_on_a_persons_own_network(tmp_path: Path, mode: str, held: bool) -> None:
    net = Net()
    swap_activations(net, "arelu", init="preserve", example=EXAMPLE)
    set_trainable(net, mode)
    train(net, EXAMPLE, held)
    save_adapter(net, tmp_path / "a.safetensors")
    again = Net()
    load_adapter(again, tmp_path / "a.safetensors", example=EXAMPLE)
    assert torch.equal(again.eval()(EXAMPLE), net(EXAMPLE))
    tensors = load_file(tmp_path / "a.safetensors")
    assert ("conv.weight" in tensors) == (mode in ("full", "last-1"))
    assert ("norm.running_mean" in tensors) == (not held)


def test_the_paper_start_goes_on_a_network_whose_activation_had_a_parameter_of_its_own(tmp_path: Path) -> None:
    net = Net()
    swap_activations(net, "arelu", init="paper", example=EXAMPLE)
    set_trainable(net, "activations")
    train(net, EXAMPLE)
    save_adapter(net, tmp_path / "a.safetensors")
    again = Net()
    load_adapter(again, tmp_path / "a.safetensors", example=EXAMPLE)
    assert torch.equal(again.eval()(EXAMPLE), net(EXAMPLE))


def test_a_network_that_was_never_swapped_takes_its_base_from_a_state_dict(tmp_path: Path) -> None:
    net = Net()
    with pytest.raises(InputError, match="base: nothing is known of what this Net started from; give base="):
        save_adapter(net, tmp_path / "a.safetensors")
    before = copy.deepcopy(net)
    set_trainable(net, "bias")
    train(net, EXAMPLE)
    for base in (before, before.state_dict()):
        save_adapter(net, tmp_path / "a.safetensors", base=base)
        assert load_file(tmp_path / "a.safetensors").keys() == {"conv.bias", "norm.bias", "fc.weight", "fc.bias"}
        again = Net()
        load_adapter(again, tmp_path / "a.safetensors")
        assert torch.equal(again.eval()(EXAMPLE), net(EXAMPLE))


def test_it_is_refused_on_other_weights_which_stay_as_they_were(saved: Path) -> None:
    other = Net(seed=1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InputError, match="was made on other weights than this model's: those of 'Net' with digest"):
        load_adapter(other, saved, example=EXAMPLE)
    assert isinstance(other.act, nn.PReLU)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_one_more_adapter_goes_on_a_model_that_has_one_unless_the_first_one_moved_more(
    saved: Path, tmp_path: Path
) -> None:
    net = Net()
    load_adapter(net, saved, example=EXAMPLE)
    want = net.eval()(EXAMPLE)
    set_trainable(net, "activations")
    train(net, EXAMPLE)
    save_adapter(net, tmp_path / "second.safetensors")
    load_adapter(net, saved)
    assert torch.equal(net(EXAMPLE), want)
    set_trainable(net, "full")
    train(net, EXAMPLE)
    with pytest.raises(InputError, match="made on other weights"):
        load_adapter(net, saved)


def test_a_swapped_model_takes_no_adapter_without_that_swap(tmp_path: Path) -> None:
    net = Net()
    before = copy.deepcopy(net)
    set_trainable(net, "head")
    train(net, EXAMPLE)
    save_adapter(net, tmp_path / "a.safetensors", base=before)
    other = Net()
    swap_activations(other, "arelu", init="preserve", example=EXAMPLE)
    with pytest.raises(InputError, match=r"no activation swapped in at 'act', and the model has; arelu_meta\.unswap"):
        load_adapter(other, tmp_path / "a.safetensors")
    unswap(other)
    load_adapter(other, tmp_path / "a.safetensors")
    assert torch.equal(other.eval()(EXAMPLE), net(EXAMPLE))


def test_unswap_forgets_what_a_swap_remembered() -> None:
    net = Net()
    swap_activations(net, "arelu", example=EXAMPLE)
    assert base_of(net) is not None
    unswap(net)
    assert base_of(net) is None


def test_load_model_says_that_only_its_own_code_makes_a_persons_network(saved: Path) -> None:
    with pytest.raises(
        InputError, match=r"an adapter of 'Net', a network that only its own code makes; .*load_adapter"
    ):
        load_model(saved)


def test_load_model_refuses_an_adapter_of_random_weights(tmp_path: Path) -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, activation="arelu")
    save_adapter(model, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is an adapter of random weights, which no file holds"):
        load_model(tmp_path / "a.safetensors")


def test_a_whole_model_and_no_model_are_no_adapters(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"hello")
    for file in ("a.safetensors", "b.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match="adapter: ") as raised:
            load_adapter(Net(), tmp_path / file)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", 3),
        ("pretrained", [1]),
        ("pretrained", None),
        ("rest", "0" * 63),
        ("rest", None),
        ("swaps", {}),
        ("swaps", [["arelu", "preserve", []]]),
        ("swaps", [["arelu", "x", ["act"]]]),
        ("swaps", [["arelu"]]),
        ("swaps", [[1, None, ["act"]]]),
        ("swaps", [["no_such", None, ["act"]]]),
        ("swaps", [["arelu", "preserve", ["nowhere"]]]),
        ("lora", -1),
        ("lora", True),
        ("lora", 10**9),
        ("outputs", 0),
        ("outputs", "4"),
        ("packed", None),
        ("packed", ["act", "act"]),
        ("packed", ["nowhere"]),
        ("another", 1),
    ],
)
def test_a_header_that_no_adapter_has_is_one_line(saved: Path, key: str, value: object) -> None:
    header = header_of(saved)
    header["adapter"][key] = value
    rewrite(saved, header)
    net = Net()
    with pytest.raises(InputError, match=r"adapter: |activation: |include: ") as raised:
        load_adapter(net, saved, example=EXAMPLE)
    assert "\n" not in str(raised.value)
    assert isinstance(net.act, nn.PReLU)


@pytest.mark.parametrize("header", [[], 3, None, {"adapter": None}, {"adapter": []}, {"adapter": {}}])
def test_a_header_of_another_kind_is_one_line_for_load_model_too(saved: Path, header: object) -> None:
    rewrite(saved, header)
    with pytest.raises(InputError) as raised:
        load_adapter(Net(), saved)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError) as raised:
        load_model(saved)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "no_such_model"}, "no_such_model"),
        ({"name": "eva02_enormous_patch14_clip_224"}, "a billion"),
        ({"num_classes": 10**8, "classes": []}, "classes"),
        ({"classes": "abc"}, "classes"),
        ({"inputs": {}}, "damaged"),
    ],
)
def test_a_backbone_that_an_adapter_does_not_have_is_refused_before_it_is_made(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    file = tmp_path / "a.safetensors"
    save_adapter(create_backbone("mnist_linear", num_classes=3, in_chans=1, activation="arelu"), file)
    header = header_of(file)
    rewrite(file, header | change)
    with pytest.raises(InputError, match=why) as raised:
        load_model(file)
    assert "\n" not in str(raised.value)


def test_an_adapter_whose_tensors_do_not_fit_leaves_the_model_as_it_was(saved: Path) -> None:
    tensors = load_file(saved)
    for change in ({"fc.weight": torch.zeros(4, 9)}, {"nowhere.weight": torch.zeros(1)}, {"*.t": torch.zeros(2)}):
        rewrite(saved, header_of(saved), tensors | change)
        net = Net()
        with pytest.raises(InputError) as raised:
            load_adapter(net, saved, example=EXAMPLE)
        assert "\n" not in str(raised.value)
        assert isinstance(net.act, nn.PReLU)


@pytest.mark.parametrize("path", ["x" * 5000, "y" * 300])
def test_a_path_that_no_file_system_takes_is_one_line(path: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_adapter(create_backbone("mnist_linear", num_classes=3, in_chans=1, activation="arelu"), file)
    header = header_of(file)
    header["adapter"]["pretrained"] = path
    rewrite(file, header)
    for call in (
        lambda: load_adapter(Net(), path),
        lambda: load_model(path),
        lambda: load_model(file),
        lambda: create_backbone("mnist_linear", pretrained=path),
    ):
        with pytest.raises(InputError, match=r"is no path \(File name too long\)") as raised:
            call()
        assert len(str(raised.value)) < 300


def test_classes_that_do_not_fit_the_outputs_are_refused(tmp_path: Path) -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1, activation="arelu")
    with pytest.raises(InputError, match="classes: 2 names do not fit the model's 3 outputs"):
        save_adapter(model, tmp_path / "a.safetensors", classes=["a", "b"])


def test_create_backbone_goes_on_from_a_run_or_says_why_not(tmp_path: Path) -> None:
    model = create_backbone("mnist_linear", num_classes=3, in_chans=1)
    from arelu_meta.backbones.checkpoint import save_model
    from arelu_meta.backbones.from_config import build_backbone
    from arelu_meta.config import ModelConfig

    model, spec = build_backbone(ModelConfig("mnist_linear", False, "arelu"), ("a", "b"), 1, None, "finetune")
    save_model(tmp_path / "model.safetensors", model, spec)
    images = torch.rand(1, 1, 28, 28)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        again = create_backbone("mnist_linear", pretrained=place, in_chans=1)
        assert torch.equal(again.eval()(images), model.eval()(images))
    with pytest.raises(InputError, match=r"of another architecture \('mnist_linear'\) than 'mnist_conv'"):
        create_backbone("mnist_conv", pretrained=tmp_path, in_chans=1)
    with pytest.raises(InputError, match="in_chans: 3 does not fit"):
        create_backbone("mnist_linear", pretrained=tmp_path)
    with pytest.raises(InputError, match=r"drop_rate: 0\.5 does not go with"):
        create_backbone("mnist_linear", pretrained=tmp_path, in_chans=1, drop_rate=0.5)
    # What is trained from there on is an adapter of that run.
    set_trainable(again, "activations")
    train(again, images)
    save_adapter(again, tmp_path / "adapter.safetensors")
    assert torch.equal(load_model(tmp_path / "adapter.safetensors")[0](images), again(images))
    (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"is an adapter of '.*model.safetensors', which is not here"):
        load_model(tmp_path / "adapter.safetensors")


def test_two_changes_that_cancel_out_in_a_sum_are_saved(tmp_path: Path) -> None:
    net = Net()
    with torch.no_grad():
        net.conv.weight.fill_(1)
    before = copy.deepcopy(net)
    with torch.no_grad():
        bits = net.conv.weight.view(torch.int32)
        bits[0] += 1
        bits[1] -= 1
    save_adapter(net, tmp_path / "a.safetensors", base=before)
    assert "conv.weight" in load_file(tmp_path / "a.safetensors")
