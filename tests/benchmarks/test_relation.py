"""The captions that a demo's CLIP is asked about say another relation, and nothing else."""

import itertools

import pytest

from benchmarks.relation import contradicted
from data_pipeline.schema.captions import RELATION_PHRASES

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SAME_ORDER = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


@pytest.mark.parametrize(
    ("relation", "phrase"), [(r, p) for r, phrases in RELATION_PHRASES.items() for p in phrases]
)
def test_the_three_other_relations_are_told(relation: str, phrase: str) -> None:
    caption = "a red ring {} a blue star on grey"
    told = [contradicted(caption.format(phrase), relation, steps) for steps in (2, 1, 3)]
    turned = SAME_ORDER[OPPOSITE[relation]]
    assert told == [caption.format(r) for r in (OPPOSITE[relation], SAME_ORDER[relation], turned)]
    assert all(a != b for a, b in itertools.combinations([*told, caption.format(relation)], 2))
