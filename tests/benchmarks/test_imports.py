"""Every benchmark still finds what it measures."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", [*NAMES, "soak", "training_soak.__main__", "findings.__main__"])
def test_it_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__
