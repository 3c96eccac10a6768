"""Small inputs and one Ray that the tests of this package share."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.cluster import cluster

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from web import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on loopback."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests that work in this process."""
    with cluster():
        yield


@pytest.fixture(scope="session")
def retrieval_environment() -> Path:
    """What `make retrieval` builds; the test skips where it is absent, but not in CI."""
    place = Path(os.environ.get("UNCLIP_RETRIEVAL", Path(sys.prefix).parent / ".venv-retrieval"))
    if not (place / "bin" / "autofaiss").is_file():
        required = os.environ.get("CI") and sys.version_info < (3, 13)
        assert not required, f"{place} is absent: `make retrieval` builds it"
        pytest.skip(f"{place} is absent: `make retrieval` builds it")
    return place.absolute()


@pytest.fixture(scope="session")
def picture_bytes() -> Callable[..., bytes]:
    """Makes a picture's file: smooth colours that differ by seed."""

    def make(seed: int, width: int = 96, height: int = 64, kind: str = "JPEG") -> bytes:
        random = np.random.default_rng(seed)
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def pairs_folder(picture_bytes: Callable[..., bytes]) -> Callable[[Path, int], Path]:
    """Writes a folder of pairs."""

    def make(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / f"{i:05d}.jpg").write_bytes(picture_bytes(i))
            (folder / f"{i:05d}.txt").write_text(f"picture number {i}")
        return folder

    return make


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of every file below a folder."""

    def digests(root: Path) -> dict[str, str]:
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    return digests
