"""Files of a shard as other programs read them: tarfile, GNU tar, numpy, pyarrow."""

import hashlib
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards import (
    TarWriter,
    read_note,
    ustar_header,
    with_note,
    write_embeddings,
    write_parquet,
)


@settings(max_examples=15)
@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=8))
def test_tarfile_reads_what_was_written_at_the_offsets_told(
    tmp_path_factory: pytest.TempPathFactory, members: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    with TarWriter(path) as tar:
        offsets = [tar.add(f"{i:09d}.jpg", data) for i, data in enumerate(members)]
    raw = path.read_bytes()
    for offset, data in zip(offsets, members, strict=True):
        assert raw[offset : offset + len(data)] == data
    with tarfile.open(path) as opened:
        found = opened.getmembers()
        assert [opened.extractfile(member).read() for member in found] == members
    for member, offset in zip(found, offsets, strict=True):
        assert member.offset_data == offset
        assert member.isreg()
        assert (member.mode, member.mtime, member.uid, member.gid) == (0o644, 0, 0, 0)
        assert (member.uname, member.gname, member.pax_headers) == ("", "", {})
    assert raw.endswith(b"\0" * 1024)
    record = tar.file.record(len(members))
    assert (record.bytes, record.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_headers_are_those_of_the_standard_library() -> None:
    info = tarfile.TarInfo("000012345.json")
    info.size = 987_654
    ours = ustar_header(info.name, info.size)
    assert ours == info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="ustar"):
        ustar_header("x" * 101, 1)
    with pytest.raises(ValueError, match="ustar"):
        ustar_header("x", 8**11)


def test_gnu_tar_lists_it_without_complaint(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "a.tar") as tar:
        tar.add("000000000.txt", b"hello")
    listed = subprocess.run(
        ["tar", "tvf", tmp_path / "a.tar"], capture_output=True, text=True, check=True
    )
    assert "000000000.txt" in listed.stdout
    assert listed.stderr == ""


def test_embeddings_are_npy_one_point_zero(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    record = write_embeddings(tmp_path / "a.npy", np.asfortranarray(rows))
    raw = (tmp_path / "a.npy").read_bytes()
    assert raw[:8] == b"\x93NUMPY\x01\x00"
    assert b"'descr': '<f2', 'fortran_order': False, 'shape': (3, 4)" in raw[:128]
    assert (np.load(tmp_path / "a.npy") == rows).all()
    assert (record.rows, record.bytes) == (3, len(raw))


def test_parquet_has_one_row_group_and_equal_bytes(tmp_path: Path) -> None:
    table = with_note(pa.table({"a": range(5000)}), "clip", {"model": "x"})
    first = write_parquet(tmp_path / "a.parquet", table)
    assert write_parquet(tmp_path / "b.parquet", table) == first
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == 1
        assert read_note(file.schema_arrow, "clip") == {"model": "x"}
        assert file.read()["a"].to_pylist() == list(range(5000))
    empty = write_parquet(tmp_path / "c.parquet", table.slice(0, 0))
    assert empty.rows == 0
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 0
