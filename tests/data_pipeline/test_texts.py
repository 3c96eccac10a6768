"""Tables of text: packed or not, in blocks, one bad line a bad row."""

import gzip
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.row import Row
from data_pipeline.sources import texts

RECORDS = [
    {"file": "a.png", "caption": "one, quoted", "n": 1, "score": 0.5},
    {"file": "b.png", "caption": 'two "words"\nin two lines', "n": 2, "score": 1},
    {"file": "gone.png", "caption": "three", "n": 3, "score": -2.25},
]


def as_csv(separator: str) -> bytes:
    names = list(RECORDS[0])
    lines = [separator.join(names)]
    for record in RECORDS:
        cells = [str(record[name]).replace('"', '""') for name in names]
        lines.append(separator.join(f'"{cell}"' if '"' in cell or "," in cell or "\n" in cell
                                    else cell for cell in cells))  # fmt: skip
    return "\n".join(lines).encode()


CONTENT = {
    ".csv": as_csv(","),
    ".tsv": as_csv("\t"),
    ".jsonl": b"".join(json.dumps(record).encode() + b"\n\n" for record in RECORDS),
}


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return pa.compress(data, "zstd", asbytes=True) if suffix == ".zst" else data


def rows_of(tmp_path: Path, *inputs: Path) -> list[Row]:
    found = sources.scan(list(inputs), tmp_path / ".work")
    return [row for s in found for row in sources.read(s, 0, s.rows, 1 << 20)]


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_every_kind_packed_or_not(kind: str, pack: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(name.encode())
    (folder / f"table{kind}{pack}").write_bytes(packed(CONTENT[kind], pack))
    for given_ in (folder, folder / f"table{kind}{pack}"):
        rows = rows_of(tmp_path, given_)
        assert [row.captions for row in rows[:2]] == [(str(r["caption"]),) for r in RECORDS[:2]]
        assert [row.image for row in rows[:2]] == [b"a", b"b"]
        assert rows[2].problem is not None
        assert rows[2].problem.reason == "missing_file"
        assert rows[1].extra == {"n": 2, "score": 1.0}


def test_a_folder_of_tables_is_taken_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, pack in enumerate((".zst", "", ".gz")):
        line = json.dumps({"url": f"http://host/{i}", "TEXT": f"t{i}"}).encode()
        (folder / f"{i}.jsonl{pack}").write_bytes(packed(line, pack))
    assert [row.captions for row in rows_of(tmp_path, folder)] == [("t0",), ("t1",), ("t2",)]


def test_tables_beside_pairs_are_notes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"P")
    (tmp_path / "a.txt").write_text("a pair")
    (tmp_path / "notes.csv").write_text("x,y\n1,2\n")
    assert [row.captions for row in rows_of(tmp_path, tmp_path)] == [("a pair",)]


BAD_LINES = ["{", "[1]", "5", '"text"', "nonsense", "\\", "[" * 5000]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_a_bad_row(bad: str, tmp_path: Path) -> None:
    good = json.dumps({"url": "http://host/x", "caption": "fine"})
    (tmp_path / "t.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
    rows = rows_of(tmp_path, tmp_path / "t.jsonl")
    assert [row.problem.reason if row.problem else None for row in rows] == [None, "bad_row", None]
    assert [row.captions for row in rows if not row.problem] == [("fine",)] * 2
    assert rows[0].extra == {}


def test_values_of_several_types_and_lists(tmp_path: Path) -> None:
    lines = [
        {"url": "u", "captions": ["a", "b"], "n": 1, "tags": ["x"], "odd": 1},
        {"url": "v", "captions": ["c"], "n": 2.5, "tags": None, "odd": "text"},
        {"url": "w", "captions": None, "n": None, "late": True},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(tmp_path, tmp_path / "t.jsonl")
    assert [row.captions for row in rows] == [("a", "b"), ("c",), ()]
    assert rows[0].extra == {"n": 1.0, "tags": ["x"], "odd": "1", "late": None}
    assert rows[2].extra == {"n": None, "tags": None, "odd": None, "late": True}


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_one_clear_line(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "t.jsonl"
        path.write_bytes(b'{"url": "u", "caption": "c"}\n' + data)
        rows = rows_of(Path(name), path)
        assert rows[0].captions == ("c",)
        lines = [line for line in data.split(b"\n") if line.strip()]
        assert len(rows) == 1 + len(lines)


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}{kind}"
        with path.open("w") as file:
            file.write("url,caption\n" if kind == ".csv" else "")
            for i in range(count):
                url, caption = f"http://host/{i}", f"caption number {i} " + "x" * 100
                line = f"{url},{caption}" if kind == ".csv" else json.dumps([url, caption])
                file.write((line if kind == ".csv" else
                            json.dumps({"url": url, "caption": caption})) + "\n")  # fmt: skip
        tracemalloc.start()
        before = pa.default_memory_pool().max_memory()
        (source,) = sources.scan([path], tmp_path / ".work")
        assert source.rows == count
        grown = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory() - before
        tracemalloc.stop()
        return grown

    peak(1_000)
    assert peak(60_000) < peak(6_000) + (16 << 20)


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\x1f")])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst", "a.tsv"])
def test_what_cannot_be_read(make: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=r"is empty|cannot be read|no caption column") as caught:
        rows_of(tmp_path, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_kinds() -> None:
    names = ["a.csv", "b.csv.gz", "c.jsonl.zst", "d.tar.gz", "e.gz", "f"]
    assert [texts.kind_of(Path(name)) for name in names] == [
        ".csv", ".csv", ".jsonl", ".tar", "", "",
    ]  # fmt: skip
