"""One module called several times a forward: each call keeps to its own scalars, however the forward is run."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

from arelu_meta.activations.arelu import AReLU
from arelu_meta.backbones.activation_sites import PerCallActivation
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.errors import RunError


class Thrice(nn.Module):
    """Calls one activation at two places, one of them in a loop; one more call, the first, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
        self.rest = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = self.act(self.extra(x))
        return self.tail(self.act(self.first(x)))

    def tail(self, x: Tensor) -> Tensor:
        for layer in self.rest:
            x = self.act(layer(x))
        return x


class Checkpointed(Thrice):
    """Repeats only a part of its forward in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        y: Tensor = checkpoint(self.tail, x, use_reentrant=self.reentrant)
        return y


class CheckpointedByPass(Checkpointed):
    """Repeats each pass of a loop by itself, the last one first."""

    def tail(self, x: Tensor) -> Tensor:
        for layer in self.rest:
            x = checkpoint(lambda x, layer=layer: self.act(layer(x)), x, use_reentrant=self.reentrant)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.act(self.first(x)))


X = torch.zeros(2, 4)


def swapped(kind: type[Thrice] = Thrice) -> Thrice:
    """Scalars that tell each call from the others: alpha 0.1, 0.2, 0.3 …"""
    torch.manual_seed(0)
    model = kind()
    swap_activations(model, init="paper", example=X)
    for index, activation in enumerate(sequence(model)):
        nn.init.constant_(activation.alpha, 0.1 * (index + 1))  # type: ignore[arg-type]
    return model


def sequence(model: nn.Module) -> PerCallActivation:
    found = model.get_submodule("act")
    assert isinstance(found, PerCallActivation)
    return found


def used(model: nn.Module, run: Callable[[], Tensor]) -> set[int]:
    """Which calls' activations a forward and backward gives a gradient to."""
    model.zero_grad()
    run().sum().backward()
    return {int(n.split(".")[1]) for n, p in model.named_parameters() if n.endswith("beta") and p.grad is not None}


def expected(model: Thrice, x: Tensor) -> Tensor:
    """The forward written out: evaluation's three calls are 0, 1, 2, and training's extra one is 3."""
    acts = sequence(model)
    if model.training and not isinstance(model, Checkpointed):
        x = acts[3](model.extra(x))
    x = acts[0](model.first(x))
    for index, layer in enumerate(model.rest):
        x = acts[index + 1](layer(x))
    return x


def test_each_call_has_its_own_scalars_and_the_report_lists_it() -> None:
    model = Thrice()
    report = swap_activations(model, init="paper", example=X)
    assert [entry.path for entry in report.swapped] == ["act.0", "act.1", "act.2", "act.3"]
    assert report.parameters_added == 8 == len([n for n, _ in model.named_parameters() if n.startswith("act.")])
    assert report.complete
    assert all(isinstance(model.get_submodule(entry.path), AReLU) for entry in report.swapped)


@pytest.mark.parametrize("training", [False, True])
def test_a_call_keeps_its_scalars_where_training_and_evaluation_call_differently(training: bool) -> None:
    model = swapped().train(training)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), expected(model, x))
    assert used(model, lambda: model(x)) == ({0, 1, 2, 3} if training else {0, 1, 2})


def test_every_forward_begins_anew_even_after_one_that_failed() -> None:
    model = swapped().eval()
    x = torch.randn(3, 4)
    wanted = model(x)
    broken, model.rest[1] = model.rest[1], nn.Linear(9, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(x)
    model.rest[1] = broken
    assert torch.equal(model(x), wanted)


def test_two_forwards_before_one_backward_give_the_sum_of_both_gradients() -> None:
    model = swapped().train()
    x, y = torch.randn(3, 4), torch.randn(3, 4)

    def gradients(run: Callable[[], Tensor]) -> list[Tensor]:
        model.zero_grad()
        run().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    both = gradients(lambda: model(x) + model(y))
    one, other = gradients(lambda: model(x)), gradients(lambda: model(y))
    torch.testing.assert_close(both, [a + b for a, b in zip(one, other, strict=True)])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_owner_repeats_the_same_calls(reentrant: bool) -> None:
    model = swapped().train()
    x = torch.randn(3, 4, requires_grad=True)

    def gradients(run: Callable[[], Tensor]) -> list[Tensor | None]:
        model.zero_grad()
        run().square().sum().backward()
        return [p.grad for p in model.parameters()]

    plain = [g.clone() if g is not None else None for g in gradients(lambda: model(x))]
    again = gradients(lambda: checkpoint(model, x, use_reentrant=reentrant))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [Checkpointed, CheckpointedByPass])
