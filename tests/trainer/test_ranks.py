"""Several ranks: the curve of one process, slices that are the whole, resume across world sizes."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import toy
from equal import assert_equal_runs
from safetensors.torch import load_file

from base.files import sha256_file
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.read import resolve_checkpoint
from trainer.checkpoint.snapshots import read_snapshots
from trainer.checkpoint.synthesis import synthesise
from trainer.loop import train
from trainer.metrics import read_metrics

RANKS = Path(__file__).with_name("ranks.py")
STAGES = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def folder(
    dataset: Path,
    torchrun: Callable[[int, Path, Sequence[object]], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs of one process and of two."""
    toy.register()
    folder = tmp_path_factory.mktemp("ranks")
    train(toy.toy_config(dataset, folder / "alone", ema=toy.SNAPSHOTS))
    train(toy.toy_config(dataset, folder / "local_half" / "0", train={"samples": 48}))
    for zero in STAGES[1:]:
        shutil.copytree(folder / "local_half" / "0", folder / "local_half" / str(zero))
    torchrun(2, RANKS, [dataset, folder])
    return folder


def curve(run: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(run)]


def assert_close(run: Path, other: Path) -> None:
    """The same losses, gradient norms and averaged weights, up to fp32 rounding."""
    for ours, theirs in zip(curve(run), curve(other), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)
    weights = read_weights(other)
    for name, value in read_weights(run).items():
        assert (value - weights[name]).abs().max() < 2e-5, name


@pytest.mark.parametrize("zero", STAGES)
def test_two_ranks_give_the_curve_of_one_process(folder: Path, zero: int) -> None:
    assert_close(folder / f"whole{zero}", folder / "alone")


@pytest.mark.parametrize("zero", STAGES)
def test_slices_of_all_ranks_tile_the_model(folder: Path, zero: int) -> None:
    manifest = resolve_checkpoint(folder / f"whole{zero}").manifest
    assert manifest.world_size == 2
    assert all(record.is_covered() for record in manifest.tensors.values())
    owned = [0, 0]
    for record in manifest.tensors.values():
        for part in record.ranges:
            owned[part.rank] += part.length
    assert abs(owned[0] - owned[1]) < 0.05 * sum(owned), "a rank holds far more than the other"


@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_slices_and_averages_are_those_of_a_full_gather(
    folder: Path, zero: int, precision: str
) -> None:
    """Bit for bit: masters, moments, and averages recomputed from gathered weights.

    Each step accumulates two micro-batches, and one of the four is skipped.
    """
    report: Any = json.loads((folder / "report.json").read_text())[f"{zero} {precision}"]
    averages = ("ema", "ema_0.050", "ema_0.100")
    kinds = ("master", "exp_avg", "exp_avg_sq", *averages)
    assert report["difference"] == dict.fromkeys(kinds, 0)
    assert report["elements"] == 472
    assert (report["updates"], report["skipped"]) == (3, [[24, 36]])


@pytest.mark.parametrize("zero", STAGES)
def test_averages_made_of_two_ranks_snapshots_are_those_of_one(
    folder: Path, tmp_path: Path, zero: int
) -> None:
    run = folder / f"whole{zero}"
    assert [snapshot.manifest.world_size for snapshot in read_snapshots(run)] == [2] * 4
    ours, theirs = (
        load_file(synthesise(source, 0.07, tmp_path / source.name).out)
        for source in (run, folder / "alone")
    )
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() < 2e-5, name


@pytest.mark.parametrize("zero", STAGES)
def test_two_ranks_begin_with_the_weights_of_one_process(folder: Path, zero: int) -> None:
    weights = read_weights(folder / "alone", "raw", 48)
    for which in ("raw", "ema"):
        for name, value in read_weights(folder / f"begun{zero}", which).items():  # type: ignore[arg-type]
            assert (value - weights[name]).abs().max() < 1e-9, name


@pytest.mark.parametrize("zero", STAGES)
def test_what_a_step_sends(folder: Path, zero: int) -> None:
    """Gradients are summed once a step; where they are partitioned, once a micro-batch of three."""
    report: Any = json.loads((folder / "report.json").read_text())[f"{zero} collectives"]
    whole, thirds = report
    if zero < 2:
        assert thirds == whole
        return
    sums = [sent.get("allreduce_", 0) + sent.get("_reduce_scatter_base_", 0) for sent in report]
    assert sums[1] - sums[0] == 2


@pytest.mark.parametrize("zero", STAGES)
def test_three_sessions_of_two_ranks_equal_one(folder: Path, zero: int) -> None:
    """Bit for bit: weights, moments, averages, counters, metrics and snapshots."""
    assert_equal_runs(folder / f"parts{zero}", folder / f"whole{zero}")
    slices = [
        [sha256_file(path) for path in sorted((folder / run / "snapshots").glob("*/slices/*"))]
        for run in (f"parts{zero}", f"whole{zero}")
    ]
    assert slices[0] == slices[1]
    assert len(slices[0]) == 2 * 4


@pytest.mark.parametrize("zero", STAGES)
def test_from_one_process_to_two_ranks(folder: Path, zero: int) -> None:
    assert_close(folder / "local_half" / str(zero), folder / "alone")


@pytest.mark.parametrize("zero", STAGES)
def test_from_two_ranks_to_one_process(folder: Path, dataset: Path, zero: int) -> None:
    run = folder / f"half{zero}"
    result = train(toy.toy_config(dataset, run))
    assert (result.resumed_from, result.samples) == (48, 96)
    assert_close(run, folder / "alone")


def test_data_that_one_rank_cannot_read_end_both_after_a_save(folder: Path) -> None:
    """With one line and one checkpoint; mended, the run ends like one that was never stopped."""
    report: Any = json.loads((folder / "report.json").read_text())["unreadable"]
    (why, samples), other = report
    assert other == [why, samples]
    assert re.search(r"00000\.tar: 000000003\.jpg: not a readable JPEG .* \(rank [01]\)$", why), why
    assert 0 < samples < 48
    assert_equal_runs(folder / "unread", folder / "read")


def test_a_disk_that_fails_for_one_rank_is_no_mistake(folder: Path) -> None:
    """Both ranks say so with their exit code: whoever launched them tries again."""
    report: Any = json.loads((folder / "report.json").read_text())["failing disk"]
    first, second = report
    assert first == second
    assert re.search(r"00000\.tar: Input/output error \(rank 1\)$", first[0])
    assert first[1] == 69


def test_a_finished_run_of_two_ranks_tells_what_it_has_no_use_for(folder: Path) -> None:
    """The first one does; and config.yaml stays what the run was trained with."""
    report: Any = json.loads((folder / "report.json").read_text())["finished"]
    assert "warning: optim.lr: got 0.5, but it was trained with 0.01; the run in" in report[0]
    assert "warning" not in report[1]
    assert "lr: 0.01\n" in (folder / "whole2/config.yaml").read_text()
