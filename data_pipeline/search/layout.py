"""Where an index lies in a DATASET and what its record says.

The folder is one that clip-retrieval's back end serves: image.index, text.index, metadata/ and the
indices_paths.json that it reads. The first set's is index/, a further one's index/embeddings/NAME/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.files import read_json
from data_pipeline.schema.dataset import (
    ClipInfo,
    FileRecord,
    clip_from_json,
    embedding_root,
)

VERSION = 1
RECORD = "index.json"  # written last: its presence says that the index is whole
KINDS = {"image": "img_emb", "text": "text_emb"}  # KIND.index is made of the folder's rows


@dataclass(frozen=True)
class IndexRecord:
    """index.json: what the index was made of, and its files."""

    version: int
    embeddings: str | None  # name of a further set
    clip: ClipInfo
    plan_fingerprint: str  # of the DATASET
    embeddings_fingerprint: str  # of the bytes of img_emb and text_emb
    rows: int
    index_memory: str  # what the user allowed
    kinds: Mapping[str, str]  # image, text -> faiss's name of the index
    files: Mapping[str, FileRecord]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def index_folder(root: Path, name: str | None) -> Path:
    """The folder of a set's index."""
    return embedding_root(root / "index", name)


def read_record(folder: Path) -> IndexRecord | None:
    """The record of the index in `folder`, or None where there is no whole index.

    Raises:
        UserError: it is there and cannot be read, or is of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    data = read_json(path)
    try:
        if data["version"] != VERSION:
            raise UserError(f"{path}: version: got {data['version']!r}, expected {VERSION}")
        files = {name: FileRecord(**record) for name, record in data["files"].items()}
        record = IndexRecord(**{**data, "clip": clip_from_json(data["clip"]), "files": files})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a record of an index ({error})") from error
    return record if all(_is_there(folder, *item) for item in record.files.items()) else None


def _is_there(folder: Path, name: str, record: FileRecord) -> bool:
    path = folder / name
    return path.is_file() and path.stat().st_size == record.bytes
