"""Write the golden files: what a version of the package gives, at one thread and one seed.

`python tests/golden/make.py [PART [NAME]]` writes PART.json beside this file (only entries whose names start with NAME)
for the package that Python imports, so PYTHONPATH says which version it is. README.md has the parts.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from arelu_meta import create_activation, list_activations
from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.cli import main

HERE = Path(__file__).parent
# Of a run, not of what it found: its clock, its place, and how it was computed.
_UNSTABLE = re.compile(r"seconds|_per_|(^|_)ms$|bytes|folder|^file$|memory|version|command|duration|headline|_time$")


def cpu() -> str:
    """Return this machine's processor: bits of a vectorised exp depend on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


# -- pipelines and studies ---------------------------------------------------------------------------------------------

_FINETUNE = "finetune --run.pictures false --run.device cpu --data.image_size 32 --data.per_class 6 --train.epochs 2"
_IMAGES = f"{_FINETUNE} --data.root images --model.activation arelu"
_DIGITS = f"{_FINETUNE} --data.name digits --optim.lr 0.01"
_META = "metatrain --run.pictures false --run.device cpu --data.image_size 16 --task.queries 3 --meta.steps 4"
_META += " --meta.batch_tasks 3 --meta.inner_lr 0.05 --meta.inner_steps 2 --eval.tasks 12 --eval.every 2"
_META += " --eval.validation_tasks 6 --model.name conv4_32 --model.activation arelu"
_MODES = ("full", "head", "activations", "last-1", "gradual", "probe", "norm", "bias", "lora")
_TRAINED = ("maml", "fomaml", "anil", "metasgd", "mamlpp", "reptile", "protonet")
_OMNIGLOT = f"{_META} --data.name omniglot-small"

PIPELINES: dict[str, str] = {
    **{f"finetune-{mode}": f"{_IMAGES} --train.mode {mode}" for mode in _MODES},
    "finetune-adapter": f"{_IMAGES} --train.mode lora --run.save adapter",
    "finetune-digits": _DIGITS,
    "finetune-digits-paper": f"{_DIGITS} --model.activation arelu --model.init paper --optim.act_lr 0.001",
    "finetune-digits-small": f"{_DIGITS} --model.name mnist_conv --model.pretrained false --model.activation arelu"
    " --train.repeats 2 --train.ema 0.9",
    "finetune-folds": f"{_IMAGES} --train.mode head --data.folds 3",
    **{
        f"metatrain-{algorithm}-{engine}": f"{_META} --meta.algorithm {algorithm} --meta.engine {engine}"
        for algorithm in _TRAINED
        for engine in ("learn2learn", "vectorized")
    },
    **{f"metatrain-{name}": f"{_META} --meta.algorithm {name}" for name in ("centroid", "logistic", "finetune")},
    "metatrain-omniglot": f"{_OMNIGLOT} --meta.normalization running --meta.adapt head",
    "metatrain-omniglot-support": f"{_OMNIGLOT} --meta.normalization support --task.alphabets one --task.shots 2",
    "evaluate-finetune": "evaluate finetune-full --run.device cpu",
    "evaluate-adapter": "evaluate finetune-adapter --run.device cpu",
    "evaluate-folder": "evaluate finetune-full --run.device cpu --data.root more",
    "evaluate-metatrain": "evaluate metatrain-maml-vectorized --run.device cpu --task.shots 2 --eval.tasks 10"
    " --eval.inner_steps 3 --eval.against centroid",
    "evaluate-support": "evaluate metatrain-maml-vectorized --run.device cpu --support images --query more",
    "predict": "predict finetune-full more --run.device cpu --probabilities",
    "predict-few-shot": "predict metatrain-maml-vectorized more --support images --run.device cpu --probabilities",
    "export-onnx": "export finetune-full --output model.onnx",
    "export-torchscript": "export finetune-full --output model.pt",
    "export-pt2": "export finetune-full --output model.pt2",
}

