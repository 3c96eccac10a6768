"""Published embeddings have no pictures: what can be told and chosen of them, and what is said."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import config, keys

from base.errors import UserError
from data_pipeline.config import PrepareConfig
from data_pipeline.curate.possible import require_possible
from data_pipeline.curate.rules import apply_rules
from data_pipeline.curate.run import curate, curate_together
from data_pipeline.curate.together import open_together
from data_pipeline.pipeline import prepare
from data_pipeline.stats.collect import collect
from data_pipeline.stats.plot import draw
from data_pipeline.stats.table import print_stats
from data_pipeline.verify import verify

COUNT = 40  # rows; those from 30 on repeat the first ten


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    rows = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    np.save(folder / "img_emb_0.npy", np.concatenate([rows, rows[:10]]))
    table = {
        "caption": [f"caption {row}" for row in range(COUNT)],
        "url": [f"http://host{row % 3}/{row}.jpg" for row in range(COUNT)],
        "original_width": pa.array([0, 640] * 20, pa.int32()),  # of every second it is not told
        "original_height": pa.array([0, 480] * 20, pa.int32()),
    }
    pq.write_table(pa.table(table), folder / "metadata_0.parquet")
    out = folder / "dataset"
    prepare([folder], out, "published:ViT-L-14/openai", PrepareConfig(samples_per_shard=9))
    return out


def test_statistics_leave_out_what_needs_pictures_and_say_so(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = collect([vectors])
    assert (found.rows, found.has_pictures) == (COUNT, False)
    assert (found.same_sha256, found.same_phash) == (None, None)
    expected = {"original_width", "original_height", "aspect", "caption_chars", "caption_words"}
    assert set(found.quantities) == expected
    assert found.quantities["original_width"].total == COUNT // 2
    assert found.domain_count == 3
    print_stats(found)
    shown = capsys.readouterr().out
    assert "embeddings without pictures: no stored sizes, no duplicates by hash" in shown
    assert "same bytes" not in shown
    draw(found, tmp_path / "a.svg")
    assert "no pictures" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"phash_duplicates": {}}, r"^phash_duplicates: .* has no pictures.*embedding_duplicates"),
        ({"exact_duplicates": True}, r"^exact_duplicates: .* rows without sha256.*no pictures"),
        ({"split": {"val": 0.3, "distance": 2}}, r"^split.distance: got 2, but .* no pictures"),
    ],
)
def test_rules_that_need_pictures_are_refused(
    vectors: Path, rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        curate(vectors, "a", config(**rules))
    assert not (vectors / "selections").exists()


@pytest.mark.parametrize("column", ["min_side", "aspect", "original_width", "original_height"])
@pytest.mark.parametrize(("nulls", "count"), [("keep", COUNT), ("drop", COUNT // 2)])
def test_a_side_that_is_not_told_is_no_value(
    vectors: Path, column: str, nulls: str, count: int
) -> None:
    together = open_together([vectors])
    rules = config(thresholds={column: {"min": 1, "nulls": nulls}})
    kept = apply_rules(together, rules, require_possible(together, rules)).left()
    assert len(kept) == count


def test_like_embeddings_are_dropped_and_equal_ones_are_on_one_side(
    vectors: Path, tmp_path: Path
) -> None:
    vectors = Path(shutil.copytree(vectors, tmp_path / "dataset"))
    rules = config(split={"val": 0.4})
    done = curate(vectors, "both", rules).selection
    sides = [set(keys(vectors, f"both-{part}")) for part in ("train", "val")]
    assert sum(map(len, sides)) == COUNT
    assert all(sides)
    assert done.split is not None
    assert (done.split["groups"], done.split["largest_group"]) == (30, 2)
    for row in range(10):
        pair = {f"{r // 9 * 10_000 + r % 9:09d}" for r in (row, 30 + row)}
        assert pair <= sides[0] or pair <= sides[1]
    without = curate(vectors, "apart", config(embedding_duplicates={"eps": 0.001}))
    assert without.selection.kept == 30
    assert verify(vectors).problems == ()


def test_pictures_and_none_are_not_split_together(
    vectors: Path, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(made)
    with pytest.raises(UserError, match=r"^split: .* has no pictures.*while others have"):
        curate_together([vectors, tmp_path / "pictures"], "a", config(split={"val": 0.3}))
