"""The benchmark of sampling compares what is the same: its small nets draw the same pictures."""

import re

import pytest

from benchmarks import sampling_peers


def test_both_sides_draw_the_same_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_SIDE": 16, "_STEPS": 3, "_LARGER_STEPS": 2}.items():
        monkeypatch.setattr(sampling_peers, name, value)
    monkeypatch.setattr("sys.argv", ["sampling_peers", "--rounds", "1"])
    sampling_peers.main()
    said = capsys.readouterr().out
    found = re.findall(r"z_i (\S+), pictures (\S+)", said)
    (_, released), (z_i, exact) = [tuple(map(float, each)) for each in found]
    assert z_i <= 1e-5
    assert exact <= released <= 1e-1
    assert exact <= 1e-3
    assert re.search(r"^ours .*x$", said, re.MULTILINE)
