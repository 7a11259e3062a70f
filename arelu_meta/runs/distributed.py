"""One run over several processes, as `torchrun` and `accelerate launch` start them."""

import atexit
import contextlib
import gc
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d as distributed
from torch.distributed.rendezvous import rendezvous

from arelu_meta.config import RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.reproducibility import prepare, price_of_determinism


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Args:
        device: where this process computes.
        rank: of this process, from 0.
        processes: how many there are.
        accelerator: accelerate's, where there are several.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1
    accelerator: Any = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return self.rank, self.processes

    def wrap(self, model: nn.Module, some_unused: bool = False) -> nn.Module:
        """Let gradients be averaged over all processes; a single process's model is itself.

        Args:
            model: on the device.
            some_unused: parameters may get no gradient.
        """
        if self.accelerator is None:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=some_unused)

    def without_sync(self, wrapped: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
        """Leave out the averaging of gradients inside the block, where another backward pass follows.

        Args:
            wrapped: what `wrap` returned.
            skip: whether to.
        """
        if self.accelerator is None or not skip:
            return contextlib.nullcontext()
        return wrapped.no_sync()  # type: ignore[operator, no-any-return]

    def total(self, value: Tensor) -> Tensor:
        """Add a tensor up over all processes.

        Args:
            value: of any shape; where there are several, the sum is on the device.
        """
        return value if self.accelerator is None else self.accelerator.reduce(value.to(self.device), "sum")

    def gather(self, value: Any) -> list[Any]:
        """Collect one value of each process, in the ranks' order; every process gets them.

        Args:
            value: anything that pickle takes.
        """
        if self.accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def synchronizing(self) -> Iterator[None]:
        """Let every process raise what any of them finds wrong inside the block, in which none waits for another.

        Raises:
            InputError: its own where it has one, else the first other process's.
        """
        error = None
        try:
            yield
        except InputError as found:
            error = found
        said = [text for text in self.gather(None if error is None else str(error)) if text is not None]
        if said:
            # The first process speaks for all (cli.py), whichever found it.
            raise error if error is not None else InputError(said[0])

    def same(self, value: Any, sentence: str) -> None:
        """Refuse to go on where the processes do not see the same.

        Args:
            value: anything that pickle takes.
            sentence: of the error.

        Raises:
            InputError: with the sentence, in every process.
        """
        if any(one != value for one in self.gather(value)):
            raise InputError(sentence)

    @contextlib.contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Turn what the library says when another process has ended into one sentence.

        Raises:
            RunError: if another process cannot be reached any more.
        """
        try:
            yield
        except RuntimeError as error:
            if self.accelerator is None or not _LOST.search(f"{type(error).__name__} {error}"):
                raise
            raise RunError(
                f"process {self.rank} of {self.processes} lost another one, which ended or cannot be reached; start "
                "all of them again with --run.resume auto"
            ) from error


# What gloo, NCCL and the store that they meet at say; torch has a class of its own for some of it only.
_LOST = re.compile(r"^Dist\w*Error|gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket", re.IGNORECASE)


def join(config: RunConfig) -> Ranks:
    """Seed this process, choose its device, and meet the run's other processes, if there are any.

    Args:
        config: seed, device, deterministic, detect_anomaly.

    Returns:
        The processes. All but the first print nothing from here on.

    Raises:
        InputError: if the device is not there, or accelerate was asked for its FSDP.
        RunError: if the others do not come.
    """
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if (asked := os.environ.get("ACCELERATE_USE_FSDP", "")).lower() in ("true", "1"):
        raise InputError(
            f"ACCELERATE_USE_FSDP: {asked!r}: accelerate's settings of FSDP are not read; start it without --use_fsdp, "
            "and give finetune --train.shard true"
        )
    device = prepare(config)
    if config.deterministic and (os.environ.get("RANK") or "0") == "0":
        print(price_of_determinism(device), flush=True)
    if processes == 1:
        return Ranks(device)
    from accelerate import Accelerator

    meet_as_this_attempt(device)
    # Told of a CPU that was chosen, too: accelerate starts gloo for no other, and each process would be the first.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", device_placement=False)
    # At the interpreter's end, where a thread of the group that is not joined would end the process by abort();
    # not earlier: a script may fine-tune several times.
    atexit.register(_part)
    if accelerator.process_index:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (to the process's end)
    return Ranks(accelerator.device, accelerator.process_index, processes, accelerator)


def _part() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Models that averaged gradients hold the group, in cycles: its threads end with the last of them.
        gc.collect()


_PATIENCE = timedelta(minutes=10)
_PAUSE = 0.02  # seconds


def meet_as_this_attempt(device: torch.device) -> None:
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
