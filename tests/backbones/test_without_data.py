"""A model without its data, for a look at it: what it was is what it is afterwards."""

import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_meta.backbones.without_data import without_data


class Remembers(nn.Module):
    """A network that changes itself in its forward in every way that plain Python has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.steps = 0
        self.last: Tensor | None = None
        self.by_device: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.kinds: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.tied(self.first(x)))
        self.steps += 1
        self.last = y
        self.by_device[str(y.device)] = y
        self.seen.append(y)
        self.kinds.add(str(y.device))
        self.register_buffer("late", y)
        self.add_module("grown", nn.ReLU())
        return y


def test_inside_nothing_has_values_and_afterwards_all_is_as_it_was() -> None:
    model = Remembers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = [*model.parameters(), *model.buffers()]
    described, names = pickle.dumps(model), set(vars(model))
    with without_data(model):
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        assert model.tied.weight is model.first.weight
        assert model(torch.zeros(2, 3, device="meta")).is_meta
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == [id(tensor) for tensor in tensors]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(vars(model)) == names
    assert (model.steps, model.last, model.by_device, model.seen, model.kinds) == (0, None, {}, [], set())
    assert [name for name, _ in model.named_children()] == ["first", "norm", "tied"]
    assert pickle.dumps(model) == described


def test_an_error_puts_everything_back_too() -> None:
    model = Remembers()
    tensors = [id(tensor) for tensor in model.parameters()]

    def look() -> None:
        with without_data(model):
            model(torch.zeros(2, 3, device="meta"))
            model(torch.zeros(2, 7, device="meta"))

    with pytest.raises(RuntimeError):
        look()
    assert [id(tensor) for tensor in model.parameters()] == tensors
    assert model.steps == 0


def test_hooks_see_nothing_and_still_work_afterwards() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    with without_data(model):
        model(torch.zeros(1, 2, device="meta"))
    assert seen == []
    model(torch.zeros(1, 2))
    assert seen == [1]
    handle.remove()
    model(torch.zeros(1, 2))
    assert seen == [1]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "levit_128s", "sequencer2d_s"])
def test_a_network_gives_the_same_logits_after_a_look_as_before(name: str) -> None:
    model = timm.create_model(name, num_classes=3, **({"layers": (1, 1, 1, 1)} if "seq" in name else {})).eval()
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        before = model(images)
        with without_data(model):
            assert model(images.to("meta")).shape == before.shape
        assert torch.equal(model(images), before)
