"""Webdataset tars: adjacent members that share a key, split at the name's first dot."""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from base.errors import UserError
from base.places import Part, Place, parts_of, place
from base.stores import StorePath
from data_pipeline import columns
from data_pipeline.row import Rejection, Row
from data_pipeline.sources.files import store_tag
from data_pipeline.sources.headers import Damaged, members
from data_pipeline.sources.source import (
    Source,
    as_text,
    clean_captions,
    parse_sidecar,
    table_rows,
    take_captions,
    without_captions,
    write_listing,
)

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")
_TEXTS = ("txt", "caption", "text")
_MEMBERS = pa.list_(
    pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
)
_SMALL = 16 << 20  # more than any honest caption or json
_HEADERS = 1 << 20  # read at once from a store: what one request's wait is worth


@dataclass
class _Sample:
    key: str
    members: list[dict[str, Any]] = field(default_factory=list)
    broken: str | None = None

    def takes(self, key: str, extension: str) -> bool:
        """Whether a member is of this sample: a second one of its kind begins another."""
        return key == self.key and all(extension != member["name"] for member in self.members)


def scan(path: Place, name: str, listing: Place) -> Source:
    """Indexes a tar by its headers; pictures are skipped over.

    Raises:
        UserError: it is no tar, or a compressed one.
    """
    with parts_of(path, _HEADERS) as part:
        if part(0, 2) == b"\x1f\x8b":
            raise UserError(f"{path}: a compressed tar cannot be read in part; gunzip it first")
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {store_tag(path)}".encode())
    types = columns.Types()
    samples = _index(path, status.st_size, digest.update, types)
    table = pa.table(
        {
            "key": pa.array([sample.key for sample in samples], pa.string()),
            "members": pa.array([sample.members for sample in samples], _MEMBERS),
            "broken": pa.array([sample.broken for sample in samples], pa.string()),
        }
    )
    for batch in table.to_batches():
        digest.update(batch.serialize())
    return Source(
        kind="tar",
        name=name,
        path=str(path.absolute()),
        rows=len(samples),
        fingerprint=digest.hexdigest(),
        table=write_listing(listing, table.schema, table.to_batches()),
        extra=types.schema(),
    )


def _index(
    path: Place, size: int, tell: Callable[[bytes], None], types: columns.Types
) -> list[_Sample]:
    """All samples by header; a damaged end becomes a last sample that says so.

    What texts and sidecars hold is told as well, and of which types that is: they lie beside the
    headers.
    """
    if size == 0:
        raise UserError(f"{path}: is empty")
    samples: list[_Sample] = []
    try:
        with _opened(path) as file:
            for member in members(file, size):
                key, extension = _split(member.name)
                if not extension:
                    continue
                if not samples or not samples[-1].takes(key, extension):
                    samples.append(_Sample(key))
                samples[-1].members.append(
                    {"name": extension, "offset": member.offset, "size": member.size}
                )
                if extension in (*_TEXTS, "json") and member.size <= _SMALL:
                    file.seek(member.offset)
                    data = file.read(member.size)
                    tell(data)
                    if extension == "json":
                        _add_types(types, data)
                if member.offset + member.size > size:
                    samples[-1].broken = f"the tar ends inside {member.name}"
    except Damaged as error:
        if not samples:
            raise UserError(f"{path}: not a tar ({error})") from error
        if samples[-1].broken is None:
            samples.append(_Sample(f"{path.name}:{len(samples)}", broken=f"damaged tar: {error}"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return samples


def _opened(path: Place) -> io.BufferedIOBase:
    return path.open(ahead=_HEADERS) if isinstance(path, StorePath) else path.open("rb")


def _split(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _add_types(types: columns.Types, data: bytes) -> None:
    try:
        types.add(without_captions(parse_sidecar(data, "json")))
    except Rejection:  # its row will say so
        return


def _member(
    part: Part, members: list[dict[str, Any]], wanted: tuple[str, ...], cap: int
) -> bytes | None:
    for name in wanted:
        for member in members:
            if member["name"] != name:
                continue
            if member["size"] > cap:
                raise Rejection("too_many_bytes", f".{name} has {member['size']} bytes")
            data = part(member["offset"], member["size"])
            if len(data) != member["size"]:
                raise Rejection("broken_source", f"the tar ends inside .{name}")
            return data
    return None


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """Samples of a tar, in order."""
    with parts_of(place(source.path)) as part:
        for batch in table_rows(source.table, first, count):
            for row in batch.to_pylist():
                yield _row(part, row, max_bytes)


def _row(part: Part, row: dict[str, Any], max_bytes: int) -> Row:
    key, members = row["key"], row["members"]
    try:
        if row["broken"]:
            raise Rejection("broken_source", row["broken"])
        image = _member(part, members, _PICTURES, max_bytes)
        if image is None:
            names = ", ".join(f".{member['name']}" for member in members)
            raise Rejection("no_image", f"the sample has no picture, only {names}")
        text = _member(part, members, _TEXTS, _SMALL)
        data = _member(part, members, ("json",), _SMALL)
        extra = parse_sidecar(data, f"{key}.json") if data else {}
        captions: list[Any] = [] if text is None else [as_text(text)]
        captions += take_captions(extra)
        url = extra.pop("url", None)
        return Row(key, image, clean_captions(captions), _url(url), extra)
    except Rejection as problem:
        return Row(key, problem=problem)


def _url(value: Any) -> str | None:
    return value if isinstance(value, str) else None