_CLAIMS = "--run.device cpu --train.repeats 2 --processes 1"
_SMALL = "--data.root images --data.per_class 6 --data.image_size 32 --train.epochs 1"
STUDIES: dict[str, str] = {
    "mnist": f"claims mnist {_CLAIMS} --data.name digits --model.name mnist_linear --optim.lr 1e-1,1e-2",
    "small-lr": f"claims small-lr {_CLAIMS} {_SMALL} --model.name test_resnet --model.pretrained false",
    "small-lr-maml": f"claims small-lr --pipeline maml {_CLAIMS} --meta.steps 4 --meta.tasks 10 --model.name mnist_conv"
    " --data.name digits --data.image_size 28",
    "gradients": f"claims gradients {_CLAIMS} --data.name digits --depth 3,5 --model.activation relu,selu,arelu",
    "transfer": f"claims transfer {_CLAIMS} {_SMALL} --pairs imagenet-to-flowers17 --optim.lr 1e-2"
    " --model.name tf_efficientnet_lite0",
    "architectures": f"claims architectures {_CLAIMS} {_SMALL} --model.name test_resnet,test_vit",
    "meta": f"claims meta {_CLAIMS} --data.name digits --meta.steps 4 --meta.tasks 10 --model.name mnist_conv",
    "tuning": f"claims tuning {_CLAIMS} {_SMALL} --train.modes head,lora --optim.lr 1e-2"
    " --model.name tf_efficientnet_lite0",
    "focus": f"claims focus {_CLAIMS} {_SMALL} --model.name test_resnet --model.pretrained false --focus.count 4",
}


def _draw_images(root: Path, seed: int, count: int) -> None:
    """Three classes that a network can tell apart: a coloured bar whose place is the class, over noise."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(("left", "middle", "right")):
        (root / name).mkdir(parents=True)
        for image in range(count):
            pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[:, 12 * number : 12 * number + 10] += random.integers(60, 120, 3, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{image:02}.png")


def _stable(value: Any) -> Any:
    """Leave out what differs from one run of the same code to the next, or from one folder to the next."""
    if isinstance(value, dict):
        return {key: _stable(one) for key, one in value.items() if not _UNSTABLE.search(key)}
    if isinstance(value, list):
        return [_stable(one) for one in value]
    return value


def _short(text: str) -> str:
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text):
        return f"{float(text):.8g}"
    return text if len(text) < 200 else ""  # pictures


def _rows(file: Path, lines: slice) -> list[str]:
    with file.open(newline="") as opened:
        rows = [_stable(row) for row in list(csv.DictReader(opened))[lines]]
    return [",".join(rows[0]), *(",".join(map(_short, row.values())) for row in rows)]


def _left(folder: Path) -> dict[str, Any]:
    """Read what a command wrote into its folder."""
    found: dict[str, Any] = {"rows": {}}
    if (folder / "results.json").exists():
        found["results"] = _stable(json.loads((folder / "results.json").read_text()))
        for drawn in ("tables", "curves", "heatmaps", "images", "notes"):
            found["results"].pop(drawn, None)  # other forms of the rows
        for verdict in found["results"].get("verdicts", []):
            del verdict["sentence"]
    for name, lines in (("metrics.csv", slice(-1, None)), ("runs.csv", slice(None)), ("predictions.csv", slice(None))):
        if (folder / name).exists():
            found["rows"][name] = _rows(folder / name, lines)
    return found


def run(commands: dict[str, str]) -> dict[str, Any]:
    """Run commands one after the other in a folder of their own; a later one may name an earlier one's run folder."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as room, contextlib.chdir(room):
        _draw_images(Path("images"), 0, 14)
        _draw_images(Path("more"), 1, 4)
        for name, command in commands.items():
            torch.manual_seed(0)
            words = shlex.split(command)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                try:
                    status: object = main(words if words[0] == "export" else [*words, "--run.folder", name])
                except Exception as error:  # the others are still compared
                    status = repr(error)
            found[name] = {"command": command, "status": status, **_left(Path(name))}
            if words[0] == "export" and status == 0:
                exported = json.loads(Path(f"{words[3]}.json").read_text())
                found[name]["results"] = {key: exported[key] for key in sorted(exported) if key != "arelu_meta"}
                found[name]["difference"] = [float(n) for n in re.findall(r"random images: (\S+)", said.getvalue())]
    return found


