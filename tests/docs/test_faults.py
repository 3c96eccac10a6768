"""docs/faults.md names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/faults.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_is_there(file: str, name: str) -> None:
    found = ast.parse((ROOT / file).read_text()).body
    assert name in {node.name for node in found if isinstance(node, ast.FunctionDef)}


def test_most_faults_have_one() -> None:
    assert len(set(NAMED)) >= 14
