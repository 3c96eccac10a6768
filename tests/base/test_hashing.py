"""The stable hash: anchored, delimited, spread evenly."""

import subprocess
import sys
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from base.hashing import stable_hash

parts = st.lists(st.text(max_size=5) | st.integers(), max_size=4)


def test_anchors() -> None:
    data = b"s" + (1).to_bytes(8, "little") + b"a" + b"i" + (2).to_bytes(8, "little") + b"17"
    expected = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
    assert stable_hash("a", 17) == expected


def test_the_same_in_another_process() -> None:
    code = "from base.hashing import stable_hash; print(stable_hash('caption', -5, 'ü'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    assert int(done.stdout) == stable_hash("caption", -5, "ü")


@given(parts, parts)
def test_different_parts_differ(one: list[str | int], two: list[str | int]) -> None:
    same = one == two  # no booleans among the parts, so == tells 1 from "1"
    assert (stable_hash(*one) == stable_hash(*two)) == same
    assert 0 <= stable_hash(*one) < 2**64


def test_delimited() -> None:
    assert len({stable_hash(*p) for p in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", "")]}) == 4
    assert stable_hash(1) != stable_hash("1")


def test_even() -> None:
    counts = [0] * 8
    for index in range(8000):
        counts[stable_hash("seed", index) % 8] += 1
    # Chi-square with 7 degrees of freedom; 24.3 is its 99.9 % point. The draw is fixed.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 24.3
