"""A DATASET whose rows break every rule, with an empty shard in the middle and two CLIPs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from curated import PREPARE, rows_of

from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
    picture_bytes: Callable[..., bytes],
) -> Path:
    """The DATASET as it was prepared; shared, so use `dataset` to write."""
    folder = tmp_path_factory.mktemp("curate")
    pq.write_table(pa.Table.from_pylist(rows_of(picture_bytes)), folder / "in.parquet")
    prepare([folder / "in.parquet"], folder / "dataset", "random:0", PREPARE)
    embed(folder / "dataset", "random:1", "second")
    return folder / "dataset"


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "dataset"))
