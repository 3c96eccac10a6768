"""A preparation that lost its folder while it was stopped puts nothing more into it."""

import json
from pathlib import Path

import pytest

import base.lease
from base.errors import UserError
from base.lease import NAME, Lease
from data_pipeline.commits import publish
from data_pipeline.schema.dataset import PIXELS, Commit


def test_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, attempt = tmp_path / "dataset", tmp_path / "attempt"
    attempt.mkdir()
    monkeypatch.setattr(base.lease, "_LATE_SECONDS", -1.0)
    with Lease(root):
        owner = json.loads((root / NAME).read_text())
        (root / NAME).write_text(json.dumps({**owner, "token": "another's"}))
        with pytest.raises(UserError, match="taken over by another process"):
            publish(root, attempt, Commit(1, PIXELS, 0, 0, 0, 0, {}))
    assert [path.name for path in root.iterdir()] == [NAME]
