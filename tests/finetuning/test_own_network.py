"""A network and data sets of one's own through finetune, load_model, evaluate and predict."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from arelu_meta import (
    FinetuneConfig,
    InputError,
    create_backbone,
    evaluate,
    finetune,
    load_adapter,
    load_model,
    predict,
    save_adapter,
    swap_activations,
)
from arelu_meta.cli import main
from arelu_meta.export.export import export


class Net(nn.Module):
    """Its head is neither the last linear layer nor one that timm knows of."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(8, classes)
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(self.act(self.norm(self.stem(x))).mean((2, 3))))  # type: ignore[no-any-return]


def _pictures(count: int = 48, seed: int = 0) -> list[tuple[Image.Image, int]]:
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        pixels = random.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        pixels[..., index % 3] += 100
        found.append((Image.fromarray(pixels), index % 3))
    return found


def _tensors(count: int = 48, seed: int = 0) -> TensorDataset:
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 64 - 2 for image, _ in _pictures(count, seed)]
    return TensorDataset(torch.stack(images), torch.tensor([label for _, label in _pictures(count, seed)]))


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    config = FinetuneConfig()
    config.run.folder, config.run.device, config.run.pictures = str(tmp_path / "run"), "cpu", False
    config.train.epochs, config.data.batch_size, config.optim.lr = 3, 8, 0.05
    return config


@pytest.mark.parametrize("swapped", [False, True])
def test_a_network_of_one_s_own_is_trained_in_place_and_its_run_is_loaded_into_another(
    config: FinetuneConfig, swapped: bool
) -> None:
    def made() -> nn.Module:
        net = Net()
        if swapped:
            swap_activations(net, "arelu", init="preserve", example=torch.zeros(1, 3, 16, 16))
        return net

    rows: list[dict[str, Any]] = []
    net, test = made(), _tensors(18, 7)
    before = net.get_parameter("stem.weight").clone()
    results = finetune(config, model=net, train=_tensors(), test=test, on_epoch=rows.append)
    assert not torch.equal(net.get_parameter("stem.weight"), before)
    assert results["test_accuracy"] > 0.9
    assert results["test_n"] == 18
    assert results["model"] == "Net (given)"
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    run = Path(results["folder"])
    assert json.loads((run / "results.json").read_text()) == results
    assert {"config.yaml", "split.json", "metrics.csv", "model.safetensors"} <= {path.name for path in run.iterdir()}
    loaded = load_model(run, model=made())
    assert not loaded.model.training
    assert loaded.classes == ("0", "1", "2")
    assert torch.equal(loaded.model(test.tensors[0]), net(test.tensors[0]))
    found = evaluate(run, test, model=made())
    assert (found["test_accuracy"], found["test_n"]) == (results["test_accuracy"], 18)
    named = predict(run, list(test.tensors[0]), model=made())
    assert [int(one.name) for one in named] == net(test.tensors[0]).argmax(1).tolist()
    assert named[3].path == Path("3")
    if swapped:
        with pytest.raises(InputError, match=r'not swapped: call swap_activations\(model, "arelu", init="preserve"\)'):
            load_model(run, model=Net())


