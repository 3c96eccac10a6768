"""What a run reads: selections, weights, stores; who reads it, for any ranks and workers."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from test_loader import ALL, assert_same, config, plan, read

from base.errors import NothingUsable, UserError
from base.files import write_json
from data_pipeline.schema import dataset as schema
from data_pipeline.schema import selection
from trainer.batch import Needs
from trainer.loader.catalogue import Catalogue
from trainer.loader.samples import SampleReader
from trainer.loader.shares import Share, rank_positions


def select(root: Path, name: str, keys: list[str]) -> None:
    """Writes a selection as curation does."""
    info = schema.read_dataset(root)
    (root / selection.FOLDER).mkdir(exist_ok=True)
    table = pa.table({"key": keys}, schema=selection.SELECTION_SCHEMA)
    pq.write_table(table, selection.selection_path(root, name))
    identity = selection.DatasetIdentity(info.plan_fingerprint, "0" * 64, None)
    record = selection.SelectionInfo(
        selection.SELECTION_VERSION, name, None, identity, {}, info.kept, (), len(keys), None, {}
    )
    write_json(selection.record_path(root, name), record.to_json())


def embeddings_of(root: Path, keys: list[str]) -> np.ndarray[Any, Any]:
    places = [schema.key_position(key) for key in keys]
    return np.stack([np.load(schema.img_emb_path(root, s))[row] for s, row in places])


def test_a_selection_alone_is_read(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [5, 0, 4, 3])
    keys = ["000000001", "000000004", "000020000", "000020001", "000020002", "000020003"]
    select(data, "some", keys)
    reader = SampleReader(config(data, selection="some"), ALL, 0)
    assert reader.catalogue.epoch_size == 6
    batch = reader.batch(np.arange(12))  # two epochs
    assert batch.image_embedding is not None
    wanted = embeddings_of(data, keys)
    for epoch in (batch.image_embedding[:6], batch.image_embedding[6:]):
        assert np.array_equal(np.sort(epoch.numpy(), axis=0), np.sort(wanted, axis=0))
    (pool,) = reader.catalogue.pools
    captions = list(pool.shards.captions(np.arange(6)))
    assert captions == [f"blot {int(key[5:])} of shard {int(key[:5])}" for key in keys]


def test_a_selection_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [5])
    with pytest.raises(UserError, match="selection: got 'some', expected one of"):
        Catalogue(config(data, selection="some"), 0)
    select(data, "some", [])
    with pytest.raises(NothingUsable, match="no sample in it that selection 'some' keeps"):
        Catalogue(config(data, selection="some"), 0)


def test_weights_give_each_dataset_its_share_and_epochs(tmp_path: Path) -> None:
    """3 : 1 of 12 and 20 samples: in 160 positions ten epochs of the one, two of the other."""
    one = toy.write_dataset(tmp_path / "one", [5, 7], seed=1)
    two = toy.write_dataset(tmp_path / "two", [20], seed=2)
    data = config(one, two, weights=(3.0, 1.0), streams=4)
    reader = SampleReader(data, Needs(embeddings=True), 0)
    found = reader.batch(np.arange(160)).image_embedding
    assert found is not None
    counts = Counter(row.tobytes() for row in found.numpy())
    for root, sizes, times in ((one, (5, 7), 10), (two, (20,), 2)):
        for shard in range(len(sizes)):
            for row in np.load(schema.img_emb_path(root, shard)):
                assert counts[row.tobytes()] == times
    assert len(counts) == 32


def test_weights_that_do_not_fit_are_refused(dataset: Path) -> None:
    with pytest.raises(ValueError, match="weights: got 2, expected 1"):
        config(dataset, weights=(1.0, 2.0))
    with pytest.raises(UserError, match=r"data\.weights: 0\.01 of 1\.01 .*raise `streams`"):
        Catalogue(config(dataset, dataset, weights=(1.0, 0.01)), 0)


def test_mixed_weights_are_read_ahead_as_one_by_one(tmp_path: Path) -> None:
    one = toy.write_dataset(tmp_path / "one", [5, 7, 30], seed=1)
    two = toy.write_dataset(tmp_path / "two", [20], seed=2)
    data = config(one, two, weights=(1.0, 2.0), streams=3)
    reader = SampleReader(data, ALL, 3)
    for batches, whole in zip(read(plan(data)), read(plan(data), workers=2), strict=True):
        assert_same([batches], [whole])
        for batch in batches:
            assert_same([[batch]], [[reader.batch(batch.positions.numpy())]])


def test_a_dataset_in_a_store_is_read_in_long_reads(store: Any, tmp_path: Path) -> None:
    local = toy.write_dataset(tmp_path / "d", [40, 33])
    address = store.put(local, f"{store.bucket('train')}/d")
    settings = {"streams": 1, "shuffle_run": 8, "shuffle_buffer": 16}
    near, far = config(local, **settings), config(address, **settings)
    store.seen.clear()
    assert_same(read(plan(near, steps=7)), read(plan(far, steps=7)))
    tars = Counter(r.path for r in store.seen if r.path.endswith(".tar") and r.method == "GET")
    assert 0 < sum(tars.values()) <= 24  # 70 pictures in runs of 8 at most
    alone = Needs(embeddings=True)
    assert_same(read(plan(near, alone, steps=7)), read(plan(far, alone, steps=7)))


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_ranks_and_workers_share_a_batch_without_gap_or_overlap(
    start: int, batch: int, ranks: int, workers: int
) -> None:
    read = []
    for rank in range(ranks):
        positions = rank_positions(start, batch, rank, ranks)
        rows = []
        for worker in range(workers):
            share = Share(rank, ranks, worker, workers)
            rows += share.rows(positions).tolist()
        assert sorted(rows) == list(range(len(positions)))
        read += positions.tolist()
        assert abs(len(positions) - batch / ranks) < 1
    assert sorted(read) == list(range(start, start + batch))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (4, 2), (8, 1), (1, 8)])
def test_each_worker_reads_whole_streams(ranks: int, workers: int) -> None:
    """Where their number divides that of the streams; at most at epochs' ends another's sample."""
    from trainer.loader.order import Order, Shuffle

    order = Order([100] * 16, 0, Shuffle(8, 2, 10, 50))
    positions = np.arange(order.epoch_size)
    for rank in range(ranks):
        for worker in range(workers):
            own = positions[Share(rank, ranks, worker, workers).owns(positions)]
            streams = {key.stream for key, _ in order.keys(own)}
            assert len(streams) == 8 // (ranks * workers)
