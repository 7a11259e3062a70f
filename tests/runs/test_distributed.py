"""Processes that torchrun starts again, in the store that the dead ones used."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from arelu_meta.errors import RunError
from arelu_meta.runs.distributed import agree


def _attempt(store: HashStore, processes: int = 4) -> set[str]:
    with ThreadPoolExecutor(processes) as pool:
        return set(pool.map(lambda rank: agree(store, rank, processes, 30), range(processes)))


def test_all_processes_of_an_attempt_agree_on_a_name_that_no_earlier_attempt_had() -> None:
    store = HashStore()
    first, second = _attempt(store), _attempt(store)
    assert len(first) == len(second) == 1
    assert first != second


def test_what_a_dead_process_said_is_not_taken_for_a_living_ones() -> None:
    store = HashStore()
    for rank in (1, 2, 3):
        store.set(f"hello/{rank}", f"dead{rank}")
    names: list[str] = []
    living = threading.Thread(target=lambda: names.append(agree(store, 0, 2, 30)))
    living.start()
    names.append(agree(store, 1, 2, 30))
    living.join()
    assert names[0] == names[1]


def test_a_process_that_never_comes_ends_the_wait_in_one_line() -> None:
    store = HashStore()
    store.set("hello/1", "dead")
    with pytest.raises(RunError, match="process 1 of this run did not come"):
        agree(store, 0, 2, 0.1)
    with pytest.raises(RunError, match="the first process of this run did not come"):
        agree(HashStore(), 1, 2, 0.1)
