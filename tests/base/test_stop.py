"""The stop flag: signals become a flag, and handlers come back."""

import os
import signal
import threading

import pytest

from base.errors import Stopped
from base.stop import StopFlag, interrupted_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_sets_the_flag(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal is number


def test_a_second_interrupt_does_not_wait() -> None:
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_a_scheduler_may_signal_often() -> None:
    with StopFlag() as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.signal is signal.SIGINT


def test_what_ends_the_work() -> None:
    with StopFlag() as stop:
        stop.raise_if_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="saved at 32 samples") as caught:
            stop.raise_if_requested("saved at 32 samples")
        assert caught.value.exit_code == 75
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.raise_if_requested()


def test_handlers_come_back_even_after_an_error() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ZeroDivisionError), StopFlag():
        assert [signal.getsignal(number) for number in numbers] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == before


def test_nested_flags() -> None:
    with StopFlag() as outer:
        with StopFlag() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (inner.requested, outer.requested) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested


def test_off_the_main_thread_it_does_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopFlag() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_the_system_interrupts_like_the_keyboard(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interrupted_by_signals() as by_system:
        assert not by_system()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert by_system()
    assert signal.getsignal(number) == before


def test_a_flag_within_takes_the_signal() -> None:
    with interrupted_by_signals() as by_system:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert not by_system()
