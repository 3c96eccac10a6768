"""What turns seconds and bytes into the figures of the benchmarks."""

from __future__ import annotations

import io
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.clock import Clock
from benchmarks.laion_scale import lines, with_settings
from benchmarks.pictures import jpegs, least
from benchmarks.server import serving
from benchmarks.slope import slope
from benchmarks.tar_overhead import overhead


@given(
    start=st.floats(0, 60),
    rate=st.floats(1, 5000),
    small=st.integers(1, 1000),
    more=st.integers(1, 5000),
)
def test_slope_finds_start_and_rate(start: float, rate: float, small: int, more: int) -> None:
    large = small + more
    fast, slow = (start + count / rate for count in (small, large))
    if slow - fast < 1e-3:
        return
    found = slope(small, large, [fast, fast, 10 * fast], [slow, slow])
    assert found.rate == pytest.approx(rate, rel=1e-6)
    assert found.start == pytest.approx(start, abs=1e-6 * (1 + slow))


def test_slope_refuses_noise() -> None:
    with pytest.raises(ValueError, match="for 300 rows"):
        slope(300, 900, [5.0], [4.0])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 120))
def test_least(low: int, span: int, wanted: int) -> None:
    found = least(lambda number: 2 * number, wanted, low, low + span)
    fitting = (number for number in range(low, low + span) if 2 * number >= wanted)
    assert found == next(fitting, low + span)


def test_overhead_counts_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, size in (("a.jpg", 700), ("a.txt", 5), ("a.json", 40)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    found = overhead([path])
    assert (found.samples, found.pictures, found.captions, found.json) == (1, 700, 5, 40)
    assert found.total == path.stat().st_size - 700


def test_clock_tells_parts_from_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 4.0, 5.0])
    monkeypatch.setattr("benchmarks.clock.time.process_time", lambda: next(now))
    clock = Clock()
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", inner)()
    assert clock.seconds == {"outer": 2.0, "inner": 3.0}


def test_pictures_are_served(shared_data: Path) -> None:
    bodies = list(jpegs(3, photos=shared_data / "photos", side=64))
    assert [simplejpeg.decode_jpeg_header(body)[:2] for body in bodies] == [(64, 64)] * 3
    with serving(bodies) as port:
        for number, body in enumerate(bodies):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}.jpg") as answer:
                assert answer.read() == body
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/robots.txt")


def test_laion_scale_follows_its_assumptions() -> None:
    found = {line.name: line.value for line in lines(with_settings([]))}
    assert found["shards"] == "500,000"
    assert found["DATASETs"] == "5"
    smaller = {line.name: line.value for line in lines(with_settings(["rows=1e6", "success=1"]))}
    assert smaller["shards"] == "100"
    assert smaller["kept"] == "1.00e+06"
    usual = {line.name: line.value for line in lines(with_settings(["rows_per_shard=1000"]))}
    assert (usual["shards"], usual["DATASETs"]) == ("5,000,000", "50")


@pytest.mark.parametrize("setting", ["row=1", "rows=many", "rows"])
def test_laion_scale_knows_its_assumptions(setting: str) -> None:
    with pytest.raises(SystemExit, match="--set"):
        with_settings([setting])
