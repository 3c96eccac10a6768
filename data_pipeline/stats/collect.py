"""One pass over the metadata of DATASETs: sizes, captions, similarity, sources, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from base.errors import UserError
from data_pipeline.curate.duplicates import Hashes, equal_leaders
from data_pipeline.curate.groups import hex_words, hosts
from data_pipeline.curate.row_rules import characters, words
from data_pipeline.curate.samples import Samples
from data_pipeline.curate.together import Together, open_together
from data_pipeline.schema.selection import (
    SelectionInfo,
    read_selection,
    selected_keys,
    selection_path,
)
from data_pipeline.stats.tally import Tally
from data_pipeline.status import status

TOP = 20  # sources that are named
_COLUMNS = (
    *("original_width", "original_height", "aspect", "width", "height"),
    *("caption", "similarity", "url", "sha256", "phash"),
)
_STEPS = {  # by quantity, in the order in which they are shown
    "original_width": 1.0,
    "original_height": 1.0,
    "aspect": 0.01,
    "width": 1.0,
    "height": 1.0,
    "caption_chars": 1.0,
    "caption_words": 1.0,
    "similarity": 0.001,
}


@dataclass(frozen=True)
class Stats:
    """What was found. `lost` are rejected rows by reason, or with a selection drops by rule."""

    datasets: tuple[str, ...]  # taken together as one
    selection: str | None
    has_pictures: bool  # else what needs them is left out
    input: int
    rows: int
    quantities: dict[str, Tally]
    same_sha256: int | None  # rows beyond the first with the same bytes; None: without pictures
    same_phash: int | None
    domains: dict[str, int]  # the TOP first
    domain_count: int
    without_domain: int
    lost: dict[str, int]

    @property
    def name(self) -> str:
        """The DATASETs' names in one."""
        return ", ".join(self.datasets)

    def to_json(self) -> dict[str, Any]:
        """Plain data; histograms as pairs of value and count are left out."""
        return {
            "dataset": self.name,
            "selection": self.selection,
            "has_pictures": self.has_pictures,
            "input": self.input,
            "rows": self.rows,
            "quantities": {name: tally.summary() for name, tally in self.quantities.items()},
            "duplicates": {"sha256": self.same_sha256, "phash": self.same_phash},
            "domains": self.domains,
            "domain_count": self.domain_count,
            "without_domain": self.without_domain,
            "rejected" if self.selection is None else "dropped": self.lost,
        }


def collect(datasets: Sequence[Path], selection: str | None = None) -> Stats:
    """Reads the metadata of finished DATASETs, or of the rows of a selection that each has.

    Where one has no pictures, what needs them is left out: sizes as stored and duplicates. Memory:
    24 bytes a row, and about 100 a different host.

    Raises:
        UserError: no finished DATASET, no such selection, or files that cannot be read.
        NothingUsable: no rows.
    """
    together = open_together(datasets)
    total, lost = _account(datasets, together, selection)
    chosen = None
    if selection is not None:
        chosen = np.concatenate([_mask(samples, selection) for samples in together.parts])
    count = together.total if chosen is None else int(chosen.sum())
    has_pictures = together.has_pictures
    tallies = {name: Tally(step) for name, step in _STEPS.items()}
    sha256, phash = np.empty((2, count), np.uint64), np.empty((1, count), np.uint64)
    sources: Counter[str | None] = Counter()
    done = 0

    def work(first: int, table: pa.Table) -> pa.Table:
        part = table if chosen is None else table.filter(chosen[first : first + table.num_rows])
        return _measured(part, str(together.metadata_file(first)), has_pictures)

    for table in together.scan("stats", _COLUMNS, work):
        for name, tally in tallies.items():
            if name in table.schema.names:
                tally.add(table[name].to_numpy())
        here = slice(done, done + table.num_rows)
        if has_pictures:
            sha256[:, here] = [table["sha_high"].to_numpy(), table["sha_low"].to_numpy()]
            phash[0, here] = table["phash"].to_numpy()
        for entry in table["host"].combine_chunks().value_counts().to_pylist():
            sources[entry["values"]] += entry["counts"]
        done = here.stop
    without = sources.pop(None, 0)
    named = sorted(((c, str(host)) for host, c in sources.items()), key=lambda e: (-e[0], e[1]))
    return Stats(
        datasets=tuple(map(str, datasets)),
        selection=selection,
        has_pictures=has_pictures,
        input=total,
        rows=count,
        quantities={name: tally for name, tally in tallies.items() if tally.total},
        same_sha256=_followers(sha256) if has_pictures else None,
        same_phash=_followers(phash) if has_pictures else None,
        domains={host: rows for rows, host in named[:TOP]},
        domain_count=len(named),
        without_domain=without,
        lost=lost,
    )


