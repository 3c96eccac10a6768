"""The loader's tensors: right samples, right pixels, the same from threads and processes."""

import errno
import io
import multiprocessing
import os
import resource
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import simplejpeg
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from base.errors import NothingUsable, UserError, code_of
from data_pipeline.schema import dataset as schema
from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.arrays import empty_arrays
from trainer.loader.catalogue import Catalogue
from trainer.loader.pictures import decode_square
from trainer.loader.plan import Plan
from trainer.loader.samples import SampleReader
from trainer.loader.shards import whole_dataset
from trainer.loader.shares import Share
from trainer.loader.steps import Loader
from trainer.loader.vectors import evenly

EMBEDDINGS = Needs(embeddings=True)
ALL = Needs(image_size=32, tokens=True, embeddings=True, context_length=12)


def plan(data: DataConfig, needs: Needs = ALL, **more: int) -> Plan:
    values = {"start": 0, "batch": 10, "steps": 5, "rank": 0, "world_size": 1, "micro_batches": 2}
    return Plan(data=data, needs=needs, seed=3, **{**values, **more})


def config(*paths: Path | str, **more: object) -> DataConfig:
    small = {"streams": 2, "shuffle_block": 2, "shuffle_run": 3, "shuffle_buffer": 9}
    values = {"paths": [str(path) for path in paths], **small, **more}
    return DataConfig.model_validate(values, strict=False)


def read(plan: Plan, workers: int = 0) -> list[list[Batch]]:
    with Loader(plan, workers, 3) as loader:
        return list(loader)


