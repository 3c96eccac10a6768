"""Work ahead of the caller: in order, bounded, and over when something fails."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.ahead import map_ahead


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
def test_it_gives_what_map_gives(items: list[int], threads: int) -> None:
    assert list(map_ahead(lambda item: item * 2, items, threads)) == [item * 2 for item in items]


def test_no_more_is_begun_than_there_are_threads() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            begun.append(item)
            yield item

    found = map_ahead(lambda item: item, items(), 4)
    assert [next(found), next(found)] == [0, 1]
    assert len(begun) == 5  # four, and one in the place of the first


def test_calls_run_beside_each_other() -> None:
    together = threading.Barrier(3, timeout=60)
    assert len(list(map_ahead(lambda item: together.wait(), range(3), 3))) == 3


def test_an_error_comes_in_its_place() -> None:
    found = map_ahead(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
