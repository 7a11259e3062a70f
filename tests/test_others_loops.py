"""A swapped network inside other people's loops: the scalars learn, are saved, and come back."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta import parameter_groups, swap_activations

SCALARS = (".alpha", ".beta", ".t")
X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def _net() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model("test_resnet", num_classes=3, zero_init_last=False)
    swap_activations(net, "arelu", init="open")
    return net


def _scalars(net: nn.Module) -> dict[str, float]:
    return {name: value.item() for name, value in net.named_parameters() if name.endswith(SCALARS)}


def _step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()


def _all_moved(net: nn.Module) -> bool:
    start = _scalars(_net())
    return all(value != start[name] for name, value in _scalars(net).items())


def test_plain_pytorch_trains_saves_and_loads_the_scalars(tmp_path: Path) -> None:
    net = _net()
    _step(net, torch.optim.SGD(parameter_groups(net, lr=0.1, act_lr=0.5)))
    assert _all_moved(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    again = _net()
    again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(again.eval()(X), net.eval()(X))


def test_timm_s_train_script_s_way_with_its_optimiser_and_running_average() -> None:
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    net = _net()
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(value) in decayed for name, value in net.named_parameters() if name.endswith(SCALARS))
    average = ModelEmaV3(net, decay=0.5)
    _step(net, optimizer)
    average.update(net)
    assert _all_moved(net)
    start, now = _scalars(_net()), _scalars(net)
    for name, value in _scalars(average.module).items():
        assert value == pytest.approx((start[name] + now[name]) / 2, abs=1e-6)


def test_layer_decay_of_timm_knows_the_scalars() -> None:
    from timm.optim import create_optimizer_v2

    net = _net()
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1, layer_decay=0.5)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(value) for value in net.parameters()}


def test_accelerate_prepares_trains_and_saves(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from safetensors.torch import load_file

    net = _net()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(net, torch.optim.SGD(parameter_groups(net, lr=0.1)))
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(prepared(X), Y))
        optimizer.step()
    assert _all_moved(accelerator.unwrap_model(prepared))
    accelerator.save_model(prepared, str(tmp_path))
    again = _net()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert _scalars(again) == _scalars(net)


@pytest.mark.parametrize("share", ["call", "module"])
def test_functional_call_and_grad_give_what_backward_gives(share: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.act(self.act(self.one(x))))  # type: ignore[no-any-return]

    net, x = Twice(), torch.randn(5, 4)
    swap_activations(net, "arelu", init="open", example=x, share=share)
    parameters: dict[str, Tensor] = dict(net.named_parameters())

    def loss(given: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, given, (x,)), Y[:5])

    found = torch.func.grad(loss)(parameters)
    F.cross_entropy(net(x), Y[:5]).backward()
    for name, value in parameters.items():
        assert value.grad is not None
        assert torch.allclose(found[name], value.grad, atol=1e-6), name
    stacked = {name: torch.stack([value.detach(), value.detach() + 0.1]) for name, value in parameters.items()}
    both = torch.vmap(lambda given: torch.func.functional_call(net, given, (x,)))(stacked)
    assert torch.allclose(both[0], net(x), atol=1e-5)


def test_a_second_order_step_as_higher_makes_it_reaches_the_scalars() -> None:
    net = _net()
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    inner = F.cross_entropy(torch.func.functional_call(net, parameters, (X,)), Y)
    grads = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
    adapted = {name: value - 0.1 * grad for (name, value), grad in zip(parameters.items(), grads, strict=True)}
    F.cross_entropy(torch.func.functional_call(net, adapted, (X,)), Y).backward()
    assert all(value.grad is not None for name, value in parameters.items() if name.endswith(SCALARS))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_network_has_no_graph_break_and_the_same_gradients() -> None:
    net = _net()
    other = copy.deepcopy(net)
    compiled = torch.compile(other, fullgraph=True)
    _step(net, torch.optim.SGD(net.parameters(), lr=0.01))
    _step(compiled, torch.optim.SGD(other.parameters(), lr=0.01))  # type: ignore[arg-type]
    for name, value in net.named_parameters():
        assert torch.allclose(value, other.get_parameter(name), atol=1e-4), name


_DDP = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[3])
from test_others_loops import X, Y, _all_moved, _net, _scalars
import torch.nn.functional as F
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
net = _net()
wrapped = DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    F.cross_entropy(wrapped(X[rank::2]), Y[rank::2]).backward()
    optimizer.step()
found = [None, None]
dist.all_gather_object(found, _scalars(net))
assert found[0] == found[1] and _all_moved(net)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_of_ddp_keep_the_same_scalars(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _DDP]
    place = str(Path(__file__).parent)
    started = [subprocess.Popen([*command, str(rank), str(tmp_path / "rendezvous"), place]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in started] == [0, 0]


@pytest.fixture
def vit() -> Any:
    """A tiny vision transformer of Hugging Face's, its class, and its config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return transformers.ViTForImageClassification, transformers.ViTConfig(
            image_size=32, patch_size=16, num_labels=3, **sizes
        )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["ViT", "ResNet", "ConvNext", "Swin"])
def test_hugging_face_s_vision_models_are_swapped_without_an_example(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, dict[str, Any]] = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "image_size": 32},
    }
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **sizes[kind])
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    report = swap_activations(model, "arelu", init="preserve")
    assert report.complete
    assert len(report.swapped) >= 2


@pytest.mark.filterwarnings("default")
def test_the_scalars_survive_save_pretrained_and_from_pretrained(vit: Any, tmp_path: Path) -> None:
    kind, config = vit

    class Swapped(kind):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            swap_activations(self, "arelu", init="preserve")

    plain = kind(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    net = Swapped.from_pretrained(tmp_path / "plain").eval()  # its scalars are in no file: they start as they are made
    assert {round(value, 6) for value in _scalars(net).values()} == {0.9, 2.0, 0.0}
    assert torch.equal(net(X).logits, plain(X).logits)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith(SCALARS):
                value += 0.1
    net.save_pretrained(tmp_path / "net")
    again = Swapped.from_pretrained(tmp_path / "net").eval()
    assert _scalars(again) == _scalars(net)
    assert torch.equal(again(X).logits, net(X).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_hugging_face_s_trainer_spares_the_scalars_with_our_groups(vit: Any, tmp_path: Path) -> None:
    import transformers

    kind, config = vit
    net = kind(config)
    swap_activations(net, "arelu", init="open")
    start = _scalars(net)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(X, Y, strict=True)]

    def trainer(**more: Any) -> Any:
        return transformers.Trainer(model=net, args=arguments, train_dataset=rows, **more)

    assert set(start) <= set(trainer().get_decay_parameter_names(net))  # its own rule, which goes by names, decays them
    groups = parameter_groups(net, lr=1e-2, act_lr=1e-2, weight_decay=0.1, head="classifier")
    optimizer = torch.optim.AdamW(groups)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(net.get_parameter(name)) in decayed for name in start)
    trainer(optimizers=(optimizer, None)).train()
    assert all(value != start[name] for name, value in _scalars(net).items())


@pytest.mark.parametrize("way", [nn.DataParallel, torch.jit.script, copy.deepcopy])
def test_wrappers_and_copies_give_the_same_logits(way: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(X)
    swap_activations(net, "arelu", init="open", example=X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(way(net.eval())(X), net(X), atol=1e-6)
