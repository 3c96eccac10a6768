"""A folder of pairs: pictures with a same-named .txt or an entry in the folder's captions table."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from base.ahead import map_ahead
from base.errors import NothingUsable, UserError
from base.places import Place, place
from base.stores import Stat, StorePath
from data_pipeline import columns
from data_pipeline.config import ColumnsConfig
from data_pipeline.row import Rejection, Row
from data_pipeline.sources import img2dataset
from data_pipeline.sources.files import read_file
from data_pipeline.sources.roles import Roles, find_roles, other_columns
from data_pipeline.sources.source import (
    READS,
    Source,
    ahead,
    clean_captions,
    parse_sidecar,
    table_rows,
    take_captions,
    without_captions,
    write_listing,
)
from data_pipeline.sources.tables import SUFFIXES, as_values, load_table, values
from data_pipeline.sources.texts import BAD

TABLES = tuple(f"captions{suffix}" for suffix in SUFFIXES)
_COLUMN = "column:"  # before a listing's columns that came from the captions table
_SMALL = 16 << 20  # bytes of a text or sidecar
_AT_ONCE = 500  # pairs whose texts one thread reads
_LIST = pa.list_(pa.binary())  # text of unknown honesty: workers decode it and say which is bad


@dataclass
class _Captions:
    """The folder's captions table: by path, which row comes first and all captions."""

    table: pa.Table | None = None
    roles: Roles | None = None
    first: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list[bytes]] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)  # of its lines that are none: what is wrong


def scan(folder: Place, name: str, listing: Place, named: ColumnsConfig) -> Source:
    """Lists the folder's pairs, sorted by the bytes of their relative paths.

    `named` are columns of its captions table.

    Raises:
        NothingUsable: the folder is empty, or nothing in it has a caption.
        UserError: the captions table cannot be read.
    """
    files, linked = _walk(folder)
    if not files:
        raise NothingUsable(f"{folder}: the folder is empty")
    captions = _load_captions(folder, named)
    texts, sidecars = _by_stem(files, ".txt"), _by_stem(files, ".json")
    pictures = _pictures(files, texts, captions)
    if not pictures:
        raise NothingUsable(
            f"{folder}: no file has a caption (a same-named .txt, or an entry in "
            f"{' or '.join(TABLES[:2])})"
        )
    table = _listing(pictures, texts, sidecars, captions)
    extra = _extra(folder, table, captions)
    known = set(pictures)
    left_out = len(files) - len(texts) - len(pictures) - sum(path in files for path in TABLES)
    left_out -= sum(path not in known for path in sidecars.values())
    records = img2dataset.records(folder)
    left_out -= sum(record not in TABLES for record in records)
    notes = [f"{name}: files without a caption, left out: {left_out}"] if left_out > 0 else []
    if records:
        notes.append(f"{name}: passed over, img2dataset's records of the pairs: {len(records)}")
    if linked:
        told = f"{linked[0]}, …" if len(linked) > 1 else linked[0]
        notes.append(f"{name}: folders behind links, passed over: {told} ({len(linked)})")
    return Source(
        kind="pairs",
        name=name,
        path=str(folder.absolute()),
        rows=len(pictures),
        fingerprint=_fingerprint(folder, files, table, captions),
        table=write_listing(listing, table.schema, table.to_batches()),
        extra=extra,
        notes=tuple(notes),
    )


def first_pair(folder: Place) -> str | None:
    """The .txt of some pair below a folder, if there is one."""
    files, _ = _walk(folder)
    texts, beside = _by_stem(files, ".txt"), (".txt", ".json")
    stems = {posixpath.splitext(p)[0] for p in files if not p.lower().endswith(beside)}
    return min((texts[stem] for stem in stems if stem in texts), default=None)


def _by_stem(files: Collection[str], suffix: str) -> dict[str, str]:
    """The files with a suffix, by what is before it; of a.TXT and a.txt the second."""
    return {posixpath.splitext(p)[0]: p for p in sorted(files) if p.lower().endswith(suffix)}


