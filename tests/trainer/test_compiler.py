"""DeepSpeed finds the compiler's tools, or the user hears which are missing."""

import os
import sys
from pathlib import Path

import pytest
import torch

import trainer.engine.deepspeed as engine
from base.errors import UserError


def test_ninja_of_an_environment_that_is_not_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    ninja = tmp_path / "bin" / "ninja"
    ninja.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    engine._put_ninja_on_path()
    assert os.environ["PATH"] == f"{tmp_path / 'bin'}:{tmp_path}"
    engine._put_ninja_on_path()
    assert os.environ["PATH"] == f"{tmp_path / 'bin'}:{tmp_path}"


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