# -- activations -------------------------------------------------------------------------------------------------------


def _build(name: str, dtype: torch.dtype) -> nn.Module:
    _, gated, base = name.rpartition("gated ")
    return GatedAReLU(create_activation(base), t=0.3, dtype=dtype) if gated else create_activation(name, dtype=dtype)


def _digest(tensor: Tensor) -> dict[str, Any]:
    flat = tensor.detach().reshape(-1)
    values = [float(f"{value:.8g}") for value in flat[:: max(1, len(flat) // 4)].tolist()]
    return {"bits": hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16], "values": values}


def activations() -> dict[str, Any]:
    """Record the bits, and a few values, of a fixed forward and backward of each activation."""
    found: dict[str, Any] = {}
    drawn = torch.randn(2, 6, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    drawn.view(-1)[:4] = torch.tensor([0.0, -0.0, 6.0, -3.0])
    # 0.1 listed aliases and what normalises, too.
    listed = {getattr(info, "alias_of", None) or info.name for info in list_activations()}
    names = sorted(listed | {"log_softmax", "softmax", "softmax2d", "softmin"})
    names += [f"gated {base}" for base in ("relu", "relu6", "gelu", "silu", "hard_swish")]
    layouts = (torch.contiguous_format, torch.channels_last)
    for name, dtype, layout in itertools.product(names, (torch.float32, torch.float64), layouts):
        torch.manual_seed(0)
        module = _build(name, dtype)
        x = drawn.to(dtype).clone(memory_format=layout).requires_grad_()
        y = module(x)
        y.backward(drawn.to(dtype).flip(0).contiguous(memory_format=layout))
        tensors = {"y": y, "x.grad": x.grad} | {f"{key}.grad": one.grad for key, one in module.named_parameters()}
        key = f"{name}/{str(dtype)[6:]}/{str(layout)[6:]}"
        found[key] = {part: _digest(one) for part, one in tensors.items() if one is not None}
    return found


# -- the command line --------------------------------------------------------------------------------------------------


def help_texts() -> dict[str, Any]:
    """Record `--help` of the command and of every task."""
    with patch.dict(os.environ, COLUMNS="120"):
        _, overview, _ = _said("--help")
        tasks = re.findall(r"^  (\w+) ", overview, re.MULTILINE)
        return {"overview": overview.splitlines()} | {task: _said(task, "--help")[1].splitlines() for task in tasks}


def _said(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return status, out.getvalue(), err.getvalue()


def bad_input() -> dict[str, Any]:
    """Record status and line of every case of tests/test_bad_input.py."""
    cases = runpy.run_path(str(HERE.parent / "test_bad_input.py"))
    found = {}
    away = patch.dict(os.environ, ARELU_META_DATA="no-data-home")
    with away, tempfile.TemporaryDirectory() as room, contextlib.chdir(room):
        cases["_make_world"](Path())
        for words, folder in ((cases["FINETUNE"], "run"), (cases["METATRAIN"], "meta")):
            _said(*words[:-1], folder)
        content = Path("run/model.safetensors").read_bytes()
        Path("cut.safetensors").write_bytes(content[: len(content) // 2])
        for name, (words, _) in cases["CASES"].items():
            status, _, line = _said(*words)
            found[name] = {"status": status, "line": line.strip().replace(str(Path().resolve()), "ROOM")}
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "activations": activations,
    "help": help_texts,
    "bad_input": bad_input,
    "pipelines": lambda: run(PIPELINES),
    "studies": lambda: run(STUDIES),
}


def write(part: str, prefix: str = "") -> None:
    """Write one golden file, or only its entries whose names start with `prefix`."""
    torch.set_num_threads(1)
    path = HERE / f"{part}.json"
    kept = json.loads(path.read_text())["found"] if prefix else {}
    found = {name: one for name, one in PARTS[part]().items() if name.startswith(prefix)}
    content = {"cpu": cpu(), "torch": torch.__version__, "found": kept | found}
    lines = json.dumps(content, indent=1, ensure_ascii=False)
    lines = re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", lines)
    path.write_text(lines + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:2] or PARTS:
        write(each, *sys.argv[2:])