def test_without_the_network_one_sentence_says_what_to_hand_over(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(config, model=Net(), train=_tensors())["folder"]
    says = r"model: the run trained a network of its own, Net, .*load_model\(run, model=net\)"
    for call in (
        lambda: load_model(run),
        lambda: evaluate(run, _tensors()),
        lambda: predict(run, [torch.zeros(3, 4, 4)]),
    ):
        with pytest.raises(InputError, match=says):
            call()
    with pytest.raises(InputError, match=r"data.name: 'given' stands for data sets .* evaluate\(run, data=dataset\)"):
        evaluate(run, model=Net())
    with pytest.raises(InputError, match="tensors that its data set made"):
        load_model(run, model=Net()).transform(_pictures()[0][0])
    capsys.readouterr()
    for task in (["predict", run, "nothing.png"], ["evaluate", run], ["export", run]):
        assert main(task) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_pictures_go_through_the_config_s_transform_and_paths_do_too(config: FinetuneConfig, tmp_path: Path) -> None:
    config.data.image_size = 24
    net, files = Net(), []
    for index, (image, label) in enumerate(_pictures()):
        image.save(tmp_path / f"{index}.png")
        files.append((tmp_path / f"{index}.png", "abc"[label]))
    seen: list[tuple[int, ...]] = []
    net.stem.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    results = finetune(config, model=net, train=files)
    assert set(seen) == {(3, 24, 24)}
    assert results["test_n"] == 12
    loaded = load_model(results["folder"], model=Net())
    assert loaded.classes == ("a", "b", "c")
    path = files[0][0]
    assert torch.equal(loaded.transform(path), loaded.transform(Image.open(path)))
    by_path = predict(results["folder"], [path], model=Net())[0]
    assert by_path.name == loaded.classes[int(loaded.model(loaded.transform(path)[None]).argmax())]
    assert by_path.probability == predict(results["folder"], [Image.open(path)], model=Net())[0].probability


@pytest.mark.parametrize("mode", ["full", "head", "probe", "norm", "bias", "last-1", "gradual", "activations"])
def test_each_mode_trains_of_a_network_of_one_s_own_what_it_says(config: FinetuneConfig, mode: str) -> None:
    net = Net()
    swap_activations(net, "arelu", init="preserve", example=torch.zeros(1, 3, 16, 16))
    before = {name: value.clone() for name, value in net.named_parameters()}
    config.train.mode = mode
    config.optim.weight_decay = 0.0
    finetune(config, model=net, train=_tensors())
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert {"fc.weight", "fc.bias"} <= moved
    others = {
        "full": {"stem.weight", "mix.weight", "act.t"},
        "norm": {"norm.weight", "norm.bias"},
        "bias": {"stem.bias", "norm.bias", "mix.bias"},
        "last-1": {"mix.weight", "mix.bias"},
        "gradual": {"stem.weight", "mix.weight"},
        "activations": {"act.t", "act.alpha", "act.beta"},
    }
    assert others.get(mode, set()) <= moved | {"act.alpha", "act.beta", "stem.bias"}
    if mode in ("head", "probe"):
        assert moved == {"fc.weight", "fc.bias"}


def test_a_head_is_named_where_it_would_not_be_found(config: FinetuneConfig) -> None:
    flat = [(image.mean((1, 2)).reshape(3, 1, 1), label) for image, label in zip(*_tensors().tensors, strict=True)]

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.late = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.late(x.flatten(1)))  # type: ignore[no-any-return]

    own, config.train.mode = Flat(), "head"
    late = own.late.weight.clone()
    finetune(config, model=own, train=flat, head="out")
    assert torch.equal(own.late.weight, late)
    config.run.folder = f"{config.run.folder}-2"
    with pytest.raises(
        InputError, match=r"^head: 'outt' is no module of the model; give the path of one, as 'out', 'late'"
    ):
        finetune(config, model=Flat(), train=flat, head="outt")


def test_networks_of_timm_and_torchvision_are_taken_as_they_are(config: FinetuneConfig, tmp_path: Path) -> None:
    config.train.epochs = 1
    dataset = [
        (nn.functional.interpolate(image[None], size=32)[0], label)
        for image, label in zip(*_tensors(24).tensors, strict=True)
    ]
    networks = {
        "timm": timm.create_model("test_resnet", num_classes=3),
        "torchvision": torchvision.models.squeezenet1_1(num_classes=3),
        "ours": create_backbone("conv4_32", num_classes=3, activation="arelu", img_size=32),
    }
    for name, net in networks.items():
        config.run.folder = str(tmp_path / name)
        assert finetune(config, model=net, train=dataset)["test_n"] > 0


def test_torchvision_s_data_sets_and_subsets_keep_their_classes(config: FinetuneConfig, tmp_path: Path) -> None:
    for name in ("ape", "bee", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index, (image, label) in enumerate(_pictures()):
        image.save(tmp_path / "data" / ("ape", "bee", "cat")[label] / f"{index}.png")
    transform = torchvision.transforms.Compose([torchvision.transforms.ToTensor()])
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "data"), transform=transform)
    net = Net()
    results = finetune(config, model=net, train=Subset(folder, range(len(folder))))
    assert load_model(results["folder"], model=Net()).classes == ("ape", "bee", "cat")


def test_data_sets_also_train_the_backbone_that_the_config_names(config: FinetuneConfig) -> None:
    config.model.name, config.model.pretrained, config.model.activation = "conv4_32", False, "arelu"
    config.train.repeats = 2
    results = finetune(config, train=_tensors())
    run = Path(results["folder"]) / "seed-0"
    assert load_model(run).spec.activation == "arelu"
    assert evaluate(run, _tensors(12, 3))["test_n"] == 12
    with pytest.raises(InputError, match="trained on tensors that a data set made of images"):
        export(run)


