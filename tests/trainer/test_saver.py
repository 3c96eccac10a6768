"""Saves in the background: what they hold, whom they wait for, how they fail on all ranks alike."""

import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import meeting
import pytest
import torch
import toy

import base.lease
from base.errors import Diverged, Stopped, UserError
from base.files import sha256_file
from trainer.checkpoint import staging, write
from trainer.checkpoint.folders import complete_checkpoints, latest_checkpoint
from trainer.checkpoint.read import folder_faults, resolve_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.saver import Saver, checkpoints
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.tensors import write_tensors
from trainer.checkpoint.write import Snapshot
from trainer.engine.base import Flat, Piece
from trainer.loop import train
from trainer.session import Session
from trainer.state import TrainState

SLICES = "slices/rank_00000.safetensors"


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Every file of slices takes a third of a second more; the threads that wrote them."""
    threads: list[threading.Thread] = []

    def slowly(path: Path, entries: Any) -> Any:
        threads.append(threading.current_thread())
        time.sleep(0.3)
        return write_tensors(path, entries)

    monkeypatch.setattr(write, "write_tensors", slowly)
    return threads


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of every step that was taken: samples after it, whether a save was under way."""
    taken: list[tuple[int, bool]] = []
    count = Session.count

    def counted(session: Session, stats: Any) -> None:
        count(session, stats)
        taken.append((session.state.samples, session.saver.saving))

    monkeypatch.setattr(Session, "count", counted)
    return taken


def test_training_goes_on_and_the_checkpoint_is_of_the_moment_of_the_copy(
    dataset: Path,
    tmp_path: Path,
    slow_disk: list[threading.Thread],
    steps: list[tuple[int, bool]],
) -> None:
    """The same bytes as of a run that waits for its saves, and the same end; snapshots too."""
    how, ema = {"keep": 9}, toy.SNAPSHOTS
    train(toy.toy_config(dataset, tmp_path / "waits", train={**how, "async_save": False}, ema=ema))
    assert not any(saving for _, saving in steps)
    assert {*slow_disk} == {threading.main_thread()}
    slow_disk.clear()
    steps.clear()
    train(toy.toy_config(dataset, tmp_path / "goes_on", train=how, ema=ema))
    assert threading.main_thread() not in slow_disk
    assert sum(saving for _, saving in steps) >= 2
    assert {24, 36} & {samples for samples, saving in steps if saving}  # beside a snapshot alone
    names = [f"checkpoints/{n:012d}" for n in (48, 96)]
    names += [f"snapshots/{n:012d}" for n in (24, 48, 72, 96)]
    for name in names:
        ours, theirs = (tmp_path / run / name for run in ("goes_on", "waits"))
        assert sha256_file(ours / SLICES) == sha256_file(theirs / SLICES)
        assert folder_faults(ours) == []


