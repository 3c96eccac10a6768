"""How often a job was run again, and what moved meanwhile: a file beside its log."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from base.errors import Stopped


@dataclass(frozen=True)
class Restarts:
    """The requeues that one job has asked for, a line each: exit code, and how far it was."""

    path: Path

    def add(self, code: int, progress: int | None) -> None:
        """Note one; where that cannot be written none is counted."""
        with suppress(OSError), self.path.open("a") as file:
            file.write(f"{code} {progress}\n")

    def fruitless(self, progress: int | None) -> int:
        """The last ones that began where the job is still.

        Where nothing tells how far it is only breakdowns count, not what saved.
        """
        count = 0
        for code, at in reversed(self._read()):
            if at != str(progress) or (progress is None and code == str(Stopped.exit_code)):
                break
            count += 1
        return count

    def _read(self) -> list[tuple[str, str]]:
        try:
            lines = self.path.read_text().splitlines()
        except OSError:
            return []
        return [(code, at) for code, _, at in (line.partition(" ") for line in lines)]
