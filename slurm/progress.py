"""How far what a job makes has come, by which it is judged whether restarts move anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slurm.runs import RunFiles

# What is kept of what a stage makes, by its kind.
_FINISHED = {
    "prepare": ("commits/*.json", "shards"),
    "embed": ("img_emb/*.npy", "shards"),
    "evaluate": ("*/guidance_*/*", "pictures"),
}


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
    count = sum(_count(made, pattern) for pattern, _ in _FINISHED.values())
    return Progress(count, "finished files")


def of_stage(kind: str, made: Path) -> Progress:
    """What a stage of a kind other than `train` has finished."""
    pattern, unit = _FINISHED[kind]
    return Progress(_count(made, pattern), unit)


def _count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))
