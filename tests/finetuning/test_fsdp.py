"""A model shared out over two gloo processes: FSDP. What only GPUs do (NCCL, bf16 kernels) is not tested here."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from arelu_meta import evaluate, finetune
from arelu_meta.backbones.networks import read_tensors
from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import InputError
from arelu_meta.finetuning.fsdp import check_sharding, units
from arelu_meta.runs.checkpoints import load_checkpoint
from arelu_meta.runs.distributed import Ranks, join

Run = Callable[..., list["subprocess.CompletedProcess[str]"]]
Make = Callable[..., FinetuneConfig]

# Validation images come in an odd last batch of one, which leaves the second process without any.
_ARGUMENTS = [
    *["finetune", "--data.image_size", "16", "--data.per_class", "20", "--data.batch_size", "30"],
    *["--data.augmentation", "none", "--model.name", "conv4_32", "--model.pretrained", "false", "--run.device", "cpu"],
    *["--model.activation", "arelu", "--model.init", "preserve", "--optim.lr", "0.05", "--train.epochs", "2"],
    *["--optim.name", "momentum", "--optim.clip_grad", "1", "--optim.open_gates", "0.5", "--run.pictures", "false"],
]
_FROZEN = ["--train.freeze_bn", "true", "--optim.accumulate", "2"]

# Every block is a unit of its own, which the small network's would otherwise be too small for.
_SHARDED = """
import os, signal, sys
from arelu_meta.finetuning import fsdp
from arelu_meta.runs.run_folder import RunFolder
from arelu_meta.cli import main
fsdp.SMALLEST_UNIT = 1
save = RunFolder.save_checkpoint
def save_and_die(self, name, state):
    path = save(self, name, state)
    if name == os.environ.get("DIE_AFTER"):
        os.kill(os.getpid(), signal.SIGKILL)
    return path
RunFolder.save_checkpoint = save_and_die
sys.exit(main(sys.argv[1:]))
"""


def _all_done(done: list["subprocess.CompletedProcess[str]"]) -> None:
    """Check that all processes ended well; skip where this torch's gloo cannot average, as that of torch 2.7."""
    if any("add them up; use a GPU or a newer torch" in one.stderr for one in done):
        pytest.skip(f"gloo does not average in torch {torch.__version__}")
    assert not any(one.returncode for one in done), [one.stderr for one in done]


