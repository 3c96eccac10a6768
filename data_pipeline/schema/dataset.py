"""DATASET, version 1: the names, types and records of a prepared data set (pyarrow only).

Everything that reads or writes a DATASET takes its paths and columns from here. The layout is
described for people in docs/data.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from base.errors import UserError, one_line
from base.places import Place, below

P = TypeVar("P", bound=Place)

VERSION = 1
KEYS_PER_SHARD = 10_000  # KEY = shard * KEYS_PER_SHARD + row
MAX_SHARDS = 100_000
MAX_EMBEDDING_NORM_ERROR = 6e-4  # |norm - 1| that fp16 rounding may cause

PIXELS = "pixels"  # stages of a commit
EMBEDDED = "embedded"

DATASET_FILE = "dataset.json"
SIZES_FILE = "shards/sizes.json"
PLAN_FILE = "plan/plan.parquet"
CONFIG_FILE = "plan/config.yaml"
PLACES_FILE = "plan/places.json"  # where each input lay; in no hash
WORK_FOLDER = ".work"

REASONS: Mapping[str, str] = {
    "missing_file": "the file that the input names does not exist",
    "unreadable_file": "the file exists but could not be read",
    "bad_path": "the path is empty, absolute inside a folder table, or leaves its folder",
    "bad_row": "the input row has a value of the wrong type, or a broken json",
    "no_image": "the row or tar sample has no picture",
    "no_caption": "the row or tar sample has no caption, or an empty one",
    "bad_caption": "the caption is not UTF-8 text, or longer than the cap",
    "empty_image": "the picture has no bytes",
    "not_an_image": "the bytes are no picture of a known format",
    "unsupported_image": "a picture of a kind that is not decoded (12-bit JPEG, vector, ...)",
    "too_many_bytes": "the picture's file is larger than the cap",
    "too_many_pixels": "the header declares more pixels than the cap; nothing was decoded",
    "truncated_image": "the picture ends early; what is there is not used",
    "corrupt_image": "the picture's data is damaged",
    "too_small": "a side is below min_side",
    "aspect": "longer side / shorter side is above max_aspect",
    "caption_too_short": "the caption has fewer characters than min_caption",
    "caption_too_long": "the caption has more characters than max_caption",
    "bad_embedding": "a published embedding is zero, not finite, or of a norm that none has",
    "broken_source": "the tar or parquet that holds the row is damaged at or before it",
    "bad_url": "the address is not one of http or https, or leads to one that is not",
    "refused_address": "the host is on no public address (one's own network, metadata service)",
    "robots": "the host's robots.txt does not allow it",
    "opted_out": "an opt-out list, or the server's X-Robots-Tag, says no",
    "http_error": "the server answers with an error that stays (404, 403, ...)",
    "too_many_redirects": "more redirects than the cap",
    "tls": "the server has no valid certificate",
    "wrong_hash": "the bytes do not have the md5 or sha256 that the row expects",
    "timeout": "no answer, or not all of it, in time (may pass)",
    "dns": "the host's name is not known (may pass)",
    "connection": "the connection failed, or ended early (may pass)",
    "http_passing": "the server answers 429 or 5xx, at every attempt (may pass)",
}
RETRYABLE = ("timeout", "dns", "connection", "http_passing")  # another pass may find them well

METADATA_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # position in the whole input
        pa.field("source_key", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the stored picture
        pa.field("height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32(), nullable=False),
        pa.field("original_height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # hex, of the source bytes
        pa.field("phash", pa.string(), nullable=False),  # 16 hex digits, of the stored picture
        pa.field("similarity", pa.float32()),  # null until embedded
        pa.field("img_norm", pa.float32()),
        pa.field("text_norm", pa.float32()),
        pa.field("jpg_offset", pa.int64(), nullable=False),  # of the member's data in the tar
        pa.field("jpg_length", pa.int64(), nullable=False),
        pa.field("txt_offset", pa.int64(), nullable=False),
        pa.field("txt_length", pa.int64(), nullable=False),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_length", pa.int64(), nullable=False),
    ]
)
EMBEDDING_COLUMNS = ("similarity", "img_norm", "text_norm")

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("source_key", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("reason", pa.string(), nullable=False),  # a key of REASONS
        pa.field("message", pa.string(), nullable=False),
    ]
)

PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),  # in that source
        pa.field("count", pa.int64(), nullable=False),
    ]
)


def shard_name(shard: int) -> str:
    """Five digits, the stem of the shard's tar."""
    return f"{shard:05d}"


def sample_key(shard: int, row: int) -> str:
    """Nine digits: the KEY of row `row` of shard `shard`."""
    if not (0 <= shard < MAX_SHARDS and 0 <= row < KEYS_PER_SHARD):
        raise ValueError(f"shard, row: got {shard}, {row}, expected < {MAX_SHARDS}, 10000")
    return f"{shard * KEYS_PER_SHARD + row:09d}"


def key_position(key: str) -> tuple[int, int]:
    """(shard, row) of a KEY."""
    return divmod(int(key), KEYS_PER_SHARD)


def tar_path(root: P, shard: int) -> P:
    """The shard's tar."""
    return below(root, "shards", f"{shard_name(shard)}.tar")


def img_emb_path(root: P, shard: int, name: str | None = None) -> P:
    """Image embeddings of the shard, float16 [n, D]; `name` picks embeddings/NAME."""
    return below(embedding_root(root, name), "img_emb", f"img_emb_{shard_name(shard)}.npy")


def text_emb_path(root: P, shard: int, name: str | None = None) -> P:
    """Text embeddings of the shard, float16 [n, D]."""
    return below(embedding_root(root, name), "text_emb", f"text_emb_{shard_name(shard)}.npy")


