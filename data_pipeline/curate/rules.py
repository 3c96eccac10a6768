"""Applies the rules to the rows of a DATASET: one pass over metadata, then what compares rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from base.errors import UserError
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.duplicates import (
    Hashes,
    Places,
    components,
    equal_leaders,
    near_leaders,
    preferred,
)
from data_pipeline.curate.embeddings import EmbeddingReader, embedding_leaders
from data_pipeline.curate.groups import (
    falls_to_val,
    hex_words,
    hosts,
    over_cap,
    sizes_of_groups,
    value_hashes,
)
from data_pipeline.curate.row_rules import RowRule
from data_pipeline.curate.together import Together
from data_pipeline.schema.selection import RuleCount

LEFT = 0  # in Verdict.rule: the row is kept
NOBODY = -1  # in Verdict.instead


@dataclass
class Verdict:
    """What became of each row: two bytes a row, and eight where duplicates are looked for."""

    rule: npt.NDArray[np.uint16]  # [n], LEFT or 1 + the place of the rule that dropped it
    instead: Places | None  # [n], the row that stayed instead, or NOBODY
    rules: list[tuple[str, Any]] = field(default_factory=list)  # names and settings, in order

    def left(self) -> Places:
        """Rows that no rule has dropped yet, ascending."""
        return np.flatnonzero(self.rule == LEFT)

    def begin(self, name: str, settings: Any) -> None:
        """The rule that drops from now on."""
        self.rules.append((name, settings))

    def drop(self, rows: Places, instead: Places | None = None) -> None:
        """Drops rows, all of them left so far, for the rule that was begun last."""
        self.rule[rows] = len(self.rules)
        if instead is not None:
            assert self.instead is not None
            self.instead[rows] = instead

    def counts(self, within: slice = slice(None)) -> tuple[RuleCount, ...]:
        """The rules with what each dropped of some rows."""
        dropped = np.bincount(self.rule[within], minlength=len(self.rules) + 1)
        return tuple(
            RuleCount(name, settings, int(dropped[place]))
            for place, (name, settings) in enumerate(self.rules, 1)
        )


@dataclass
class Columns:
    """What the rules that compare rows need of each row; None where no rule does."""

    prefer: npt.NDArray[np.float64] | None = None  # [n]
    sha256: Hashes | None = None  # [2, n], the first 128 bits
    phash: Hashes | None = None  # [1, n]
    sources: dict[str, Hashes] = field(default_factory=dict)  # [n] by column; "" is the host


@dataclass(frozen=True)
class Split:
    """Rows of the two parts, ascending, and the groups that were kept together."""

    train: Places
    val: Places
    groups: int
    largest_group: int


def apply_rules(together: Together, config: CurateConfig, rules: list[RowRule]) -> Verdict:
    """What becomes of each row."""
    compares = config.exact_duplicates or config.phash_duplicates or config.embedding_duplicates
    instead = np.full(together.total, NOBODY, np.int64) if compares else None
    verdict = Verdict(np.zeros(together.total, np.uint16), instead)
    columns = _judge_single_rows(together, config, rules, verdict)

    def ordered() -> Places:
        return preferred(verdict.left(), columns.prefer)

    if config.exact_duplicates:
        assert columns.sha256 is not None
        rows = ordered()
        verdict.begin("exact_duplicates", True)
        _drop_followers(verdict, rows, rows[equal_leaders(*columns.sha256[:, rows])])
        columns.sha256 = None
    if config.phash_duplicates is not None:
        assert columns.phash is not None
        rows = ordered()
        verdict.begin("phash_duplicates", config.phash_duplicates.model_dump(mode="json"))
        near = near_leaders(columns.phash[0, rows], config.phash_duplicates.distance)
        _drop_followers(verdict, rows, rows[near])
    if config.embedding_duplicates is not None:
        rows = ordered()
        verdict.begin("embedding_duplicates", config.embedding_duplicates.model_dump(mode="json"))
        if len(rows):
            leader = embedding_leaders(together, rows, config.embedding_duplicates)
            _drop_followers(verdict, rows, leader)
    for column, most in _caps(config).items():
        rows = ordered()
        verdict.begin(f"caps.{column}" if column else "domain_cap", most)
        verdict.drop(rows[over_cap(columns.sources[column][rows], most)])
    return verdict


def _drop_followers(verdict: Verdict, rows: Places, leaders: Places) -> None:
    follows = leaders != rows
    verdict.drop(rows[follows], leaders[follows])


def _caps(config: CurateConfig) -> dict[str, int]:
    """Most rows by column, the host's cap first."""
    host = {"": config.domain_cap} if config.domain_cap else {}
    return {**host, **dict(sorted(config.caps.items()))}


