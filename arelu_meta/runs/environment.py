"""What a bug report needs: versions, machine, devices."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

from arelu_meta.config import EnvConfig

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
