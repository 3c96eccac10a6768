"""Other columns keep their types, give way where they clash, and lose nothing in KEY.json."""

import json
import math

import pyarrow as pa

from data_pipeline import columns
from data_pipeline.schema.dataset import METADATA_SCHEMA, metadata_schema


def test_types_are_inferred_and_widen() -> None:
    schema = columns.infer(
        [
            {"a": 1, "b": "x", "c": None, "d": {"k": 1}, "e": True},
            {"a": 2.5, "b": 3, "c": 1, "d": None, "e": False},
        ]
    )
    assert schema.names == ["a", "b", "c", "d", "e"]
    kinds = [pa.float64(), pa.string(), pa.int64(), pa.string(), pa.bool_()]
    assert schema.types == kinds


def test_union_widens_numbers_and_falls_back_to_text() -> None:
    left = pa.schema([("n", pa.int32()), ("m", pa.int64())])
    right = pa.schema([("n", pa.int64()), ("m", pa.string()), ("o", pa.bool_())])
    united = columns.union([left, right])
    assert united.field("m").type == pa.string()
    assert united.field("o").type == pa.bool_()
    assert columns.union([left, left]).equals(left)


def test_values_that_do_not_fit_are_null_and_objects_become_json() -> None:
    assert columns.as_array([1, "x", None, 2**70], pa.int64()).to_pylist() == [1, None, None, None]
    assert columns.as_array([{"k": [1]}, "t"], pa.string()).to_pylist() == ['{"k":[1]}', "t"]
    assert columns.as_array(["\ud800"], pa.string()).to_pylist() == ["?"]


def test_json_text_is_valid_json_for_anything() -> None:
    value = {"nan": math.nan, "b": b"\0\1", "t": pa.scalar(1), "deep": [math.inf, {"x": "é"}]}
    parsed = json.loads(columns.json_text(value), parse_constant=lambda name: 1 / 0)
    assert parsed["nan"] is None
    assert parsed["b"] == "AAE="
    assert parsed["deep"] == [None, {"x": "é"}]


def test_clashing_names_give_way_case_ignored() -> None:
    extra = pa.schema([("WIDTH", pa.int64()), ("mine", pa.string()), ("input_width", pa.int8())])
    full = metadata_schema(extra)
    assert full.names[: len(METADATA_SCHEMA)] == METADATA_SCHEMA.names
    added = full.names[len(METADATA_SCHEMA) :]
    assert added == ["input_WIDTH", "mine", "input_input_width"]
    assert len({name.lower() for name in full.names}) == len(full.names)
    renamed = columns.renamed(
        {"WIDTH": 1, "mine": 2, "sha256": 3, "new": 4}, columns.Names.of(full, extra)
    )
    assert renamed == {"input_WIDTH": 1, "mine": 2, "input_sha256": 3, "new": 4}
