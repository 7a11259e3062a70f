import os
import signal
import weakref
from collections.abc import Iterator

import pytest

from arelu_meta.runs.signals import held_back, terminated_as_by_ctrl_c


class Thing:
    pass


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Hear Ctrl-C as a terminal's process does: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send_while_something_is_collected(number: int) -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    assert reference() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_ends_the_run_at_its_next_step(number: int) -> None:
    with terminated_as_by_ctrl_c():
        send_while_something_is_collected(number)
        with held_back() as interrupts:
            assert interrupts.waiting
            with pytest.raises(KeyboardInterrupt):
                interrupts.deliver()


def test_a_signal_of_one_command_is_nothing_to_the_next() -> None:
    with pytest.raises(KeyboardInterrupt), terminated_as_by_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    with terminated_as_by_ctrl_c(), held_back() as interrupts:
        assert not interrupts.waiting
