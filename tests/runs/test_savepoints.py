import os
import signal
from collections.abc import Iterator

import pytest

from arelu_meta.runs.signals import SavePoints, held_back

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def _signals_raise() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_within_a_step_waits_for_its_end_then_a_checkpoint_is_written_and_the_run_stops(number: int) -> None:
    done: list[str] = []
    points = SavePoints(60, lambda: done.append("saved"))

    def run() -> None:
        with points.active():
            os.kill(os.getpid(), number)
            done.append("step")
            points.between(1)
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["step", "saved"]


def test_who_asks_twice_is_heard_at_once() -> None:
    done: list[str] = []

    def run() -> None:
        with held_back():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["went on"]


def test_a_signal_that_nobody_delivered_is_delivered_behind_the_block() -> None:
    done: list[str] = []

    def run() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("to the end")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["to the end"]


def test_an_ignored_signal_stays_ignored_and_handlers_are_put_back() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_back() as found:
        os.kill(os.getpid(), signal.SIGINT)
        assert not found.waiting
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_checkpoints_come_as_often_as_asked_for() -> None:
    saved: list[int] = []
    always, hardly_ever = (SavePoints(minutes, lambda: saved.append(1)) for minutes in (0, 60))
    always.between(1)
    always.between(2)
    hardly_ever.between(1)
    assert len(saved) == 2
