"""Folders as img2dataset 1.47 leaves them, in each of its forms, are inputs as they are."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.row import Row

ERROR = "HTTP Error 404: File not found"
SCHEMA = pa.schema(
    [
        ("score", pa.float64()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)


def account(number: int) -> dict[str, Any]:
    """What it notes of a row; the third of each shard has failed."""
    row = {
        "score": number / 10,
        "caption": f"caption {number}",
        "url": f"http://host/{number}.jpg",
        "key": f"{number:09d}",
    }
    if number % 10 == 2:
        nothing = dict.fromkeys(SCHEMA.names[6:])
        return {**row, "status": "failed_to_download", "error_message": ERROR, **nothing}
    size = {"width": 64, "height": 64, "original_width": 120, "original_height": 80}
    done = {"status": "success", "error_message": None}
    return {**row, **done, **size, "exif": "{}", "sha256": f"{number:064x}"}


def write(folder: Path, form: str) -> Path:
    """Two shards of three rows, in the order in which their pictures came."""
    folder.mkdir()
    for shard in range(2):
        rows = [account(10 * shard + i) for i in (1, 2, 0)]
        there = [row for row in rows if row["status"] == "success"]
        if form == "parquet":
            pictures = [picture(row) if row in there else None for row in rows]
            table = pa.Table.from_pylist(rows, SCHEMA).append_column("jpg", pa.array(pictures))
        else:
            table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 2}')
        members = {
            f"{row['key']}.{suffix}": data
            for row in there
            for suffix, data in (
                ("jpg", picture(row)),
                ("json", json.dumps(row, indent=4).encode()),
                ("txt", row["caption"].encode()),
            )
        }
        if form == "webdataset":
            write_tar(folder / f"{shard:05d}.tar", members)
        elif form == "files":
            (folder / f"{shard:05d}").mkdir()
            for name, data in members.items():
                (folder / f"{shard:05d}" / name).write_bytes(data)
        elif form == "tfrecord":
            (folder / f"{shard:05d}.tfrecord").write_bytes(b"\x10\0\0\0\0\0\0\0")
    return folder


def picture(row: dict[str, Any]) -> bytes:
    return b"picture of " + row["url"].encode()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:  # with PAX headers for the time, as webdataset writes them
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))


def scanned(tmp_path: Path, *inputs: Path) -> tuple[list[sources.Source], list[Row]]:
    found = sources.scan(list(inputs), tmp_path / ".work")
    return found, [row for s in found for row in sources.read(s, 0, s.rows, 1 << 20)]


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_its_forms_give_the_same_pairs_with_what_it_notes(form: str, tmp_path: Path) -> None:
    _, rows = scanned(tmp_path, write(tmp_path / "in", form))
    kept = sorted((row for row in rows if row.problem is None), key=lambda row: row.url or "")
    expected = [account(number) for number in (0, 1, 10, 11)]
    assert [row.url for row in kept] == [note["url"] for note in expected]
    assert [row.image for row in kept] == [picture(note) for note in expected]
    assert [row.captions for row in kept] == [(note["caption"],) for note in expected]
    for row, note in zip(kept, expected, strict=True):
        assert dict(row.extra) == {k: v for k, v in note.items() if k not in ("caption", "url")}
        assert note["key"] in row.source_key


def test_what_it_could_not_fetch_says_why(tmp_path: Path) -> None:
    _, rows = scanned(tmp_path, write(tmp_path / "in", "parquet"))
    told = [(r.source_key, r.problem.reason, r.problem.message) for r in rows if r.problem]
    message = f"img2dataset: failed_to_download: {ERROR}"
    assert told == [("000000002", "no_image", message), ("000000012", "no_image", message)]


def test_its_order_is_kept_and_its_records_are_told_of(tmp_path: Path) -> None:
    found, rows = scanned(tmp_path, write(tmp_path / "tars", "webdataset"))
    assert [source.kind for source in found] == ["tar", "tar"]
    assert [row.source_key for row in rows] == [
        "000000001", "000000000", "000000011", "000000010",
    ]  # fmt: skip
    (source,), _ = scanned(tmp_path, write(tmp_path / "files", "files"))
    assert source.kind == "pairs"
    (note,) = source.notes
    assert note.endswith("passed over, img2dataset's records of the pairs: 2")


def test_other_tables_beside_pairs_are_still_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "files")
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), folder / "more.parquet")
    with pytest.raises(UserError, match=r"holds both 00000\.parquet and pairs"):
        scanned(tmp_path, folder)


def test_its_table_alone_is_one_of_addresses(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "files")
    _, rows = scanned(tmp_path, folder / "00000.parquet")
    assert [row.image for row in rows] == [None] * 3
    assert rows[0].expected == {"sha256": f"{1:064x}"}


@pytest.mark.parametrize("name", ["", "00000.tfrecord"])
def test_tfrecords_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "tfrecord")
    with pytest.raises(UserError, match="tfrecords are not read; expected") as caught:
        scanned(tmp_path, folder / name)
    assert "\n" not in str(caught.value)