def assert_same(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            for name in ("positions", "image", "tokens", "image_embedding", "text_embedding"):
                x, y = getattr(a, name), getattr(b, name)
                assert (x is None) == (y is None)
                assert x is None or (x.dtype == y.dtype and torch.equal(x, y))


def test_a_batch_holds_what_the_dataset_holds(dataset: Path) -> None:
    """Every part of every sample, against the files read plainly."""
    from open_clip.tokenizer import SimpleTokenizer

    reader = SampleReader(config(dataset), ALL, seed=3)
    batch = reader.batch(np.arange(40))
    (pool,) = reader.catalogue.pools
    samples = pool.order.samples(np.arange(40))
    refs = [(r.shard, row) for r in pool.shards.refs for row in range(r.size)]
    assert batch.image is not None
    assert batch.tokens is not None
    assert batch.image_embedding is not None
    assert batch.text_embedding is not None
    for index, sample in enumerate(samples):
        shard, row = refs[sample]
        (jpeg,) = pool.shards.jpegs(np.array([sample]))
        pixels = simplejpeg.decode_jpeg(jpeg).transpose(2, 0, 1)
        assert np.array_equal(batch.image[index].numpy(), pixels)
        tokens = SimpleTokenizer(context_length=12)([f"blot {row} of shard {shard}"])[0]
        assert torch.equal(batch.tokens[index], tokens)
        row_of = np.load(schema.img_emb_path(dataset, shard))[row]
        assert np.array_equal(batch.image_embedding[index].numpy(), row_of)
        row_of = np.load(schema.text_emb_path(dataset, shard))[row]
        assert np.array_equal(batch.text_embedding[index].numpy(), row_of)


def test_embeddings_alone_open_no_tar(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [6, 4])
    for shard in (0, 1):
        schema.tar_path(data, shard).unlink()
        schema.metadata_path(data, shard).unlink()
    (batches,) = read(plan(config(data), Needs(embeddings=True), steps=1))
    assert all(batch.image is None and batch.tokens is None for batch in batches)
    assert all(batch.image_embedding is not None for batch in batches)


def test_processes_and_threads_give_the_same_bytes(dataset: Path) -> None:
    needs = Needs(image_size=16, crop=8, tokens=True, embeddings=True, context_length=12)
    data = config(dataset)
    assert_same(read(plan(data, needs)), read(plan(data, needs), workers=2))


def test_ranks_read_what_one_process_reads(dataset: Path) -> None:
    alone = read(plan(config(dataset), batch=11, micro_batches=1))
    ranks = [
        read(plan(config(dataset), batch=11, micro_batches=3, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    for step, (whole,) in enumerate(alone):
        parts = [batch for rank in ranks for batch in rank[step]]
        positions, order = torch.cat([part.positions for part in parts]).sort()
        assert torch.equal(whole.positions, positions)
        assert whole.image is not None
        images = torch.cat([part.image for part in parts if part.image is not None])
        assert torch.equal(whole.image, images[order])


def test_reading_can_begin_anywhere(dataset: Path) -> None:
    assert_same(read(plan(config(dataset)))[3:], read(plan(config(dataset), start=30, steps=2)))


@pytest.mark.parametrize("budget", [1 << 30, 20_000, 1])
def test_the_cache_changes_no_byte(dataset: Path, budget: int) -> None:
    """Three epochs, so that most reads come from the cache; a small one holds a part."""
    needs = Needs(image_size=32, crop=8, tokens=True, context_length=12)
    cached = config(dataset, cache="ram", cache_bytes=budget)
    assert_same(read(plan(config(dataset), needs, steps=10)), read(plan(cached, needs, steps=10)))


def test_crops_follow_position_and_seed_and_lie_inside(dataset: Path) -> None:
    data = config(dataset)
    whole = SampleReader(data, Needs(image_size=32), 3).batch(np.arange(64)).image
    crops = SampleReader(data, Needs(image_size=32, crop=8), 3).batch(np.arange(64)).image
    assert whole is not None
    assert crops is not None
    corners = set()
    for full, crop in zip(whole, crops, strict=True):
        windows = full.unfold(1, 8, 1).unfold(2, 8, 1)  # [3, 25, 25, 8, 8]
        hits = (windows == crop[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
        assert hits, "the crop is no part of the picture"
        corners.add(tuple(hits[0]))
    assert len(corners) > 16
    shuffled = np.array([40, 7, 63])
    again = SampleReader(data, Needs(image_size=32, crop=8), 3).batch(shuffled).image
    assert again is not None
    assert torch.equal(again, crops[shuffled])


def test_several_datasets_follow_one_another(tmp_path: Path) -> None:
    one = toy.write_dataset(tmp_path / "one", [3, 4], seed=1)
    two = toy.write_dataset(tmp_path / "two", [5], seed=2)
    (pool,) = Catalogue(config(one, two), 0).pools
    refs = pool.shards.refs
    assert [ref.root for ref in refs] == [one, one, two]
    rows = SampleReader(config(one, two), Needs(embeddings=True), 0).batch(np.arange(12))
    assert rows.image_embedding is not None
    want = np.concatenate([np.load(schema.img_emb_path(r.root, r.shard)) for r in refs])
    got = rows.image_embedding.numpy()
    assert np.array_equal(np.sort(got, axis=0), np.sort(want, axis=0))


@pytest.mark.parametrize("side", [16, 32, 64, 100])
@pytest.mark.parametrize("shape", [(256, 256), (200, 312), (301, 180)])
def test_scaled_decoding_agrees_with_pillow(side: int, shape: tuple[int, int]) -> None:
    """Decode in full, cut the middle square, average down: nearly the same picture.

    Of a picture that is not square the cut falls on whole pixels of the smaller decoded size, so
    it may lie half such a pixel beside.
    """
    height, width = shape
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + k) + np.cos(y / 23 - k) for k in range(3)]
    pixels = np.clip(128 + 60 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95)
    ours = decode_square(jpeg, side, str).astype(int)
    whole = Image.open(io.BytesIO(jpeg))
    square = min(shape)
    left, top = (width - square) // 2, (height - square) // 2
    cut = whole.crop((left, top, left + square, top + square))
    theirs = np.asarray(cut.resize((side, side), Image.Resampling.BOX)).astype(int)
    assert ours.shape == (side, side, 3)
    assert np.abs(ours - theirs).mean() < (2 if height == width else 8)


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [4])
    tar = schema.tar_path(data, 0)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000])
    with pytest.raises(UserError, match=r"00000\.tar: ends early"):
        read(plan(config(data)))
    tar.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match="not a readable JPEG"):
        read(plan(config(data)))
    schema.img_emb_path(data, 0).unlink()
    with pytest.raises(UserError, match="unclip data embed"):
        read(plan(config(data), Needs(embeddings=True)))


