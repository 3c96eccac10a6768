"""A DATASET of which no row was kept: why, and another try at those whose fault may pass."""

from __future__ import annotations

from collections import Counter

from base.errors import NothingUsable
from base.places import Place
from data_pipeline.commits import done, read_commits
from data_pipeline.parquet import read_table
from data_pipeline.schema.dataset import PIXELS, RETRYABLE, commit_path, rejected_path


def ask_again(out: Place, shards: int) -> None:
    """Takes away the commits of shards with what may pass, where all are done and nothing is kept.

    Nothing is lost by making them again. Otherwise nothing could be done with such a DATASET: it
    is not finished, so no other pass begins with it.
    """
    commits = read_commits(out, range(shards))
    if any(commit is None or commit.kept for commit in commits):
        return
    if len(done(out, range(shards), PIXELS)) < shards:
        return
    for shard in range(shards):
        if _may_pass(_reasons(out, shard)):
            commit_path(out, shard).unlink()


def require_kept(out: Place, shards: int) -> None:
    """Refuses a result without rows; every shard is committed.

    Raises:
        NothingUsable: with the reasons, and whether they may pass.
    """
    if any(commit is None or commit.kept for commit in read_commits(out, range(shards))):
        return
    reasons: Counter[str] = Counter()
    for shard in range(shards):
        reasons.update(_reasons(out, shard))
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4))
    again = _may_pass(reasons)
    hint = f"; of {again} the fault may pass: the same command asks for them again" if again else ""
    raise NothingUsable(
        f"{out}: none of the {sum(reasons.values())} rows can be kept ({told}){hint}"
    )


def _reasons(out: Place, shard: int) -> Counter[str]:
    table = read_table(rejected_path(out, shard), columns=["reason"])
    return Counter(table["reason"].to_pylist())


def _may_pass(reasons: Counter[str]) -> int:
    return sum(reasons[reason] for reason in RETRYABLE)
