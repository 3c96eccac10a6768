"""Hosts, caps and sides of a split."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline.curate.groups import (
    NO_VALUE,
    _mix,
    falls_to_val,
    hex_words,
    hosts,
    over_cap,
    value_hashes,
)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.Flickr.com/a.jpg", "flickr.com"),
        ("http://user:pw@i.pinimg.com:8080/x?y=http://z.org", "i.pinimg.com"),
        ("HTTPS://example.org.", "example.org"),
        ("https://[2001:db8::1]:443/a", "[2001:db8::1]"),
        ("http://wwwx.org#www.b.org", "wwwx.org"),
        ("s3://bucket/a@b", "bucket"),
        ("https://bücher.example/ä", "bücher.example"),
        ("", None),
        ("a.jpg", None),
        ("https:///a", None),
        (None, None),
    ],
)
def test_hosts(url: str | None, host: str | None) -> None:
    assert hosts(pa.chunked_array([[url]], pa.string())).to_pylist() == [host]


@given(st.lists(st.integers(0, 5), max_size=50), st.integers(1, 4))
def test_a_cap_keeps_the_first_of_each_source(sources: list[int], most: int) -> None:
    over = over_cap(np.array(sources, np.uint64), most)
    seen: Counter[int] = Counter()
    for source, dropped in zip(sources, over.tolist(), strict=True):
        seen[source] += 1
        assert dropped == (seen[source] > most and source != NO_VALUE)


def test_value_hashes_follow_values_across_tables_and_types() -> None:
    one = value_hashes(pa.chunked_array([["b", "a", None, "b"]]))
    two = value_hashes(pa.chunked_array([["c"], ["a", "b"]]))
    assert one[0] == one[3] == two[2] != one[1] == two[1]
    assert one[2] == NO_VALUE
    assert NO_VALUE not in two
    assert len(set(value_hashes(pa.chunked_array([[1, 2, 1]])).tolist())) == 2
    assert len(set(value_hashes(pa.chunked_array([[True, False]])).tolist())) == 2
    assert value_hashes(pa.chunked_array([[]], pa.string())).tolist() == []


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.integers(0, 2**62))
def test_sides_follow_the_hash_alone(values: list[int], seed: int) -> None:
    hashes = np.array(values, np.uint64)
    side = falls_to_val(hashes, 0.3, seed)
    assert side[::-1].tolist() == falls_to_val(hashes[::-1], 0.3, seed).tolist()
    assert (falls_to_val(hashes, 0.6, seed) >= side).all()


def test_a_split_has_its_share_and_seeds_differ() -> None:
    for hashes in (np.arange(20_000, dtype=np.uint64), np.arange(20_000, dtype=np.uint64) << 44):
        sides = [falls_to_val(hashes, 0.1, seed) for seed in (0, 1)]
        assert [abs(side.mean() - 0.1) < 0.01 for side in sides] == [True, True]
        assert abs((sides[0] & sides[1]).mean() - 0.01) < 0.004


def test_the_side_of_a_hash_stays_what_it_is() -> None:
    """Another result here would move rows of every split that was ever made."""
    hashes = np.array([0, 1, 0x8000000000000000, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    assert falls_to_val(hashes, 0.5, 0).tolist() == [False, True, True, True, True]
    assert _mix(np.zeros(1, np.uint64)).tolist() == [0xE220A8397B1DCDAF]  # SplitMix64's first of 0


def test_hex_words() -> None:
    column = pa.chunked_array([["00000000000000ff" + "0" * 47 + "1"], ["f" * 64]])
    assert hex_words(column, 2, "m").tolist() == [[255, 2**64 - 1], [0, 2**64 - 1]]
    for bad in ("zz", "f" * 15, "g" * 16, "  ffffffffffffffff"):
        with pytest.raises(UserError, match="m: rows that are no hash"):
            hex_words(pa.chunked_array([["0" * 16, bad]]), 1, "m")
