"""Whether a row has a caption that is asked for, told before anything is fetched or decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.config import PrepareConfig
from data_pipeline.row import Rejection, Row


def with_caption(row: Row, config: PrepareConfig) -> Row:
    """The row, with a problem if it has no usable caption: then nothing is fetched for it."""
    if row.problem is not None:
        return row
    try:
        _check(row.captions, config)
    except Rejection as why:
        return replace(row, problem=why)
    return row


def _check(captions: Sequence[str], config: PrepareConfig) -> None:
    if not captions:
        raise Rejection("no_caption", "the row has no caption")
    length = len(captions[0])
    if length < config.min_caption:
        raise Rejection("caption_too_short", f"{length} characters of {config.min_caption}")
    if config.max_caption and length > config.max_caption:
        raise Rejection("caption_too_long", f"{length} characters, max is {config.max_caption}")
