"""Checkpoints on disk: never half there, readable by others, no pickle, kept in number."""

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

from base.errors import UserError
from trainer.checkpoint import tensors, write
from trainer.checkpoint.export import export, read_weights
from trainer.checkpoint.folders import complete_checkpoints
from trainer.checkpoint.manifest import Manifest, join_ranges, rank_file, read_manifest, sealed
from trainer.checkpoint.read import (
    Checkpoint,
    SliceReader,
    faults,
    open_checkpoint,
    resolve_checkpoint,
)
from trainer.checkpoint.tensors import TensorFile, entry_of, write_tensors
from trainer.loop import train
from trainer.stages import load_weights
from trainer.state import TrainState, state_from_json

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy.register()
    out = tmp_path_factory.mktemp("checkpoint") / "run"
    train(toy.toy_config(dataset, out))
    return out


def test_trainer_json_tells_the_epoch(dataset: Path, tmp_path: Path) -> None:
    """The dataset has 32 samples. Checkpoints from before the epoch was told still resume."""
    out = tmp_path / "run"
    train(toy.toy_config(dataset, out, train={"samples": 48}))
    folder = out / "checkpoints" / "000000000048"
    record = json.loads((folder / "trainer.json").read_text())
    assert (record["samples"], record.pop("epoch")) == (48, 1)
    rewrite(folder, "trainer.json", json.dumps(record))
    assert train(toy.toy_config(dataset, out)).resumed_from == 48
    assert resolve_checkpoint(out).state().epoch == 3


def rewrite(folder: Path, name: str, text: str) -> None:
    """Put other bytes into a checkpoint, as if they had been saved."""
    (folder / name).write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest["files"][name] = {"bytes": len(text.encode()), "sha256": digest}
    manifest.pop("sha256")
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def test_a_record_of_progress_needs_all_else() -> None:
    record = TrainState(3, samples=48, epoch=1).to_json()
    assert state_from_json(record, "trainer.json") == TrainState(3, samples=48, epoch=1)
    del record["steps"]
    with pytest.raises(UserError, match="not a record of a run's progress"):
        state_from_json({**record, "more": 1}, "trainer.json")


def test_killed_anywhere_it_is_whole_and_ends_the_same(dataset: Path, tmp_path: Path) -> None:
    """Every eighth of some 430 moments; all of them with `make soak`."""
    step, first = (1, 1) if os.environ.get("UNCLIP_SOAK") else (8, 3)
    script = [sys.executable, HERE / "killed.py", dataset, tmp_path, step, first]
    command, timeout = [*map(str, script)], 400 if step > 1 else 7000
    env = processes.environment()
    subprocess.run(command, cwd=processes.ROOT, env=env, check=True, timeout=timeout)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) > 40
    assert [entry["killed"] for entry in report] == [True] * (len(report) - 1) + [False]
    named = 0
    for entry in report:
        between = entry["between"]
        assert all(between["whole"].values()), entry  # a named folder is a whole one
        if between["latest"] is not None:
            assert between["latest"] in between["whole"], entry
            named += 1
        assert entry["finished"], entry
        assert entry["equal"], entry
        assert entry["left"] == ["000000000048", "000000000060"], entry
    assert named > 20


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train(toy.toy_config(dataset, out, train={"samples": 48}))

    def full(path: Path, entries: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_tensors", full)
        with pytest.raises(UserError, match=r"checkpoint not saved: .*No space left on device"):
            train(toy.toy_config(dataset, out))
    assert resolve_checkpoint(out).manifest.samples == 48
    assert faults(resolve_checkpoint(out)) == []
    assert train(toy.toy_config(dataset, out)).resumed_from == 48


def test_bytes_that_change_on_their_way_to_the_disk_are_noticed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupting(path: Path, entries: Any) -> Any:
        record = write_tensors(path, entries)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        return record

    monkeypatch.setattr(write, "write_tensors", corrupting)
    with pytest.raises(UserError, match="what was read back is not what was written"):
        train(toy.toy_config(dataset, tmp_path / "run"))
    assert complete_checkpoints(tmp_path / "run") == []


def test_as_many_are_kept_as_asked(dataset: Path, tmp_path: Path) -> None:
    for keep in (1, 3):
        out = tmp_path / str(keep)
        how = {"checkpoint_every": 12, "keep": keep}
        train(toy.toy_config(dataset, out, train=how))
        names = [int(path.name) for path in complete_checkpoints(out)]
        assert names == [96 - 12 * n for n in reversed(range(keep))]
        assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
            f"{n:012d}" for n in names
        ]


def test_files_are_plain_safetensors(run: Path) -> None:
    """Read by the format's own library: every kind of every tensor, and the untrained buffer."""
    checkpoint = resolve_checkpoint(run)
    stored = load_file(checkpoint.folder / "slices/rank_00000.safetensors")
    names = set(toy.ToyModel(toy.ToyModelConfig()).state_dict()) - {"scale"}
    kinds = ("master", "exp_avg", "exp_avg_sq", "ema")
    assert set(stored) == {f"{k}/{n}" for k in kinds for n in names} | {"fixed/scale"}
    weights = read_weights(run, "raw")
    for name in names:
        assert torch.equal(stored[f"master/{name}"], weights[name].reshape(-1))