def _judge_single_rows(
    together: Together, config: CurateConfig, rules: list[RowRule], verdict: Verdict
) -> Columns:
    """Applies the rules on single rows and takes along what the others need."""
    total, caps = together.total, _caps(config)
    columns = Columns(sources={column: np.empty(total, np.uint64) for column in caps})
    names = [column for rule in rules for column in rule.columns]
    names += [column or "url" for column in caps]
    if config.prefer is not None:
        columns.prefer = np.empty(total, np.float64)
        names.append(config.prefer)
    if config.exact_duplicates:
        columns.sha256 = np.empty((2, total), np.uint64)
        names.append("sha256")
    if config.phash_duplicates is not None:
        columns.phash = np.empty((1, total), np.uint64)
        names.append("phash")

    def work(first: int, table: pa.Table) -> list[Places]:
        where = str(together.metadata_file(first))
        _take_along(columns, config, first, table, where)
        return _dropped_by(rules, first, table)

    dropped: list[list[Places]] = [[] for _ in rules]
    for found in together.scan("metadata", list(dict.fromkeys(names)), work) if names else ():
        for place, rows in enumerate(found):
            dropped[place].append(rows)
    for rule, parts in zip(rules, dropped, strict=True):
        verdict.begin(rule.name, rule.settings)
        verdict.drop(np.concatenate([np.empty(0, np.int64), *parts]))
    return columns


def _dropped_by(rules: list[RowRule], first: int, table: pa.Table) -> list[Places]:
    """Rows that each rule drops; what one dropped the next does not see."""
    rows = np.arange(first, first + table.num_rows)
    dropped = []
    for rule in rules:
        keeps = rule.keeps(table)
        dropped.append(rows[~keeps])
        rows, table = rows[keeps], table.filter(pa.array(keeps))
    return dropped


def _take_along(
    columns: Columns, config: CurateConfig, first: int, table: pa.Table, where: str
) -> None:
    part = slice(first, first + table.num_rows)
    if columns.prefer is not None:
        values = pc.cast(table[config.prefer], pa.float64(), safe=False)
        columns.prefer[part] = pc.fill_null(values, float("nan")).to_numpy()
    if columns.sha256 is not None:
        _require_told(table["sha256"], where)
        columns.sha256[:, part] = hex_words(table["sha256"], 2, where)
    if columns.phash is not None:
        columns.phash[:, part] = hex_words(table["phash"], 1, where)
    for column, sources in columns.sources.items():
        sources[part] = value_hashes(table[column] if column else hosts(table["url"]))


def _require_told(sha256: pa.ChunkedArray, where: str) -> None:
    """Of published embeddings hashes are known where their source tells them."""
    if pc.any(pc.equal(sha256, "")).as_py():
        raise UserError(
            f"exact_duplicates: {where} has rows without sha256, as the DATASET has no pictures "
            "and the embeddings' source does not tell it; embedding_duplicates finds like ones"
        )


def split_rows(together: Together, config: CurateConfig, kept: Places) -> Split:
    """The two parts of what is kept, by perceptual hashes; without pictures by equal embeddings.

    Raises:
        UserError: one of them would be empty.
    """
    assert config.split is not None
    if together.has_pictures:
        groups = components(_phashes(together)[kept], config.split.distance)
    else:
        groups = EmbeddingReader(together, None).hashes(kept)
    val = falls_to_val(groups, config.split.val, config.split.seed)
    sizes = sizes_of_groups(groups)
    if val.all() or not val.any():
        side = "val" if not val.any() else "train"
        raise UserError(
            f"split.val: got {config.split.val:g}, which leaves {side} empty: {len(kept)} rows "
            f"in {len(sizes)} groups of like pictures; expected another share or seed"
        )
    return Split(kept[~val], kept[val], len(sizes), int(sizes[0]))


def _phashes(together: Together) -> Hashes:
    """Of all rows, [n]."""
    phash = np.empty(together.total, np.uint64)

    def work(first: int, table: pa.Table) -> None:
        where = str(together.metadata_file(first))
        phash[first : first + table.num_rows] = hex_words(table["phash"], 1, where)[0]

    for _ in together.scan("split", ["phash"], work):
        pass
    return phash
