"""Building a DATASET's index: two of autofaiss's, beside what clip-retrieval's back end needs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from base.lease import Lease
from base.progress import Progress
from base.stop import StopFlag
from data_pipeline.attempts import work_folder
from data_pipeline.schema.dataset import FileRecord
from data_pipeline.search.autofaiss import find_autofaiss, make_index, memory_bytes
from data_pipeline.search.embeddings import EmbeddingSet, open_embeddings
from data_pipeline.search.layout import (
    KINDS,
    RECORD,
    VERSION,
    IndexRecord,
    index_folder,
    read_record,
)

# What clip-retrieval's back end is told: to load nothing from the web, and which columns to return.
_BACK_END = {
    "indice_folder": ".",
    "columns_to_return": ["key", "source_key", "url", "caption", "width", "height"],
    "use_jit": False,
    "enable_mclip_option": False,
    "provide_aesthetic_embeddings": False,
}
_OVERHEAD = 0.9  # of the memory; autofaiss wants the rest for its work


def build(
    dataset: Path,
    name: str | None = None,
    *,
    memory: str = "16G",
    index_memory: str = "4G",
    environment: Path | None = None,
) -> tuple[IndexRecord, bool]:
    """Makes the index of a set of embeddings; False beside the record: it was there already.

    An index is made anew when the embeddings or `index_memory` have changed.

    Raises:
        UserError: no DATASET, no embeddings, no autofaiss, sizes that do not fit each other.
    """
    if memory_bytes(index_memory, "index-memory") > _OVERHEAD * memory_bytes(memory, "memory"):
        raise UserError(
            f"index-memory: got {index_memory}, expected at most 90 % of memory ({memory})"
        )
    open_embeddings(dataset, name)  # a mistake is told before the folder is touched
    with Lease(dataset), StopFlag() as stop:
        embeddings = open_embeddings(dataset, name)
        embeddings.require_whole()
        wanted = embeddings.fingerprint()
        folder = index_folder(dataset, name)
        there = _usable(folder)
        if there is not None and (there.embeddings_fingerprint, there.index_memory) == (
            wanted,
            index_memory,
        ):
            return there, False
        program = find_autofaiss(environment)
        with work_folder(dataset) as work:
            kinds = {}
            with Progress("index", 2 * embeddings.rows, "rows") as bar:
                for kind, rows in KINDS.items():
                    paths = (work / f"{kind}.index", work / f"{kind}.json")
                    make_index(
                        program, embeddings.folder / rows, *paths, memory, index_memory, stop
                    )
                    kinds[kind] = str(read_json(paths[1])["index_key"])
                    bar.advance(embeddings.rows, kind=f"{kind} {kinds[kind]}")
            return _publish(work, folder, embeddings, wanted, index_memory, kinds), True


def _usable(folder: Path) -> IndexRecord | None:
    """The record that is there; one that cannot be read is made anew."""
    try:
        return read_record(folder)
    except UserError:
        return None


def _publish(
    work: Path,
    folder: Path,
    embeddings: EmbeddingSet,
    fingerprint: str,
    index_memory: str,
    kinds: dict[str, str],
) -> IndexRecord:
    """Moves the new files into place; the record goes first and comes last."""
    files = {}
    for kind in KINDS:
        path = work / f"{kind}.index"
        files[path.name] = FileRecord(sha256_file(path), path.stat().st_size, embeddings.rows)
    record = IndexRecord(
        version=VERSION,
        embeddings=embeddings.name,
        clip=embeddings.clip,
        plan_fingerprint=embeddings.info.plan_fingerprint,
        embeddings_fingerprint=fingerprint,
        rows=embeddings.rows,
        index_memory=index_memory,
        kinds=kinds,
        files=files,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    for file in files:
        _sync(work / file)
        os.replace(work / file, folder / file)
    _link_metadata(embeddings.root, folder)
    (folder / "metadata.hdf5").unlink(missing_ok=True)  # the back end's copy of what was before
    write_json(folder / "indices_paths.json", {embeddings.name or "dataset": _BACK_END})
    _sync(folder)
    write_json(folder / RECORD, record.to_json())
    return record


def _link_metadata(root: Path, folder: Path) -> None:
    """The back end looks for the metadata beside the index; the DATASET's own serves."""
    link = folder / "metadata"
    with suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(os.path.relpath(root / "metadata", folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