def test_exports_hold_averaged_or_raw_weights(run: Path, tmp_path: Path) -> None:
    for which in ("ema", "raw"):
        path = export(run, which, tmp_path / f"{which}.safetensors")
        config, weights = load_weights(run, which)
        exported = load_file(path)
        assert set(exported) == set(weights)
        assert all(torch.equal(exported[name], value) for name, value in weights.items())
        toy.ToyModel(config.model).load_state_dict(exported)
    assert not torch.equal(
        load_file(tmp_path / "ema.safetensors")["shift"],
        load_file(tmp_path / "raw.safetensors")["shift"],
    )
    with pytest.raises(UserError, match=r"no checkpoint at 50 samples; there are: 48, 96"):
        export(run, "ema", tmp_path / "x", samples=50)
    with pytest.raises(UserError, match="is a folder"):
        export(run, "ema", tmp_path)


def test_our_writer_and_the_library_read_each_other(tmp_path: Path) -> None:
    values = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "flags": torch.tensor([True, False]),
        "strided": torch.randn(4, 6).t(),
    }
    record = write_tensors(
        tmp_path / "ours", [entry_of(*pair) for pair in values.items()], {"by": "us"}
    )
    assert record.bytes == (tmp_path / "ours").stat().st_size
    read = load_file(tmp_path / "ours")
    assert set(read) == set(values)
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    save_file({k: v.contiguous() for k, v in values.items()}, tmp_path / "theirs")
    header = (tmp_path / "theirs").read_bytes()[8:]
    assert json.JSONDecoder().raw_decode(header.decode("latin-1"))[0].keys() == values.keys()


def test_files_of_all_kinds_are_read_range_by_range(tmp_path: Path) -> None:
    """Written by the format's own library."""
    path = tmp_path / "x"
    values = {
        "a": torch.randn(15),
        "b": torch.arange(7),
        "c": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0),
        "flags": torch.tensor([True, False]),
    }
    save_file(values, path, {"by": "them"})
    file = TensorFile(path)
    for name, value in values.items():
        read = torch.empty(len(value), dtype=file.dtype(name, len(value)))
        file.read(name, 0, read)
        assert read.dtype == value.dtype
        assert torch.equal(read, value)
    some = torch.empty(4)
    file.read("a", 9, some)
    assert torch.equal(some, values["a"][9:13])
    with pytest.raises(UserError, match=r"x: a: got \[15\], expected \[14\]"):
        file.dtype("a", 14)
    with pytest.raises(UserError, match=r"x: cannot be read \(no tensor d\)"):
        file.dtype("d", 1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is cut short"):
        for name, value in values.items():
            file.read(name, 0, torch.empty_like(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        (1 << 60).to_bytes(8, "little") + b"{}",
        (9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
        *(
            len(text).to_bytes(8, "little") + text.encode() + bytes(16)
            for text in (
                '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}',
                '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}',
                '{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 16]}}',
                '{"a": {"dtype": "F32", "shape": [1, 5], "data_offsets": [0, 16]}}',
                '{"a": {"dtype": "OBJ", "shape": [4], "data_offsets": [0, 16]}}',
                '{"a": {"dtype": ["F32"], "shape": 4, "data_offsets": [0]}}',
                '{"a": 4}',
                '{"a":' + "[" * 100_000,
            )
        ),
    ],
)
def test_headers_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=r"x: cannot be read \(not a safetensors file\)"):
        TensorFile(tmp_path / "x")


def test_no_pickle_is_read_or_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice replaced with a hostile pickle is refused as damage; nothing of it runs."""
    out, mark = tmp_path / "run", tmp_path / "ran"
    train(toy.toy_config(dataset, out, train={"samples": 24}))

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    path = resolve_checkpoint(out).folder / "slices/rank_00000.safetensors"
    path.write_bytes(pickle.dumps(Hostile()).ljust(path.stat().st_size, b"\0"))
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        train(toy.toy_config(dataset, out))
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(out)
    assert not mark.exists()


def test_manifest_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    folder = resolve_checkpoint(run).folder
    for text, message in [
        ("{", "not JSON"),
        ("[]", "version: got None"),
        ('{"version": 7}', "version: got 7, expected 1"),
        ('{"version": 1}', "not a checkpoint's manifest"),
    ]:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_manifest(tmp_path)
    manifest = read_manifest(folder)
    assert faults(Checkpoint(tmp_path, manifest))[0].endswith("rank_00000.safetensors: missing")
    with pytest.raises(UserError, match="holds no master of nonsense"):
        SliceReader(open_checkpoint(folder))("master", "nonsense", 0, 1)


def test_ranges_that_do_not_tile_are_never_written() -> None:
    whole = {"w": ([2, 3], 0, 6)}
    assert join_ranges([whole])["w"].is_covered()
    for parts in (
        [{"w": ([2, 3], 0, 5)}],
        [whole, whole],
        [{"w": ([2, 3], 0, 4)}, {"w": ([2, 3], 5, 1)}],
    ):
        with pytest.raises(ValueError, match="do not tile"):
            join_ranges(parts)


def test_any_range_is_read_across_the_ranks_that_wrote_it(tmp_path: Path) -> None:
    """A tensor cut in three, by ranks in any order."""
    values = torch.randn(10)
    cuts = [(4, 3), (0, 4), (7, 3)]
    (tmp_path / "slices").mkdir()
    files = {"trainer.json": tensors.FileRecord(0, "")}
    for rank, (start, length) in enumerate(cuts):
        entry = entry_of("master/w", values[start : start + length])
        name = rank_file(rank)
        files[name] = tensors.write_tensors(tmp_path / name, [entry])
    parts = [{"w": ([2, 5], start, length)} for start, length in cuts]
    manifest = Manifest(0, 0, 3, ("master",), join_ranges(parts), {}, files, {})
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(manifest.to_json())))
    reader = SliceReader(open_checkpoint(tmp_path))
    for start in range(10):
        for end in range(start, 11):
            assert torch.equal(reader("master", "w", start, end - start), values[start:end])
    assert torch.equal(reader.whole("master", "w"), values.view(2, 5))
