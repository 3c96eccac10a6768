"""Which pairs of a DATASET are measured, and what is known of them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from base.errors import UserError
from data_pipeline.scenes import scene
from data_pipeline.schema import dataset as schema
from trainer.evaluation.pairs import choose, distinct, read_pairs

SIZES = (7, 0, 9)


def with_column(root: Path, name: str, values: list[str | None]) -> None:
    """A further column of the input, over all shards."""
    first = 0
    for shard, size in enumerate(SIZES):
        path = schema.metadata_path(root, shard)
        if size:
            column = pa.array(values[first : first + size], pa.string())
            pq.write_table(pq.read_table(path).append_column(name, column), path)
        first += size


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return toy.write_dataset(tmp_path / "data", SIZES)


def test_more_captions_are_the_same_and_others(root: Path) -> None:
    chosen = [set(choose(root, count, 1000).tolist()) for count in range(1, 17)]
    assert all(fewer < more for fewer, more in pairwise(chosen))
    assert chosen[-1] == set(range(16))
    assert choose(root, 5, 3).tolist() == sorted(chosen[4])
    assert choose(root, None, 3).tolist() == sorted(chosen[2])
    assert chosen[4] != set(range(5))  # not the first ones: shards may be sorted


def test_there_are_not_so_many(root: Path) -> None:
    with pytest.raises(UserError, match=r"--count: got 17, .*data has 16 distinct captions"):
        choose(root, 17, 1000)


def test_no_caption_is_chosen_twice(root: Path) -> None:
    path = schema.metadata_path(root, 2)
    table = pq.read_table(path)
    place = table.column_names.index("caption")
    pq.write_table(table.set_column(place, table.field(place), pa.array(["blot"] * 9)), path)
    assert choose(root, None, 1000).tolist() == list(range(8))
    assert distinct(read_pairs(root)).indices == tuple(range(8))


def test_a_part_is_read_as_the_whole_has_it(root: Path) -> None:
    whole, part = read_pairs(root), read_pairs(root, None, np.array([3, 8, 12]))
    assert part.captions == tuple(whole.captions[i] for i in (3, 8, 12))
    assert part.image_embedding.equal(whole.image_embedding[[3, 8, 12]])
    assert part.pictures(32).equal(whole.pictures(32, 13)[[3, 8, 12]])
    assert part.truths is None


def test_scenes_are_told_by_the_dataset_itself(root: Path) -> None:
    truths = [scene(3, index, "unseen")[0] for index in range(16)]
    with_column(root, "scene", [json.dumps(truth.to_json()) for truth in truths])
    assert read_pairs(root).truths == tuple(truths)
    assert read_pairs(root, None, np.array([2, 9])).truths == (truths[2], truths[9])


@pytest.mark.parametrize("value", ["a beach", '{"background": "teal"}', "[]", None])
def test_somebody_s_own_column_tells_no_scene(value: str | None, root: Path) -> None:
    with_column(root, "scene", [value] * 16)
    assert read_pairs(root).truths is None
