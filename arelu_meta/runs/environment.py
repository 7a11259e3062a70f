"""What a bug report needs: versions, machine, devices."""

import importlib.metadata
import logging
import os
import platform
import sys
from typing import Any

from arelu_meta.config import EnvConfig
from arelu_meta.errors import InputError, shown

_PACKAGES = (
    "arelu-meta",
    "torch",
    "torchvision",
    "timm",
    "learn2learn",
    "scikit-learn",
    "numba",
    "numpy",
    "scipy",
    "safetensors",
    "accelerate",
    "jsonargparse",
    "pillow",
    "ray",
)


def check_environment() -> None:
    """Refuse variables of the environment that would fail deep inside torch, and spare matplotlib what it cannot have.

    Raises:
        InputError: naming the variable, its value and what is allowed.
    """
    os.environ["MPLBACKEND"] = "agg"  # pictures go into files alone, whatever draws on this screen
    if not os.access(os.path.expanduser("~/"), os.W_OK):  # noqa: PTH111 (pathlib's raises where there is no home)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it takes a temporary folder, and says so
    home = os.environ.get("ARELU_META_DATA") or "~"
    if os.path.expanduser(home).startswith("~") and home != "~":  # noqa: PTH111
        raise InputError(f"ARELU_META_DATA: {home!r}: there is no such user; give the path of a folder")
    processes = _whole("WORLD_SIZE", 1, 100_000)
    if processes <= 1:
        return
    for name, most in (("RANK", processes - 1), ("LOCAL_RANK", processes - 1), ("MASTER_PORT", 65535)):
        if not os.environ.get(name):
            raise InputError(f"{name}: missing beside WORLD_SIZE {processes}; start the run by torchrun")
        _whole(name, 0, most)
    if not os.environ.get("MASTER_ADDR"):
        raise InputError(f"MASTER_ADDR: missing beside WORLD_SIZE {processes}; start the run by torchrun")


def _whole(name: str, least: int, most: int) -> int:
    text = os.environ.get(name) or str(least)
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise InputError(f"{name}: {shown(text)} is not allowed; give a whole number from {least} to {most}")
    return int(text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Describe the software and the machine that a run has.

    Returns:
        A flat mapping of JSON types: Python, platform, each package's version (None where missing), cores, devices.
    """
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{package: _version(package) for package in _PACKAGES},
        "cuda": torch.version.cuda,
        "devices": devices,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (a pseudo-file)
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def env_task(config: EnvConfig) -> dict[str, Any]:
    """Print the environment, a line each.

    Args:
        config: nothing to set.

    Returns:
        What was printed.
    """
    found = environment()
    for key, value in found.items():
        shown = ("none" if not value else ", ".join(value)) if isinstance(value, list) else value
        print(f"{key:<13} {shown if shown is not None else 'not installed'}")
    return found
