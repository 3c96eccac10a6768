"""Rules that judge each row by itself: thresholds on columns, and what captions must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from base.errors import UserError, one_line
from data_pipeline.curate.config import CaptionConfig, CurateConfig, Threshold
from data_pipeline.curate.language import require_languages, speaks
from data_pipeline.curate.samples import column_type, is_number

Mask = npt.NDArray[np.bool_]
_WORD = r"[^\s\p{Z}]+"


@dataclass(frozen=True)
class RowRule:
    """One rule: its place in the config, what it was told, the columns that it reads."""

    name: str
    settings: Any
    columns: tuple[str, ...]
    keeps: Callable[[pa.Table], Mask]  # [n], of a table's rows


def row_rules(config: CurateConfig, schema: pa.Schema) -> list[RowRule]:
    """The rules that are asked for, in the order in which they are applied.

    Raises:
        UserError: a column is missing or of the wrong type, a pattern or language is unknown.
    """
    thresholds = sorted(config.thresholds.items())
    return [
        *(_threshold(column, threshold, schema) for column, threshold in thresholds),
        *_caption_rules(config.captions),
    ]


def _threshold(column: str, threshold: Threshold, schema: pa.Schema) -> RowRule:
    name = f"thresholds.{column}"
    kind = column_type(schema, column, name)
    if threshold.in_ or threshold.equals is not None:
        field, values = "in", threshold.in_
        if threshold.equals is not None:
            field, values = "equals", (threshold.equals,)
        wanted = pa.array([_fitting(v, kind, f"{name}.{field}", column) for v in values], kind)
        test = partial(_is_one_of, wanted=wanted)
    else:
        if not is_number(kind):
            field = "min" if threshold.min is not None else "max"
            raise UserError(
                f"{name}.{field}: got column {column!r} of type {kind}, "
                "expected a column of numbers (equals and in take text)"
            )
        test = partial(_is_between, least=threshold.min, most=threshold.max)
    settings = threshold.model_dump(mode="json", by_alias=True)
    given = {key: value for key, value in settings.items() if value not in (None, [], ())}

    def keeps(table: pa.Table) -> Mask:
        values = _without_nan(table[column])
        return _mask(pc.fill_null(test(values), threshold.nulls == "keep"))

    return RowRule(name, given, (column,), keeps)


def _fitting(value: Any, kind: pa.DataType, field: str, column: str) -> Any:
    """The value as the column's type can hold it."""
    fits = (
        (pa.types.is_boolean(kind) and isinstance(value, bool))
        or (is_text(kind) and isinstance(value, str))
        or (is_number(kind) and isinstance(value, int | float) and not isinstance(value, bool))
    )
    if fits and not (pa.types.is_integer(kind) and value != int(value)):
        try:
            return pa.scalar(value, kind).as_py()
        except (pa.ArrowException, OverflowError):
            pass  # a number beyond what the type can hold
    raise UserError(f"{field}: got {value!r}, expected what column {column!r} holds ({kind})")


def is_text(kind: pa.DataType) -> bool:
    """Whether the column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _without_nan(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _is_one_of(values: pa.ChunkedArray, wanted: pa.Array) -> pa.ChunkedArray:
    found = pc.is_in(values, wanted)
    return pc.if_else(pc.is_null(values), pa.scalar(None, pa.bool_()), found)


def _is_between(
    values: pa.ChunkedArray, least: float | None, most: float | None
) -> pa.ChunkedArray:
    numbers = pc.cast(values, pa.float64(), safe=False)
    above = pc.greater_equal(numbers, -np.inf if least is None else least)
    return pc.and_(above, pc.less_equal(numbers, np.inf if most is None else most))


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.asarray(values.to_numpy(), np.bool_)


def _caption_rules(config: CaptionConfig) -> Iterator[RowRule]:
    measures = (("chars", characters), ("words", words))
    for unit, measure in measures:
        least, most = getattr(config, f"min_{unit}"), getattr(config, f"max_{unit}")
        if least or most:
            settings = {f"min_{unit}": least, f"max_{unit}": most}
            yield _caption_rule(unit, settings, partial(_has_length, measure, least, most))
    if config.keep_regex is not None:
        test = _regex("keep_regex", config.keep_regex)
        yield _caption_rule("keep_regex", config.keep_regex, lambda c: _mask(test(c)))
    if config.drop_regex is not None:
        inverse = _regex("drop_regex", config.drop_regex)
        yield _caption_rule("drop_regex", config.drop_regex, lambda c: ~_mask(inverse(c)))
    if config.languages:
        require_languages(config.languages, "captions.languages")
        settings = {"languages": list(config.languages), "unknown": config.unknown_language}
        test_language = partial(_is_spoken, config.languages, config.unknown_language == "keep")
        yield _caption_rule("languages", settings, test_language)


def _caption_rule(name: str, settings: Any, keeps: Callable[[pa.ChunkedArray], Mask]) -> RowRule:
    return RowRule(
        f"captions.{name}", settings, ("caption",), lambda table: keeps(table["caption"])
    )


def characters(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Code points of each caption."""
    return pc.utf8_length(captions)


def words(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Runs of what is no white space, in each caption."""
    return pc.count_substring_regex(captions, _WORD)


def _has_length(
    measure: Callable[[pa.ChunkedArray], pa.ChunkedArray],
    least: int,
    most: int,
    captions: pa.ChunkedArray,
) -> Mask:
    lengths = measure(captions).to_numpy()
    return np.asarray((lengths >= least) & ((lengths <= most) if most else True), np.bool_)


def _regex(field: str, pattern: str) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A search by RE2, whose time is linear in the caption whatever the pattern."""
    search = partial(pc.match_substring_regex, pattern=pattern)
    try:
        search(pa.array([""]))
    except pa.ArrowInvalid as error:
        told = one_line(error).removeprefix("Invalid regular expression: ")
        raise UserError(
            f"captions.{field}: got {pattern!r}, expected a regular expression of RE2 ({told})"
        ) from error
    return search


def _is_spoken(languages: Sequence[str], unknown: bool, captions: pa.ChunkedArray) -> Mask:
    wanted = frozenset(languages)
    return np.fromiter(
        (speaks(text, wanted, unknown) for text in captions.to_pylist()), np.bool_, len(captions)
    )
