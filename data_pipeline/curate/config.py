"""What `unclip data curate` may be told. Rules are applied in the order of these fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from base.config import Config

Nulls = Literal["drop", "keep"]
_Value = bool | int | float | str
_Text = Annotated[str, StringConstraints(min_length=1)]


class Threshold(Config):
    """Bounds on one column, both inclusive. A NaN counts as no value."""

    min: float | None = None
    max: float | None = None
    equals: _Value | None = None
    in_: tuple[_Value, ...] = Field((), alias="in")
    nulls: Nulls = "drop"

    @model_validator(mode="after")
    def _says_something(self) -> Threshold:
        asked = (self.min is not None or self.max is not None, self.equals is not None, self.in_)
        if sum(map(bool, asked)) != 1:
            raise ValueError("expected min or max or both, or equals, or in")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"got min {self.min:g} above max {self.max:g}, expected min <= max")
        return self


class CaptionConfig(Config):
    """Rules on the caption; 0 and nothing are off."""

    min_chars: int = Field(0, ge=0)
    max_chars: int = Field(0, ge=0)
    min_words: int = Field(0, ge=0)  # words are what white space separates
    max_words: int = Field(0, ge=0)
    keep_regex: _Text | None = None  # RE2: kept when it is found anywhere in the caption
    drop_regex: _Text | None = None  # dropped when it is found anywhere
    languages: tuple[_Text, ...] = ()  # such as en, de, zh; see data_pipeline.curate.language
    unknown_language: Nulls = "drop"

    @model_validator(mode="after")
    def _is_possible(self) -> CaptionConfig:
        for unit in ("chars", "words"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if most and least > most:
                raise ValueError(f"got min_{unit} {least} above max_{unit} {most}")
        return self


class PhashConfig(Config):
    """Pictures whose perceptual hashes differ in at most `distance` of 64 bits are duplicates."""

    distance: int = Field(0, ge=0, le=10)


class EmbeddingConfig(Config):
    """Pictures of one cluster whose embeddings have a cosine above 1 - eps are duplicates."""

    eps: float = Field(0.05, gt=0, lt=1)
    clusters: int = Field(0, ge=0, le=1_000_000)  # 0: one up to 20,000 rows, else sqrt(rows)
    set: _Text | None = None  # embeddings/NAME; the first set when not given
    seed: int = Field(0, ge=0, lt=2**31)


class SplitConfig(Config):
    """A share for validation, chosen by the perceptual hash."""

    val: float = Field(gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    distance: int = Field(0, ge=0, le=10)  # of hashes that must be on one side


class CurateConfig(Config):
    """All rules; those that are not given are off."""

    prefer: _Text | None = None  # among duplicates and under caps, the highest of this column stays
    thresholds: dict[str, Threshold] = Field({})
    captions: CaptionConfig = CaptionConfig()
    exact_duplicates: bool = False
    phash_duplicates: PhashConfig | None = None
    embedding_duplicates: EmbeddingConfig | None = None
    domain_cap: int = Field(0, ge=0)  # rows of one host
    caps: dict[str, Annotated[int, Field(ge=1)]] = Field({})  # rows of one value of a column
    split: SplitConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data by the names that users write; `thresholds` and `caps` sorted by column."""
        data = self.model_dump(mode="json", by_alias=True)
        for name in ("thresholds", "caps"):
            data[name] = dict(sorted(data[name].items()))
        return data
