"""Fixtures that every package's tests share."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside a checkout; the test skips where it is absent."""
    path = Path(os.environ.get("UNCLIP_TEST_DATA", _DEFAULT))
    if not path.is_dir():
        pytest.skip(f"no test data: {path} is absent and UNCLIP_TEST_DATA names no other place")
    return path
