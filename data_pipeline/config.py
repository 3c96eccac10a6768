"""What `unclip data prepare` may be told: size, mode, quality, caps, filters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from base.config import Config
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.schema.dataset import KEYS_PER_SHARD

Mode = Literal["center_crop", "keep_ratio", "keep_ratio_largest", "border", "none"]
# A number in YAML and on command lines, a name to simplejpeg.
Chroma = Annotated[
    Literal["420", "444"],
    BeforeValidator(lambda given: str(given) if isinstance(given, int) else given),
]
Precision = Literal["fp32", "fp16", "bf16", "amp", "amp_bf16", "pure_fp16", "pure_bf16"]


class ColumnsConfig(Config):
    """Which column of a table holds what, where its name does not tell."""

    captions: tuple[str, ...] = ()  # the first one's is the caption
    url: str | None = None
    path: str | None = None
    image: str | None = None  # bytes
    key: str | None = None


class EmbedConfig(Config):
    """How a CLIP computes: its embeddings record the precision, the rest is the machine's."""

    precision: Precision = "fp32"  # as open_clip names them; rows are normalised in fp32 always
    gpu_fraction: float = Field(1.0, gt=0, le=1)  # of a GPU for each actor; 0.5 puts two on one
    actors: int = Field(0, ge=0)  # 0: as many as GPUs hold, or one a core where there is none


class PrepareConfig(Config):
    """How pictures are stored. All of it goes into the plan's fingerprint.

    Only the caps on pixels and bytes are on by default; a filter at 0 is off.
    """

    image_size: int = Field(256, ge=8, le=8192)
    mode: Mode = "center_crop"  # see data_pipeline.resize
    only_if_bigger: bool = False  # never enlarge a small picture
    jpeg_quality: int = Field(95, ge=1, le=100)
    chroma: Chroma = "420"  # 420 halves the colours' resolution, as usual
    keep_jpeg: bool = False  # store what is plain and fits already as it came (data_pipeline.jpeg)
    samples_per_shard: int = Field(1000, ge=1, le=KEYS_PER_SHARD)
    max_pixels: int = Field(64_000_000, ge=1)  # declared by the header, before any decoding
    max_bytes: int = Field(256 << 20, ge=1)  # of a picture's file
    min_side: int = Field(0, ge=0)
    max_aspect: float = Field(0.0, ge=0)
    min_caption: int = Field(0, ge=0)  # characters
    max_caption: int = Field(0, ge=0)
    columns: ColumnsConfig = ColumnsConfig()
    fetch: FetchConfig = FetchConfig()
    embed: EmbedConfig = EmbedConfig()