def _account(
    datasets: Sequence[Path], together: Together, selection: str | None
) -> tuple[int, dict[str, int]]:
    """Rows of the input, and what was lost of them: by reason, or by the selection's rules."""
    lost = Counter[str]()
    if selection is None:
        for dataset in datasets:
            lost.update(status(dataset).reasons)
        return sum(info.input for info in together.infos), dict(lost.most_common())
    records = [read_selection(dataset, selection) for dataset in datasets]
    _require_one_selection(datasets, records)
    for rule in (rule for record in records for rule in record.rules):
        lost[rule.rule] += rule.dropped
    return sum(record.input for record in records), dict(lost)


def _require_one_selection(datasets: Sequence[Path], records: Sequence[SelectionInfo]) -> None:
    """Counts of rows that were chosen otherwise do not add up to those of anything."""
    first = records[0]
    for dataset, record in zip(datasets[1:], records[1:], strict=True):
        if record.together != first.together:
            raise UserError(
                f"selection: {first.name!r} of {datasets[0]} was made {_company(first)}, that of "
                f"{dataset} {_company(record)}; expected one selection (curate them together, or "
                "count them one by one)"
            )
        if record.config != first.config:
            raise UserError(
                f"selection: {first.name!r} of {datasets[0]} and of {dataset} were made by "
                "different rules; expected one selection (count them one by one)"
            )


def _company(record: SelectionInfo) -> str:
    """Which DATASETs a selection was made of."""
    parts = (f"{name} ({identity[:8]})" for name, identity in record.together.items())
    return f"over {', '.join(parts)}" if record.together else "by itself"


def _measured(table: pa.Table, where: str, has_pictures: bool) -> pa.Table:
    """The quantities of rows, hashes as numbers, hosts."""
    columns = {
        "aspect": table["aspect"],
        "similarity": table["similarity"],
        "caption_chars": characters(table["caption"]),
        "caption_words": words(table["caption"]),
        "host": hosts(table["url"]),
    }
    sides = ("original_width", "original_height")
    if not has_pictures:  # a side that the source does not tell is null, and no number then
        return pa.table(columns | {side: pc.cast(table[side], pa.float64()) for side in sides})
    sha256, phash = hex_words(table["sha256"], 2, where), hex_words(table["phash"], 1, where)
    columns |= {name: table[name] for name in (*sides, "width", "height")}
    columns |= {
        "sha_high": pa.array(sha256[0]),
        "sha_low": pa.array(sha256[1]),
        "phash": pa.array(phash[0]),
    }
    return pa.table(columns)


def _followers(hashes: Hashes) -> int:
    """Rows, [k, n], that equal an earlier one."""
    leader = equal_leaders(*hashes)
    return int((leader != np.arange(len(leader))).sum())


def _mask(samples: Samples, selection: str) -> npt.NDArray[np.bool_]:
    """The rows of a selection, [n]."""
    rows = samples.rows(selected_keys(samples.root, selection))
    if (rows < 0).any():
        path = selection_path(samples.root, selection)
        raise UserError(f"{path}: has keys that the DATASET has not; run `unclip data verify`")
    mask = np.zeros(samples.total, np.bool_)
    mask[rows] = True
    return mask
