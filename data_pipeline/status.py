"""How far a DATASET is: shards and rows by stage, reasons of rejection."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from base.errors import UserError
from base.places import Place
from data_pipeline.commits import device_kinds, read_commits
from data_pipeline.parquet import read_table
from data_pipeline.plan import planned_rows
from data_pipeline.schema.dataset import (
    DATASET_FILE,
    EMBEDDED,
    PLAN_FILE,
    rejected_path,
)


@dataclass(frozen=True)
class Status:
    """Counts of a DATASET, finished or not."""

    dataset: str
    finished: bool  # dataset.json is there
    shards: int
    shards_done: int  # with a commit
    shards_embedded: int
    rows: int
    rows_done: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    further_embeddings: tuple[str, ...]
    devices: dict[str, tuple[str, ...]]  # what computed each set; "" is the first one


def status(dataset: Place) -> Status:
    """Reads plan and commits; safe while preparation runs.

    Raises:
        UserError: `dataset` holds no plan.
    """
    if not (dataset / PLAN_FILE).is_file():
        raise UserError(f"{dataset}: not a DATASET (no {PLAN_FILE})")
    planned = planned_rows(dataset)
    found = read_commits(dataset, range(len(planned)))
    commits = [commit for commit in found if commit is not None]
    reasons: Counter[str] = Counter()
    for commit in commits:
        path = rejected_path(dataset, commit.shard)
        if commit.rejected and path.is_file():
            reasons.update(read_table(path, columns=["reason"])["reason"].to_pylist())
    folder = dataset / "embeddings"
    further = tuple(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ()
    devices = {"": device_kinds(commits)}
    for name in further:
        there = read_commits(dataset, range(len(planned)), name)
        devices[name] = device_kinds(commit for commit in there if commit is not None)
    return Status(
        dataset=str(dataset),
        finished=(dataset / DATASET_FILE).is_file(),
        shards=len(planned),
        shards_done=len(commits),
        shards_embedded=sum(commit.stage == EMBEDDED for commit in commits),
        rows=sum(planned),
        rows_done=sum(commit.input for commit in commits),
        kept=sum(commit.kept for commit in commits),
        rejected=sum(commit.rejected for commit in commits),
        reasons=dict(reasons.most_common()),
        further_embeddings=further,
        devices={name: kinds for name, kinds in devices.items() if kinds},
    )
