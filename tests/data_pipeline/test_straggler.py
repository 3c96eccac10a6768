"""A shard that takes far longer than the others is made twice; whoever is first, same bytes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web import Server

from data_pipeline import pipeline
from data_pipeline.cluster import run_bounded
from data_pipeline.config import PrepareConfig
from data_pipeline.fetch import FetchConfig
from data_pipeline.pipeline import prepare
from data_pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")

PATIENCE = 1.0  # seconds: the product's own minute would be long to wait for
HELD = "4.jpg"  # in the last shard
# A worker waits for a held answer as long as the test likes.
FETCH = FetchConfig(allow_private=True, silence_seconds=300, deadline_seconds=300)
CONFIG = PrepareConfig(image_size=32, samples_per_shard=2, fetch=FETCH)


@pytest.fixture
def table(server: Server, tmp_path: Path, picture_bytes: Callable[..., bytes]) -> Path:
    """Three shards of addresses."""
    server.files = {f"{i}.jpg": picture_bytes(i) for i in range(6)}
    urls = [server.url(name) for name in server.files]
    captions = [f"picture number {i}" for i in range(6)]
    path = tmp_path / "urls.parquet"
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return path


@pytest.mark.parametrize("winner", [2, 1])
def test_a_straggler_s_first_result_counts(
    winner: int,
    server: Server,
    table: Path,
    tmp_path: Path,
    tree: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second attempt overtakes a first that hangs, or comes too late itself."""
    prepare([table], tmp_path / "undisturbed", config=CONFIG)
    begun = server.seen[HELD]
    is_over = False

    def holds(name: str, times: int) -> bool:
        attempt = times - begun
        if name != HELD or attempt < 1 or is_over:
            return False
        return attempt != winner or server.seen[HELD] - begun < 2  # nobody before both are there

    server.holds = holds
    monkeypatch.setattr(pipeline, "run_bounded", partial(run_bounded, patience=PATIENCE))
    try:
        info = prepare([table], tmp_path / "out", config=CONFIG)
    finally:
        is_over = True
    assert info.kept == 6
    assert server.seen[HELD] - begun == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    assert verify(tmp_path / "out").whole
