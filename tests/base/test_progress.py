"""Progress: plain lines in a log, a bar on a terminal, right figures in both."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from base.errors import Stopped, UserError
from base.progress import Progress, clock, share_of


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that progress reads."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_plain_lines_at_most_every_ten_seconds(
    tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("decoder", total=400, unit="samples") as bar:
        for step in range(50):
            tick(0.5)
            bar.advance(4, loss=1 / (step + 1))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "decoder: 80/400 samples, 8/s, 0:40 left, loss 0.05",
        "decoder: 160/400 samples, 8/s, 0:30 left, loss 0.025",
        "decoder: 200/400 samples, 8/s, 0:25 left, loss 0.02, 0:25",
    ]


def test_what_an_earlier_run_did_is_shown_and_not_counted_as_speed(
    tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("prior", total=1100, unit="samples", initial=1000) as bar:
        assert bar.describe() == "1,000/1,100 samples"
        tick(10)
        bar.advance(50, lr=1e-4, file="00001.tar", skipped=1234)
        assert bar.rate == 5.0
    assert capsys.readouterr().err.splitlines()[0] == (
        "prior: 1,050/1,100 samples, 5/s, 0:10 left, lr 0.0001, file 00001.tar, skipped 1,234"
    )


def test_unknown_length_and_no_unit(
    tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("reading", total=None) as bar:
        tick(2)
        bar.advance(3000)
    assert capsys.readouterr().err == "reading: 3,000, 1,500/s, 0:02\n"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (KeyboardInterrupt(), ", interrupted"),
        (Stopped("stopped"), ", interrupted"),
        (UserError("no CLIP"), ", failed"),
        (OSError("no space"), ", failed"),
        (GeneratorExit(), ", ended early"),
    ],
)
def test_the_last_line_says_how_the_work_ended(
    error: BaseException, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), Progress("clip", total=10) as bar:
        bar.advance(3)
        raise error
    line = capsys.readouterr().err
    assert line.startswith("clip: 3/10")
    assert line.endswith(f"{ending}\n")


def test_lines_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("clip", total=1) as bar:
        bar.log("saved [bold]checkpoint[/] 'a'" + " long" * 40)
        bar.advance()
    assert capsys.readouterr().err.splitlines()[0].startswith("saved [bold]checkpoint[/] 'a' long")


def test_seconds_stop_at_the_end(tick: Callable[[float], None]) -> None:
    with Progress("clip", total=1) as bar:
        tick(7)
    tick(100)
    assert bar.seconds == 7


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


ON_A_TERMINAL = """
from base.errors import Stopped, UserError
from base.progress import Progress
with Progress("decoder", total=8, unit="samples") as bar:
    bar.advance(3, loss=0.5)
    bar.log("a line")
    bar.advance(5, loss=0.25)
print("result")
"""


def test_a_bar_on_a_terminal() -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL],
        stderr=child,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(child)
    shown = b""
    while block := _read(parent):
        shown += block
    os.close(parent)
    text = shown.decode()
    assert done.stdout == "result\n"
    assert "a line" in text
    assert "8/8 samples" in text
    assert "loss 0.25" in text
    assert "━" in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # a terminal whose other end is closed says so with an error
        return b""


def test_parts_of_a_whole_share_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("stage", 10, "samples") as whole:
        for done in (1, 3):
            with share_of(whole, "part", 5, "samples", initial=done) as bar:
                assert bar is whole
                bar.advance(5 - done)
    assert (whole.done, whole.initial) == (10, 4)
    assert capsys.readouterr().err.startswith("stage: 10/10 samples")


def test_a_part_by_itself_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with share_of(None, "part", 5, "samples", initial=2) as bar:
        bar.advance(3)
    assert (bar.done, bar.initial) == (5, 2)
    assert capsys.readouterr().err.startswith("part: 5/5 samples")
