"""The front door: light to open, honest about what it has."""

import importlib
import subprocess
import sys

import pytest
import typer

from unclip import __version__
from unclip.cli import SUB_COMMANDS, SubCommand

HEAVY = ("torch", "ray", "deepspeed", "open_clip", "pyarrow", "transformers")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unclip", *arguments],
        capture_output=True,
        text=True,
        env={"COLUMNS": "100", "HOME": "/nonexistent"},
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"unclip {__version__}\n")


def test_help_lists_every_sub_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for sub in SUB_COMMANDS:
        assert f" {sub.name} " in done.stdout
        assert sub.help in done.stdout
    assert run().returncode == 2


@pytest.mark.parametrize("arguments", ["--help", "--version", "dmeo"])
def test_the_front_door_loads_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys; sys.argv = ['unclip', sys.argv[1]]\n"
        "from unclip.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("sub", SUB_COMMANDS, ids=lambda sub: sub.name)
def test_every_sub_command_is_there_and_explains_itself(sub: SubCommand) -> None:
    assert isinstance(importlib.import_module(sub.module).app, typer.Typer)
    done = run(sub.name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: unclip {sub.name} " in done.stdout


def test_mistakes_name_the_command_to_ask() -> None:
    done = run("dmeo")
    assert done.returncode == 2
    expected = "No such command 'dmeo'. Did you mean 'demo'?; see python -m unclip --help"
    assert done.stderr == f"error: {expected}\n"
    done = run("doctor", "--nope")
    assert done.returncode == 2
    assert done.stderr == "error: No such option: --nope; see unclip doctor --help\n"


def test_a_missing_package_is_told_in_one_line() -> None:
    code = (
        "import sys; sys.modules['data_pipeline.cli'] = None\n"
        "sys.argv = ['unclip', 'data', 'synth']\n"
        "from unclip.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unclip data needs data_pipeline.cli, which is not inst")
    assert len(done.stderr.splitlines()) == 1
