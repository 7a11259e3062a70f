"""Feed hostile input to what reads strangers' files, and random models to the swap.

    python tests/fuzz.py --inputs 100000            # random bytes, by hypothesis' strategies
    python tests/fuzz.py --inputs 10000 --target config --atheris  # libFuzzer follows the branches; needs atheris

Whatever comes in, the outcome is a result or one InputError (OSError for images): no traceback, and no model changed by
a checkpoint that does not fit, or by a swap that was undone. An input that takes longer than `--seconds` is a hang.
"""

import argparse
import contextlib
import inspect
import io
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from arelu_meta.backbones.checkpoint import read_spec
from arelu_meta.backbones.networks import load_tensors, read_tensors
from arelu_meta.backbones.swap import swap_activations, unswap
from arelu_meta.cli import TASKS, parse
from arelu_meta.cli import main as main_of_task
from arelu_meta.data.image_io import find_broken, read_image
from arelu_meta.errors import InputError
from arelu_meta.runs.checkpoints import load_checkpoint
from arelu_meta.validation import flags_of

PLACE = Path(tempfile.mkdtemp(prefix="fuzz-"))
ONCE = settings(
    max_examples=250, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

# --- configs: YAML-like text from the words that a config is made of, and any other text
WORDS = "optim: lr name run data model train seed {} [] , - & * &a *a ! !! ? | > ' \" \n 1e-3 null true .inf ~ 0x1F 1_0"
PIECES = st.sampled_from(
    [*WORDS.split(" "), " ", "\n", "\n  ", "optim:\n  lr: ", "run: {seed: ", "*a", "&a [", "2001-13-45"]
)
CONFIGS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join))


@ONCE
@given(CONFIGS)
def config(text: str) -> None:
    """A config file of any content is read or refused."""
    file = PLACE / "config.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(InputError), contextlib.redirect_stdout(io.StringIO()):
        parse("finetune", ["--config", str(file)])


# --- files with a few bytes changed, cut or put in
def _image_files() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        for mode in ("RGB", "L", "P"):
            content = io.BytesIO()
            with contextlib.suppress(OSError):
                Image.effect_noise((12, 9), 40).convert(mode).save(content, kind)
                found.append(content.getvalue())
    return found


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(max_size=5), st.integers(0, 9)), max_size=6)


