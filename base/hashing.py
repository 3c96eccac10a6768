"""A hash that is the same in every process, on every machine, in every version."""

from hashlib import blake2b


def stable_hash(*parts: str | int) -> int:
    """The parts' hash as an integer in [0, 2**64).

    Parts are delimited, and 1 differs from "1", so no two different lists of parts collide by
    construction.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode()
        kind = b"s" if isinstance(part, str) else b"i"
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")
