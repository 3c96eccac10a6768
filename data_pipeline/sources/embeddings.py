"""Published embeddings without pictures: npy files of rows, with a parquet of captions for each.

As LAION gave them out: img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet,
or all of them in one folder. Files belong together by the number that ends their names, padded or
not. Only the blocks that are asked for are read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from base.errors import UserError
from base.places import Place, children, place
from data_pipeline.config import ColumnsConfig
from data_pipeline.parquet import open_parquet, read_schema
from data_pipeline.row import Rejection, Row
from data_pipeline.sources.files import edges
from data_pipeline.sources.roles import Roles, expected_hashes, find_roles, other_columns
from data_pipeline.sources.source import Source, Vectors, clean_captions, table_rows
from data_pipeline.sources.tables import listed, parquet_fingerprint, values

SUFFIX = ".npy"
_IMAGES, _TEXTS, _METADATA = "img_emb", "text_emb", "metadata"
_NUMBER = re.compile(r"(\d+)$")
_EDGE = 1 << 16  # bytes from either end of a file that its fingerprint looks at
_KINDS = ("float16", "float32")
Rows = npt.NDArray[np.float32]  # [n, D]


@dataclass(frozen=True)
class _Array:
    """An npy file's header."""

    path: Place
    rows: int
    dim: int
    dtype: np.dtype[Any]
    begin: int  # where the rows begin


def members(folder: Place) -> list[Place]:
    """The folder's files of image embeddings by their numbers; none: it holds no embeddings.

    Raises:
        UserError: two files have one number.
    """
    nested = folder / _IMAGES
    where = nested if nested.is_dir() else folder
    found = [path for path in children(where) if _is_one(path, where == nested)]
    by_number: dict[int, Place] = {}
    for path in found:
        other = by_number.setdefault(_number(path), path)
        if other != path:
            raise UserError(f"{path}: has the number of {other.name}")
    return [by_number[number] for number in sorted(by_number)]


def _is_one(path: Place, nested: bool) -> bool:
    if path.name.startswith(".") or path.suffix != SUFFIX:
        return False
    return nested or path.name.startswith(_IMAGES)


def _number(path: Place) -> int:
    match = _NUMBER.search(path.stem)
    return int(match[1]) if match else -1


def scan(path: Place, name: str, named: ColumnsConfig) -> Source:
    """Looks at one file of image embeddings and what belongs to it.

    Raises:
        UserError: a file is missing, is no npy of float rows, or holds another number of rows.
    """
    metadata = _beside(path, _METADATA, ".parquet")
    if metadata is None:
        raise UserError(f"{path}: no {_METADATA} with its number ({_METADATA}_*.parquet)")
    texts = _beside(path, _TEXTS, SUFFIX)
    try:
        with open_parquet(metadata) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{metadata}: cannot be read ({' '.join(str(error).split())})") from error
    arrays = [_header(file) for file in (path, texts) if file is not None]
    for array in arrays:
        if array.rows != rows:
            raise UserError(f"{array.path}: got {array.rows} rows, expected {rows} as {metadata}")
        if array.dim != arrays[0].dim:
            raise UserError(f"{array.path}: got rows of {array.dim}, expected {arrays[0].dim}")
    digest = hashlib.sha256(parquet_fingerprint(metadata).encode())
    for array in arrays:
        digest.update(edges(array.path, _EDGE))
    roles = _roles(schema, str(metadata), named)
    return Source(
        kind="embeddings",
        name=name,
        path=str(path.absolute()),
        rows=rows,
        fingerprint=digest.hexdigest(),
        table=str(metadata.absolute()),
        extra=other_columns(schema, roles),
        columns=named,
        vectors=Vectors(arrays[0].dim, str(texts.absolute()) if texts else None),
    )


def _beside(path: Place, kind: str, suffix: str) -> Place | None:
    """The file of another kind with the same number."""
    nested = path.parent.name == _IMAGES
    where = path.parent.parent / kind if nested else path.parent
    alike = where / f"{path.stem.replace(_IMAGES, kind)}{suffix}"
    if alike.is_file():
        return alike
    found = (p for p in children(where) if p.suffix == suffix and _number(p) == _number(path))
    return next((p for p in found if nested or p.name.startswith(kind)), None)


def _header(path: Place) -> _Array:
    """Raises UserError when the file is no whole npy of float rows; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise UserError(f"{path}: got npy version {version}, expected 1.0 or 2.0")
            shape, fortran, dtype = read(file)
            begin, size = file.tell(), file.seek(0, os.SEEK_END)
    except UserError:
        raise
    except Exception as error:  # numpy parses a header as Python, which raises what it likes
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if len(shape) != 2 or dtype.newbyteorder("=").name not in _KINDS or (fortran and shape[0] > 1):
        order = "Fortran" if fortran else "C"
        raise UserError(
            f"{path}: got {dtype} {shape} in {order} order, expected float16 or float32 [n, D] in C"
        )
    expected = begin + shape[0] * shape[1] * dtype.itemsize
    if size != expected:
        raise UserError(f"{path}: got {size} bytes, expected {expected} for {shape} of {dtype}")
    return _Array(path, shape[0], shape[1], dtype, begin)


def read_vectors(source: Source, first: int, count: int) -> tuple[Rows, Rows | None]:
    """Rows first … first + count - 1 of pictures and of captions, float32 [n, D] each.

    Raises:
        UserError: a file is not what it was when it was planned.
    """
    assert source.vectors is not None, "only sources of embeddings have them"
    texts = source.vectors.texts
    image = _block(_header(place(source.path)), first, count)
    return image, _block(_header(place(texts)), first, count) if texts else None


def _block(array: _Array, first: int, count: int) -> Rows:
    wanted = count * array.dim * array.dtype.itemsize
    with array.path.open("rb") as file:
        file.seek(array.begin + first * array.dim * array.dtype.itemsize)
        data = file.read(wanted)
    if len(data) != wanted:
        raise UserError(f"{array.path}: ends early; it was longer when it was planned")
    return np.frombuffer(data, array.dtype).reshape(count, array.dim).astype(np.float32)


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """What metadata says of each row; `image` is empty. Rows of a damaged part say so."""
    schema = read_schema(source.table)
    roles = _roles(schema, source.table, source.columns)
    position = first
    try:
        for batch in table_rows(source.table, first, count, batch=1024):
            lists = {name: values(batch, name) for name in schema.names}
            for i in range(batch.num_rows):
                yield _row(roles, {name: column[i] for name, column in lists.items()}, position)
                position += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        told = f"damaged metadata: {error}"
        for number in range(position, first + count):
            yield Row(str(number), problem=Rejection("broken_source", told))


def _roles(schema: pa.Schema, where: str, named: ColumnsConfig) -> Roles:
    """Captions, address, key and hashes; a path leads to nothing that is here."""
    found = find_roles(schema, where, picture=False, named=named)
    return Roles(found.captions, None, None, found.url, found.key, None, found.hashes)


def _row(roles: Roles, row: Mapping[str, Any], position: int) -> Row:
    key = row[roles.key] if roles.key else None
    key = position if key is None else key
    key = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    url = row[roles.url] if roles.url else None
    url = url.decode("utf-8", "replace") if isinstance(url, bytes) else url
    try:
        captions = clean_captions([item for n in roles.captions for item in listed(row[n])])
        extra = {name: value for name, value in row.items() if name not in roles.consumed}
        return Row(key, b"", captions, url, extra, expected=expected_hashes(roles, row))
    except Rejection as problem:
        return Row(key, url=url, problem=problem)