def _changed(content: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Put bytes in at random places, for as many others as the last number says."""
    for place, new, gone in changes:
        start = place % (len(content) + 1)
        content = content[:start] + new + content[start + gone :]
    return content


@ONCE
@given(st.sampled_from(_image_files()), CHANGES)
def image(content: bytes, changes: list[tuple[int, bytes, int]]) -> None:
    """An image file of any content is read in 8 bits or refused; the check of a folder says nothing else."""
    file = PLACE / "image"
    file.write_bytes(_changed(content, changes))
    with contextlib.suppress(OSError):
        assert read_image(file).mode == "RGB"
    if len(changes) == 1:  # a pool of threads each, which takes most of the time
        with contextlib.redirect_stdout(io.StringIO()):
            assert find_broken([file]) in ([], [file])


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def _checkpoint() -> bytes:
    content = io.BytesIO()
    torch.save({"metrics": [{"epoch": 1, "loss": 0.5}], "model": _net().state_dict()}, content)
    return content.getvalue()


CHECKPOINT = _checkpoint()


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


VALUES = st.sampled_from([None, 1, "x", [1], torch.zeros(3), torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int8)])


@ONCE
@given(CHANGES, st.dictionaries(st.sampled_from([*_net().state_dict(), "other"]), VALUES, max_size=3))
def checkpoint(changes: list[tuple[int, bytes, int]], spoilt: dict[str, Any]) -> None:
    """A checkpoint of any content is read or refused, and what does not fit changes nothing of a model."""
    file = PLACE / "epoch-0001.pt"
    file.write_bytes(_changed(CHECKPOINT, changes))
    model = _net()
    before = _bits(model)
    try:
        state = load_checkpoint(file)["model"]
        assert isinstance(state, dict)
        load_tensors(model, state | spoilt, "fuzz")
    except InputError:
        assert _bits(model) == before
    except AssertionError:
        assert changes
    with contextlib.suppress(InputError):
        file.rename(file.with_name("model.safetensors"))
        read_spec(file.with_name("model.safetensors"))
        read_tensors(file.with_name("model.safetensors"))


class Functional(nn.Module):
    """Calls activations as functions, one of them twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x through two functions."""
        return torch.nn.functional.gelu(torch.relu(x) + torch.relu(-x))


SHARED = "shared"
LEAVES = st.sampled_from(
    [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "linear",
        "norm",
        "prelu",
        "tanh",
        "function",
        "lazy",
        "scripted",
        "weight",
        SHARED,
    ]
)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=10)


def _build(tree: Any, shared: nn.Module) -> nn.Module:
    """Make a module of width 4 from a tree of names."""
    if isinstance(tree, list):
        return nn.Sequential(*(_build(one, shared) for one in tree))
    makers: dict[str, Callable[[], Any]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "relu6": nn.ReLU6,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "linear": lambda: nn.Linear(4, 4),
        "norm": lambda: nn.BatchNorm1d(4),
        "prelu": nn.PReLU,
        "tanh": nn.Tanh,
        "function": Functional,
        "lazy": lambda: nn.LazyLinear(4),
        "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        "weight": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        SHARED: lambda: shared,
    }
    made: nn.Module = makers[tree]()
    return made


@ONCE
@given(TREES, st.sampled_from(["arelu", "gelu", "prelu"]), st.sampled_from(["preserve", "paper", None]))
def swap(tree: Any, activation: str, init: str | None) -> None:
    """A swap that preserves leaves outputs alone, and undone it leaves the model as it was; or it is refused."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that scripting is old
        model = nn.Sequential(nn.Linear(4, 4), _build(tree, nn.ReLU())).eval()
    example = torch.randn(3, 4)
    before = _of(model, example)
    names = [(name, type(module)) for name, module in model.named_modules(remove_duplicate=False)]
    with contextlib.suppress(InputError):
        init = init if activation == "arelu" else None
        swap_activations(model, activation, init=init, example=example)  # type: ignore[arg-type]
        if init == "preserve":
            assert torch.equal(model(example), before)
    unswap(model)
    assert torch.equal(model(example), before)
    assert [(name, type(module)) for name, module in model.named_modules(remove_duplicate=False)] == names


def _of(model: nn.Module, example: Tensor) -> Tensor:
    model(example)  # lazy modules take their shape
    return model(example)  # type: ignore[no-any-return]


# --- flags: any field of a task with a nasty value, through the whole command
TINY = {
    "finetune": "--model.name mnist_linear --model.pretrained false --data.image_size 8 --data.per_class 3 "
    "--train.epochs 1 --run.pictures false --run.device cpu",
    "metatrain": "--model.name mnist_linear --data.image_size 8 --task.queries 2 --meta.steps 1 --meta.batch_tasks 2 "
    "--eval.tasks 4 --eval.validation_tasks 4 --run.pictures false --run.device cpu",
    "evaluate": "gone",
    "predict": "gone gone.jpg",
    "export": "gone",
    "report": "gone",
    "sweep": "gone.yaml",
    "claims": "gone",
}
LEFT_ALONE = {"run.folder", "run.trackers", "train.epochs", "meta.steps", "eval.tasks", "train.repeats", "data.workers"}
LEFT_ALONE |= {"train.compile"}  # the compiler has its own warnings
FLAGS = [(task, flag) for task in TINY for flag in flags_of(TASKS[task].config) if flag not in LEFT_ALONE]
WORDS_OF_ODD_VALUES = """0 -1 1 2 0.5 1e-320 1e308 1e999 nan -inf 9223372036854775808 99999999999999999999 true false
null ~ * &a [] {} [1,2] {a:1} a,b ../.. /dev/null /proc/self ~nouser/x \u202ee \x1b[31m auto default none all gone . ' "
%s $HOME # arelu digits last-1 last-99 5/2 1_000 0x10 1e3 -- - ="""
NASTY = st.sampled_from([*WORDS_OF_ODD_VALUES.split(), "!!int x", "x: y", "a\nb", "", " ", "x" * 300, "9" * 400])


@ONCE
@given(st.sampled_from(FLAGS), NASTY, st.data())
def flags(where: tuple[str, str], value: str, more: Any) -> None:
    """A command with one or two nasty values ends in 0, or in one line with 2 or 3; never in a traceback."""
    task, flag = where
    words = [task, *TINY[task].split(), f"--{flag}={value}"]
    if more.draw(st.booleans()):
        other = more.draw(st.sampled_from([name for one, name in FLAGS if one == task]))
        words += [f"--{other}={more.draw(NASTY)}"]
    with tempfile.TemporaryDirectory(prefix="fuzz-run-") as folder, contextlib.chdir(folder):
        if task in ("finetune", "metatrain"):
            words += ["--run.folder", "run"]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main_of_task(words)
    assert status in (0, 2, 3), words
    assert said.getvalue().count("\n") == (status != 0), (words, said.getvalue())


# A target, and its share of the inputs: the slow ones get fewer.
TARGETS: dict[str, tuple[Callable[[], None], float]] = {
    "image": (image, 0.548),
    "checkpoint": (checkpoint, 0.35),
    "config": (config, 0.07),
    "swap": (swap, 0.03),
    "flags": (flags, 0.002),
}


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raise TimeoutError where the block hangs."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Do what the module says; the exit status is 1 at the first failure, whose input is printed."""
    parser = argparse.ArgumentParser(description="Fuzz what reads strangers' files, and the swap.")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="longer is a hang")
    parser.add_argument("--atheris", action="store_true", help="libFuzzer's mutations; one target a process")
    options = parser.parse_args()
    names = list(TARGETS) if options.target == "all" else [options.target]
    whole = sum(TARGETS[name][1] for name in names)
    for name in names:
        count = round(options.inputs * TARGETS[name][1] / whole)
        if options.atheris:
            _guided(name, count, options)  # does not return: libFuzzer ends the process
        else:
            _at_random(name, count, options)
    return 0


def _at_random(name: str, count: int, options: argparse.Namespace) -> None:
    feed = TARGETS[name][0].hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    chance, started, valid = random.Random(f"{options.seed} {name}"), time.monotonic(), 0
    for number in range(1, count + 1):
        content = chance.randbytes(chance.choice([40, 200, 800]))
        try:
            with no_longer_than(options.seconds):
                valid += feed(content) is not None
        except BaseException:
            print(f"{name}, input {number}: {content.hex()}", flush=True)
            raise
        if number % max(1, count // 10) == 0:
            rate = number / (time.monotonic() - started)
            print(f"{name}: {number}/{count} inputs, {valid} of them complete, {rate:.0f} inputs/s", flush=True)


def _guided(name: str, count: int, options: argparse.Namespace) -> None:
    import atheris

    for module in [module for name, module in sys.modules.items() if name.startswith("arelu_meta.")]:
        for function in filter(inspect.isfunction, vars(module).values()):
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)  # in place: libFuzzer follows which branches an input takes
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={count}",
            f"-seed={options.seed + 1}",
            f"-timeout={options.seconds}",
            "-max_len=2048",
            "-len_control=0",  # short ones are no complete example of hypothesis'
        ],
        TARGETS[name][0].hypothesis.fuzz_one_input,  # type: ignore[attr-defined]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