def metadata_path(root: P, shard: int) -> P:
    """The shard's metadata, one row per sample in tar order."""
    return below(root, "metadata", f"metadata_{shard_name(shard)}.parquet")


def rejected_path(root: P, shard: int) -> P:
    """The shard's input rows that were not kept (written for every shard, also with 0 rows)."""
    return below(root, "rejected", f"rejected_{shard_name(shard)}.parquet")


def commit_path(root: P, shard: int, name: str | None = None) -> P:
    """The shard's commit; its presence means the shard is done."""
    return below(embedding_root(root, name), "commits", f"{shard_name(shard)}.json")


def embedding_root(root: P, name: str | None) -> P:
    """The folder that holds img_emb, text_emb and commits of an embedding set."""
    return root if name is None else below(root, "embeddings", name)


def clip_path(root: P, name: str) -> P:
    """The CLIP record of a further embedding set (the first one's is in dataset.json)."""
    return below(embedding_root(root, name), "clip.json")


@dataclass(frozen=True)
class ClipInfo:
    """Which CLIP made the embeddings; equal records mean comparable rows."""

    model: str
    pretrained: str
    weights_sha256: str
    preprocess_sha256: str
    dim: int
    precision: str = "fp32"  # as open_clip names them

    @property
    def published(self) -> bool:
        """Whether the embeddings were published without pictures: by which weights is hearsay."""
        return not self.weights_sha256


@dataclass(frozen=True)
class DatasetInfo:
    """dataset.json: totals of a complete DATASET. input = kept + rejected."""

    version: int
    input: int
    kept: int
    rejected: int
    shards: int  # ids 0 .. shards - 1; one of which nothing was kept has no tar
    image_size: int
    plan_fingerprint: str
    clip: ClipInfo | None

    @property
    def has_pictures(self) -> bool:
        """Whether it was made of pictures, not of published embeddings alone."""
        return self.clip is None or not self.clip.published

    def to_json(self) -> dict[str, Any]:
        """Plain data for dataset.json."""
        return asdict(self)


@dataclass(frozen=True)
class FileRecord:
    """One committed file."""

    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class Commit:
    """commits/00000.json; `files` maps a path relative to the DATASET to its record."""

    version: int
    stage: str
    shard: int
    input: int
    kept: int
    rejected: int
    files: Mapping[str, FileRecord]
    tar_sha256: str | None = None  # of a further embedding set: the tar that it was made of
    devices: tuple[str, ...] = ()  # what computed the embeddings: cpu, or GPUs by their names

    def to_json(self) -> dict[str, Any]:
        """Plain data, files sorted by path, without what it does not say."""
        data = asdict(self)
        data["files"] = {name: asdict(self.files[name]) for name in sorted(self.files)}
        return {name: value for name, value in data.items() if value not in (None, ())}


def read_dataset(root: Place) -> DatasetInfo:
    """The record of a complete DATASET.

    Raises:
        UserError: one line, when `root` is no DATASET, is unfinished, or of another version.
    """
    path = root / DATASET_FILE
    if not path.is_file():
        if (root / PLAN_FILE).is_file():
            raise UserError(f"{root}: preparation is not finished; run `unclip data prepare` again")
        raise UserError(f"{root}: not a DATASET (no {DATASET_FILE})")
    data = _load(path)
    _require_version(data, path)
    try:
        clip = None if data["clip"] is None else clip_from_json(data["clip"])
        return DatasetInfo(**{**data, "clip": clip})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not a dataset record ({one_line(error)})") from error


def clip_from_json(data: Mapping[str, Any]) -> ClipInfo:
    """A ClipInfo from plain data; TypeError when fields are missing or unknown."""
    return ClipInfo(**data)


def read_commit(root: Place, shard: int, name: str | None = None) -> Commit | None:
    """The shard's commit, or None when the shard is not done.

    Raises:
        UserError: the commit exists but cannot be read.
    """
    path = commit_path(root, shard, name)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    data = _parse(text, path)
    _require_version(data, path)
    try:
        files = {file: FileRecord(**record) for file, record in data["files"].items()}
        return Commit(**{**data, "files": files, "devices": tuple(data.get("devices", ()))})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a commit record ({one_line(error)})") from error


def shard_sizes(root: Place, info: DatasetInfo) -> list[int]:
    """Samples in each shard, by shard id; 0 where nothing was kept."""
    if not info.has_pictures:  # no tars, which is what sizes.json lists
        commits = (read_commit(root, shard) for shard in range(info.shards))
        return [commit.kept if commit else 0 for commit in commits]
    sizes = _load(root / SIZES_FILE)
    return [int(sizes.get(f"{shard_name(shard)}.tar", 0)) for shard in range(info.shards)]


def metadata_schema(extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """METADATA_SCHEMA followed by the input's other columns, renamed where they clash."""
    fields = list(METADATA_SCHEMA)
    taken = {field.name.lower() for field in fields}
    for field in extra:
        name = field.name
        while name.lower() in taken:
            name = f"input_{name}"
        taken.add(name.lower())
        fields.append(field.with_name(name).with_nullable(True))
    return pa.schema(fields)


def _load(path: Place) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    return _parse(text, path)


def _parse(text: bytes, path: Place) -> dict[str, Any]:
    try:
        data = json.loads(text.decode())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object")
    return data


def _require_version(data: Mapping[str, Any], path: Place) -> None:
    if data.get("version") != VERSION:
        found = data.get("version")
        raise UserError(f"{path}: version: got {found!r}, expected {VERSION}")
