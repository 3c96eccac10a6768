"""What makes a run the same run: its own sections, its data, its data's CLIP."""

from pathlib import Path
from typing import Any

import pytest
import toy

from base.errors import UserError
from trainer.record import require_same_run

FACTS: dict[str, Any] = {
    "stage": "clip",
    "model": "m",
    "seed": 0,
    "data": "d",
    "clips": ["a", None],
}


def refusal(facts: dict[str, Any], earlier: dict[str, Any]) -> str | None:
    try:
        require_same_run(facts, earlier, toy.toy_config(Path("data"), Path("run")))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("clips", [["a", None], ["a", "b"]])
def test_a_run_goes_on_when_its_data_was_embedded_since(clips: list[str | None]) -> None:
    assert refusal({**FACTS, "clips": clips}, FACTS) is None


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"stage": "prior"}, "stage"),
        ({"model": "n"}, "model"),
        ({"seed": 1}, "seed"),
        ({"data": "e"}, "data"),
        ({"clips": ["b", None]}, "data"),
        ({"clips": [None, None]}, "data"),
        ({"model": "n", "data": "e"}, "model"),
    ],
)
def test_another_run_is_refused_by_the_section(changed: dict[str, Any], name: str) -> None:
    told = refusal({**FACTS, **changed}, FACTS)
    assert told is not None
    assert told.startswith(f"{name}: differs from the run that was begun in run;")