def test_random_transforms_are_seen_and_features_are_not_cached(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    class Noisy:
        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = _tensors()[index]
            return image + 0.1 * torch.randn(3, 16, 16), int(label)

    config.train.mode, config.train.epochs = "head", 1
    finetune(config, model=Net(), train=Noisy())
    said = capsys.readouterr().out
    assert "its own transforms are random" in said
    assert "features are not cached" in said


class _Says(nn.Module):
    def __init__(self, gives: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc, self.gives = nn.Linear(3, 3), gives

    def forward(self, x: Tensor) -> object:
        return self.gives(self.fc(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": Net(5)}, r"^model: Net gives 5 logits, and 3 classes have images; give it a head of 3 \(timm: "),
        ({"model": _Says(lambda x: (x, x))}, "^model: _Says gives a tuple and not logits; wrap it"),
        ({"model": _Says(lambda x: x[0])}, r"^model: _Says gives a tensor of shape \(3,\) for 2 images"),
        ({"model": nn.Sequential(nn.ReLU())}, "^model: Sequential has no parameters"),
        ({"model": nn.Linear(4, 3)}, r"^model: Linear cannot take images of shape \(3, 16, 16\)"),
        ({"train": None, "test": _tensors()}, "^train: missing; test is of a data set that is given"),
        ({"model": None, "head": "fc"}, "^head: 'fc' names the head of a network that is given; give model="),
        ({"data.root": "x"}, "^data.root: 'x' is not read where train is given"),
        ({"data.image_size": 32}, "^data.image_size: 32 is not read where train gives tensors"),
        ({"data.augmentation": "rand-m6-n2"}, "^data.augmentation: 'rand-m6-n2' is of images, and train gives tensors"),
        ({"model.activation": "arelu"}, "^model.activation: 'arelu' is of a model that is made here"),
        ({"train.repeats": 2}, "^train.repeats: 2 needs a network that is made anew"),
        ({"data.folds": 3}, "^data.folds: 3 needs a network that is made anew"),
        ({"test": _pictures()}, "^test: its images are of another kind than those of train"),
        ({"on_epoch": 5}, "^on_epoch: 5 is not allowed"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_writes_nothing(
    config: FinetuneConfig, changes: dict[str, Any], says: str
) -> None:
    arguments: dict[str, Any] = {"model": Net(), "train": _tensors()}
    for name, value in changes.items():
        group, dot, field = name.partition(".")
        if dot:
            setattr(getattr(config, group), field, value)
        else:
            arguments[group] = value
    with pytest.raises(InputError, match=says) as raised:
        finetune(config, **arguments)
    assert "\n" not in str(raised.value)
    assert not Path(str(config.run.folder)).exists()


def test_a_text_is_short_for_a_folder_of_images() -> None:
    with pytest.raises(InputError, match=r"^data.root: 'no-such-photos' does not exist"):
        finetune("no-such-photos")


def test_a_run_of_one_s_own_network_goes_on_where_it_was_stopped(config: FinetuneConfig) -> None:
    torch.manual_seed(1)
    start = Net()
    whole = Net()
    whole.load_state_dict(start.state_dict())
    finetune(config, model=whole, train=_tensors())
    config.run.folder = f"{config.run.folder}-2"

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config, model=start, train=_tensors(), on_epoch=stop)
    config.run.resume = "auto"
    again = Net()
    finetune(config, model=again, train=_tensors())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("mode", ["activations", "norm", "lora"])
def test_a_network_of_one_s_own_is_trained_and_kept_as_an_adapter(
    config: FinetuneConfig, tmp_path: Path, mode: str
) -> None:
    torch.manual_seed(0)
    net = Net()
    again = copy.deepcopy(net)
    example = torch.zeros(1, 3, 16, 16)
    swap_activations(net, "arelu", init="preserve", example=example)
    config.train.mode = mode
    test = _tensors(18, 7)
    finetune(config, model=net, train=_tensors(), test=test)
    save_adapter(net, tmp_path / "net.safetensors", classes=["red", "green", "blue"])
    load_adapter(again, tmp_path / "net.safetensors", example=example)
    assert torch.equal(again.eval()(test.tensors[0]), net.eval()(test.tensors[0]))
    config.run.save = "adapter"
    with pytest.raises(InputError, match=r"run.save: 'adapter' needs a backbone .*save_adapter\(model, FILE\) after"):
        finetune(config, model=net, train=_tensors())
