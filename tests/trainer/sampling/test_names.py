"""In Python the uses have the commands' names, and none of them costs the command torch."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from small_cascade import cascade

import trainer.sampling
from trainer.sampling.cli import app

GALLERY = Path(__file__).resolve().parents[3] / "docs" / "gallery.md"


def test_every_command_is_a_function_of_the_same_name() -> None:
    group: Any = typer.main.get_command(app)
    names = [name.replace("-", "_") for name in group.commands]
    assert set(names) <= set(trainer.sampling.__all__)
    for name in trainer.sampling.__all__:
        assert getattr(trainer.sampling, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'from_text'"):
        _ = getattr(trainer.sampling, "from_text")  # noqa: B009


def test_names_are_known_without_torch() -> None:
    told = "import sys, trainer.sampling.cli as c, trainer.sampling; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_example_of_the_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With small networks in place of the demo's."""
    (example,) = re.findall(r"^```python\n(.*?)^```", GALLERY.read_text(), re.DOTALL | re.M)
    monkeypatch.setattr("trainer.sampling.config.load_cascade_config", lambda _: None)
    monkeypatch.setattr("trainer.sampling.cascade.load_cascade", lambda _: cascade())
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out == "torch.Size([2, 3, 32, 32])\n"
    assert (tmp_path / "variation.png").is_file()
