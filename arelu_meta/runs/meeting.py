"""Where the processes of a run meet, so that those that torchrun starts again never find what the dead ones left."""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d as distributed
from torch.distributed.rendezvous import rendezvous

from arelu_meta.errors import RunError

_PATIENCE = timedelta(minutes=10)
_PAUSE = 0.02  # seconds


def meet(device: torch.device) -> None:
    """Start the process group under a name that no earlier attempt of torchrun's has used.

    torchrun keeps one store for all its attempts (`--max-restarts`), in which a restarted process may read the address
    of a dead one: `Connection refused`. TORCHELASTIC_RESTART_COUNT is no name for an attempt: on several nodes each
    counts its own. Without torchrun, or where its store ends with each attempt, nothing is done: accelerate starts the
    group.

    Args:
        device: of this process: a CPU's group is gloo's, CUDA's is NCCL's; others are left to accelerate.

    Raises:
        RunError: if the other processes do not come.

    Source: https://github.com/pytorch/pytorch/issues/135712.
    """
    backend = {"cpu": "gloo", "cuda": "nccl"}.get(device.type)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or backend is None or distributed.is_initialized():
        return
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, _, _ = next(rendezvous("env://", rank, processes, timeout=_PATIENCE))
    attempt = agree(store, rank, processes, _PATIENCE.total_seconds())
    distributed.init_process_group(
        backend, store=distributed.PrefixStore(attempt, store), rank=rank, world_size=processes
    )


def agree(store: Any, rank: int, processes: int, seconds: float) -> str:
    """Agree on a name that all living processes share and no dead one knew.

    The first process makes it. Each other one says hello with a word of its own, gets the name in answer to that very
    word, which only a living first process can give, and confirms it under that name.

    Args:
        store: torch.distributed's, with whatever earlier attempts have left in it.
        rank: of this process.
        processes: how many there are.
        seconds: to wait for the others.

    Raises:
        RunError: if they do not come.
    """
    own = uuid.uuid4().hex
    until = time.monotonic() + seconds
    if rank:
        store.set(f"hello/{rank}", own)
        _wait_for(store, f"answer/{own}", until, "the first process")
        name = str(store.get(f"answer/{own}").decode())
        store.set(f"there/{name}/{rank}", "")
        return name
    for other in range(1, processes):
        while not store.check([f"there/{own}/{other}"]):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
            _pause(until, f"process {other}")
    return own


def _wait_for(store: Any, key: str, until: float, whom: str) -> None:
    while not store.check([key]):
        _pause(until, whom)


def _pause(until: float, whom: str) -> None:
    if time.monotonic() > until:
        raise RunError(f"{whom} of this run did not come; start all of them again with --run.resume auto")
    time.sleep(_PAUSE)