def _rows(path: Path) -> list[list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [[number for cell in row if (number := _number(cell)) is not None] for row in rows]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _assert_close(one: Path, other: Path) -> None:
    weights, expected = read_tensors(one / "model.safetensors"), read_tensors(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for file in ("metrics.csv", "gradients.csv", "scalars.csv"):
        found, wanted = _rows(one / file), _rows(other / file)
        assert len(found) == len(wanted) > 0
        for row, expected_row in zip(found, wanted, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-3, abs=1e-5)


def test_a_model_that_is_shared_out_gives_one_processs_result_in_ordinary_files(
    run_processes: Run, tmp_path: Path
) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    single = run_processes(1, *_ARGUMENTS, *_FROZEN, "--run.folder", str(one))
    shared = ["--train.shard", "true", "--run.folder", str(two)]
    double = run_processes(2, *_ARGUMENTS, *_FROZEN, *shared, program=_SHARDED)
    _all_done(single + double)
    _assert_close(two, one)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert abs(results[0]["test_loss"] - results[1]["test_loss"]) < 1e-4
    assert results[0]["alphas"] == results[1]["alphas"] > 0
    assert evaluate(two)["test_accuracy"] == results[1]["test_accuracy"]
    checkpoint = two / "checkpoints" / "epoch-0001.pt"
    state = load_checkpoint(checkpoint)
    momenta = [values["momentum_buffer"] for values in state["optimizer"]["state"].values()]
    assert {type(tensor) for tensor in (*state["model"].values(), *momenta)} == {torch.Tensor}
    resumed = run_processes(1, *_ARGUMENTS, *_FROZEN, "--run.resume", str(checkpoint), "--run.folder", str(again))
    _all_done(resumed)
    _assert_close(again, one)


@pytest.mark.slow
def test_a_run_that_is_shared_out_and_killed_goes_on_to_the_same_bits(
    run_processes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-epoch, with statistics that move."""
    more = ["--train.freeze_bn", "false", "--train.shard", "true", "--run.resume", "auto"]
    more += ["--run.checkpoint_minutes", "0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run_processes(2, *_ARGUMENTS, *more, "--run.folder", str(whole), program=_SHARDED)
    _all_done(done)
    monkeypatch.setenv("DIE_AFTER", "epoch-0001-step-000003")
    killed = run_processes(2, *_ARGUMENTS, *more, "--run.folder", str(cut), program=_SHARDED)
    assert [one.returncode for one in killed] == [-9, -9], [one.stderr for one in killed]
    monkeypatch.delenv("DIE_AFTER")
    done = run_processes(2, *_ARGUMENTS, *more, "--run.folder", str(cut), program=_SHARDED)
    _all_done(done)
    weights = [read_tensors(folder / "model.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    for name in ("metrics.csv", "gradients.csv", "scalars.csv"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


# Three steps of each optimiser on the parts, and on the whole; then its state goes into another one and back.
_OPTIMIZERS = """
import copy, sys, torch
from torch import nn
from arelu_meta.config import OptimConfig, RunConfig
from arelu_meta.finetuning import fsdp
from arelu_meta.finetuning.optimizer import build_optimizer
from arelu_meta.runs.distributed import join
fsdp.SMALLEST_UNIT = 1
class Net(nn.Sequential):
    def get_classifier(self):
        return self[-1]
ranks = join(RunConfig(device="cpu"))
for name in fsdp._OPTIMIZERS:
    torch.manual_seed(0)
    plain = Net(nn.Sequential(nn.Linear(5, 7), nn.PReLU()), nn.Linear(7, 3))
    images, wanted = torch.rand(2, 5), torch.rand(2, 3)
    model = copy.deepcopy(plain)
    shards = fsdp.Shards(model, ranks)
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.01)
    optimizers = [build_optimizer(plain, config), build_optimizer(model, config)]
    own = slice(ranks.rank, ranks.rank + 1)
    for step in range(3):
        for network, optimizer, part in zip((plain, model), optimizers, (slice(0, 2), own)):
            optimizer.zero_grad()
            ((network(images[part]) - wanted[part]) ** 2).mean().backward()
            norm = fsdp.whole_tensor(nn.utils.clip_grad_norm_(network.parameters(), 0.5))
            optimizer.step()
        state = fsdp.gathered({"model": model.state_dict(), "optimizer": optimizers[1].state_dict()})
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(state["model"][key], value, msg=lambda text: f"{name} {key}: {text}")
        optimizers[1].load_state_dict(shards.cut_state(state, optimizers[1])["optimizer"])
    whole = shards.gather()
    if ranks.main:
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(whole.state_dict()[key], value)
    print(name, flush=True)
"""


@pytest.mark.slow
def test_the_optimisers_that_are_allowed_step_on_parts_as_on_the_whole(run_processes: Run) -> None:
    done = run_processes(2, program=_OPTIMIZERS)
    _all_done(done)
    assert "adamw" in done[0].stdout.split()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_mode": "head"}, r"^train\.shard: true does not go with train\.mode head; leave one of them out$"),
        ({"train_mode": "gradual"}, "does not go with train.mode gradual"),
        ({"train_ema": 0.9}, r"does not go with train\.ema"),
        ({"train_compile": True}, r"does not go with train\.compile"),
        ({"train_channels_last": True}, r"does not go with train\.channels_last"),
        ({"optim_lr": "auto"}, r"does not go with optim\.lr auto"),
        ({"run_precision": "fp16"}, r"does not go with run\.precision fp16"),
        ({"optim_name": "lamb"}, r"^optim\.name: 'lamb' does not go with train\.shard; give one of sgd, momentum"),
        ({"data_batch_size": 1}, r"^data\.batch_size: 1 images are not enough for 2 processes"),
    ],
)
def test_what_a_shared_model_cannot_do_is_refused_by_name(
    digits: Make, changes: dict[str, object], message: str
) -> None:
    two = Ranks(torch.device("cpu"), 0, 2)
    check_sharding(digits(train_shard=True), two)
    with pytest.raises(InputError, match=message):
        check_sharding(digits(train_shard=True, **changes), two)


def test_one_process_has_nobody_to_share_with(digits: Make, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^train\.shard: true shares a model out over several processes, and this run"
    ):
        finetune(digits(train_shard=True))
    assert not (tmp_path / "run").exists()


def test_accelerates_own_settings_of_fsdp_are_refused(digits: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"^ACCELERATE_USE_FSDP: 'true': .* give finetune --train\.shard true$"):
        join(digits().run)


# A network that reads a layer's weights past the layer, as a few of timm's do.
_PAST_THE_LAYER = """
import sys
from arelu_meta.backbones.networks import SmallNet
from arelu_meta.finetuning import fsdp
from arelu_meta.cli import main
fsdp.SMALLEST_UNIT = 1
forward = SmallNet.forward
SmallNet.forward = lambda self, images: forward(self, images) + 0 * next(self.parameters()).sum()
sys.exit(main(sys.argv[1:]))
"""


def test_a_model_that_reads_weights_past_their_layer_is_refused_before_anything_is_written(
    run_processes: Run, tmp_path: Path
) -> None:
    arguments = [*_ARGUMENTS, "--train.shard", "true", "--run.folder", str(tmp_path / "run")]
    done = run_processes(2, *arguments, program=_PAST_THE_LAYER)
    if "add them up" in done[0].stderr:
        pytest.skip(f"gloo does not average in torch {torch.__version__}")
    assert [one.returncode for one in done] == [2, 2], [one.stderr for one in done]
    assert done[0].stderr.startswith(
        "error: train.shard: true, and 'conv4_32' uses a layer's weights without the layer"
    )
    assert not (tmp_path / "run").exists()


def test_a_unit_is_a_block_of_some_size_that_shares_nothing_with_the_rest() -> None:
    shared = nn.Linear(4, 4)
    plain, head = nn.Linear(4, 4), nn.Linear(4, 2)
    block = nn.Sequential(plain, nn.ReLU())
    body = nn.Sequential(block, nn.Sequential(shared), nn.Sequential(shared), nn.PReLU())
    model = nn.Sequential(body, head)
    assert units(model, 10) == [head, plain, block, body]
    assert units(model, 21) == [body]
