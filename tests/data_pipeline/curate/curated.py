"""Rows that break every rule, configs of all rules, and what a selection's files say."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from base.config import fingerprint, parse_config
from data_pipeline.config import PrepareConfig
from data_pipeline.curate.config import CurateConfig
from data_pipeline.schema.selection import drops_path, record_path, selection_path

PREPARE = PrepareConfig(image_size=64, mode="border", samples_per_shard=16)
CAPTIONS = (
    "a red circle beside a small house",
    "the old man rides his bicycle home",
    "ein kleiner Hund spielt im tiefen Schnee",
    "un chat noir dort sur le canapé rouge",
    "cat",
    "IMG_2034.JPG",
)
HOSTS = ("www.flickr.com", "flickr.com:443", "i.pinimg.com", "example.org")


def rows_of(picture_bytes: Callable[..., bytes]) -> list[dict[str, Any]]:
    """56 rows: 40 pictures, of which some come again as they are or encoded anew, and 16 broken."""
    rows: list[dict[str, Any]] = []

    def add(image: bytes, caption: str | None = None) -> None:
        i = len(rows)
        rows.append(
            {
                "url": None if i % 11 == 10 else f"https://{HOSTS[i % 4]}/{i}.jpg",
                "image": image,
                "caption": caption or f"{CAPTIONS[i % 6]} {'x' * (i // 6)}",
                "score": None if i % 7 == 6 else float("nan") if i % 13 == 12 else i / 50,
                "tag": ("good", "bad", None)[i % 3],
                "checked": i % 2 == 0,
            }
        )

    pictures = [picture_bytes(seed, 96, 64 if seed % 5 else 32) for seed in range(30)]
    for picture in pictures[:16]:
        add(picture)
    for _ in range(16):
        add(b"broken")
    for picture in pictures[16:]:
        add(picture)
    for seed in range(0, 20, 4):
        add(pictures[seed])
        again = io.BytesIO()
        Image.open(io.BytesIO(pictures[seed + 1])).resize((80, 60)).save(again, "JPEG", quality=60)
        add(again.getvalue())
    return rows


EVERYTHING: dict[str, Any] = {
    "prefer": "score",
    "thresholds": {"score": {"max": 0.9, "nulls": "keep"}, "aspect": {"max": 2.5}},
    "captions": {"min_chars": 5, "languages": ["en", "fr"], "drop_regex": "IMG"},
    "exact_duplicates": True,
    "phash_duplicates": {"distance": 6},
    "embedding_duplicates": {"eps": 0.0001},
    "domain_cap": 6,
    "caps": {"tag": 5},
    "split": {"val": 0.3, "seed": 4, "distance": 2},
}

CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "prefer": st.sampled_from(["score", "similarity", "original_height"]),
        "thresholds": st.fixed_dictionaries(
            {},
            optional={
                "score": st.fixed_dictionaries(
                    {"min": st.floats(0, 1), "nulls": st.sampled_from(["keep", "drop"])}
                ),
                "tag": st.just({"in": ["good", "bad"]}),
            },
        ),
        "captions": st.fixed_dictionaries(
            {}, optional={"min_words": st.integers(0, 7), "languages": st.just(["en", "fr", "de"])}
        ),
        "exact_duplicates": st.booleans(),
        "phash_duplicates": st.fixed_dictionaries({"distance": st.integers(0, 10)}),
        "embedding_duplicates": st.fixed_dictionaries({"eps": st.floats(1e-5, 0.01)}),
        "domain_cap": st.integers(0, 12),
        "caps": st.fixed_dictionaries({"tag": st.integers(1, 12)}),
    },
)


def config(**rules: Any) -> CurateConfig:
    return parse_config(rules, CurateConfig, "test")


def keys(dataset: Path, name: str) -> list[str]:
    found: list[str] = pq.read_table(selection_path(dataset, name))["key"].to_pylist()
    return found


def drops(dataset: Path, name: str) -> dict[str, tuple[str, str | None]]:
    table = pq.read_table(drops_path(dataset, name)).to_pylist()
    return {row["key"]: (row["rule"], row["kept_instead"]) for row in table}


def rewrite(dataset: Path, name: str, table: pa.Table, path: Path) -> None:
    """Puts other rows into a file of a selection, its record made to agree."""
    pq.write_table(table, path)
    record = json.loads(record_path(dataset, name).read_text())
    data = path.read_bytes()
    shown = path.relative_to(dataset).as_posix()
    record["files"][shown] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    del record["fingerprint"]
    record["fingerprint"] = fingerprint(record)
    record_path(dataset, name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
