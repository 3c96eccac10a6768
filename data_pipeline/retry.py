"""Another pass over the rows whose fault may have passed, into a DATASET beside the first."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from base.config import fingerprint
from base.errors import NothingUsable, UserError
from base.files import atomic_path
from base.places import Place
from data_pipeline import columns, sources
from data_pipeline.config import ColumnsConfig, PrepareConfig
from data_pipeline.parquet import read_table
from data_pipeline.pipeline import prepare_sources
from data_pipeline.plan import read_config, recorded_inputs, require_same_inputs
from data_pipeline.row import Row
from data_pipeline.schema.dataset import RETRYABLE, DatasetInfo, read_dataset, rejected_path
from data_pipeline.sources import Source, tables
from data_pipeline.sources.roles import key_column
from data_pipeline.whereabouts import find_inputs

_READ_ROWS = 1000  # read together where several of them are wanted
SOURCE_ROW = "source_row"  # of the input that the first DATASET was made of
_NAME = " (retry)"  # behind a DATASET's own, in the plan of another pass over it

Positions = npt.NDArray[np.int64]  # [n], ascending


def retry(
    dataset: Place,
    out: Place,
    clip: str = "none",
    config: PrepareConfig | None = None,
    *,
    ray_address: str | None = None,
) -> DatasetInfo:
    """Makes the DATASET `out` of the rows of `dataset` that were rejected for what may pass.

    The inputs must be where they were, unchanged; where `dataset` is another pass itself, so must
    be the DATASETs that led to it. Goes on where an interrupted run ended.

    Raises:
        UserError: `dataset` is none or unfinished, or what it was made of is gone or changed.
        NothingUsable: no row of it can be tried again.
    """
    passes = [(made, _retryable(made)) for made in _chain(dataset)]
    if not len(passes[-1][1]):
        raise NothingUsable(f"{dataset}: no row was rejected for a reason that may pass")
    config = config or read_config(dataset)

    def scan(work: Place) -> list[Source]:
        origin, wanted = passes[0]
        named = read_config(origin).columns
        before = _inputs(origin, work, named)
        listing = work / "retry.parquet"
        for (earlier, _), (later, again) in itertools.pairwise(passes):
            require_same_inputs(later, [_source(earlier, listing, before, named, wanted)])
            wanted = wanted[again]
        _write_listing(listing, before, wanted, config.max_bytes)
        found = _source(dataset, listing, before, named, wanted)
        listed = tables.scan(listing, found.name, listing, found.columns)
        return [replace(found, extra=listed.extra)]

    return prepare_sources(scan, out, clip, config, ray_address=ray_address)


def _inputs(origin: Place, work: Place, named: ColumnsConfig) -> list[Source]:
    """What `origin` was made of, by the names that were typed then, wherever it was found."""
    names = [item["name"] for item in recorded_inputs(origin)]
    found = sources.scan(find_inputs(origin, names), work, named)
    if len(found) == len(names):
        found = [replace(source, name=name) for source, name in zip(found, names, strict=True)]
    require_same_inputs(origin, found)
    return found


def _chain(dataset: Place) -> list[Place]:
    """The DATASETs that led to this one by passes, the one of the inputs first, this one last."""
    chain = [dataset]
    while True:
        read_dataset(chain[0])
        inputs = recorded_inputs(chain[0])
        if [item["kind"] for item in inputs] != ["retry"]:
            return chain
        (earlier,) = find_inputs(chain[0], [inputs[0]["name"].removesuffix(_NAME)])
        if earlier.absolute() in [later.absolute() for later in chain]:
            raise UserError(
                f"{chain[0]}: another pass over {earlier}, which is no earlier DATASET; "
                "expected it where it was"
            )
        chain.insert(0, earlier)


def _source(
    dataset: Place, listing: Place, before: list[Source], named: ColumnsConfig, wanted: Positions
) -> Source:
    """Another pass over `dataset`, which is the wanted rows of the sources `before` it.

    What it is held to are these rows, so a pass over it needs no listing to know it again.
    """
    told = [source.fingerprint for source in before]
    extra = columns.union([source.extra for source in before])
    own = _Own.beside(extra)
    key = own.listed.get(named.key) if named.key else None
    return Source(
        kind="retry",
        name=f"{dataset}{_NAME}",
        path=str(dataset.absolute()),
        rows=len(wanted),
        fingerprint=fingerprint(
            [told, named.model_dump(), hashlib.sha256(wanted.tobytes()).hexdigest()]
        ),
        table=str(listing.absolute()),
        extra=extra,
        columns=ColumnsConfig(url=own.url, captions=(own.captions,), key=key),
    )


@dataclass(frozen=True)
class _Own:
    """Names of the listing's own columns, which differ from those of the input's others.

    So these keep theirs, and metadata gives them the names that it gave them in the first DATASET.
    """

    url: str
    captions: str
    listed: Mapping[str, str]  # the others' names there, by those in the input

    @staticmethod
    def beside(extra: pa.Schema) -> _Own:
        taken = {SOURCE_ROW, *(name.lower() for name in extra.names)}
        listed = {name: _free(name, taken) if name == SOURCE_ROW else name for name in extra.names}
        taken |= {name.lower() for name in listed.values()}
        return _Own(_free("url", taken), _free("captions", taken), listed)


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"input_{name}"
    return name


def _retryable(dataset: Place) -> Positions:
    """Positions in the input of `dataset`."""
    found = [np.empty(0, np.int64)]
    for shard in range(read_dataset(dataset).shards):
        path = rejected_path(dataset, shard)
        try:
            table = read_table(path, columns=["row", "reason"])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        rows = table["row"].filter(pc.is_in(table["reason"], pa.array(RETRYABLE)))
        found.append(rows.to_numpy())
    return np.concatenate(found)


def _write_listing(
    path: Place, before: list[Source], wanted: Positions, max_bytes: int, rows_at_once: int = 1000
) -> None:
    """The wanted rows as a table of addresses, in row groups: never all of them in memory."""
    extra = columns.union([source.extra for source in before])
    own = _Own.beside(extra)
    fields = [pa.field(own.url, pa.string()), pa.field(own.captions, pa.list_(pa.string()))]
    fields.append(pa.field(SOURCE_ROW, pa.int64()))
    if key_column(extra) is None:
        fields.append(pa.field("key", pa.string()))
    schema = pa.schema([*fields, *(f.with_name(own.listed[f.name]) for f in extra)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        batch: list[dict[str, Any]] = []
        for position, row in _rows(before, wanted, max_bytes):
            batch.append(
                {
                    "key": row.source_key,
                    **{own.listed.get(name, name): row.extra[name] for name in row.extra},
                    own.url: row.url,
                    own.captions: list(row.captions),
                    SOURCE_ROW: position,
                }
            )
            if len(batch) == rows_at_once:
                writer.write_table(_table(batch, schema))
                batch = []
        writer.write_table(_table(batch, schema))


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    arrays = [columns.as_array([row.get(f.name) for row in rows], f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _rows(before: list[Source], wanted: Positions, max_bytes: int) -> Iterator[tuple[int, Row]]:
    """The rows at the wanted positions of all sources laid end to end."""
    ends = list(itertools.accumulate(source.rows for source in before))
    cuts = [0, *np.searchsorted(wanted, ends).tolist()]
    for source, end, at, until in zip(before, ends, cuts[:-1], cuts[1:], strict=True):
        start = end - source.rows
        while at < until:
            first = int(wanted[at])
            block = start + ((first - start) // _READ_ROWS + 1) * _READ_ROWS
            after = min(until, int(np.searchsorted(wanted, block)))
            chosen = set(wanted[at:after].tolist())
            count = int(wanted[after - 1]) - first + 1
            found = sources.read(source, first - start, count, max_bytes)
            yield from ((n, row) for n, row in enumerate(found, first) if n in chosen)
            at = after
