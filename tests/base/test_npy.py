"""Headers of .npy files, beside what numpy writes; and by many threads at once."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.npy import npy_header

KINDS = st.sampled_from(["<f2", "<f4", "|u1", ">i8", "<U3"])


def saved(rows: "np.ndarray") -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@given(st.lists(st.integers(0, 5), max_size=4), KINDS, st.booleans())
def test_it_is_what_numpy_wrote(shape: list[int], kind: str, fortran: bool) -> None:
    rows = np.zeros(shape, kind, order="F" if fortran else "C")
    data = saved(rows)
    found = npy_header(data)
    assert (found.dtype, found.shape) == (kind, tuple(shape))
    assert found.fortran == (rows.flags.fnc)
    assert len(data) == found.offset + rows.nbytes


@given(st.data())
def test_what_is_cut_off_or_spoilt_is_none_or_says_otherwise(data: st.DataObject) -> None:
    whole = saved(np.zeros((3, 4), np.float16))
    header = npy_header(whole)
    cut = data.draw(st.integers(0, header.offset - 1))
    with pytest.raises(ValueError, match=r"npy|header"):
        npy_header(whole[:cut])
    place = data.draw(st.integers(0, header.offset - 1))
    spoilt = whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :]
    with suppress(ValueError):
        assert npy_header(spoilt) != header


def test_many_threads_read_headers_at_once() -> None:
    """numpy's own does not bear it in Python 3.11: SystemError, once in some thousands."""
    data = saved(np.zeros((3, 4), np.float16))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(lambda _: npy_header(data), range(4000)))
    finally:
        sys.setswitchinterval(interval)
    assert found == {npy_header(data)}
