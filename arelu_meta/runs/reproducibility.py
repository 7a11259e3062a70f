"""Device, precision, seeds and random state of a run."""

import contextlib
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from arelu_meta.config import RunConfig
from arelu_meta.errors import InputError, RunError


def choose_device(name: str) -> torch.device:
    """Turn run.device into a device that is there.

    Args:
        name: auto, cpu, cuda, cuda:N, mps, xpu.

    Returns:
        The device; auto takes an accelerator where there is one.

    Raises:
        InputError: if it is not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        raise InputError(f"run.device: {name!r} is not on this machine; here: {', '.join(there)}") from error
    return device


def prepare(config: RunConfig) -> torch.device:
    """Seed Python, NumPy and torch, set what makes a run repeatable, and choose its device.

    Args:
        config: seed, device, deterministic, detect_anomaly.

    Returns:
        The device.
    """
    device = choose_device(config.device)
    if config.deterministic:
        # Read when cuBLAS starts, at the process's first product of matrices. Source: PyTorch's page on
        # reproducibility (torch.use_deterministic_algorithms).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=False)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.autograd.set_detect_anomaly(config.detect_anomaly)
    return device


def price_of_determinism(device: torch.device) -> str:
    """Say in one line what run.deterministic switches off, and how to measure what that costs.

    Args:
        device: of the run.
    """
    what = {
        "cuda": "no atomic sums, no search for cuDNN's fastest algorithm, a fixed workspace for cuBLAS",
        "cpu": "new memory is filled before it is used",
    }.get(device.type, "repeatable algorithms alone")
    command = "arelu-meta bench step --deterministic true"
    return (
        f"run.deterministic: {what}, and an operation that has no repeatable form ends the run; `{command}` measures "
        "what it costs here"
    )


@contextlib.contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in run.precision inside the block.

    Args:
        precision: float32, bf16 or fp16.
        device: where.
    """
    if precision == "float32":
        yield
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast(device.type, dtype=dtype):
        yield


@contextlib.contextmanager
def naming_anomaly(diverged: Callable[[str], RunError]) -> Iterator[None]:
    """Turn what run.detect_anomaly finds in a backward pass inside the block into the error of a run that diverged.

    Args:
        diverged: makes the error of what became NaN.

    Raises:
        RunError: naming the operation whose gradient became NaN.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Error detected in")  # the forward's traceback, in many lines
            yield
    except RuntimeError as error:
        found = re.search(r"Function '(\w+)' returned nan values", str(error))
        if found is None:
            raise
        raise diverged(f"the gradient of {found[1]} became nan") from error


def random_state() -> dict[str, Any]:
    """Take every random state, in plain values and tensors that `torch.load(weights_only=True)` reads."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every random state back to what `random_state` took."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
