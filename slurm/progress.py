"""How far what a job makes has come, by which it is judged whether restarts move anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slurm.runs import RunFiles

# Of a DATASET shards and their embeddings, of an evaluation its pictures: each is kept.
_FINISHED = ("commits/*.json", "img_emb/*.npy", "*/guidance_*/*")


@dataclass(frozen=True)
class Progress:
    """A number that grows with every step; None where nothing tells."""

    count: int | None
    unit: str = ""

    def __str__(self) -> str:
        return "" if self.count is None else f" at {self.count:,} {self.unit}"


def of_run(run: Path) -> Progress:
    """The samples of its latest checkpoint."""
    return Progress(RunFiles(run).samples(), "samples")


def of_folder(made: Path) -> Progress:
    """The files of a DATASET or a report that are finished."""
    count = sum(1 for pattern in _FINISHED for _ in made.glob(pattern))
    return Progress(count, "finished files")
