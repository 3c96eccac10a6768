"""What single rows are judged by."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from base.config import parse_config
from base.errors import UserError
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.language import known_languages, language_of
from data_pipeline.curate.row_rules import row_rules
from data_pipeline.schema.dataset import METADATA_SCHEMA

SCHEMA = pa.schema(
    [
        *METADATA_SCHEMA,
        pa.field("score", pa.float32()),
        pa.field("count", pa.int64()),
        pa.field("tag", pa.string()),
        pa.field("fine", pa.bool_()),
        pa.field("many", pa.list_(pa.string())),
    ]
)


def kept(config: dict[str, Any], **columns: list[Any]) -> list[bool]:
    """Which rows of a small table the config's rules keep."""
    arrays = {
        name: pa.chunked_array([pa.array(values, SCHEMA.field(name).type)])
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    keeps = np.ones(table.num_rows, np.bool_)
    for rule in row_rules(parse_config(config, CurateConfig, "test"), SCHEMA):
        keeps &= rule.keeps(table)
    return [bool(value) for value in keeps]


@pytest.mark.parametrize(
    ("column", "threshold", "values", "expected"),
    [
        ("score", {"min": 0.3}, [0.3, 0.29, None, float("nan"), 1e9], [1, 0, 0, 0, 1]),
        ("score", {"max": 0.5, "nulls": "keep"}, [0.5, 0.6, None, float("nan")], [1, 0, 1, 1]),
        ("score", {"min": 0, "max": 1}, [-0.1, 0, 1, 1.1, float("inf")], [0, 1, 1, 0, 0]),
        ("score", {"equals": 0.1}, [0.1, 0.2, None], [1, 0, 0]),
        ("count", {"min": 2.5}, [2, 3, None], [0, 1, 0]),
        ("count", {"in": [1, 3]}, [1, 2, 3, None], [1, 0, 1, 0]),
        ("tag", {"equals": "good"}, ["good", "Good", None, ""], [1, 0, 0, 0]),
        ("tag", {"in": ["a", "b"], "nulls": "keep"}, ["a", "c", None], [1, 0, 1]),
        ("fine", {"equals": True}, [True, False, None], [1, 0, 0]),
        ("fine", {"equals": False}, [True, False, None], [0, 1, 0]),
    ],
)
def test_thresholds(
    column: str, threshold: dict[str, Any], values: list[Any], expected: list[int]
) -> None:
    assert kept({"thresholds": {column: threshold}}, **{column: values}) == list(
        map(bool, expected)
    )


@pytest.mark.parametrize(
    ("rule", "captions", "expected"),
    [
        ({"min_chars": 3}, ["ab", "abc", "äöü", "😀😀"], [0, 1, 1, 0]),
        ({"max_chars": 3}, ["abc", "abcd"], [1, 0]),
        (
            {"min_words": 2},
            ["one", " one ", "one two", "one\u3000two", "one\ttwo"],
            [0, 0, 1, 1, 1],
        ),
        ({"max_words": 2}, ["a b", "a b c", ""], [1, 0, 1]),
        ({"keep_regex": "^a|b$"}, ["ax", "xb", "xax"], [1, 1, 0]),
        ({"drop_regex": r"(?i)\bimg_\d+"}, ["IMG_12.jpg", "a img", "some IMG_1"], [0, 1, 0]),
        (
            {"languages": ["en"]},
            ["a dog in the snow", "ein Hund spielt im Schnee", "12"],
            [1, 0, 0],
        ),
        (
            {"languages": ["de"], "unknown_language": "keep"},
            ["ein Hund spielt im Schnee", "12"],
            [1, 1],
        ),
    ],
)
def test_captions(rule: dict[str, Any], captions: list[str], expected: list[int]) -> None:
    assert kept({"captions": rule}, caption=captions) == list(map(bool, expected))


def test_a_regex_cannot_hang() -> None:
    """A pattern that takes longer than the sun lasts where patterns are searched by going back."""
    assert kept({"captions": {"drop_regex": "^(a+)+$"}}, caption=["a" * 50_000 + "b"]) == [True]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("un chat noir dort sur le canapé", "fr"),
        ("красная машина на улице", "ru"),
        ("赤い車が道にある", "ja"),
        ("一只猫坐在沙发上", "zh"),
        ("שלום עולם טוב", "he"),
        ("a dog\x00 in\x1b the\ufffe snow", "un"),
        ("a dog\x00 in\x1b the\x7f snow", "en"),
        ("", "un"),
        ("\ud800", "un"),
        ("the cat sat on the mat " * 10_000, "en"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_the_languages_that_can_be_asked_for() -> None:
    assert {"en", "de", "fr", "zh", "zh-Hant", "ja", "ru", "he"} <= set(known_languages())
    assert "un" not in known_languages()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholds": {"scor": {"min": 1}}}, "thresholds.scor: got 'scor', expected a metadata"),
        (
            {"thresholds": {"tag": {"min": 1}}},
            "thresholds.tag.min: got column 'tag' of type string",
        ),
        (
            {"thresholds": {"fine": {"max": 1}}},
            "thresholds.fine.max: got column 'fine' of type bool",
        ),
        ({"thresholds": {"tag": {"equals": 1}}}, "thresholds.tag.equals: got 1, expected what"),
        (
            {"thresholds": {"count": {"in": [1, 1.5]}}},
            "thresholds.count.in: got 1.5, expected what",
        ),
        (
            {"thresholds": {"count": {"equals": 2**70}}},
            "thresholds.count.equals: got 1180591620717",
        ),
        ({"thresholds": {"count": {"equals": "1"}}}, "thresholds.count.equals: got '1', expected"),
        ({"thresholds": {"many": {"equals": "a"}}}, "thresholds.many.equals: got 'a', expected"),
        ({"thresholds": {"score": {}}}, "thresholds.score: expected min or max"),
        (
            {"thresholds": {"score": {"min": 1, "equals": 2}}},
            "thresholds.score: expected min or max",
        ),
        (
            {"thresholds": {"score": {"min": 2, "max": 1}}},
            "thresholds.score: got min 2 above max 1",
        ),
        ({"thresholds": {"score": {"low": 2}}}, "thresholds.score.low: unknown key"),
        (
            {"thresholds": {"score": {"min": "a"}}},
            "thresholds.score.min: got 'a', expected a number",
        ),
        ({"captions": {"keep_regex": "(a"}}, "captions.keep_regex: got '(a', expected a regular"),
        ({"captions": {"drop_regex": r"(a)\1"}}, "captions.drop_regex: got '(a)\\\\1', expected"),
        ({"captions": {"languages": ["english"]}}, "captions.languages: got 'english', expected"),
        ({"captions": {"min_words": 3, "max_words": 2}}, "captions: got min_words 3 above"),
        ({"phash_duplicates": {"distance": 11}}, "phash_duplicates.distance: got 11, expected a"),
        (
            {"embedding_duplicates": {"eps": 1}},
            "embedding_duplicates.eps: got 1, expected a value <",
        ),
        ({"split": {}}, "split.val: missing"),
        ({"split": {"val": 1.0}}, "split.val: got 1.0, expected a value < 1"),
        ({"caps": {"tag": 0}}, "caps.tag: got 0, expected a value >= 1"),
    ],
)
def test_mistakes_name_field_value_and_what_was_expected(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        row_rules(parse_config(config, CurateConfig, "test"), SCHEMA)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
