"""The corpus written as folders, parquet files or webdataset tars, in parts that can be resumed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UserError
from base.files import atomic_path, read_json, require_free_space, write_json
from base.hashing import stable_hash
from base.lease import Lease
from base.progress import Progress, share_of
from data_pipeline.scenes.draw import SPLITS, Split, scene
from data_pipeline.scenes.render import jpeg, render
from data_pipeline.schema import lettering
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import KINDS, USUAL_KINDS, Kind

Form = Literal["folder", "parquet", "webdataset"]
FORMS: tuple[Form, ...] = ("folder", "parquet", "webdataset")

PART_ROWS = 1000  # scenes a tar, a parquet file or a sub-folder holds: the unit of resuming
_BYTES_PER_SCENE = 16 << 10  # at 256²: an upper estimate for the disk check


@dataclass(frozen=True)
class Settings:
    """What the bytes of a corpus depend on; kept in scenes.json beside it."""

    count: int
    seed: int
    form: Form
    split: Split
    size: int
    kinds: tuple[Kind, ...] = USUAL_KINDS


@dataclass(frozen=True)
class Sample:
    """One pair as it is written: key, JPEG bytes, caption, truth."""

    key: str
    image: bytes
    caption: str
    truth: dict[str, Any]

    @property
    def truth_bytes(self) -> bytes:
        """The json member, one line."""
        return json.dumps(self.truth, separators=(",", ":")).encode()


def samples(settings: Settings, start: int, stop: int) -> Iterator[Sample]:
    """The pairs number start to stop - 1 of a corpus."""
    for index in range(start, stop):
        drawn, caption = scene(settings.seed, index, settings.split, settings.kinds)
        picture = jpeg(render(drawn, settings.size))
        yield Sample(f"{index:09d}", picture, caption, {"scene": drawn.to_json()})


def write_scenes(
    out: Path,
    count: int,
    seed: int,
    form: Form,
    split: Split,
    size: int = 256,
    workers: int | None = None,
    bar: Progress | None = None,
    kinds: Sequence[str] = USUAL_KINDS,
) -> None:
    """Write `count` pairs of a split and of these kinds under `out`, as inputs that users have.

    folder: NNNNN/KEY.jpg, .txt and .json; parquet: NNNNN.parquet with key, image (JPEG bytes),
    caption and json; webdataset: NNNNN.tar with the three members a key. 1,000 pairs a part.
    scenes.json, written last, says that the corpus is whole; until then the parts wait in
    `.work/`. Run again after an interruption it goes on; a whole corpus with the same settings is
    left alone. Progress is shown in a bar of its own, or in `bar`. Raises UserError where `out`
    holds something else or is in use.
    """
    settings = _checked(Settings(count, seed, form, split, size, _ordered(kinds)))
    out.mkdir(parents=True, exist_ok=True)
    with Lease(out):
        if _begin(out, settings):
            _write_parts(out, settings, workers or len(os.sched_getaffinity(0)), bar)
            _finish(out, settings)
        else:
            with share_of(bar, "scenes", count, "scenes", count) as shown:
                shown.log(f"{out}: {count} scenes are already there")


def _ordered(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds in the vocabulary's order, each once."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"kinds: got {kind!r}, expected some of {', '.join(KINDS)}")
    if not kinds:
        raise UserError(f"kinds: got none, expected some of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def _checked(settings: Settings) -> Settings:
    for field, expected in (("form", FORMS), ("split", SPLITS)):
        if getattr(settings, field) not in expected:
            got = getattr(settings, field)
            raise UserError(f"{field}: got {got!r}, expected one of {', '.join(expected)}")
    if settings.count < 1:
        raise UserError(f"count: got {settings.count}, expected at least 1")
    if not 8 <= settings.size <= 4096:
        raise UserError(f"size: got {settings.size}, expected 8 to 4096")
    return settings


def _record(settings: Settings) -> dict[str, Any]:
    """scenes.json. Of the usual kinds it says what it did before there were others."""
    words: list[Any] = [
        vocabulary.COLOURS,
        vocabulary.BACKGROUNDS,
        vocabulary.SHAPES,
        vocabulary.SIZES,
    ]
    record = {"version": 1, **asdict(settings), "kinds": list(settings.kinds)}
    if settings.kinds == USUAL_KINDS:
        del record["kinds"]
    else:
        words += [vocabulary.COUNTS, vocabulary.LAYOUTS, vocabulary.WORDS, lettering.LETTERS]
    return {**record, "vocabulary": f"{stable_hash(json.dumps(words)):016x}"}


def _begin(out: Path, settings: Settings) -> bool:
    """Make the working folder, or take up the one that is there; False when all is done."""
    work, record = out / ".work", _record(settings)
    for path in (out / "scenes.json", work / "scenes.json"):
        if path.exists() and (there := read_json(path)) != record:
            known = there if isinstance(there, dict) else {}
            differing = ", ".join(k for k in {**known, **record} if known.get(k) != record.get(k))
            raise UserError(
                f"{out}: holds scenes with other settings ({differing}); choose another"
            )
    if (out / "scenes.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        return False
    if not (work / "scenes.json").exists():
        others = [p.name for p in out.iterdir() if p.suffix != ".lock" and p != work]
        if others:
            raise UserError(f"{out}: is not empty (it holds {others[0]}); choose another folder")
        require_free_space(out, int(settings.count * _BYTES_PER_SCENE * (settings.size / 256) ** 2))
        work.mkdir(exist_ok=True)
        write_json(work / "scenes.json", record)
    return True


_SUFFIX: dict[Form, str] = {"folder": "", "parquet": ".parquet", "webdataset": ".tar"}


def _part_name(settings: Settings, part: int) -> str:
    return f"{part:05d}{_SUFFIX[settings.form]}"


def _parts(settings: Settings) -> list[int]:
    return list(range(-(-settings.count // PART_ROWS)))


def _rows(settings: Settings, part: int) -> tuple[int, int]:
    return part * PART_ROWS, min(settings.count, (part + 1) * PART_ROWS)


def _write_parts(out: Path, settings: Settings, workers: int, whole: Progress | None) -> None:
    work = out / ".work"
    missing = [
        part
        for part in _parts(settings)
        if not any((f / _part_name(settings, part)).exists() for f in (out, work))
    ]
    count = {part: stop - start for part in missing for start, stop in [_rows(settings, part)]}
    done = settings.count - sum(count.values())
    with share_of(whole, "scenes", settings.count, "scenes", done) as bar:
        for part in _run(work, settings, missing, min(workers, len(missing))):
            bar.advance(count[part])


def _run(work: Path, settings: Settings, parts: list[int], workers: int) -> Iterator[int]:
    """Write the parts, here or in processes of their own, and yield each when it is there."""
    if workers <= 1:
        for part in parts:
            yield _write_part(work, settings, part)
        return
    # spawn: the caller may hold threads (Ray, torch) that a fork would break.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_follow_parent)
    try:
        for future in as_completed(pool.submit(_write_part, work, settings, p) for p in parts):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave interruptions to the parent, and end when it is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _write_part(work: Path, settings: Settings, part: int) -> int:
    path = work / _part_name(settings, part)
    pairs = samples(settings, *_rows(settings, part))
    if settings.form == "folder":
        _write_folder(path, pairs)
    elif settings.form == "parquet":
        _write_parquet(path, pairs)
    else:
        _write_tar(path, pairs)
    return part


def _write_folder(path: Path, pairs: Iterator[Sample]) -> None:
    growing = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    for pair in pairs:
        for suffix, data in _members(pair):
            (growing / f"{pair.key}.{suffix}").write_bytes(data)
    growing.rename(path)


def _members(pair: Sample) -> tuple[tuple[str, bytes], ...]:
    return ("jpg", pair.image), ("txt", pair.caption.encode()), ("json", pair.truth_bytes)


def _write_tar(path: Path, pairs: Iterator[Sample]) -> None:
    with (
        atomic_path(path) as growing,
        tarfile.open(growing, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for pair in pairs:
            for suffix, data in _members(pair):
                member = tarfile.TarInfo(f"{pair.key}.{suffix}")  # mtime, uid and gid are 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: Path, pairs: Iterator[Sample]) -> None:
    rows = [(p.key, p.image, p.caption, p.truth_bytes.decode()) for p in pairs]
    types = (pa.string(), pa.binary(), pa.string(), pa.string())
    columns = [pa.array(c, t) for c, t in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.Table.from_arrays(columns, names=["key", "image", "caption", "json"])
    with atomic_path(path) as growing:
        pq.write_table(table, growing)


def _finish(out: Path, settings: Settings) -> None:
    work = out / ".work"
    for part in _parts(settings):
        waiting = work / _part_name(settings, part)
        if waiting.exists():
            waiting.rename(out / waiting.name)
    write_json(out / "scenes.json", _record(settings))
    shutil.rmtree(work)