def test_a_checkpoint_is_complete_when_the_snapshots_before_it_are(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from it would not make them again; a second snapshot waits as well."""
    order: list[str] = []
    commit = write.commit

    def noting(working: Path, target: Path) -> None:
        commit(working, target)
        order.append(f"{target.parent.name} {int(target.name)}")

    monkeypatch.setattr(write, "commit", noting)
    ema = {"powers": [0.05, 0.1], "snapshot_every": 12}
    train(toy.toy_config(dataset, tmp_path / "run", train={"samples": 60}, ema=ema))
    assert order == [
        *(f"snapshots {n}" for n in (12, 24, 36, 48)),
        "checkpoints 48",
        "snapshots 60",
        "checkpoints 60",
    ]


def test_a_second_save_waits_for_the_first(
    dataset: Path, tmp_path: Path, slow_disk: list[threading.Thread]
) -> None:
    how = {"samples": 60, "checkpoint_every": 12, "keep": 9}
    train(toy.toy_config(dataset, tmp_path / "run", train=how))
    found = complete_checkpoints(tmp_path / "run")
    assert [int(path.name) for path in found] == [12, 24, 36, 48, 60]
    assert all(folder_faults(path) == [] for path in found)


def test_a_stop_waits_for_the_save(
    dataset: Path, tmp_path: Path, slow_disk: list[threading.Thread]
) -> None:
    config = toy.toy_config(dataset, tmp_path / "run", objective={"stop_at": [50]})
    with pytest.raises(Stopped):
        train(config)
    assert [int(path.name) for path in complete_checkpoints(tmp_path / "run")] == [48, 72]
    assert resolve_checkpoint(tmp_path / "run").manifest.samples == 72


@pytest.mark.parametrize("async_save", [True, False])
def test_a_run_whose_folder_was_taken_over_during_a_save_completes_no_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, async_save: bool
) -> None:
    """The slices are written, then another run has the lease."""
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, train={"samples": 48}))
    taken = threading.Event()

    def written(path: Path, entries: Any) -> Any:
        record = write_tensors(path, entries)
        lease = run / base.lease.NAME
        lease.write_text(json.dumps({**json.loads(lease.read_text()), "token": "another's"}))
        taken.set()
        return record

    monkeypatch.setattr(base.lease, "_LATE_SECONDS", -1.0)  # looked at in every step
    monkeypatch.setattr(write, "write_tensors", written)
    with pytest.raises(UserError, match="taken over"):
        train(toy.toy_config(dataset, run, train={"async_save": async_save}))
    assert taken.is_set()
    assert [path.name for path in complete_checkpoints(run)] == ["000000000048"]
    assert (run / "latest").read_text() == "000000000048\n"


def test_divergence_waits_for_the_save(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun before the run was given up is there afterwards."""
    waited_for = threading.Event()
    finish = Saver.finish

    def finishing(saver: Saver) -> None:
        if saver.saving:
            waited_for.set()
        finish(saver)

    def held(path: Path, entries: Any) -> Any:
        assert waited_for.wait(60)
        return write_tensors(path, entries)

    monkeypatch.setattr(write, "write_tensors", held)
    monkeypatch.setattr(Saver, "finish", finishing)
    sections = {
        "objective": {"poison_from": 60},
        "train": {"samples": 960, "checkpoint_every": 50},
        "guards": {"rollbacks": 0},
    }
    with pytest.raises(Diverged):
        train(toy.toy_config(dataset, tmp_path / "run", **sections))
    assert resolve_checkpoint(tmp_path / "run").manifest.samples == 60


def test_a_failed_save_ends_the_run_at_the_next_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, bool]]
) -> None:
    def full(path: Path, entries: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(write, "write_tensors", full)
    config = toy.toy_config(
        dataset, tmp_path / "run", objective={"delay": 0.05}, train={"samples": 960}
    )
    with pytest.raises(UserError, match=r"^checkpoint not saved: .*No space left .*\(rank 0\)"):
        train(config)
    assert 48 <= steps[-1][0] <= 96
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_bug_in_the_thread_is_not_lost(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, entries: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(write, "write_tensors", wrong)
    with pytest.raises(ZeroDivisionError):
        train(toy.toy_config(dataset, tmp_path / "run"))


def test_what_is_given_up_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred tensors only the one that was being written is written to its end."""
    written: list[Path] = []
    snapshot = make_snapshot(0, 100)

    def watched(path: Path, entries: Any) -> Any:
        for entry in entries:
            entry.load()
            written.append(path)
            time.sleep(0.02)

    monkeypatch.setattr(write, "write_tensors", watched)
    rank = meeting.ThreadRank(0, [None], threading.Barrier(1))
    series = checkpoints(tmp_path, Retention(2), Staging(snapshot, rank))
    with Saver(tmp_path, rank, threaded=True) as saver:
        saver.begin(series, snapshot)
        time.sleep(0.1)
    assert 0 < len(written) < 100


def test_too_little_memory_is_told_before_the_first_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, bool]]
) -> None:
    monkeypatch.setattr(staging, "available_memory", lambda: 7000)
    with pytest.raises(UserError, match=r"^train\.async_save: needs 0\.0 GB of memory on .*false"):
        train(toy.toy_config(dataset, tmp_path / "run"))
    assert steps == []
    train(toy.toy_config(dataset, tmp_path / "run", train={"async_save": False}))
    assert len(steps) == 8


def test_copies_of_averages_are_counted_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, bool]]
) -> None:
    """They are looked for when those of checkpoints have taken theirs."""
    needed = [472 * 6 * 4 + 4, 472 * 2 * 4 + 4]  # elements of 4 bytes, and a buffer
    free = iter([needed[0], needed[1] - 1])
    monkeypatch.setattr(staging, "available_memory", lambda: next(free))
    with pytest.raises(UserError, match=r"^train\.async_save: needs"):
        train(toy.toy_config(dataset, tmp_path / "run", ema=toy.SNAPSHOTS))
    assert steps == []


def make_snapshot(rank: int, tensors: int = 3, samples: int = 12) -> Snapshot:
    """A rank's slices of tensors of 10 elements: the first rank has 6 of each, the second 4."""
    start, length = ((0, 6), (6, 4))[rank] if tensors < 100 else (0, 10)
    pieces = tuple(Piece(f"w{n}", (2, 5), start, length, n * length) for n in range(tensors))
    values = torch.arange(tensors * length, dtype=torch.float32) + 1000 * rank
    flats = [Flat(pieces, {"master": values})]
    fixed = {"scale": torch.full((), 0.5)} if rank == 0 else {}
    return Snapshot(flats, fixed, TrainState(3, samples=samples), {}, loss=None)


def save_on_two_ranks(run: Path) -> list[str | None]:
    """Saves as training does, at 12 and at 24 samples; the error that each rank raised."""

    def work(rank: meeting.ThreadRank) -> str | None:
        first = make_snapshot(rank.rank)
        series = checkpoints(run, Retention(1), Staging(first, rank))
        with Saver(run, rank, threaded=True) as saver:
            try:
                saver.begin(series, first)
                for tensor in first.flats[0].tensors.values():
                    tensor += 1  # training goes on
                while saver.take_complete(series) is None:
                    saver.advance(sum(rank.gather(saver.over)))
                    time.sleep(0.005)
                saver.begin(series, make_snapshot(rank.rank, samples=24))
                saver.finish()
            except UserError as error:
                return str(error)
        return None

    return meeting.on_ranks(2, work)


def test_ranks_of_different_speed_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(path: Path, entries: Any) -> Any:
        time.sleep(0.2 if "rank_00001" in path.name else 0)
        return write_tensors(path, entries)

    monkeypatch.setattr(write, "write_tensors", uneven)
    assert save_on_two_ranks(tmp_path) == [None, None]
    checkpoint = resolve_checkpoint(tmp_path)
    assert folder_faults(checkpoint.folder) == []
    assert (checkpoint.manifest.samples, checkpoint.manifest.world_size) == (24, 2)
    assert len(complete_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_latest_moves_only_when_every_rank_has_read_back_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """The second save of one rank is spoilt on its way to the disk; both raise the same."""

    def spoiling(path: Path, entries: Any) -> Any:
        record = write_tensors(path, entries)
        if f"rank_0000{rank}" in path.name and "24" in path.parent.parent.name:
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        return record

    monkeypatch.setattr(write, "write_tensors", spoiling)
    errors = save_on_two_ranks(tmp_path)
    assert errors[0] == errors[1]
    assert str(errors[0]).startswith("checkpoint not saved: ")
    assert str(errors[0]).endswith(f"is not what was written (rank {rank})")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["000000000012"]
    assert resolve_checkpoint(tmp_path).manifest.samples == 12
