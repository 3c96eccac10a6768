"""The stop flag: signals become a flag, and handlers come back."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.errors import Stopped
from base.stop import StopFlag, interrupted_by_signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _without_nohup() -> Iterator[None]:
    """These tests may themselves be run by it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
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


def test_nohup_is_left_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals() as came, StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert not came()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
RANK = """
import sys, time
from base.stop import StopFlag, stop_with_parent
with StopFlag() as stop:
    stop_with_parent()
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.05)
print(stop.signal.name, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_child_hears_of_its_launchers_death() -> None:
    """The launcher dies of a signal that it passes on to nobody."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "ready\n"
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.stdout.readline() == "SIGTERM\n"
    assert launcher.wait(30) == -signal.SIGUSR2
    launcher.stdout.close()


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


def test_what_comes_after_a_flag_was_raised_does_not_interrupt_the_end() -> None:
    """Slurm sends USR2 and then TERM; what was saved would be told as an interruption."""
    with interrupted_by_signals() as by_system:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # while what was held is let go of
        assert by_system()
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
