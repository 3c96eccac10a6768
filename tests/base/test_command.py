"""How commands end: one line, the documented exit code, JSON alone on standard output."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from base.command import line_and_code
from base.errors import Diverged, NothingUsable, Stopped, Unavailable, UserError

APP = """
import errno, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import typer
from base import command
from base.config import Config
from base.errors import *

app = typer.Typer()

@app.callback(no_args_is_help=True)
def options(): ...

class Optim(Config):
    lr: float = 0.5

@dataclass
class Result:
    path: Path
    optim: Optim

@app.command()
def fail(kind: str = typer.Argument(metavar="KIND")):
    print("some output")
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/data/a.tar")
    if kind == "really-full":
        Path("/dev/full").write_text("x")
    if kind == "wrapped":
        try:
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        except RuntimeError as error:
            raise ValueError("cannot save") from error
    if kind == "absent":
        open("/absent/file")
    if kind == "bug":
        return {}["key"]
    if kind == "lines":
        raise UserError("one\\n  two")
    raise {"user": UserError, "nothing": NothingUsable, "diverged": Diverged,
           "stopped": Stopped, "keyboard": KeyboardInterrupt}[kind]("why: 5")

@app.command()
def exits(code: int):
    raise typer.Exit(code)

@app.command()
def result():
    print("loading", file=sys.stderr)
    command.emit_json({"b": Result(Path("x/y"), Optim()), "a": "ü"})

@app.command()
def endless():
    print("ready", flush=True)
    while True:  # a signal that comes just before a long sleep would be seen after it
        time.sleep(0.05)

@app.command()
def many():
    for line in range(100_000):
        print(line)

command.run(app)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "tool"
    path.write_text(APP)
    return path


def run(app: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(app), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("user", 2, "error: why: 5"),
        ("nothing", 3, "error: why: 5"),
        ("diverged", 4, "error: why: 5"),
        ("stopped", 75, "error: why: 5"),
        ("keyboard", 130, "interrupted; run the same command again"),
        ("lines", 2, "error: one two"),
        ("full", 2, "error: no space left on device (/data/a.tar); free some and run it again"),
        ("really-full", 2, "error: no space left on device; free some and run it again"),
        ("wrapped", 2, "error: no space left on device; free some and run it again"),
        ("absent", 2, "error: /absent/file: No such file or directory"),
        ("bug", 1, "error: unexpected KeyError: 'key' (--debug shows where)"),
    ],
)
def test_one_line_and_a_code(kind: str, code: int, line: str, app: Path) -> None:
    done = run(app, "fail", kind)
    assert (done.returncode, done.stderr.splitlines()) == (code, [line])
    assert done.stdout == "some output\n"


@pytest.mark.parametrize("arguments", [("--debug", "fail", "bug"), ("fail", "bug", "--debug")])
def test_a_traceback_on_demand(arguments: tuple[str, ...], app: Path) -> None:
    done = run(app, *arguments)
    assert done.returncode == 1
    assert 'return {}["key"]' in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: unexpected KeyError: 'key' (--debug shows where)"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fail",), "error: Missing argument 'KIND'; see tool fail --help"),
        (("fail", "user", "--nope"), "error: No such option: --nope; see tool fail --help"),
        (("exits", "x"), "see tool exits --help"),
        (("fial",), "error: No such command 'fial'. Did you mean 'fail'?; see tool --help"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], line: str, app: Path) -> None:
    done = run(app, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr


def test_help_is_no_error(app: Path) -> None:
    asked = run(app, "fail", "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "KIND" in asked.stdout
    bare = run(app)
    assert bare.returncode == 2
    assert "Usage" in bare.stdout + bare.stderr


@pytest.mark.parametrize("code", [0, 7])
def test_codes_that_commands_choose(code: int, app: Path) -> None:
    assert run(app, "exits", str(code)).returncode == code


def test_json_has_standard_output_to_itself(app: Path) -> None:
    done = run(app, "result")
    assert (done.returncode, done.stderr) == (0, "loading\n")
    assert json.loads(done.stdout) == {"b": {"path": "x/y", "optim": {"lr": 0.5}}, "a": "ü"}


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "interrupted; run the same command again"),
        (signal.SIGTERM, 75, "error: stopped; run the same command again"),
        (signal.SIGUSR2, 75, "error: stopped; run the same command again"),
    ],
)
def test_keyboard_and_system(number: signal.Signals, code: int, line: str, app: Path) -> None:
    # A shell's background jobs ignore SIGINT, and their children would as well.
    earlier = signal.signal(number, lambda *_: None)
    process = subprocess.Popen(
        [sys.executable, str(app), "endless"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(number, earlier)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.strip().splitlines() == [line]


def test_a_reader_that_left(app: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} {app} many | head -n 1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_name_in_messages(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "__main__.py").write_text(APP)
    done = subprocess.run(
        [sys.executable, "-m", "pack", "fail"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "error: Missing argument 'KIND'; see python -m pack fail --help\n"


def test_the_codes_of_the_contract() -> None:
    kinds = (UserError, NothingUsable, Diverged, Unavailable, Stopped)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 69, 75]
    assert line_and_code(RuntimeError()) == (
        "unexpected RuntimeError: no message (--debug shows where)",
        1,
    )


def test_a_message_that_speaks_of_a_full_disk_is_left_alone() -> None:
    error = UserError("metadata.json: No space left on device was found in the log")
    assert line_and_code(error) == (str(error), 2)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EIO, 69), (errno.ESTALE, 69), (errno.ETIMEDOUT, 69), (errno.ENOENT, 2)],
)
def test_what_may_pass_has_a_code_of_its_own(number: int, code: int) -> None:
    """Told by a line of ours or not: it is no mistake, and trying again may help."""
    cause = OSError(number, os.strerror(number), "shard.tar")
    told = UserError("shard.tar: cannot be read")
    told.__cause__ = cause
    assert line_and_code(told) == ("shard.tar: cannot be read", code)
    line, own = line_and_code(cause)
    assert own == code
    assert line.endswith("; run it again later (--debug shows where)") is (code == 69)


def test_a_mistake_that_is_told_while_another_error_is_handled_remains_one() -> None:
    told = UserError("optim.lr: got 'fast', expected a number")
    told.__context__ = OSError(errno.EIO, "Input/output error")
    assert line_and_code(told) == (str(told), 2)
