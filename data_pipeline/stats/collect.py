"""One pass over a DATASET's metadata: sizes, captions, similarity, sources, duplicates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from base.errors import UserError
from data_pipeline.curate.duplicates import Hashes, equal_leaders
from data_pipeline.curate.groups import hex_words, hosts
from data_pipeline.curate.row_rules import characters, words
from data_pipeline.curate.samples import Samples, open_samples
from data_pipeline.schema.selection import read_selection, selected_keys, selection_path
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

    dataset: str
    selection: str | None
    input: int
    rows: int
    quantities: dict[str, Tally]
    same_sha256: int  # rows beyond the first with the same bytes
    same_phash: int
    domains: dict[str, int]  # the TOP first
    domain_count: int
    without_domain: int
    lost: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data; histograms as pairs of value and count are left out."""
        return {
            "dataset": self.dataset,
            "selection": self.selection,
            "input": self.input,
            "rows": self.rows,
            "quantities": {name: tally.summary() for name, tally in self.quantities.items()},
            "duplicates": {"sha256": self.same_sha256, "phash": self.same_phash},
            "domains": self.domains,
            "domain_count": self.domain_count,
            "without_domain": self.without_domain,
            "rejected" if self.selection is None else "dropped": self.lost,
        }


def collect(dataset: Path, selection: str | None = None) -> Stats:
    """Reads the metadata of a finished DATASET, or of the rows of a selection.

    Memory: 24 bytes a row, and about 100 a different host.

    Raises:
        UserError: no finished DATASET, no such selection, or files that cannot be read.
        NothingUsable: no rows.
    """
    samples = open_samples(dataset)
    if selection is None:
        chosen, total, lost = None, samples.info.input, status(dataset).reasons
    else:
        record = read_selection(dataset, selection)
        chosen, total = _mask(samples, selection), record.input
        lost = {rule.rule: rule.dropped for rule in record.rules}
    count = samples.total if chosen is None else int(chosen.sum())
    tallies = {name: Tally(step) for name, step in _STEPS.items()}
    sha256, phash = np.empty((2, count), np.uint64), np.empty((1, count), np.uint64)
    sources: Counter[str | None] = Counter()
    done = 0

    def work(first: int, table: pa.Table) -> pa.Table:
        part = table if chosen is None else table.filter(chosen[first : first + table.num_rows])
        return _measured(part, str(samples.metadata_file(first)))

    for table in samples.scan("stats", _COLUMNS, work):
        for name, tally in tallies.items():
            tally.add(table[name].to_numpy())
        here = slice(done, done + table.num_rows)
        sha256[:, here] = [table["sha_high"].to_numpy(), table["sha_low"].to_numpy()]
        phash[0, here] = table["phash"].to_numpy()
        for entry in table["host"].combine_chunks().value_counts().to_pylist():
            sources[entry["values"]] += entry["counts"]
        done = here.stop
    without = sources.pop(None, 0)
    named = sorted(((c, str(host)) for host, c in sources.items()), key=lambda e: (-e[0], e[1]))
    return Stats(
        dataset=str(dataset),
        selection=selection,
        input=total,
        rows=count,
        quantities={name: tally for name, tally in tallies.items() if tally.total},
        same_sha256=_followers(sha256),
        same_phash=_followers(phash),
        domains={host: rows for rows, host in named[:TOP]},
        domain_count=len(named),
        without_domain=without,
        lost=lost,
    )


def _measured(table: pa.Table, where: str) -> pa.Table:
    """The quantities of rows, hashes as numbers, hosts."""
    sha256, phash = hex_words(table["sha256"], 2, where), hex_words(table["phash"], 1, where)
    plain = ("original_width", "original_height", "aspect", "width", "height", "similarity")
    columns = {name: table[name] for name in plain}
    columns |= {
        "caption_chars": characters(table["caption"]),
        "caption_words": words(table["caption"]),
        "sha_high": pa.array(sha256[0]),
        "sha_low": pa.array(sha256[1]),
        "phash": pa.array(phash[0]),
        "host": hosts(table["url"]),
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
