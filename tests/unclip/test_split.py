"""A user's own pairs in two tables: every row is in one of them or counted as left out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import NothingUsable
from unclip.demo.split import split_counts, split_pairs


def folder_of(count: int, folder: Path) -> Path:
    """Pairs 000, 001, …; what a picture shows is not looked at here."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.jpg").write_bytes(b"picture %d" % i)
        (folder / f"{i:03}.txt").write_text(f"caption {i}\n")
    return folder


def keys(path: Path) -> list[str]:
    found: list[str] = pq.read_table(path)["key"].to_pylist()
    return found


def test_what_is_left_out_is_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = folder_of(60, tmp_path / "data"), tmp_path / "out"
    (data / "004.txt").write_text(" \n")
    (data / "005.jpg").unlink()
    (data / "005.jpg").symlink_to("absent.jpg")
    (data / "006.txt").unlink()  # not a pair at all
    train, heldout = split_pairs(data, out)
    counts = json.loads((out / "split.json").read_text())
    assert counts == {
        "train": len(keys(train)),
        "heldout": len(keys(heldout)),
        "left_out": {"missing_file": 1, "no_caption": 1},
    }
    assert split_counts(out) == (counts["train"], counts["heldout"])
    expected = [f"{i:03}.jpg" for i in range(60) if i not in (4, 5, 6)]
    assert sorted(keys(train) + keys(heldout)) == expected
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{data}: files without a caption, left out: 1"
    assert told[1] == f"{data}: 2 of 59 rows left out: 1 missing_file, 1 no_caption"
    assert told[2].startswith("split: 59/59 pictures")
    assert len(told) == 3


def test_a_table_s_rows_are_counted_too(tmp_path: Path) -> None:
    images = [b"picture %d" % i if i != 3 else None for i in range(60)]
    captions = [f"caption {i}" if i not in (5, 6) else None for i in range(60)]
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "caption": captions}), data)
    train, heldout = split_pairs(data, tmp_path / "out")
    counts = json.loads((tmp_path / "out" / "split.json").read_text())
    assert counts["left_out"] == {"no_caption": 2, "no_image": 1}
    assert len(keys(train)) + len(keys(heldout)) == 57


def test_nothing_is_told_where_nothing_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = folder_of(60, tmp_path / "data"), tmp_path / "out"
    split_pairs(data, out)
    assert json.loads((out / "split.json").read_text())["left_out"] == {}
    assert len(capsys.readouterr().err.splitlines()) == 1  # the bar's last line
    split_pairs(data, out)
    assert capsys.readouterr().err == ""  # a split that is there is left alone


def test_the_same_pictures_are_held_out_again(tmp_path: Path) -> None:
    data = folder_of(60, tmp_path / "data")
    first, second = (split_pairs(data, tmp_path / name) for name in ("one", "two"))
    assert [keys(path) for path in first] == [keys(path) for path in second]


def test_too_few_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = folder_of(2, tmp_path / "data"), tmp_path / "out"
    (data / "001.txt").write_text("")
    with pytest.raises(NothingUsable, match=r"1 usable pairs, too few to hold some out$") as caught:
        split_pairs(data, out)
    assert caught.value.exit_code == 3
    assert "1 of 2 rows left out: 1 no_caption" in capsys.readouterr().err
    assert not (out / "split.json").exists()


def test_pictures_of_one_caption_are_on_one_side(tmp_path: Path) -> None:
    """Whatever its case and the picture's name; otherwise what is held out would be known."""
    data = folder_of(200, tmp_path / "data")
    for i in range(200):
        text = f"caption {i % 40}\nanother {i}\n"
        (data / f"{i:03}.txt").write_text(text if i % 2 else text.upper())
    sides = [
        {row[0].lower() for row in pq.read_table(path)["captions"].to_pylist()}
        for path in split_pairs(data, tmp_path / "out")
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