def _walk(folder: Place) -> tuple[dict[str, Stat | None], list[str]]:
    """Relative paths of all files, hidden ones left out, with what a store's list says of them.

    And those of folders behind links, which are not entered: they may lead back.
    """
    if isinstance(folder, StorePath):
        inside = len(f"{folder}/")
        found_there = {str(path)[inside:]: path.stat() for path in folder.rglob()}
        shown: dict[str, Stat | None] = {
            path: stat
            for path, stat in found_there.items()
            if not any(part.startswith(".") for part in path.split("/"))
        }
        return shown, []
    found: set[str] = set()
    linked: list[str] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from error

    for top, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(top).relative_to(folder).as_posix()
        start = "" if place == "." else place + "/"
        found.update(start + name for name in names if not name.startswith("."))
        linked += [start + name for name in folders if os.path.islink(os.path.join(top, name))]
    return dict.fromkeys(found), sorted(linked)


def _load_captions(folder: Place, named: ColumnsConfig) -> _Captions:
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return _Captions()
    table = load_table(path, named)
    roles = find_roles(table.schema, str(path), picture=False, named=named)
    if roles.path is None:
        raise UserError(f"{path}: no column with the files' names (such as `file`)")
    captions = _Captions(table, roles)
    paths = as_values(table[roles.path])
    lists = [_as_bytes(as_values(table[name])) for name in roles.captions]
    wrong = table[BAD].to_pylist() if BAD in table.schema.names else []
    captions.bad = {f"{path.name}: row {i}": told for i, told in enumerate(wrong) if told}
    for i, path_ in enumerate(paths):
        if wrong and wrong[i]:
            continue
        path_ = os.fsdecode(path_) if isinstance(path_, bytes) else path_
        key = posixpath.normpath(path_) if path_ else ""
        captions.first.setdefault(key, i)
        texts = captions.texts.setdefault(key, [])
        for column in lists:
            value = column[i]
            texts += value if isinstance(value, list) else [value]
    return captions


def _as_bytes(found: list[Any]) -> list[Any]:
    """Captions, or lists of them, as the bytes that they are."""
    return [_as_bytes(item) if isinstance(item, list) else _encoded(item) for item in found]


def _encoded(text: Any) -> Any:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _pictures(files: Collection[str], texts: Mapping[str, str], captions: _Captions) -> list[str]:
    """Files with a caption, and entries of the table whether their file exists or not."""
    found = {*captions.first, *captions.bad}
    stems: dict[str, list[str]] = {}
    for path in files:
        stem, suffix = posixpath.splitext(path)
        if suffix.lower() != ".txt" and path not in TABLES and stem in texts:
            stems.setdefault(stem, []).append(path)
    for paths in stems.values():
        # A .json beside a picture belongs to the picture; alone with a .txt it is a row like any.
        beside = [path for path in paths if not path.lower().endswith(".json")]
        found.update(beside or paths)
    return sorted(found, key=os.fsencode)


def _listing(
    pictures: list[str],
    texts: Mapping[str, str],
    sidecars: Mapping[str, str],
    captions: _Captions,
) -> pa.Table:
    stems = [posixpath.splitext(path)[0] for path in pictures]
    table = {
        "file": pa.array([os.fsencode(path) for path in pictures], pa.binary()),
        "txt": pa.array([_name(texts.get(stem)) for stem in stems], pa.binary()),
        "json": pa.array(
            [
                None if path == sidecars.get(stem) else _name(sidecars.get(stem))
                for stem, path in zip(stems, pictures, strict=True)
            ],
            pa.binary(),
        ),
        "captions": pa.array([captions.texts.get(path) for path in pictures], _LIST),
    }
    if captions.bad:
        table["bad"] = pa.array([captions.bad.get(path) for path in pictures], pa.string())
    if captions.table is not None and captions.roles is not None:
        rows = pa.array([captions.first.get(path) for path in pictures], pa.int64())
        for column in other_columns(captions.table.schema, captions.roles):
            table[_COLUMN + column.name] = captions.table[column.name].take(rows)
        if captions.roles.url:
            table["url"] = captions.table[captions.roles.url].take(rows)
    return pa.table(table)


def _name(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _fingerprint(
    folder: Place, files: Mapping[str, Stat | None], table: pa.Table, captions: _Captions
) -> str:
    """Hash of what the texts, sidecars and captions table hold, and of the pictures' sizes."""
    names = [table[name].to_pylist() for name in ("file", "txt", "json")]
    rows = list(zip(*names, strict=True))
    parts = [rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE)]
    digest = hashlib.sha256()
    for told in map_ahead(partial(_told, folder, files), parts, READS):
        digest.update(told)
    if captions.table is not None:
        for batch in table.drop_columns(["file", "txt", "json"]).to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _told(
    folder: Place,
    files: Mapping[str, Stat | None],
    rows: Iterable[tuple[bytes, bytes | None, bytes | None]],
) -> bytes:
    """Hash of some pairs: their names, the pictures' sizes, and what lies beside them."""
    digest = hashlib.sha256()
    for path, *beside in rows:
        contents = [None if name is None else _content(folder, files, name) for name in beside]
        digest.update(repr((path, _size(folder, files, path), contents)).encode())
    return digest.digest()


