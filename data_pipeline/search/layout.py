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
from base.places import Place
from data_pipeline.schema.dataset import (
    ClipInfo,
    FileRecord,
    clip_from_json,
    embedding_root,
)

VERSION = 1
INDEX = "index"  # the folder of the DATASET
RECORD = "index.json"  # written last: its presence says that the index is whole
KINDS = {"image": "img_emb", "text": "text_emb"}  # KIND.index is made of the folder's rows
METADATA = "metadata"  # beside the index as in the DATASET
BACK_END_FILE = "indices_paths.json"
BACK_END_CACHE = "metadata.hdf5"  # the back end's own copy of the metadata
# What clip-retrieval's back end is told: to load nothing from the web, and which columns to return.
_BACK_END = {
    "indice_folder": ".",
    "columns_to_return": ["key", "source_key", "url", "caption", "width", "height"],
    "use_jit": False,
    "enable_mclip_option": False,
    "provide_aesthetic_embeddings": False,
}


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
    return embedding_root(root / INDEX, name)


def back_end(name: str | None) -> dict[str, Any]:
    """What BACK_END_FILE holds for the index of a set."""
    return {name or "dataset": _BACK_END}


def read_record(folder: Path) -> IndexRecord | None:
    """The record of the index in `folder`, or None where there is none.

    Raises:
        UserError: it is there and cannot be read, or is of another version.
    """
    path = folder / RECORD
    return parse_record(read_json(path), path) if path.is_file() else None


def parse_record(data: Any, path: object) -> IndexRecord:
    """The record that RECORD holds.

    Raises:
        UserError: it is none, or of another version; the message begins with `path`.
    """
    try:
        if data["version"] != VERSION:
            raise UserError(f"{path}: version: got {data['version']!r}, expected {VERSION}")
        files = {name: FileRecord(**record) for name, record in data["files"].items()}
        return IndexRecord(**{**data, "clip": clip_from_json(data["clip"]), "files": files})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a record of an index ({error})") from error


def damage(folder: Place, name: str, record: FileRecord) -> str:
    """What is wrong with a file of an index as far as its size tells; "" when nothing is."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return "" if size == record.bytes else f"is damaged: {size} bytes, expected {record.bytes}"
