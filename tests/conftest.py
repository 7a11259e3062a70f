"""What every test shares: one thread, and where the real data lies."""

import os
from pathlib import Path

# Set before torch is imported: two jobs that use all threads at once slow each other many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

# The same examples in every run: what is new is looked for by the fuzzing command, not by a change's checks.
settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU skip where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device is on this machine"))


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that `shared/data/unpack` fills; the test skips where it is missing."""
    root = Path(os.environ.get("ARELU_META_DATA", "~/.cache/arelu-meta/data")).expanduser()
    if not (root / "flowers17").is_dir():
        pytest.skip(f"real data is not unpacked in {root} (set ARELU_META_DATA)")
    return root
