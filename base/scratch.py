"""Folders on the local disk for what is on its way elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base.hashing import stable_hash
from base.owner import namespace


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder under TMPDIR, gone at the end; those of killed processes are removed."""
    top, prefix = Path(tempfile.gettempdir()), _prefix()
    for old in top.glob(f"{prefix}*"):
        match = re.fullmatch(rf"{prefix}(\d+)-\w+", old.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=top))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    """Names the machine: TMPDIR may be shared, and a pid means nothing elsewhere."""
    return f"unclip-{stable_hash(os.uname().nodename, namespace()):016x}-"
