"""Damage of every kind to every file of a checkpoint: found, named, and the one before is taken."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meeting
import pytest
import toy
from two_ranks import cut_in_two
from typer.testing import CliRunner

from base.errors import UserError
from trainer.checkpoint import read
from trainer.checkpoint.folders import latest_checkpoint
from trainer.checkpoint.read import folder_faults
from trainer.checkpoint.resume import newest_checkpoint
from trainer.cli import app
from trainer.loop import train

LAST = "checkpoints/000000000096"
FILES = (
    "manifest.json",
    "trainer.json",
    "slices/rank_00000.safetensors",
    "slices/rank_00001.safetensors",
)


def flip(path: Path, seed: int = 0) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut the second half off."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose last checkpoint is of two ranks."""
    toy.register()
    run = tmp_path_factory.mktemp("damage") / "run"
    train(toy.toy_config(dataset, run))
    cut_in_two(run / LAST)
    assert folder_faults(run / LAST) == []
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_named_and_the_one_before_is_taken(
    run: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    damage(run / LAST / name)
    with pytest.raises(UserError, match=name):
        CliRunner().invoke(app, ["checkpoint", "verify", str(run)], catch_exceptions=False)
    result = train(toy.toy_config(dataset, run))
    assert result.resumed_from == 48
    told = capsys.readouterr().err
    assert "warning: checkpoint 000000000096 is damaged and passed over: " in told
    assert name in told
    assert folder_faults(run / LAST) == []  # made anew
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "000000000048",
        "000000000096",
    ]


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize("name", FILES)
def test_no_export_is_made_of_what_is_damaged(
    run: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """A turned bit of a weight may be a number of any size, and nothing else tells of it."""
    damage(run / LAST / name)
    out = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match=name):
        CliRunner().invoke(
            app, ["checkpoint", "export", str(run), str(out)], catch_exceptions=False
        )
    assert not out.exists()


@pytest.mark.parametrize(
    "damage", [flip, truncate, remove, lambda path: path.write_bytes(b"\xff" * 9000)]
)
def test_damage_to_latest_is_told_and_mended(
    run: Path, dataset: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    """Which checkpoint is the newest whole one follows from the checkpoints."""
    damage(run / "latest")
    with pytest.raises(UserError, match="latest: "):
        CliRunner().invoke(app, ["checkpoint", "verify", str(run)], catch_exceptions=False)
    result = train(toy.toy_config(dataset, run, train={"samples": 120}))
    assert result.resumed_from == 96
    told = capsys.readouterr().err
    assert f"warning: {run / 'latest'}: " in told
    assert "the newest whole checkpoint is 000000000096" in told
    assert latest_checkpoint(run) == run / "checkpoints/000000000120"


def test_verify_looks_at_snapshots_of_averages(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, ema=toy.SNAPSHOTS))
    plain = CliRunner().invoke(app, ["checkpoint", "verify", str(run)], catch_exceptions=False)
    assert plain.stdout == "2 checkpoints are whole, and 4 snapshots of averages\n"
    (run / "snapshots/000000000048/manifest.json").unlink()
    flip(run / "snapshots/000000000072/slices/rank_00000.safetensors")
    with pytest.raises(UserError, match=r"snapshots/000000000048/manifest\.json.* \(and 1 more\)"):
        CliRunner().invoke(app, ["checkpoint", "verify", str(run)], catch_exceptions=False)


def test_a_list_names_files_of_another_size(run: Path) -> None:
    truncate(run / LAST / FILES[0])
    shown = CliRunner().invoke(app, ["checkpoint", "list", str(run)], catch_exceptions=False)
    last = shown.stdout.splitlines()[-1]
    assert "damaged: " in last
    assert FILES[0] in last


def test_a_list_names_what_is_damaged_beside_the_others(run: Path) -> None:
    remove(run / LAST / "manifest.json")
    shown = CliRunner().invoke(app, ["checkpoint", "list", str(run)], catch_exceptions=False)
    first, second = shown.stdout.splitlines()
    assert first.startswith("000000000048  4 steps  1 ranks  ")
    assert second.startswith("000000000096  damaged: ")
    assert second.endswith("manifest.json: missing  (latest)")


@pytest.mark.parametrize("seed", range(40))
def test_no_bit_of_a_manifest_can_turn_over_unnoticed(
    whole: Path, tmp_path: Path, seed: int
) -> None:
    folder = shutil.copytree(whole / LAST, tmp_path / "000000000096")
    flip(folder / "manifest.json", seed)
    assert "manifest.json" in folder_faults(folder)[0]


def test_the_first_manifests_had_no_hash_of_their_own(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / LAST, tmp_path / "000000000096")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"], manifest["loss"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert folder_faults(folder) == []


def test_ranks_share_the_hashing_and_agree(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is hashed once, by one rank; what one rank finds passes over for all."""
    hashed: list[Path] = []
    sha256_file = read.sha256_file

    def watched(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr(read, "sha256_file", watched)
    warned: list[str] = []

    def chosen(rank: meeting.ThreadRank) -> Any:
        checkpoint = newest_checkpoint(whole, rank, warned.append)
        assert checkpoint is not None
        return checkpoint.folder.name

    assert meeting.on_ranks(3, chosen) == ["000000000096"] * 3
    assert len(hashed) == len({*hashed}) == 3
    for name in FILES[1:]:
        path = whole / LAST / name
        before = path.read_bytes()
        flip(path)
        assert meeting.on_ranks(3, chosen) == ["000000000048"] * 3
        assert name in warned.pop()
        path.write_bytes(before)
    assert warned == []


def test_what_was_damaged_lies_aside_until_the_next_checkpoint_is_complete(
    run: Path, dataset: Path
) -> None:
    """And does not count among those that are kept."""
    flip(run / LAST / "slices/rank_00001.safetensors")
    train(toy.toy_config(dataset, run, train={"samples": 48, "keep": 1}))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        ".damaged-000000000096",
        "000000000048",
    ]
    train(toy.toy_config(dataset, run, train={"samples": 60, "keep": 2}))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "000000000048",
        "000000000060",
    ]
