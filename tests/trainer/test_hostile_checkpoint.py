"""Checkpoints made to do harm: one line, no code, no more memory than the disk has bytes."""

import json
import os
import re
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

from base.errors import UserError
from base.files import sha256_file
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.manifest import read_manifest, sealed
from trainer.checkpoint.read import folder_faults
from trainer.loop import train
from trainer.state import TrainState, state_from_json

SLICES = "slices/rank_00000.safetensors"
HUGE = 10**15


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint."""
    toy.register()
    run = tmp_path_factory.mktemp("hostile") / "run"
    train(toy.toy_config(dataset, run, train={"samples": 24}))
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(whole, tmp_path / "run")


def folder_of(run: Path) -> Path:
    return run / "checkpoints/000000000024"


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again, as whoever wants to do harm would."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data.pop("sha256")
    change(data)
    path.write_text(json.dumps(sealed(data)))


def reach(data: dict[str, Any], name: str) -> None:
    data["files"][name] = data["files"].pop(SLICES)


FORGERIES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d["tensors"]["shift"].update(shape=[HUGE]), "shift is not covered"),
    (
        lambda d: d["tensors"]["shift"].update(
            shape=[HUGE], ranges=[{"rank": 0, "start": 0, "length": HUGE}]
        ),
        "too small for what it is said to hold",
    ),
    (lambda d: d["fixed"].update(scale=[HUGE, HUGE]), "too small for what it is said to hold"),
    (lambda d: d["tensors"]["shift"].update(shape=[1] * 65), "65 dimensions"),
    (lambda d: d["tensors"]["shift"].update(shape=[-8]), "got -8, expected a count"),
    (lambda d: d["tensors"]["shift"].update(shape=[8.0]), "got 8.0, expected a count"),
    (lambda d: d["tensors"]["shift"].update(shape=[True]), "got True, expected a count"),
    (lambda d: d["tensors"]["shift"].update(shape="8"), "got str, expected a list"),
    (lambda d: d["tensors"]["shift"]["ranges"][0].update(rank=1), "got 1, expected a count"),
    (lambda d: d["tensors"]["shift"]["ranges"][0].update(start=-1), "got -1"),
    (lambda d: d["tensors"]["shift"]["ranges"][0].update(start=1), "shift is not covered"),
    (lambda d: d["tensors"]["shift"]["ranges"][0].pop("length"), "lacks 'length'"),
    (lambda d: d["tensors"]["shift"].update(ranges=[[0, 0, 8]]), "got list, expected an object"),
    (lambda d: d["tensors"].update(shift=None), "got NoneType, expected an object"),
    (lambda d: d.update(tensors=[]), "got list, expected an object"),
    (lambda d: d.update(world_size=HUGE), "the slices of 1000000000000000 ranks"),
    (lambda d: d.update(world_size=0), "expected a count"),
    (lambda d: d.update(samples="24"), "got str, expected a count"),
    (lambda d: d.update(samples=1 << 60), "expected a count"),
    (lambda d: d.update(kinds="master"), "got str, expected a list"),
    (lambda d: d.update(kinds=[1]), "got 1, expected text"),
    (lambda d: d.update(loss="low"), "expected a number"),
    (lambda d: d.update(loss=10**30), "expected a number"),
    (lambda d: d.update(facts=[]), "expected an object"),
    (lambda d: d.pop("facts"), "lacks 'facts'"),
    (lambda d: d["files"][SLICES].update(bytes=-1), "got -1"),
    (lambda d: d["files"][SLICES].update(sha256=1), "expected text"),
    (lambda d: reach(d, "../../../../etc/passwd"), "files: expected trainer.json and the slices"),
    (lambda d: reach(d, "/etc/passwd"), "files: expected trainer.json and the slices"),
    (lambda d: reach(d, "slices/../slices/rank_00000.safetensors"), "files: expected"),
]


@pytest.mark.parametrize(("change", "message"), FORGERIES)
def test_a_forged_manifest_is_refused_in_one_line(
    run: Path, dataset: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    forge(folder_of(run), change)
    for use in (
        lambda: read_manifest(folder_of(run)),
        lambda: read_weights(run),
        lambda: train(toy.toy_config(dataset, run)),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert message in str(caught.value)
        assert "manifest.json" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 10**6, "not JSON"),
        (b'{"version": ' + b"9" * 10**5 + b"}", "not JSON"),
        (b'{"version": 1e999}', "version: got inf"),
        (b"\xff\xfe{", "not JSON"),
        (b"\x00" * 100, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_a_manifest_that_is_no_json(run: Path, data: bytes, message: str) -> None:
    (folder_of(run) / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(folder_of(run))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_records_of_gigabytes_are_not_read(run: Path) -> None:
    """Nor pipes, nor devices, which would never end."""
    for name in ("manifest.json", "trainer.json"):
        path = folder_of(run) / name
        before = path.read_bytes()
        with path.open("wb") as file:
            file.truncate(8 << 30)
        assert_small(lambda: folder_faults(folder_of(run)), name)
        path.unlink()
        os.mkfifo(path)
        assert f"{name}: missing" in folder_faults(folder_of(run))[0]
        path.unlink()
        path.symlink_to("/dev/zero")
        assert f"{name}: is a link" in folder_faults(folder_of(run))[0]
        path.unlink()
        path.write_bytes(before)
    assert folder_faults(folder_of(run)) == []


@pytest.mark.parametrize("name", ["manifest.json", "trainer.json", SLICES, "slices"])
def test_links_lead_to_no_other_file(run: Path, dataset: Path, tmp_path: Path, name: str) -> None:
    """Even when what they lead to has the right bytes."""
    path = folder_of(run) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    told = rf"{name}.*: is a link"
    assert re.search(told, folder_faults(folder_of(run))[0])
    with pytest.raises(UserError, match=told):
        train(toy.toy_config(dataset, run))
    if name != "trainer.json":  # of which weights need nothing
        with pytest.raises(UserError, match=told):
            read_weights(run)


def test_of_a_checkpoint_that_is_a_link_the_link_alone_is_deleted(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    """Somebody has moved it to another disk; or it leads to what is not the run's to delete."""
    folder_of(run).rename(tmp_path / "elsewhere")
    folder_of(run).symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    config = toy.toy_config(dataset, run, train={"samples": 72, "checkpoint_every": 24, "keep": 1})
    assert train(config).resumed_from == 24
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000072"]
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_a_name_that_comes_twice(run: Path) -> None:
    """One reader would take the first, another one the last."""
    path = folder_of(run) / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"version":', '"samples":24,"version":', 1))
    assert "manifest.json: not JSON (a name comes twice)" in folder_faults(folder_of(run))[0]
    path.write_text(whole)
    slices = folder_of(run) / SLICES
    data = slices.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.dumps(json.loads(data[8 : 8 + length])["ema/shift"])
    text = data[8 : 8 + length].replace(b"{", b'{"master/shift":' + entry.encode() + b",", 1)
    slices.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    counted_again(folder_of(run))
    with pytest.raises(UserError, match=r"rank_00000\.safetensors: cannot be read \(not a safe"):
        read_weights(run)


