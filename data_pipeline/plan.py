"""The plan: which input rows make which shard. Persisted first, and what a resume is held to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from base.config import dump_config, fingerprint, load_config
from base.errors import UserError, one_line
from base.files import atomic_path, sha256_file, write_atomic
from base.places import Place
from data_pipeline.config import EmbedConfig, PrepareConfig
from data_pipeline.fetch.config import LISTS, PACE
from data_pipeline.fetch.lists import digests
from data_pipeline.parquet import read_table
from data_pipeline.schema.dataset import CONFIG_FILE, MAX_SHARDS, PLAN_FILE, PLAN_SCHEMA
from data_pipeline.sources import Source
from data_pipeline.whereabouts import note_places

_NOTE = b"sources"
_FIRST_ROW = b"first_row"  # of a part's plan: where it begins in the whole input
_LISTS = b"opt_out"
_NAMED = 3  # inputs that a message names
_HELD_TO = {  # what an input's fingerprint tells apart
    "pairs": "names or sizes of pictures, captions or sidecars",
    "tar": "names, places or sizes of members, captions or sidecars",
    "table": "bytes in the table",
    "embeddings": "metadata or vectors",
    "retry": "rows that may pass, or inputs before",
}
# What a run that goes on may change. Of lists their content is recorded, of embeddings whose.
_FREE = {f"fetch.{name}" for name in (*PACE, *LISTS)}
_FREE |= {f"embed.{name}" for name in EmbedConfig.model_fields}


@dataclass(frozen=True)
class Slice:
    """Rows first … first + count - 1 of a source, by its number."""

    source: int
    first: int
    count: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard's rows; `first_row` is the position of its first one in the whole input."""

    shard: int
    first_row: int
    slices: tuple[Slice, ...]

    @property
    def count(self) -> int:
        """Input rows of this shard."""
        return sum(part.count for part in self.slices)


class TooManyShards(UserError):
    """The input makes more shards than a DATASET holds; it fits into so many parts."""

    def __init__(self, rows: int, parts: int) -> None:
        super().__init__(
            f"samples_per_shard: {rows} rows make more than {MAX_SHARDS} shards, the most that a "
            f"DATASET holds; raise it, or split the input into {parts}"
        )
        self.parts = parts


def cut(rows: Sequence[int], per_shard: int, part: int = 0) -> list[ShardPlan]:
    """Shards of `per_shard` rows over the sources' rows laid end to end; the last may be shorter.

    At most 10⁵ of them: `part` says which of the whole input's.
    """
    rows_of_part = MAX_SHARDS * per_shard
    begin_of_part, total = part * rows_of_part, min(sum(rows), (part + 1) * rows_of_part)
    starts = list(itertools.accumulate(rows, initial=0))[:-1]
    shards: list[ShardPlan] = []
    source = 0
    for first in range(begin_of_part, total, per_shard):
        last = min(total, first + per_shard)
        while starts[source] + rows[source] <= first:
            source += 1
        slices, at = [], source
        while at < len(rows) and starts[at] < last:
            begin = max(first, starts[at]) - starts[at]
            end = min(last, starts[at] + rows[at]) - starts[at]
            if end > begin:
                slices.append(Slice(at, begin, end - begin))
            at += 1
        shards.append(ShardPlan(len(shards), first, tuple(slices)))
    return shards


def persist(
    root: Place, sources: Sequence[Source], config: PrepareConfig, part: int | None = None
) -> list[ShardPlan]:
    """Writes the plan of the whole input or of a part, or checks that the one there is the same.

    Raises:
        TooManyShards: the whole input needs several parts.
        UserError: inputs or config differ from those of the plan that `root` was begun with.
    """
    shards = agreed(root, sources, config, part)
    if not (root / CONFIG_FILE).is_file():
        _write(root, sources, shards, config)
    note_places(root, sources)
    return shards


