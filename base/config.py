"""Configs: frozen, strict, read from YAML; a mistake is told by field, value and line."""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from base import yaml
from base.errors import UserError
from base.places import Anywhere, place


class Config(BaseModel):
    """The base of every config: unknown keys are refused, types are not guessed, values stay."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of models, of dataclasses


def load_config(path: Anywhere, kind: type[C], overrides: Sequence[str] = ()) -> C:
    """Reads a YAML file as a `kind`; `overrides` such as "optim.lr=1e-4" come after the file.

    Raises:
        UserError: one line with the field, the value, what was expected, and the line of the file.
    """
    source = place(path)
    where = source.name
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML (it is not UTF-8 text)") from error
    data, lines = yaml.parse(text, where)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UserError(f"{path}: got {_shown(data)}, expected keys and values")
    sources: dict[yaml.Path, str] = {key: f"near line {n} of {where}" for key, n in lines.items()}
    for override in overrides:
        changed = _override(data, override)
        sources = {key: text for key, text in sources.items() if key[: len(changed)] != changed}
        for end in range(1, len(changed)):
            sources.setdefault(changed[:end], f"in --set {override}")
        sources[changed] = f"in --set {override}"
    return _validate(data, kind, sources, f"in {where}")


def parse_config(data: Mapping[str, Any], kind: type[C], where: str) -> C:
    """Reads plain data as a `kind`; `where` ends the message of an error.

    Raises:
        UserError: one line with the field, the value, what was expected, and `where`.
    """
    return _validate(data, kind, {}, f"in {where}")


def dump_config(config: Config) -> str:
    """The config as YAML, every default written out; `load_config` reads it back equal."""
    return yaml.dump(config.model_dump(mode="json"))


def fingerprint(value: object) -> str:
    """SHA-256 in hexadecimal of the value's canonical JSON: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _validate(
    data: Mapping[str, Any], kind: type[C], sources: Mapping[yaml.Path, str], where: str
) -> C:
    # JSON mode, because strict Python mode would refuse a list for a tuple and text for a path.
    text = json.dumps(data, default=_plain)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A misspelt key is also a missing one; the misspelling is what the user must hear of.
        first = min(details, key=lambda detail: detail["type"] not in _UNKNOWN)
        raise UserError(_describe(first, json.loads(text), kind, sources, where)) from error


def _describe(
    detail: ErrorDetails,
    data: object,
    kind: type[Config],
    sources: Mapping[yaml.Path, str],
    where: str,
) -> str:
    path, kind_of_error, got = _path(detail, data), detail["type"], detail["input"]
    if kind_of_error in ("union_tag_invalid", "union_tag_not_found"):  # it lies with one key
        path = (*path, detail["ctx"]["discriminator"].strip("'"))
        got = detail["ctx"].get("tag")
    name = ".".join(map(str, path)) or "config"
    source = next(
        (sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources), where
    )
    if kind_of_error in ("missing", "union_tag_not_found"):
        return f"{name}: missing, and it has no default; {source}"
    if kind_of_error in _UNKNOWN:
        return f"{name}: unknown key; {_advice(str(path[-1]), path[:-1], data, kind)}; {source}"
    if kind_of_error in ("value_error", "assertion_error") and "error" in detail.get("ctx", {}):
        return f"{name}: {' '.join(str(detail['ctx']['error']).split())}; {source}"
    return f"{name}: got {_shown(got)}, expected {_expected(detail)}; {source}"


def _path(detail: ErrorDetails, data: object) -> yaml.Path:
    """The place in the user's data; pydantic's own has names of union members in between."""
    path: list[str | int] = []
    current: Any = data
    last = len(detail["loc"]) - 1
    for index, part in enumerate(detail["loc"]):
        if isinstance(current, dict) and part in current:
            current = current[str(part)]
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            current = current[part]
        elif not (index == last and detail["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "dataclass_type": "keys and values",
    "none_required": "null",
    "greater_than": "a value > {gt}",
    "greater_than_equal": "a value >= {ge}",
    "less_than": "a value < {lt}",
    "less_than_equal": "a value <= {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_pattern_mismatch": "text like {pattern}",
}


def _expected(detail: ErrorDetails) -> str:
    form = _EXPECTED.get(detail["type"])
    if form is None:
        return " ".join(detail["msg"].removeprefix("Input should be ").split())
    return form.format(**detail.get("ctx", {}))


def _advice(key: str, parent: yaml.Path, data: object, kind: type[Config]) -> str:
    schema = kind.model_json_schema()
    valid = sorted(_keys(schema, schema, parent, data))
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"expected one of {', '.join(valid)}" if valid else "nothing is expected here"


def _keys(
    schema: dict[str, Any], node: Mapping[str, Any], path: yaml.Path, data: object
) -> set[str]:
    """The keys that the schema knows at `path`."""
    found: set[str] = set()
    for option in _options(schema, node, data):
        if not path:
            found |= set(option.get("properties", {}))
            continue
        inner = data[path[0]] if isinstance(data, dict | list) else None  # type: ignore[index]
        child = (
            option.get("items") or option.get("additionalProperties")
            if isinstance(path[0], int)
            else option.get("properties", {}).get(path[0], option.get("additionalProperties"))
        )
        if isinstance(child, dict):
            found |= _keys(schema, child, path[1:], inner)
    return found


def _options(
    schema: dict[str, Any], node: Mapping[str, Any], data: object
) -> Iterator[Mapping[str, Any]]:
    """The node itself, or the members of a reference or union that can hold `data`."""
    if "$ref" in node:
        yield from _options(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], data)
        return
    choice = node.get("discriminator")
    if choice and isinstance(data, dict) and data.get(choice["propertyName"]) in choice["mapping"]:
        tag = data[choice["propertyName"]]
        yield from _options(schema, {"$ref": choice["mapping"][tag]}, data)
        return
    members = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    if not members:
        yield node
    for member in members:
        yield from _options(schema, member, data)


def _override(data: dict[str, Any], override: str) -> yaml.Path:
    """Puts "a.b=c" into `data`; gives the path it changed."""
    name, equals, text = override.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise UserError(f"--set {override}: expected KEY=VALUE, such as optim.lr=1e-4")
    value, _ = yaml.parse(text, f"--set {override}")
    *parents, last = name.strip().split(".")
    current: Any = data
    path: list[str | int] = []
    for part in parents:
        if isinstance(current, dict):
            current = current.setdefault(part, {})
            path.append(part)
        else:
            path.append(_index(current, part, override))
            current = current[path[-1]]
    key = last if isinstance(current, dict) else _index(current, last, override)
    current[key] = value
    return (*path, key)


def _index(current: object, part: str, override: str) -> int:
    if not isinstance(current, list):
        raise UserError(f"--set {override}: {part} is inside {_shown(current)}, which has no keys")
    if not part.isdigit() or int(part) >= len(current):
        raise UserError(f"--set {override}: got {part}, expected an index below {len(current)}")
    return int(part)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
