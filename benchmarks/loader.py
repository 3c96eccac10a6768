"""The loader beside webdataset and embedding-reader, over the same DATASET.

`python -m benchmarks.loader [--count N] [--workers W] [--repeats R]`. Pictures: JPEGs of 256² in
shards of 1,000, decoded whole by the same decoder and cut to 64², in batches of 64, by the same
number of processes; webdataset shuffles with its buffer. Embeddings: float16 rows of 768 in shards
of 10,000, ours shuffled and open at any position, embedding-reader's read from end to end. Rates
are those after the first quarter, so that starts count for nobody.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pictures import caption, jpegs
from data_pipeline.schema import dataset as schema
from trainer.batch import Needs
from trainer.config import DataConfig
from trainer.loader.pictures import decode_square
from trainer.loader.plan import Plan
from trainer.loader.steps import Loader

_SIDE, _CROP, _BATCH = 256, 64, 64
_DIM, _EMBEDDINGS_BATCH = 768, 1024

Batches = Callable[[int], Iterator[int]]  # samples → the sizes of batches


def write_pictures(root: Path, count: int, per_shard: int) -> None:
    """A DATASET of pictures without embeddings."""
    pictures = jpegs(count, side=_SIDE)
    _begin(root, count, per_shard, None)
    for shard, size in enumerate(_sizes(count, per_shard)):
        rows: list[dict[str, Any]] = []
        with tarfile.open(schema.tar_path(root, shard), "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(size):
                key, jpeg = schema.sample_key(shard, row), next(pictures)
                text = caption(shard * per_shard + row)
                places: dict[str, int] = {}
                for kind, data in (("jpg", jpeg), ("txt", text.encode()), ("json", b"{}")):
                    member = tarfile.TarInfo(f"{key}.{kind}")
                    member.size = len(data)
                    places |= {
                        f"{kind}_offset": tar.offset + tarfile.BLOCKSIZE,
                        f"{kind}_length": len(data),
                    }
                    tar.addfile(member, io.BytesIO(data))
                rows.append({"caption": text, **places})
        pq.write_table(pa.Table.from_pylist(rows), schema.metadata_path(root, shard))


def write_embeddings(root: Path, count: int, per_shard: int) -> None:
    """A DATASET's embeddings alone."""
    random = np.random.default_rng(0)
    _begin(root, count, per_shard, schema.ClipInfo("toy", "random:0", "0" * 64, "0" * 64, _DIM))
    for shard, size in enumerate(_sizes(count, per_shard)):
        for path in (schema.img_emb_path(root, shard), schema.text_emb_path(root, shard)):
            np.save(path, random.standard_normal((size, _DIM), np.float32).astype(np.float16))


def _sizes(count: int, per_shard: int) -> list[int]:
    return [min(per_shard, count - first) for first in range(0, count, per_shard)]


def _begin(root: Path, count: int, per_shard: int, clip: schema.ClipInfo | None) -> None:
    for folder in ("shards", "metadata", "img_emb", "text_emb"):
        (root / folder).mkdir(parents=True)
    sizes = _sizes(count, per_shard)
    names = {f"{schema.shard_name(n)}.tar": size for n, size in enumerate(sizes)}
    (root / schema.SIZES_FILE).write_text(json.dumps(names))
    info = schema.DatasetInfo(schema.VERSION, count, count, 0, len(sizes), _SIDE, "benchmark", clip)
    (root / schema.DATASET_FILE).write_text(json.dumps(info.to_json()))


def ours(root: Path, needs: Needs, batch: int, workers: int, samples: int) -> Iterator[int]:
    """Shuffled batches: their sizes."""
    steps = samples // batch
    plan = Plan(DataConfig(paths=(str(root),)), needs, 0, 0, batch, steps, 0, 1, 1)
    with Loader(plan, workers, 2 * max(workers, 1)) as loader:
        for batches in loader:
            yield sum(map(len, batches))


def decode_and_crop(seed: int, data: bytes) -> Any:
    """What our loader does with a picture, for webdataset's pipeline."""
    pixels = decode_square(data, _SIDE, str)
    top, left = np.random.default_rng(seed).integers(0, _SIDE - _CROP + 1, 2)
    return np.ascontiguousarray(pixels[top : top + _CROP, left : left + _CROP].transpose(2, 0, 1))


def theirs(root: Path, workers: int, samples: int) -> Iterator[int]:
    """Batches of webdataset's usual pipeline: their sizes."""
    import webdataset as wds

    urls = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    data = (
        wds.WebDataset(urls, shardshuffle=len(urls), resampled=False, nodesplitter=None, seed=0)
        .repeat()
        .shuffle(1000)
        .to_tuple("jpg")
        .map_tuple(partial(decode_and_crop, 0))
        .batched(_BATCH, partial=False)
    )
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4)
    for (pictures,) in islice(loader, samples // _BATCH):
        yield len(pictures)


def scan(root: Path, samples: int) -> Iterator[int]:
    """Batches of embedding-reader over both kinds of rows, in their order: pairs of rows."""
    from embedding_reader import EmbeddingReader

    readers = [
        EmbeddingReader(embeddings_folder=str(root / kind), file_format="npy")(
            batch_size=_EMBEDDINGS_BATCH, start=0, end=samples, show_progress=False
        )
        for kind in ("img_emb", "text_emb")
    ]
    for (image, _), (text, _) in zip(*readers, strict=True):
        assert len(image) == len(text)
        yield len(image)


def rate(batches: Iterator[int], count: int) -> float:
    """Samples a second after the first quarter of `count`."""
    seen, begun, skipped = 0, 0.0, 0
    for size in batches:
        seen += size
        if not skipped and seen >= count // 4:
            begun, skipped = time.perf_counter(), seen
    assert seen == count
    return (seen - skipped) / (time.perf_counter() - begun)


def compare(rows: list[tuple[str, Batches]], count: int, repeats: int) -> Iterator[str]:
    """A line for each, with its ratio to the first; medians of runs taken in turns."""
    seen = [[rate(run(count), count) for _, run in rows] for _ in range(repeats)]
    middle = [statistics.median(column) for column in zip(*seen, strict=True)]
    for (name, _), value in zip(rows, middle, strict=True):
        yield f"{name:<34}{value:>12,.0f}/s{value / middle[0]:>10.2f}x"


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16_000, help="pictures")
    parser.add_argument("--rows", type=int, default=200_000, help="embeddings")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, vectors = Path(folder) / "pictures", Path(folder) / "vectors"
        write_pictures(pictures, options.count, 1000)
        write_embeddings(vectors, options.rows, 10_000)
        needs = Needs(image_size=_SIDE, crop=_CROP)
        both: list[tuple[str, Batches]] = [
            ("webdataset", lambda n: theirs(pictures, options.workers, n)),
            ("unclip", lambda n: ours(pictures, needs, _BATCH, options.workers, n)),
        ]
        whole = options.count // _BATCH * _BATCH  # batches are whole
        print(*compare(both, whole, options.repeats), sep="\n", flush=True)
        rows = Needs(embeddings=True)
        both = [
            ("embedding-reader, in order", lambda n: scan(vectors, n)),
            ("unclip, shuffled", lambda n: ours(vectors, rows, _EMBEDDINGS_BATCH, 0, n)),
        ]
        print(
            *compare(both, options.rows // _EMBEDDINGS_BATCH * _EMBEDDINGS_BATCH, options.repeats),
            sep="\n",
        )


if __name__ == "__main__":
    main()
