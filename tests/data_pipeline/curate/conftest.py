"""A DATASET whose rows break every rule, with an empty shard in the middle and two CLIPs."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare

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


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
    picture_bytes: Callable[..., bytes],
) -> Path:
    """The DATASET as it was prepared; shared, so use `dataset` to write."""
    folder = tmp_path_factory.mktemp("curate")
    pq.write_table(pa.Table.from_pylist(rows_of(picture_bytes)), folder / "in.parquet")
    config = PrepareConfig(image_size=64, mode="border", samples_per_shard=16)
    prepare([folder / "in.parquet"], folder / "dataset", "random:0", config)
    embed(folder / "dataset", "random:1", "second")
    return folder / "dataset"


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "dataset"))
