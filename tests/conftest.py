"""What every package's tests share: fixtures, and how two processes of tests take turns."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# Before torch is there: how many threads a sum has must not depend on which test came before.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What DeepSpeed compiles belongs to its own installation: two of them would take turns to compile.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from turns import Turns

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

if TYPE_CHECKING:
    from store_server import StoreServer

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
_TURNS = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes the place where processes of tests take turns, or hears of it."""
    place = getattr(config, "workerinput", {}).get("turns")
    if place is None:
        place = tempfile.mkdtemp(prefix="turns-")
        config.add_cleanup(partial(shutil.rmtree, place))
    config.stash[_TURNS] = Turns(Path(place))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for others first, then slow files: what is short fills the gaps."""
    marks = ("alone", "slow")
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in marks])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells each process where they take turns (pytest-xdist calls it)."""
    node.workerinput["turns"] = str(node.config.stash[_TURNS].folder)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-timeout's clock begins to run
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` waits until no other test runs, and others wait for it."""
    with item.config.stash[_TURNS].turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside a checkout; the test skips where it is absent."""
    path = Path(os.environ.get("UNCLIP_TEST_DATA", _DEFAULT))
    if not path.is_dir():
        pytest.skip(f"no test data: {path} is absent and UNCLIP_TEST_DATA names no other place")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def fill_disk() -> Callable[[Path], Path]:
    """Takes all the space of a file system but a page, with one file."""

    def fill(place: Path) -> Path:
        path = place / "filler"
        with path.open("wb", buffering=0) as file:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                while True:
                    file.write(bytes(1 << 16))
            file.truncate(file.tell() - 4096)
        return path

    return fill


@pytest.fixture(scope="module")
def store_server() -> Iterator["StoreServer"]:
    """An object store on loopback, which the environment's usual variables lead to."""
    pytest.importorskip("moto")
    from s3fs import S3FileSystem
    from store_server import ENVIRONMENT, StoreServer

    server = StoreServer()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # clients keep the address that they began with
        yield server
    S3FileSystem.clear_instance_cache()
    server.close()


@pytest.fixture
def store(store_server: "StoreServer") -> Iterator["StoreServer"]:
    """The module's store, in which nothing fails at first."""
    store_server.seen.clear()
    store_server.fault = lambda request: None
    yield store_server
    store_server.fault = lambda request: None
