"""Rows by where they come from or what they look like: caps for each source, sides of a split."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from base.errors import UserError
from data_pipeline.curate.duplicates import Hashes, Places

NO_VALUE = np.uint64(0)  # of a row without a value: it is under no cap
_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:@\[\]]+)"


def hosts(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Hosts of addresses: small letters, no port, no last dot, no `www.`; null where none is."""
    found = pc.struct_field(pc.extract_regex(pc.utf8_trim_whitespace(urls), _HOST), "host")
    lower = pc.utf8_rtrim(pc.utf8_lower(found), ".")
    return pc.replace_substring_regex(lower, r"^www\.", "")


def value_hashes(values: pa.ChunkedArray) -> Hashes:
    """64 bits of BLAKE2b of each value's text, [n]; NO_VALUE for null."""
    encoded = pc.cast(values, pa.string()).combine_chunks().dictionary_encode()
    table = [_hash(text) for text in encoded.dictionary.to_pylist()]
    known = np.array([*table, NO_VALUE], np.uint64)
    places = pc.fill_null(encoded.indices, len(table)).to_numpy(zero_copy_only=False)
    return np.asarray(known[places], np.uint64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def can_be_capped(kind: pa.DataType) -> bool:
    """Whether the values of a column are such that rows can share one."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind))


def over_cap(sources: Hashes, most: int) -> npt.NDArray[np.bool_]:
    """Which rows, [n] in order of preference, come after the first `most` of their source."""
    order = np.argsort(sources, kind="stable")
    by_source = sources[order]
    first = np.searchsorted(by_source, by_source, side="left")
    over = np.zeros(len(sources), np.bool_)
    over[order] = np.arange(len(sources)) - first >= most
    return np.asarray(over & (sources != NO_VALUE), np.bool_)


def falls_to_val(hashes: Hashes, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Whether a hash is on the validation side, [n]: a function of hash, share and seed alone.

    A row on that side at one share is there at every larger share too.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(hashes ^ _mix(np.full(1, seed, np.uint64)))
    return np.asarray(mixed < np.uint64(min(int(share * 2**64), 2**64 - 1)), np.bool_)


def _mix(value: Hashes) -> Hashes:
    """SplitMix64's step: every bit of the input moves every bit of the output."""
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def hex_words(column: pa.ChunkedArray, words: int, where: str) -> Hashes:
    """The first 64 * `words` bits of hexadecimal text, [words, n].

    Raises:
        UserError: a row is no such text; begins with `where`.
    """
    digits = 16 * words
    text = pc.utf8_slice_codeunits(column, 0, digits).to_pylist()
    try:
        data = bytes.fromhex("".join(text))
    except (ValueError, TypeError):
        data = b""
    if len(data) != 8 * words * len(text) or any(len(value) != digits for value in text):
        raise UserError(f"{where}: rows that are no hash; run `unclip data verify`")
    return np.ascontiguousarray(
        np.frombuffer(data, ">u8").reshape(-1, words).T.astype(np.uint64), np.uint64
    )


def sizes_of_groups(groups: Hashes) -> Places:
    """Rows of each group, the largest first."""
    _, counts = np.unique(groups, return_counts=True)
    return np.sort(counts.astype(np.int64))[::-1]