def _size(folder: Place, files: Mapping[str, Stat | None], path: bytes) -> tuple[int, str]:
    """A picture's size, and a store's tag of its content; -1 where there is none."""
    if isinstance(folder, StorePath):
        known = files.get(os.fsdecode(path))
        return (-1, "") if known is None else (known.st_size, known.tag)
    try:
        return os.stat(os.path.join(os.fsencode(folder), path)).st_size, ""
    except OSError:
        return -1, ""


def _content(folder: Place, files: Mapping[str, Stat | None], path: bytes) -> str:
    """A store's tag of a small file, or else the hash of what it holds, or why it has none."""
    name = os.fsdecode(path)
    known = files.get(name)
    if known is not None and known.tag:
        return known.tag
    try:
        return hashlib.sha256(read_file(folder / name, name, _SMALL)).hexdigest()
    except Rejection as problem:
        return repr(problem.args)


def _extra(folder: Place, table: pa.Table, captions: _Captions) -> pa.Schema:
    known = (
        []
        if captions.table is None
        else [
            field.with_name(field.name.removeprefix(_COLUMN))
            for field in table.schema
            if field.name.startswith(_COLUMN)
        ]
    )
    names = table["json"].to_pylist()
    threads = READS if isinstance(folder, StorePath) else 1
    objects = map_ahead(partial(_keys, folder), names, threads)
    return columns.union([pa.schema(known), columns.infer(objects)])


def _keys(folder: Place, name: bytes | None) -> dict[str, Any]:
    """What becomes columns of a picture's .json; nothing of one that cannot be read."""
    try:
        return without_captions(_sidecar(folder, name))
    except Rejection:
        return {}


def _sidecar(folder: Place, name: bytes | None) -> dict[str, Any]:
    if name is None:
        return {}
    path = folder / os.fsdecode(name)
    return parse_sidecar(read_file(path, path.name, _SMALL), path.name)


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """Rows of a folder, in order."""
    for batch in table_rows(source.table, first, count):
        lists = {name: values(batch, name) for name in batch.schema.names}
        rows = [{n: column[i] for n, column in lists.items()} for i in range(batch.num_rows)]
        in_store = isinstance(place(source.path), StorePath)
        yield from ahead(partial(_row, source), rows, max_bytes, in_store)


def _row(source: Source, row: dict[str, Any], max_bytes: int) -> Row:
    path = os.fsdecode(row["file"])
    key = row["file"].decode("utf-8", "replace")
    url = row.get("url")
    url = url.decode("utf-8", "replace") if isinstance(url, bytes) else url
    try:
        if row.get("bad"):
            raise Rejection("bad_row", row["bad"])
        _check_inside(path)
        folder = place(source.path)
        extra = {n.removeprefix(_COLUMN): v for n, v in row.items() if n.startswith(_COLUMN)}
        sidecar = _sidecar(folder, row["json"])
        texts: list[Any] = [*_lines(folder, row["txt"]), *(row["captions"] or [])]
        texts += take_captions(sidecar)
        extra |= sidecar
        found_url = extra.pop("url", None)
        return Row(
            source_key=key,
            image=read_file(folder / path, key, max_bytes),
            captions=clean_captions(texts),
            url=url if url is not None else found_url,
            extra=extra,
        )
    except Rejection as problem:
        return Row(key, url=url, problem=problem)


def _check_inside(path: str) -> None:
    if not path or path.startswith(("/", "../")) or path == ".." or "\0" in path:
        raise Rejection("bad_path", f"{path!r}: not a path inside the folder")


def _lines(folder: Place, text: bytes | None) -> Iterable[bytes]:
    """The .txt's lines, each a caption of its own."""
    if text is None:
        return ()
    path = os.fsdecode(text)
    data = read_file(folder / path, path, _SMALL)
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n").split(b"\n")
