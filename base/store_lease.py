"""A lease as an object in a store, which knows no locks but may know conditions.

S3 puts an object on condition that there is none, or that it is still the one that was read; so of
two who want the lease at the same moment one is refused. A store without such conditions shows
who wrote last, which leaves a window of the two requests' length.
"""

from __future__ import annotations

from contextlib import suppress

from base.owner import Owner
from base.stores import StorePath, impatient


class StoreRecord:
    """The lease object."""

    def __init__(self, path: StorePath) -> None:
        self._path = path

    def take(self, owner: Owner) -> Owner | None:
        """Names `owner` in the lease, or gives the one who does not give way.

        Raises:
            StoreError: the store cannot be written to; it is told at once.
        """
        with impatient():
            other, condition = self._read()
            if other is not None and not other.gives_way_to(owner):
                return other
            with suppress(FileExistsError, FileNotFoundError):  # somebody else was quicker
                self._path.write_bytes(owner.to_bytes(), **condition)
            now, _ = self._read()
            return None if now is None or now.token == owner.token else now

    def renew(self, owner: Owner) -> bool:
        """Writes the owner's new time, if the lease is still its own."""
        with impatient():  # there is a next time
            other, condition = self._read()
            mine = other is not None and other.token == owner.token
            if mine:
                self._path.write_bytes(owner.to_bytes(), **condition)
        return mine

    def drop(self, owner: Owner) -> None:
        """Removes the lease, if it is the owner's."""
        with impatient():
            other, _ = self._read()
            if other is not None and other.token == owner.token:
                self._path.unlink()

    def _read(self) -> tuple[Owner | None, dict[str, str]]:
        """The owner that the lease names, and the condition that nobody changed it since."""
        try:
            tag = self._path.stat().tag  # before the content: one that changes between is refused
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None, {"mode": "create"}
        matched = {"IfMatch": tag} if self._path.scheme == "s3" and tag else {}
        return Owner.from_bytes(data), matched