@pytest.mark.parametrize("number", [0, 2])
def test_damaged_embeddings_are_named(tmp_path: Path, number: int) -> None:
    """Of several files that are open at once the one that is short, also if it became so late."""
    data = toy.write_dataset(tmp_path / "d", [4, 4, 4])
    bad, reader = schema.text_emb_path(data, number), SampleReader(config(data), EMBEDDINGS, 3)
    reader.batch(np.arange(12))  # headers are known from here on
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{bad.name}: ends early; verify the data"):
        reader.batch(np.arange(12))
    bad.write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=f"{bad.name}: no npy file"):
        read(plan(config(data), EMBEDDINGS))


def test_files_that_cannot_be_opened_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So ranks agree on it and save, whatever the system's reason is."""
    data = toy.write_dataset(tmp_path / "d", [4, 4])
    bad, whole = schema.text_emb_path(data, 1), os.open

    def open_others(path: Any, *more: Any, **named: Any) -> int:
        if str(path) == str(bad):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path, *more, **named)

    monkeypatch.setattr(os, "open", open_others)
    with pytest.raises(UserError, match=f"{bad.name}: Permission denied"):
        read(plan(config(data), EMBEDDINGS))


def test_many_shards_at_once_need_few_open_files(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [1] * 120)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 60, hard))
    try:
        shards = whole_dataset(data)
        image, text = shards.embeddings(np.arange(120))
        jpegs = shards.jpegs(np.arange(120))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(image) == len(text) == len(jpegs) == 120


def test_damage_in_a_worker_is_told_in_one_line(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [4])
    schema.tar_path(data, 0).unlink()
    with pytest.raises(UserError, match=r"00000\.tar: No such file"):
        read(plan(config(data)), workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_is_no_mistake(tmp_path: Path, workers: int) -> None:
    """Whichever process reads: the launcher tries it again."""
    data = toy.write_dataset(tmp_path / "d", [4])
    tar = schema.tar_path(data, 0)
    tar.unlink()
    tar.symlink_to("/proc/self/mem")  # whoever reads its first page is told EIO
    with pytest.raises(UserError, match=r"00000\.tar: Input/output error") as caught:
        read(plan(config(data)), workers=workers)
    assert code_of(caught.value) == 69


def kill_workers(number: int = signal.SIGKILL) -> None:
    for child in multiprocessing.active_children():
        if child.name.startswith("loader-"):
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)


