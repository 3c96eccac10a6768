"""Building a DATASET's index: two of autofaiss's, beside what clip-retrieval's back end needs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from base.lease import Lease
from base.progress import Progress
from base.stop import StopFlag
from data_pipeline.attempts import work_folder
from data_pipeline.problems import Problems
from data_pipeline.schema.dataset import FileRecord
from data_pipeline.search.autofaiss import find_autofaiss, make_index, memory_bytes
from data_pipeline.search.check import Indexed, check_index
from data_pipeline.search.embeddings import EmbeddingSet, open_embeddings
from data_pipeline.search.layout import (
    BACK_END_CACHE,
    BACK_END_FILE,
    KINDS,
    METADATA,
    RECORD,
    VERSION,
    IndexRecord,
    back_end,
    index_folder,
    read_record,
)

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
        there = _usable(embeddings, wanted)
        if there is not None and there.index_memory == index_memory:
            _link_metadata(dataset, folder)
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


def _usable(embeddings: EmbeddingSet, fingerprint: str) -> IndexRecord | None:
    """The record of a whole index of these embeddings; any other is made anew."""
    info = embeddings.info
    of = Indexed(
        embeddings.name, embeddings.clip, info.plan_fingerprint, fingerprint, embeddings.rows
    )
    folder, problems = index_folder(embeddings.root, embeddings.name), Problems()
    home = folder.relative_to(embeddings.root).as_posix()
    check_index(embeddings.root, home, of, problems)
    return None if problems.found else read_record(folder)


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
    (folder / BACK_END_CACHE).unlink(missing_ok=True)  # of what was before
    write_json(folder / BACK_END_FILE, back_end(embeddings.name))
    _sync(folder)
    write_json(folder / RECORD, record.to_json())
    return record


def _link_metadata(root: Path, folder: Path) -> None:
    """The back end looks for the metadata beside the index; the DATASET's own serves."""
    link = folder / METADATA
    if link.is_dir() and not link.is_symlink():  # of a folder that was copied
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(root / METADATA, folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