def test_a_checkpoint_of_a_part_of_the_owner_is_refused_and_shared_scalars_get_the_right_gradient(
    kind: type[Checkpointed], reentrant: bool
) -> None:
    model = swapped(kind).train()
    model.reentrant = reentrant  # type: ignore[assignment]
    x = torch.randn(3, 4, requires_grad=True)
    y = model(x)
    torch.testing.assert_close(y, expected(model, x))
    with pytest.raises(RunError, match=r"'act' of .* is called outside of its owner's forward.*share=\"module\""):
        y.square().sum().backward()
    torch.manual_seed(0)
    plain, shared = Thrice().eval(), kind().eval()
    shared.load_state_dict(plain.state_dict())
    shared.reentrant = reentrant
    gradients = []
    for one in (plain, shared):
        swap_activations(one, init="paper", example=X, share="module")
        one(x).square().sum().backward()
        gradients.append([p.grad for p in one.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_gradient_taken_within_a_forward_does_not_take_anothers_scalars() -> None:
    """There the owner's forward runs while the backward pass repeats a part of it."""

    class Inner(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            y = super().forward(x)
            if self.training:
                (slope,) = torch.autograd.grad(y.sum(), x)
                y = y + slope
            return y

    torch.manual_seed(0)
    model = Inner().eval()
    swap_activations(model, init="paper", example=X)
    model(torch.randn(3, 4))
    with pytest.raises(RunError, match="outside of its owner's forward"):
        model.train()(torch.randn(3, 4))


def test_a_method_called_without_the_owners_forward_is_refused() -> None:
    model = swapped().eval()
    with pytest.raises(RunError, match="'act' of Thrice is called outside of its owner's forward"):
        model.tail(torch.randn(3, 4))


def test_a_forward_that_skips_a_call_or_makes_one_more_is_refused() -> None:
    model = swapped().eval()
    layers = list(model.rest)
    for rest in (layers[:1], layers * 2):
        model.rest = nn.ModuleList(rest)
        with pytest.raises(RunError, match=r"called (2 times, and the swap saw 3|more often than the 3 times)"):
            model(torch.randn(3, 4))
    model.rest = nn.ModuleList(layers)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), expected(model, x))


def test_a_module_that_calls_itself_counts_each_forward_for_itself() -> None:
    class Nested(Thrice):
        inner: nn.Module | None = None

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.first(x))
            x = x if self.inner is None else self.inner(x)
            return self.act(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Nested()
    swap_activations(model, init="paper", example=X)
    nn.init.constant_(model.get_parameter("act.1.alpha"), 0.2)
    x = torch.randn(3, 4)
    once = model(x)
    assert torch.equal(once, sequence(model)[1](sequence(model)[0](model.first(x))))
    vars(model)["inner"] = model.forward_once = lambda x: vars(model).update(inner=None) or model(x)  # type: ignore[assignment]
    acts = sequence(model)
    assert torch.equal(model(x), acts[1](acts[1](acts[0](model.first(acts[0](model.first(x)))))))


@pytest.mark.parametrize("name", ["res2net50_14w_8s", "hrnet_w18_small"])
def test_one_model_in_eight_threads_gives_each_thread_its_output(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    swap_activations(model, init="paper")
    for index, parameter in enumerate(p for p in model.parameters() if p.numel() == 1):
        nn.init.constant_(parameter, 0.05 + 0.9 * (index * 0.618 % 1))
    images = torch.randn(16, 1, 3, 32, 32)
    with torch.no_grad():
        wanted = [model(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda image: model(image).detach(), images))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("training", [False, True])
def test_under_compile_each_call_keeps_its_scalars(training: bool) -> None:
    torch._dynamo.reset()
    model = swapped().train(training)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(3, 4)
        torch.testing.assert_close(compiled(x), expected(model, x))
    torch._dynamo.reset()


class Broken(Thrice):
    """Compiled in pieces."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for layer in self.rest:
            torch._dynamo.graph_break()
            x = self.act(layer(x))
        return x


def test_compiled_in_pieces_each_call_keeps_its_scalars() -> None:
    torch._dynamo.reset()
    model = swapped(Broken).eval()
    compiled = torch.compile(nn.Sequential(nn.Identity(), model), backend="eager")
    with torch.no_grad():  # else dynamo warns of a gradient that it reads itself
        for _ in range(3):
            x = torch.randn(3, 4)
            torch.testing.assert_close(compiled(x), expected(model, x))
    torch._dynamo.reset()


def test_checkpoints_of_timms_blocks_give_the_gradients_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = timm.create_model("res2net50_14w_8s", num_classes=3).train()
    swap_activations(model, init="paper")
    for index, parameter in enumerate(p for p in model.parameters() if p.numel() == 1):
        nn.init.constant_(parameter, 0.05 + 0.9 * (index * 0.618 % 1))
    x, gradients = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        other = copy.deepcopy(model)
        other.set_grad_checkpointing(checkpointing)
        other(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in other.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


LOADS = """
import pickle, sys, torch
from arelu_meta import unswap
block, x, y = pickle.load(open(sys.argv[1], "rb"))
ran = []
for _ in range(20):
    block.register_forward_pre_hook(lambda *_: ran.append(1))
    block.register_forward_hook(lambda *_: ran.append(1))
assert torch.equal(block(x), y)
unswap(block)
block(x)
assert len(ran) == 2 * 40
"""


def test_a_pickle_counts_in_another_process_beside_hooks_that_are_registered_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("res2next50").eval()
    block, x = model.layer1[0], torch.randn(2, 64, 8, 8)
    swap_activations(model, init="paper")
    (tmp_path / "block.pkl").write_bytes(pickle.dumps((block, x, block(x).detach())))
    done = subprocess.run([sys.executable, "-c", LOADS, tmp_path / "block.pkl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_export_and_trace_keep_each_calls_scalars() -> None:
    model = swapped().eval()
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected(model, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out, and warns of every look at a shape
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected(model, x))


@pytest.mark.parametrize("training", [False, True])
def test_in_the_graph_of_fx_each_call_of_a_block_is_its_own_activation(training: bool) -> None:
    model = swapped().train(training)
    x = torch.randn(3, 4)
    whole = nn.Sequential(model).train(training)
    for trace in (torch.fx.symbolic_trace, lambda model: create_feature_extractor(model, ["0.act"])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training calls it once more, and torchvision says so
            graph = trace(whole)
        calls = [node.target for node in graph.graph.nodes if str(node.target).endswith("alpha")]
        assert calls == [f"0.act.{i}.alpha" for i in ((3, 0, 1, 2) if training else (0, 1, 2))]
    traced = torch.fx.symbolic_trace(whole)
    torch.testing.assert_close(traced(x), expected(model, x), rtol=0, atol=0)
    assert used(model, lambda: traced(x)) == ({0, 1, 2, 3} if training else {0, 1, 2})


@pytest.mark.parametrize("dynamo", [False, True])
def test_in_onnx_each_call_keeps_its_scalars(dynamo: bool, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, file = swapped().eval(), torch.randn(3, 4), str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn of what in torch they use themselves
        torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), expected(model, x).detach())


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled_to_machine_code_each_call_keeps_its_scalars(training: bool) -> None:
    torch._dynamo.reset()
    model, x = swapped().train(training), torch.randn(3, 4)
    results = []
    for run in (lambda x: expected(model, x), torch.compile(model, backend="inductor")):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[1], results[0])
    torch._dynamo.reset()


PROCESS = """
import sys, torch, timm
from torch.nn.parallel import DistributedDataParallel
from arelu_meta.backbones.swap import swap_activations

rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
for name, init in (("legacy_seresnet18", "paper"), ("test_resnet", "preserve")):
    torch.manual_seed(0)
    # Without statistics of the batch: those of half a batch are others.
    model = timm.create_model(name, num_classes=3).double().eval()
    swap_activations(model, init=init)
    for parameter in model.parameters():
        if parameter.numel() == 1:
            torch.nn.init.uniform_(parameter, 0.1, 0.9)
    images = torch.randn(4, 3, 64, 64).double()
    model(images).square().mean().backward()
    wanted = {key: p.grad.clone() for key, p in model.named_parameters()}
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        parallel.zero_grad(set_to_none=True)
        parallel(images[2 * rank : 2 * rank + 2]).square().mean().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], msg=lambda text: f"{name} {key}: {text}")
