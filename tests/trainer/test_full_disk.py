"""A full disk: one line, the earlier checkpoint stands, and the run goes on when there is room."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import toy

from base.command import line_and_code
from base.errors import UserError
from trainer.checkpoint import write
from trainer.checkpoint.folders import complete_checkpoints
from trainer.checkpoint.manifest import FOLDER, LATEST, folder_name
from trainer.loop import train


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    small_disk: Path,
    fill_disk: Callable[[Path], Path],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else takes the space after it was looked for."""
    out = small_disk / "run"
    train(toy.toy_config(dataset, out, train={"samples": 48}))
    with monkeypatch.context() as patch:
        patch.setattr(write, "require_free_space", lambda folder, size: fill_disk(small_disk))
        with pytest.raises(UserError) as caught:
            train(toy.toy_config(dataset, out))
    line, code = line_and_code(caught.value)
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