def agreed(
    root: Place, sources: Sequence[Source], config: PrepareConfig, part: int | None = None
) -> list[ShardPlan]:
    """What `persist` would write, or has written; nothing is written yet. Its errors are the same.

    For what must be there first, so that a mistake in it leaves no plan that others are held to.
    """
    rows = [source.rows for source in sources]
    parts = -(-sum(rows) // (MAX_SHARDS * config.samples_per_shard))
    if part is None and parts > 1:
        raise TooManyShards(sum(rows), parts)
    shards = cut(rows, config.samples_per_shard, part or 0)
    if (root / CONFIG_FILE).is_file():
        _require_same(root, sources, config)
    return shards


def plan_fingerprint(root: Place) -> str:
    """SHA-256 over the hashes of plan.parquet and config.yaml."""
    return fingerprint([sha256_file(root / PLAN_FILE), sha256_file(root / CONFIG_FILE)])


def planned_rows(root: Place) -> list[int]:
    """Input rows of each shard, as persisted.

    Raises:
        UserError: the plan is missing or unreadable.
    """
    table = _read(root)
    counts: dict[int, int] = {}
    for shard, count in zip(table["shard"].to_pylist(), table["count"].to_pylist(), strict=True):
        counts[shard] = counts.get(shard, 0) + count
    return [counts.get(shard, 0) for shard in range(max(counts, default=-1) + 1)]


def first_row(root: Place) -> int:
    """Where the plan begins in the whole input: 0 but for the later ones of several parts."""
    return int((_read(root).schema.metadata or {}).get(_FIRST_ROW, b"0"))


def read_config(root: Place) -> PrepareConfig:
    """The config of the plan."""
    return load_config(root / CONFIG_FILE, PrepareConfig)


def _identity(sources: Sequence[Source]) -> list[dict[str, Any]]:
    return [
        {"name": s.name, "kind": s.kind, "rows": s.rows, "fingerprint": s.fingerprint}
        for s in sources
    ]


def _write(
    root: Place, sources: Sequence[Source], shards: Sequence[ShardPlan], config: PrepareConfig
) -> None:
    rows = list(_rows(sources, shards))
    note = json.dumps(_identity(sources), ensure_ascii=False)
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    with atomic_path(root / PLAN_FILE) as temporary:
        notes = {_NOTE: note}
        if shards[0].first_row:
            notes[_FIRST_ROW] = str(shards[0].first_row)
        if lists := digests(config.fetch):
            notes[_LISTS] = json.dumps(lists)
        pq.write_table(table.replace_schema_metadata(notes), temporary)
    write_atomic(root / CONFIG_FILE, dump_config(config))  # last: its presence makes the plan


def _rows(sources: Sequence[Source], shards: Sequence[ShardPlan]) -> Iterator[dict[str, Any]]:
    for plan in shards:
        for part in plan.slices:
            yield {
                "shard": plan.shard,
                "source": sources[part.source].name,
                "first_row": part.first,
                "count": part.count,
            }


def _read(root: Place) -> pa.Table:
    try:
        return read_table(root / PLAN_FILE)
    except (OSError, pa.ArrowException) as error:
        text = one_line(error)
        raise UserError(f"{root / PLAN_FILE}: cannot be read ({text})") from error


def _require_same(root: Place, sources: Sequence[Source], config: PrepareConfig) -> None:
    old, new = _decisive(read_config(root)), _decisive(config)
    for key, value in new.items():
        if old.get(key) != value:
            raise UserError(
                f"{root}: begun with {key} {old.get(key)!r}, now {value!r}; "
                "use the old value or another --out"
            )
    _require_same_lists(root, config)
    require_same_inputs(root, sources)


def _require_same_lists(root: Place, config: PrepareConfig) -> None:
    """Half of a DATASET must not be under another opt-out list than the other half."""
    old = json.loads((_read(root).schema.metadata or {}).get(_LISTS, b"{}"))
    new = digests(config.fetch)
    for name in LISTS:
        if old.get(name) != new.get(name):
            raise UserError(
                f"fetch.{name}: the list changed since {root} was begun; give the old one, or "
                "begin with another --out"
            )


def _decisive(config: PrepareConfig) -> dict[str, Any]:
    """The values that the result depends on, by their names; those of sections as a.b."""
    found: dict[str, Any] = {}
    for key, value in config.model_dump().items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return {key: value for key, value in found.items() if key not in _FREE}


def recorded_inputs(root: Place) -> list[dict[str, Any]]:
    """name, kind, rows and fingerprint of each source that `root` was begun with."""
    found: list[dict[str, Any]] = json.loads((_read(root).schema.metadata or {}).get(_NOTE, b"[]"))
    return found


def require_same_inputs(root: Place, sources: Sequence[Source]) -> None:
    """Refuses sources other than those that `root` was begun with.

    Raises:
        UserError: which one differs.
    """
    before = recorded_inputs(root)
    if len(before) != len(sources):
        raise UserError(
            f"{root}: begun with {_listed([was['name'] for was in before])}, now "
            f"{_listed([source.name for source in sources])}; use the old ones or another --out"
        )
    for was, source in zip(before, sources, strict=True):
        if (was["rows"], was["fingerprint"]) == (source.rows, source.fingerprint):
            continue
        if was["name"] != source.name:
            raise UserError(
                f"{root}: begun with {was['name']}, now {source.name} ({_difference(was, source)})"
                "; use the old one or another --out"
            )
        raise UserError(
            f"{source.name}: changed since {root} was begun ({_difference(was, source)}); "
            "use another --out"
        )


def _listed(names: Sequence[str]) -> str:
    """So many inputs, with the names of the first ones."""
    more = ", …" if len(names) > _NAMED else ""
    inputs = "input" if len(names) == 1 else "inputs"
    return f"{len(names)} {inputs} ({', '.join(names[:_NAMED])}{more})"


def _difference(was: dict[str, Any], source: Source) -> str:
    """What the plan knows of it: the kind, the rows, or else what the fingerprint is made of."""
    if was["kind"] != source.kind:
        return f"{was['kind']} then, {source.kind} now"
    if was["rows"] != source.rows:
        return f"{was['rows']} rows then, {source.rows} now"
    return f"{source.rows} rows as then, but other {_HELD_TO[source.kind]}"