def test_workers_that_die_are_replaced(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And what is read is what would have been."""
    whole = read(plan(config(dataset), steps=12))
    with Loader(plan(config(dataset), steps=12), 2, 3) as loader:
        found = []
        for batches in loader:
            found.append(batches)
            if len(found) in (2, 7):
                kill_workers()
    assert_same(found, whole)
    assert "worker 0 was killed by SIGKILL (out of memory?); started anew" in capfd.readouterr().err


def test_a_worker_that_dies_twice_at_a_step_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "d", [4])
    tar = schema.tar_path(data, 0)
    tar.unlink()
    os.mkfifo(tar)  # whoever opens it waits for ever
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.1):
            kill_workers()

    with Loader(plan(config(data)), 1, 2) as loader:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with pytest.raises(UserError, match=r"worker 0 was killed .*, twice at the same step"):
                list(loader)
        finally:
            over.set()
            killer.join()


def test_workers_leave_signals_to_the_trainer(dataset: Path) -> None:
    """A launcher signals every process of a job; only ranks answer."""
    with Loader(plan(config(dataset), steps=12), 1, 2) as loader:
        batches = iter(loader)
        next(batches)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            kill_workers(number)
        assert len(list(batches)) == 11


def test_nothing_to_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a DATASET"):
        Catalogue(config(tmp_path), 0)
    with pytest.raises(NothingUsable):
        Catalogue(config(toy.write_dataset(tmp_path / "d", [0, 0])), 0)


def test_leaving_early_ends_the_reading_thread(dataset: Path) -> None:
    import threading

    with Loader(plan(config(dataset), steps=1000), 0, 2) as loader:
        next(iter(loader))
    assert "loader" not in {thread.name for thread in threading.enumerate()}


@given(st.lists(st.integers(0, 40), max_size=6) | st.builds(range, *[st.integers(1, 40)] * 3))
def test_evenly_spaced_rows_are_the_same_rows(numbers: list[int]) -> None:
    wanted, rows = np.array(list(numbers), np.int64), np.arange(41)
    found = evenly(wanted)
    assert np.array_equal(rows[found], rows[wanted])
    steps = set(np.diff(wanted).tolist())
    assert isinstance(found, slice) == (
        len(wanted) > 0 and len(steps) < 2 and min(steps, default=1) > 0
    )


@given(data=st.data())
@settings(max_examples=40)
def test_any_rows_are_read_whole(dataset: Path, data: st.DataObject) -> None:
    """Neighbours, holes and edges of shards; in any order or twice is refused."""
    shards = whole_dataset(dataset)
    every = range(int(shards.starts[-1]))
    samples = np.array(sorted(data.draw(st.sets(st.sampled_from(every)))), np.int64)
    one_by_one = [shards.jpegs(np.array([sample]))[0] for sample in samples]
    stored = shards.embeddings(np.array(every))
    with (
        patch("trainer.loader.shards._GAP", data.draw(st.sampled_from([0, 1 << 16]))),
        patch("trainer.loader.shards._SPAN", data.draw(st.sampled_from([1, 50, 1 << 24]))),
    ):
        image, text = shards.embeddings(samples)
        assert shards.jpegs(samples) == one_by_one
    assert np.array_equal(image, stored[0][samples])
    assert np.array_equal(text, stored[1][samples])
    for wrong in ([1, 0], [2, 2]):
        with pytest.raises(ValueError, match="ascending numbers, each once"):
            shards.embeddings(np.array(wrong))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_many_groups_is_the_same_rows(dataset: Path, workers: int) -> None:
    """Groups of a stream take turns in memory: none is read over before it is copied."""
    many = plan(config(dataset), Needs(embeddings=True), batch=70, steps=3, micro_batches=1)
    reader = SampleReader(many.data, many.needs, many.seed)
    for step, (batch,) in enumerate(read(many, workers)):
        one_by_one = reader.batch(many.positions(step))
        for name in ("image_embedding", "text_embedding"):
            assert torch.equal(getattr(batch, name), getattr(one_by_one, name)), (step, name)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_embeddings_alone_are_those_of_their_positions(dataset: Path, data: st.DataObject) -> None:
    """Groups in use are looked up in a table: any share, start, batch, shuffle and mixture."""
    several = data.draw(st.booleans())
    ranks, workers = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (3, 2)]))
    chosen = config(
        *[dataset] * (1 + several),
        weights=[3.0, 1.0] if several else None,
        streams=data.draw(st.sampled_from([4, 8])),
        shuffle_run=data.draw(st.integers(1, 4)),
        shuffle_buffer=data.draw(st.integers(4, 9)),
    )
    reader = SampleReader(chosen, Needs(embeddings=True), 3)
    batch, start = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 500))
    end = start + 4 * batch
    share = Share(ranks - 1, ranks, workers - 1, workers)
    walk = reader.walk(share, start, end)
    for first in range(start, end, batch):
        positions = np.arange(first, first + batch)
        positions = positions[share.owns(positions)]
        if len(positions):
            arrays = empty_arrays(Needs(embeddings=True), reader.dim, len(positions))
            walk.fill(arrays, np.arange(len(positions)), positions)
            wanted = reader.batch(positions)
            assert torch.equal(torch.from_numpy(arrays.image_embedding), wanted.image_embedding)
            assert torch.equal(torch.from_numpy(arrays.text_embedding), wanted.text_embedding)
    walk.close()
