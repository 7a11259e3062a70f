"""What numba's loops share: how one is compiled, run on torch's own OpenMP threads, and finds its arrays.

A loop takes one `job`, 8-byte words in a row, as a pointer to elements, whose type says what the elements are. The
first word is a counter from which the threads draw their work.
"""

# numba types none of its decorators.
# mypy: disable-error-code="untyped-decorator"

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic


@intrinsic
def draw_block(_: Any, job: Any) -> Any:
    """Take the next block's number; no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.bitcast(arguments[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(job), generate


@intrinsic
def words_of(_: Any, job: Any) -> Any:
    """See the job as its words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(job), generate


@intrinsic
def elements_at(_: Any, job: Any, address: Any) -> Any:
    """Point at elements of the job's type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(job))

    return job(job, types.int64), generate


@intrinsic
def bytes_at(_: Any, address: Any) -> Any:
    """Point at bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.int8)(types.int64), generate


def compiled(loop: Callable[[Any], None], element: Any) -> tuple[int, Any]:
    """Compile a loop for one type of elements, up to a second the first time, or load it from numba's cache on disk.

    Returns:
        Its address, and a Python function that calls it with a job's address.
    """
    signature = types.void(types.CPointer(element))
    try:
        machine_code = cfunc(signature, cache=True)(loop)
    except (RuntimeError, OSError):  # no folder that can be written: compile in every process
        machine_code = cfunc(signature)(loop)
    _keep_alive.append(machine_code)
    return machine_code.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine_code.address)


_keep_alive: list[Any] = []


@cache
def _team() -> Any:
    """Find the entry point of the OpenMP library that torch itself uses; None where it has none (Windows)."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        start = library.GOMP_parallel  # looked up in the libraries that torch's own was linked with, too
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def run_on_team(machine_code: tuple[int, Any], job: Any, blocks: int) -> None:
    """Run a loop on as many of torch's threads as there are blocks for.

    Args:
        machine_code: of `compiled`.
        job: a ctypes array.
        blocks: how many the job has.
    """
    address, call = machine_code
    threads = min(blocks, torch.get_num_threads())
    team = _team() if threads > 1 else None
    if team is None:
        call(ctypes.addressof(job))
    else:
        team(address, ctypes.addressof(job), threads, 0)
