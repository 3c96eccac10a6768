"""JSON records from a disk that nobody vouches for: bounded in size, each value what it should be.

The values' functions raise ValueError, which whoever knows the file turns into a user's line.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from base.errors import UserError

LARGEST = 1 << 53  # what JSON's numbers hold exactly; no count of ours comes near


def read_record(path: Path, most_bytes: int) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, no regular file, larger than `most_bytes`, or not JSON; or a link,
            which would be another file.
    """
    try:
        if path.is_symlink():
            raise UserError(f"{path}: is a link, expected a file")
        if not path.is_file():
            raise UserError(f"{path}: missing")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if len(data) > most_bytes:
        raise UserError(f"{path}: got more than {most_bytes:,} bytes, which no record has")
    try:
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # nested too deep, a number of too many digits
        raise UserError(f"{path}: not JSON ({error})") from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names are different; of two readers each would choose its own."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def integer(value: Any, most: int = LARGEST) -> int:
    """A count, [0, most]."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"got {_shown(value)}, expected a count")
    return value


def number(value: Any) -> float:
    """A finite number; whole ones are taken for floats."""
    if type(value) is int and abs(value) <= LARGEST:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"got {_shown(value)}, expected a number")
    return value


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"got {_shown(value)}, expected text")
    return value


def array(value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"got {_shown(value)}, expected a list")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise ValueError(f"got {_shown(value)}, expected an object")
    return value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float)) else type(value).__name__