torch.distributed.destroy_process_group()
"""


def test_two_processes_with_half_a_batch_each_get_the_gradients_of_the_whole(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch.distributed is not built here")
    script, file = tmp_path / "process.py", tmp_path / "rendezvous"
    script.write_text(PROCESS)
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), file], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors


def test_a_module_that_is_parametrised_after_the_swap_still_counts_and_stays_parametrised() -> None:
    class Scales(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = swapped().eval()
    model.scale = nn.Parameter(torch.ones(1))
    register_parametrization(model, "scale", Scales())
    x = torch.randn(3, 4)
    assert torch.equal(model(x), expected(model, x))
    unswap(model)
    assert isinstance(model.act, nn.ReLU)
    assert model(x).shape == x.shape
    assert model.scale.item() == 2


def test_a_module_whose_calls_are_counted_is_still_of_its_class_by_name() -> None:
    model = swapped()
    assert isinstance(model, Thrice)
    assert (type(model).__name__, type(model).__module__) == (Thrice.__name__, Thrice.__module__)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(model, protocol)).eval()
        assert type(other) is type(model)


def test_the_replicas_of_data_parallel_training_do_not_count_for_each_other() -> None:
    """Threads that run replicas turn about, each stopped in the middle of its forward by the other."""
    model = swapped().eval()
    # There is no second device here: replicas as `replicate` makes them, their parameters not copied.
    replicas = [model._replicate_for_data_parallel() for _ in range(2)]
    for replica in replicas:
        replica._modules["act"] = sequence(model)._replicate_for_data_parallel()
        replica._modules["act"]._modules = dict(sequence(model)._modules)
    x = torch.randn(3, 4)
    wanted = model(x)
    barrier = threading.Barrier(2)
    results: dict[int, Tensor] = {}

    class Waits(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            barrier.wait(5)
            y = super().forward(input)
            barrier.wait(5)
            return y

    for layer in model.rest:
        layer.__class__ = Waits

    def work(index: int) -> None:
        results[index] = replicas[index](x)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], wanted)
    assert torch.equal(results[1], wanted)


def test_copies_and_pickled_models_count_for_themselves() -> None:
    model = swapped().eval()
    x = torch.randn(3, 4)
    wanted = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), wanted)
        unswap(other)
        assert isinstance(other.act, nn.ReLU)
        assert type(other) is Thrice
    assert torch.equal(model(x), wanted)


def test_unswap_takes_the_count_away_and_gives_back_the_one_module() -> None:
    torch.manual_seed(0)
    model = Thrice().eval()
    original, x = model.act, torch.randn(3, 4)
    before = model(x)
    swap_activations(model, example=X)
    unswap(model)
    assert model.act is original
    assert type(model) is Thrice
    assert torch.equal(model(x), before)


def test_sharing_on_request_gives_one_activation_a_module() -> None:
    model = Thrice()
    report = swap_activations(model, init="paper", example=X, share="module")
    assert [entry.path for entry in report.swapped] == ["act"]
    assert isinstance(model.act, AReLU)
    assert report.parameters_added == 2


def test_an_activation_that_two_blocks_share_becomes_one_for_each_block() -> None:
    act = nn.ReLU()
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act), nn.Sequential(nn.Linear(4, 4), act)
    )
    report = swap_activations(model, init="paper", example=X)
    assert [entry.path for entry in report.swapped] == ["0.1", "0.3", "1.1"]
    assert len({id(model.get_submodule(entry.path)) for entry in report.swapped}) == 3
    unswap(model)
    assert all(model.get_submodule(entry.path) is act for entry in report.swapped)


def test_a_block_that_is_tied_under_several_names_stays_tied() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(block, block, block)
    report = swap_activations(model, init="paper", example=X)
    assert isinstance(block[1], AReLU)
    assert report.parameters_added == 2
    assert report.complete


def test_a_hidden_activation_outside_the_tree_of_modules_is_reported() -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.seen = nn.Linear(4, 4), nn.ReLU()
            self.unseen = [nn.GELU()]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.unseen[0](self.seen(self.fc(x)))
            return y

    report = swap_activations(Hides(), example=X)
    assert [(entry.path, entry.before) for entry in report.kept] == [("", "gelu")]
    assert "test_per_call.py:" in report.kept[0].reason
    assert not report.complete


# Counted by hand in timm's code: stem and blocks, each block's calls.
TIMM = {
    "dla34": 33,
    "dla60_res2net": 91,
    "legacy_seresnet18": 1 + 8 * 3,
    "res2net50_14w_8s": 1 + 16 * 9,
}


@pytest.mark.parametrize("name", TIMM)
def test_timms_blocks_get_an_activation_for_every_call(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handles = [module.register_forward_pre_hook(count) for module in model.modules() if isinstance(module, nn.ReLU)]
    model.eval()(torch.zeros(1, 3, 64, 64, device="meta"))
    for handle in handles:
        handle.remove()
    report = swap_activations(model, init="paper")
    assert report.complete
    assert len({id(model.get_submodule(entry.path)) for entry in report.swapped}) == calls
    assert sum(entry.role == "hidden" for entry in report.swapped) == TIMM[name]


def test_coats_tied_mlp_stays_tied() -> None:
    with torch.device("meta"):
        model = timm.create_model("coat_mini")
    before = len(list(model.parameters()))
    report = swap_activations(model, init="paper")
    assert report.complete
    assert not any(isinstance(module, PerCallActivation) for module in model.modules())
    assert len(list(model.parameters())) == before + report.parameters_added
    block = model.get_submodule("parallel_blocks.0")
    assert block.mlp2 is block.mlp3 is block.mlp4