def assert_small(look: Callable[[], list[str]], name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert name in look()[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB


def counted_again(folder: Path) -> None:
    """Let the manifest agree with slices that were changed."""
    path = folder / SLICES
    record = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    forge(folder, lambda data: data["files"].update({SLICES: record}))


def test_slices_that_do_not_hold_what_the_manifest_says(run: Path, dataset: Path) -> None:
    """Other types, other lengths, names that are missing; resumed from they are not, either."""
    path = folder_of(run) / SLICES
    stored = load_file(path)
    for changed, message in [
        ({"ema/shift": stored["ema/shift"].double()}, "ema of shift is not float32"),
        ({"ema/shift": stored["ema/shift"][:-1]}, r"ema/shift: got \[7\], expected \[8\]"),
        ({"ema/shift": stored["ema/shift"].view(2, 4)}, r"got \[2, 4\], expected \[8\]"),
        ({"fixed/scale": torch.zeros(3)}, r"fixed/scale: got \[3\], expected \[1\]"),
    ]:
        save_file({**stored, **changed, "more": torch.zeros(64)}, path)
        counted_again(folder_of(run))
        assert folder_faults(folder_of(run)) == []
        with pytest.raises(UserError, match=message):
            read_weights(run)
        with pytest.raises(UserError, match=message):
            train(toy.toy_config(dataset, run))
    save_file({**{k: v for k, v in stored.items() if k != "ema/shift"}, "x": torch.zeros(64)}, path)
    counted_again(folder_of(run))
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(run)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        struct.pack("<Q", 200 << 20) + b" " * 64,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff" * 4,
        b"",
    ],
)
def test_headers_that_claim_too_much(run: Path, header: bytes) -> None:
    path = folder_of(run) / SLICES
    with path.open("r+b") as file:
        file.write(header)
        file.truncate(path.stat().st_size if header else 0)
    if header:
        counted_again(folder_of(run))
    with pytest.raises(UserError) as caught:
        read_weights(run)
    assert "rank_00000.safetensors" in str(caught.value)


def test_offsets_out_of_bounds(run: Path) -> None:
    """Of a header that the manifest agrees with."""
    path = folder_of(run) / SLICES
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for offsets in ([0, HUGE], [-4, 28], [32, 0], [HUGE, HUGE + 32]):
        header["ema/shift"]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        counted_again(folder_of(run))
        with pytest.raises(UserError, match="cannot be read"):
            read_weights(run)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": "24"},
        {"samples": -1},
        {"samples": 1.5},
        {"steps": None},
        {"seconds": [1]},
        {"skipped": {"a": 1}},
        {"skipped": [[1, 2, 3]]},
        {"skipped": [["1", 2]]},
        {"window": []},
        {"window": {"loss": "nan"}},
        {"window": {"unknown": 1}},
        {"seed": 1.0},
    ],
)
def test_a_record_of_progress_of_wrong_types(change: dict[str, Any]) -> None:
    record = {**TrainState(3, samples=24).to_json(), **change}
    with pytest.raises(UserError, match=r"^trainer\.json: not a record of a run's progress \("):
        state_from_json(json.loads(json.dumps(record)), "trainer.json")


def test_a_record_of_another_moment(run: Path) -> None:
    """The loader would go on elsewhere than weights and schedule."""
    path = folder_of(run) / "trainer.json"
    path.write_text(
        path.read_text().replace('"samples": 24,\n  "epoch"', '"samples": 12,\n  "epoch"')
    )
    record = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    forge(folder_of(run), lambda data: data["files"].update({"trainer.json": record}))
    assert "samples: got 12, expected 24 as in the manifest" in folder_faults(folder_of(run))[0]


@pytest.mark.parametrize("text", ["../..", "/etc", "000000000024/../..", "24", "", "x" * 10**6])
def test_latest_leads_nowhere_else(run: Path, text: str) -> None:
    (run / "latest").write_text(text)
    with pytest.raises(UserError, match=r"latest: got .*, expected a checkpoint's name") as caught:
        read_weights(run)
    assert len(str(caught.value)) < 300
