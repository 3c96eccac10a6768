"""Which commit the running code is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
COMMIT = "commit.txt"  # beside the packages of a copy, which is no checkout


def commit() -> str | None:
    """Of a checkout, or of the one that a copy was made from; None where nothing tells."""
    if (SOURCES / COMMIT).is_file():
        return (SOURCES / COMMIT).read_text().strip()
    if not (SOURCES / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(SOURCES), "rev-parse", "HEAD"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
