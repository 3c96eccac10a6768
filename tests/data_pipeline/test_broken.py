"""Damage costs what it spoils: a value its row, a packed table's end one row, a file itself."""

import errno
import gzip
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.row import Row
from data_pipeline.sources import Source

CAP = 1 << 30


def scanned(path: Path, work: Path) -> list[Source]:
    return sources.scan([path], work / ".work")


def rows_of(found: list[Source]) -> list[Row]:
    return [row for source in found for row in sources.read(source, 0, source.rows, CAP)]


def told(row: Row) -> Any:
    return row.captions if row.problem is None else (row.problem.reason, row.problem.message)


def test_values_of_json_lines_are_what_their_column_is_for(tmp_path: Path) -> None:
    values = ["one", ["two", "three"], None, 42, {"en": "x"}, ["four", 5], "a\0b", "\ud800lone", []]
    lines = [json.dumps({"url": "http://h/", "caption": v, "text": v}) for v in values]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert [told(row) for row in rows_of(scanned(tmp_path / "t.jsonl", tmp_path))] == [
        ("one",),
        ("two", "three"),
        (),
        ("bad_row", "caption: got int, expected text"),
        ("bad_row", "caption: got dict, expected text"),
        ("bad_row", "caption: got int, expected text"),
        ("bad_caption", "the caption holds NUL characters"),
        ("bad_caption", "caption: lone surrogates, which UTF-8 cannot hold"),
        (),
    ]


def test_a_path_or_address_that_is_no_text_spoils_its_row(tmp_path: Path) -> None:
    for name in ("path", "url"):
        lines = [json.dumps({name: value, "caption": "c"}) for value in ("x", 5, ["y"])]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
        rows = rows_of(scanned(tmp_path / "t.jsonl", tmp_path))
        assert [told(row) for row in rows[1:]] == [
            ("bad_row", f"{name}: got int, expected text"),
            ("bad_row", f"{name}: got list, expected text"),
        ]


@pytest.mark.parametrize(("name", "head", "line"), [
    ("t.csv.gz", "url,caption\n", "http://h/{},c {}\n"),
    ("t.jsonl.gz", "", '{{"url": "http://h/{}", "caption": "c {}"}}\n'),
])  # fmt: skip
def test_whole_lines_of_a_packed_table_cut_short_are_rows(
    name: str, head: str, line: str, tmp_path: Path
) -> None:
    text = head + "".join(line.format(i, i * 7919) for i in range(20_000))
    data = gzip.compress(text.encode())
    half = data[: len(data) // 2]
    (tmp_path / name).write_bytes(half)
    *rows, last = rows_of(scanned(tmp_path / name, tmp_path))
    whole = zlib.decompressobj(31).decompress(half).count(b"\n") - head.count("\n")
    good = [row.captions for row in rows if row.problem is None]
    assert whole - 5 <= len(good) <= whole + 1
    assert good == [(f"c {i * 7919}",) for i in range(len(good) - 1)] + [good[-1]]
    assert told(last)[0] == "broken_source"


def test_captions_may_be_bytes(tmp_path: Path) -> None:
    table = pa.table({"url": ["u", "v"], "caption": [b"a cat", b"\xff"]})
    pq.write_table(table, tmp_path / "t.parquet")
    first, second = rows_of(scanned(tmp_path / "t.parquet", tmp_path))
    assert first.captions == ("a cat",)
    assert told(second)[0] == "bad_caption"


def write_parts(folder: Path) -> None:
    """Two sound tables and two that are none, in a folder."""
    folder.mkdir()
    for name in ("a", "d"):
        pq.write_table(pa.table({"url": ["u"], "caption": [name]}), folder / f"{name}.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[:100])
    pq.write_table(pa.table({"url": ["u"]}), folder / "c.parquet")


def test_a_folders_file_that_cannot_be_read_is_one_rejected_row(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_parts(folder)
    found = scanned(folder, tmp_path)
    rows = rows_of(found)
    assert [row.captions for row in rows if row.problem is None] == [("a",), ("d",)]
    damaged, lacking = (row for row in rows if row.problem is not None)
    assert (damaged.source_key, told(damaged)[0]) == ("b.parquet", "broken_source")
    assert lacking.source_key == "c.parquet"
    assert told(lacking)[1].startswith("no caption column (one of ")
    notes = [note for source in found for note in source.notes]
    assert [note.partition(".parquet: ")[0][-1] for note in notes] == ["b", "c"]
    before = [source.fingerprint for source in found]
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes())
    after = [source.fingerprint for source in scanned(folder, tmp_path)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_folder_of_nothing_but_such_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_parts(folder)
    for name in ("a", "d"):
        (folder / f"{name}.parquet").unlink()
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        scanned(folder, tmp_path)


def test_a_tar_of_a_folder_that_is_none_is_one_rejected_row(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    (folder / "b.tar").write_bytes(bytes(range(256)) * 40)
    first, second = rows_of(scanned(folder, tmp_path))
    assert first.captions == ("text",)
    assert (second.source_key, told(second)[0]) == ("b.tar", "broken_source")


def test_a_json_column_may_hold_objects(tmp_path: Path) -> None:
    lines = [{"url": "http://h/", "caption": "c", "json": {"score": i}} for i in range(2)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(scanned(tmp_path / "t.jsonl", tmp_path))
    assert [row.problem for row in rows] == [None, None]
    assert [row.extra["score"] for row in rows] == [0, 1]


def test_a_captions_table_is_held_to_its_types_too(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [{"file": f"{i}.jpg", "caption": caption} for i, caption in enumerate(("a", 5))]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(b"x")
    rows = rows_of(scanned(folder, tmp_path))
    assert [row.captions for row in rows if row.problem is None] == [("a",)]
    assert [told(row)[0] for row in rows if row.problem is not None] == ["bad_row"]


def test_a_disk_that_fails_is_no_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    write_parts(folder)
    plain = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "d.parquet":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(UserError, match=r"d\.parquet: Permission denied"):
        scanned(folder, tmp_path)
