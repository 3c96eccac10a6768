"""csv and tsv: a bad line is a bad row, and a column's type holds for all of its values."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.row import Row
from data_pipeline.sources import delimited

GOOD = b"http://host/x,fine,1"


def rows_of(folder: Path, data: bytes, name: str = "t.csv") -> list[Row]:
    (folder / name).write_bytes(data)
    (source,) = sources.scan([folder / name], folder / ".work")
    rows = list(sources.read(source, 0, source.rows, 1 << 20))
    assert len(rows) == source.rows
    return rows


def reasons(rows: list[Row]) -> list[str | None]:
    return [row.problem.reason if row.problem else None for row in rows]


BAD_LINES = {
    b"http://host/y,two": "2 columns, expected 3",
    b"http://host/y,two,2,more": "4 columns, expected 3",
    b'http://host/y,"left open,2': "a quote is left open",
    b'"': "a quote is left open",
    b"http://host/y,caf\xe9,2": "bytes that are not UTF-8",
    b"http://host/y,t\0wo,2": "NUL characters",
    b",": "2 columns, expected 3",
}


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_bad_line_is_a_bad_row(bad: bytes, end: bytes, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, end.join([b"url,caption,n", GOOD, bad, GOOD, b"", GOOD]) + end)
    assert reasons(rows) == [None, "bad_row", None, None]
    assert rows[1].problem is not None
    assert rows[1].problem.message == BAD_LINES[bad]
    assert rows[1].source_key == "1"
    assert [row.captions for row in rows if not row.problem] == [("fine",)] * 3
    assert rows[3].extra == {"n": 1}


@pytest.mark.parametrize(
    "quoted", [b'"one\ntwo, ""three"""', b'"\r\n"', b'"x\n\n\ny"', b'"ends\n"', b'""""']
)
def test_an_open_quote_does_not_swallow_what_follows(quoted: bytes, tmp_path: Path) -> None:
    bad = b'http://host/y,"left open,2'
    long = b"http://host/z," + quoted + b",3"
    rows = rows_of(tmp_path, b"\n".join([b"url,caption,n", long, bad, GOOD, long, GOOD, bad]))
    assert reasons(rows) == [None, "bad_row", None, None, None, "bad_row"]
    assert rows[3].extra == rows[0].extra == {"n": 3}
    assert rows[3].captions == rows[0].captions


def test_a_quote_in_the_middle_is_a_character(tmp_path: Path) -> None:
    data = b'url\ttext\nu\ta 5" disk\nu\t"Well" he said\nu\tit\'s\n'
    texts = [row.captions[0] for row in rows_of(tmp_path, data, "t.tsv")]
    assert texts == ['a 5" disk', "Well he said", "it's"]


def test_a_late_text_makes_the_whole_column_text(tmp_path: Path) -> None:
    lines = [f"u{i},c,{i},{i},{i}.5,true,007,{2**70},," for i in range(3000)]
    lines[2900] = "u,c,abc,2.5,NaN,true,12,1,x,"
    header = "url,caption,late,wide,gap,flag,zeros,big,sparse,empty"
    rows = rows_of(tmp_path, "\n".join([header, *lines]).encode())
    assert reasons(rows) == [None] * 3000
    first, late = rows[0].extra, rows[2900].extra
    assert first == {
        "late": "0", "wide": 0.0, "gap": 0.5, "flag": True, "zeros": "007", "big": str(2**70),
        "sparse": "", "empty": None,
    }  # fmt: skip
    assert (late["late"], late["wide"], late["gap"], late["sparse"]) == ("abc", 2.5, None, "x")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=12),
    st.sampled_from(["", "a", "a,b", "a,b,c,d"]),
    st.data(),
)
def test_any_text_comes_back_and_bad_lines_stay_alone(
    cells: list[tuple[str, str, str]], bad: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(cells)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["url", "caption", "title"])
    for number, row in enumerate([*cells, None]):
        buffer.write(f"{bad}\n" if number == place else "")
        if row is not None:
            writer.writerow(row)
    raw = buffer.getvalue().encode()
    schema, batches = delimited.blocks(
        lambda: io.BytesIO(raw), ",", {"url", "caption", "title"}, "_"
    )
    assert schema.names == ["url", "caption", "title", "_"]
    found = [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
    wrong = [(None, None, None, f"{bad.count(',') + 1} columns, expected 3")] if bad else []
    expected = [(*row, None) for row in cells]
    assert found == expected[:place] + wrong + expected[place:]


@given(st.binary(max_size=300))
def test_any_bytes_are_rows_or_one_clear_line(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder), b"url,caption\nu,c\n" + data + b"\nu,d\n")
        assert rows[0].captions == ("c",)
        assert len(rows) >= 1 + bool(rows[-1].captions == ("d",))


def test_an_open_quote_before_much_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_LONGEST_RECORD", 1 << 10)
    rows = rows_of(tmp_path, b"\n".join([b"url,caption,n", b'u,"open', *[GOOD] * 500]))
    assert reasons(rows) == ["bad_row", *[None] * 500]


def test_a_line_without_an_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1 << 20)
    rows = rows_of(tmp_path, b"\n".join([b"url,caption,n", GOOD, b"x" * (3 << 20), GOOD]))
    assert reasons(rows) == [None, "bad_row", None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfeu\0r\0l\0", r"cannot be read \(bytes that are not UTF-8\)"),
        (b'url,"caption\nu,c\n', r"cannot be read \(a quote is left open\)"),
        (b"url,caption,url\nu,c,v\n", "two columns are called 'url'"),
        (b"\n\n", "no header"),
    ],
)
def test_a_first_line_that_is_no_header(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path, data)
    assert "\n" not in str(caught.value)
