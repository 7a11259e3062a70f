"""What an epoch of the study `mnist` costs: its runs side by side, beside a plain `DataLoader` loop, net after net."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from arelu_meta.bench.timing import Row, make_row
from arelu_meta.claims.ledger import Ledger
from arelu_meta.claims.mnist_study import stack, work
from arelu_meta.claims.running import cores, run_missing
from arelu_meta.claims.small_nets import MOMENTUM, Trial, build
from arelu_meta.claims.tensors import load_tensors, shelved
from arelu_meta.config import DataConfig
from arelu_meta.data.images import data_home

PEER = "dataloader"
RATES = (1e-2, 1e-3, 1e-4, 1e-5)
CASES = {f"mnist-conv/arelu/5seeds-4rates/{images}images": images for images in (6000, 20000, 60000)}


def claims_rows(case: str, rounds: int = 1, device: torch.device | str = "cpu", seeds: int = 5) -> list[Row]:
    """Time one epoch of 5 seeds x 4 learning rates, data preparation and tests included, from start to end.

    Args:
        case: a key of `CASES`; the test images are a sixth of the training images.
        rounds: over which medians are taken.
        device: a CPU takes one process a core, a GPU stacks the networks.
        seeds: another number of seeds.

    Returns:
        A row for `study` and one for `dataloader`: torchvision's MNIST with `ToTensor` through a `DataLoader`, one
        network after the other with all threads. Peak bytes are not measured: 0.

    Raises:
        InputError: if MNIST is not there.
    """
    device = torch.device(device)
    trials = [
        Trial("mnist", "mnist_conv", "arelu", "authors", "sgd", lr, seed, epochs=1)
        for seed, lr in itertools.product(range(seeds), RATES)
    ]
    contenders: dict[str, Callable[[], object]] = {
        "study": partial(_study, trials, CASES[case], device),
        PEER: partial(_dataloader, trials, CASES[case], device),
    }
    # A GPU's start is nobody's share.
    F.conv2d(torch.zeros(1, 1, 3, 3, device=device), torch.zeros(1, 1, 3, 3, device=device)).sum().item()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            started = perf_counter()
            call()
            times[name].append(perf_counter() - started)
    return [make_row(case, name, PEER, times, peak_bytes=0) for name in contenders]


def _study(trials: Sequence[Trial], images: int, device: torch.device) -> None:
    data = load_tensors(DataConfig(name="mnist", download=False), 0).share(images / 60_000)
    stacked = device.type != "cpu"
    groups = stack(trials) if stacked else [[trial] for trial in trials]
    with shelved(data) as shelf, tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "runs.jsonl")
        run_missing(ledger, groups, partial(work, shelf, str(device), stacked), 1 if stacked else cores())


def _dataloader(trials: Sequence[Trial], images: int, device: torch.device) -> None:
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    train, test = (MNIST(data_home(), train=part, transform=ToTensor()) for part in (True, False))
    batches: Any = DataLoader(Subset(train, range(images)), batch_size=trials[0].batch_size, shuffle=True)
    judged: Any = DataLoader(Subset(test, range(images // 6)), batch_size=1000)
    for trial in trials:
        model = build(trial, 10, 1, 28).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr, momentum=MOMENTUM)
        for inputs, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.to(device)), labels.to(device)).backward()
            optimizer.step()
        with torch.no_grad():
            for inputs, labels in judged:
                (model.eval()(inputs.to(device)).argmax(1) == labels.to(device)).sum().item()
