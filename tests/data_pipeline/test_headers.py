"""Tars are read as the standard library reads honest ones; damage is told, never passed over."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.row import Row
from data_pipeline.sources.headers import Damaged, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def tar_of(files: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def found(data: bytes) -> list[tuple[str, int, int]]:
    return [(m.name, m.offset, m.size) for m in members(io.BytesIO(data), len(data))]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=300)


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_it_sees_what_the_standard_library_sees(files: list[tuple[str, bytes]], kind: int) -> None:
    data = tar_of(files, kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert found(data) == expected
    assert [name for name, _, _ in expected] == [name for name, _ in files]


def test_prefixes_links_and_folders() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special{kind.decode()}")
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            tar.addfile(info)
        info = tarfile.TarInfo("d" * 120 + "/" + "n" * 90 + ".jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    ((name, offset, size),) = found(buffer.getvalue())
    assert (name, size) == (info.name, 3)
    assert buffer.getvalue()[offset : offset + size] == b"abc"


FILES = [(f"{i}.{kind}", bytes([65 + i]) * 700) for i in range(6) for kind in ("jpg", "txt")]


@given(st.data(), st.sampled_from(FORMATS))
def test_damaged_bytes_give_members_or_say_where(data: st.DataObject, kind: int) -> None:
    broken = bytearray(tar_of(FILES, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, 12 * 1536))] = data.draw(st.integers(0, 255))
    raw = bytes(broken[: data.draw(st.integers(0, len(broken)))])
    seen, message = [0], "byte"
    try:
        for member in members(io.BytesIO(raw), len(raw)):
            seen.append(member.offset)
    except Damaged as damage:
        message = str(damage)
    assert seen == sorted(seen)
    assert "byte" in message
    assert "\n" not in message


def rows_of(folder: Path, data: bytes) -> list[Row]:
    (folder / "a.tar").write_bytes(data)
    (source,) = sources.scan([folder / "a.tar"], folder / ".work")
    return list(sources.read(source, 0, source.rows, 1 << 20))


def told(rows: list[Row]) -> list[str | None]:
    return [f"{row.problem.reason}: {row.problem.message}" if row.problem else None for row in rows]


@pytest.mark.parametrize(
    ("place", "with_", "message"),
    [
        (1536 * 6 + 20, b"\xff" * 8, "no header at byte 9216"),
        (1536 * 6, bytes(1536), "its end is at byte 9216, and 11264 bytes follow it"),
        (1536 * 6 + 124, b"\x80" + b"\xff" * 11, "no header at byte 9216"),
    ],
)
def test_what_lies_behind_damage_is_not_passed_over(
    place: int, with_: bytes, message: str, tmp_path: Path
) -> None:
    data = bytearray(tar_of(FILES))
    data[place : place + len(with_)] = with_
    rows = rows_of(tmp_path, bytes(data))
    assert told(rows) == [None] * 3 + [f"broken_source: damaged tar: {message}"]


def header(name: str, **pax: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = 1, pax
    return info.tobuf(tarfile.PAX_FORMAT)


HOSTILE = {
    "a size below nothing": (header("b.jpg", size="-5"), "a size of b'-5' at byte 3072"),
    "a size of a name": (header("b.jpg", size="x"), "a size of b'x' at byte 3072"),
    "a name of megabytes": (
        header("n" * (2 << 20) + ".jpg"),
        "a header of 2097170 bytes at byte 2048",
    ),
    "a header that ends early": (
        header("b.jpg", size="-5")[:700],
        "ends behind a header's first part, at byte 2748",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_end_the_tar_with_a_reason(name: str, tmp_path: Path) -> None:
    more, message = HOSTILE[name]
    good = tar_of([("a.jpg", b"A"), ("a.txt", b"a")])[:2048]
    rows = rows_of(tmp_path, good + more)
    assert [row.captions for row in rows] == [("a",), ()]
    assert message in (told(rows)[1] or "")


def test_a_giant_declared_by_pax_and_what_is_sparse(tmp_path: Path) -> None:
    good = tar_of([("a.jpg", b"A"), ("a.txt", b"a")])[:2048]
    giant = header("b.jpg", size="99999999999999") + bytes(512)
    assert told(rows_of(tmp_path, good + giant)) == [
        None,
        "broken_source: the tar ends inside b.jpg",
    ]
    version = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    sparse = header("b.jpg", **version, **{"GNU.sparse.realsize": str(1 << 40)}) + bytes(512)
    assert told(rows_of(tmp_path, good + sparse + bytes(1024))) == [None]


def test_samples_of_one_name_that_follow_each_other_stay_two(tmp_path: Path) -> None:
    files = [("a.jpg", b"A"), ("a.txt", b"one"), ("a.jpg", b"B"), ("a.txt", b"two")]
    rows = rows_of(tmp_path, tar_of(files))
    assert [(row.image, row.captions) for row in rows] == [(b"A", ("one",)), (b"B", ("two",))]


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"not a tar" * 200, b"\x1f\x8b\x08" * 300])
def test_what_is_no_tar_is_one_clear_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a tar|gunzip|no rows|is empty") as caught:
        rows_of(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_size_below_nothing_leads_nowhere() -> None:
    """Octal text may hold a sign, as int() reads it: the same header would come again for ever."""
    tar = bytearray(tar_of([("a.jpg", b"abc"), ("b.jpg", b"def")]))
    tar[124:136] = b"-0000001000\0"
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    with pytest.raises(Damaged, match="no header at byte 0"):
        next(members(io.BytesIO(tar), len(tar)))
