"""DeepSpeed finds the compiler's tools, or the user hears which are missing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
from processes import ROOT, environment
from sessions import members

import trainer.engine.deepspeed as engine
from base.errors import Stopped, UserError
from base.stop import STOPPED

TOY = Path(__file__).with_name("toy.py")


@pytest.mark.parametrize("another", [False, True])
def test_ninja_of_an_environment_that_is_not_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """Also where PATH leads to the system's, which would compile again what this one has."""
    (tmp_path / "bin").mkdir()
    if another:
        (tmp_path / "ninja").touch(mode=0o755)
    ninja = tmp_path / "bin" / "ninja"
    ninja.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    engine._put_ninja_on_path()
    assert os.environ["PATH"] == f"{tmp_path / 'bin'}:{tmp_path}"
    engine._put_ninja_on_path()
    assert os.environ["PATH"] == f"{tmp_path / 'bin'}:{tmp_path}"


def test_stopped_while_it_compiles(dataset: Path, tmp_path: Path) -> None:
    """The signal that Slurm sends to all processes of a step ends the compiler: no mistake (2)."""
    how = {"engine": "deepspeed"}
    path = toy.write_toy_config(tmp_path / "a.yaml", dataset, tmp_path / "run", train=how)
    process = subprocess.Popen(
        [sys.executable, str(TOY), "train", str(path)],
        cwd=ROOT,
        env={**environment(), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while "cc1plus" not in members(process.pid):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == Stopped.exit_code, errors
    assert errors.splitlines()[-1] == f"error: {STOPPED}"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Unable to JIT load the deepspeed_shm_comm op due to ninja not being ins", UserError),
        ("Error building extension 'deepspeed_shm_comm': [1/3] c++ ...", UserError),
        ("Connection reset by peer", RuntimeError),
    ],
)
def test_what_cannot_be_compiled(
    message: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @staticmethod
        def init_distributed(**_: object) -> None:
            raise RuntimeError(message)

    monkeypatch.setattr(engine, "is_joined", lambda: False)
    with pytest.raises(kind) as caught:
        engine._join(Broken, torch.device("cpu"))
    if kind is UserError:
        assert "unclip doctor" in str(caught.value)
        assert "\n" not in str(caught.value)
