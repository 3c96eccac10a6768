"""A full disk: one line, the earlier checkpoint stands, and the run goes on when there is room."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from base.command import one_line
from base.errors import UserError
from trainer.checkpoint import write
from trainer.checkpoint.manifest import FOLDER, LATEST, folder_name
from trainer.checkpoint.write import complete_checkpoints
from trainer.loop import train


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the space that is left but a page."""
    path = place / "filler"
    with path.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            while True:
                file.write(bytes(1 << 16))
        file.truncate(file.tell() - 4096)
    return path


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    small_disk: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the space after it was looked for."""
    out = small_disk / "run"
    train(toy.toy_config(dataset, out, train={"samples": 48}))
    with monkeypatch.context() as patch:
        patch.setattr(write, "require_free_space", lambda folder, size: fill(small_disk))
        with pytest.raises(UserError) as caught:
            train(toy.toy_config(dataset, out))
    line, code = one_line(caught.value)
    assert code == 2
    assert line.startswith("checkpoint not saved: ")
    assert os.strerror(errno.ENOSPC) in line
    assert [path.name for path in complete_checkpoints(out)] == [folder_name(48)]
    assert (out / LATEST).read_text().strip() == folder_name(48)

    (small_disk / "filler").unlink()
    result = train(toy.toy_config(dataset, out))
    assert (result.resumed_from, result.samples) == (48, 96)
    assert not list((out / FOLDER).glob(".*"))


def test_a_full_disk_is_refused_before_a_checkpoint_is_begun(
    small_disk: Path, dataset: Path
) -> None:
    out = small_disk / "run"
    train(toy.toy_config(dataset, out, train={"samples": 48}))
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(56 << 20))
    with pytest.raises(UserError, match=r"checkpoint not saved: .* needs 16\.8 MB of disk"):
        train(toy.toy_config(dataset, out))
    assert [path.name for path in complete_checkpoints(out)] == [folder_name(48)]
