"""A real Slurm for the tests that are marked `slurm`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

from slurm.testbed.cluster import Cluster, running  # noqa: E402 - siblings need the path
from slurm.testbed.packages import lacking  # noqa: E402
from slurm.testbed.shape import Shape  # noqa: E402

QUICK = Shape(grace=8, node_timeout=5)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """The programs of a testbed; the test skips where they are absent, but not in CI."""
    if missing := lacking():
        message = f"absent: {', '.join(missing)}; `make test-slurm` needs these Debian packages"
        assert not os.environ.get("CI"), message
        pytest.skip(message)


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder for testbeds: pytest's own have names too long for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, short_tmp: Path) -> Iterator[Cluster]:
    """Two nodes that are up, for the tests of a module; quick to notice what is lost."""
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    with running(folder, QUICK) as cluster:
        yield cluster
    shutil.rmtree(folder)
