"""What of a reading is right, and how much of many readings is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from data_pipeline.schema.scenes import COUNTS, Scene, Sign

from .read import Reading, ReadObject
from .signs import right_letters

_REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Verdict:
    """What of a picture is right; colour and shape have one entry for each object asked for.

    relation is None but for scenes of two objects; count but for three and more, whose layout is
    None where the caption leaves it open; word, and letters (one entry each), but for signs, which
    have one colour and no shape. all_right asks for everything at once: a clear reading, the
    background, exactly the objects asked for with their colours and shapes and their relation or
    layout, or exactly the word in its colour.
    """

    background: bool
    relation: bool | None
    colour: tuple[bool, ...]
    shape: tuple[bool, ...]
    all_right: bool
    count: bool | None = None
    layout: bool | None = None
    word: bool | None = None
    letters: tuple[bool, ...] = ()


def judge(reading: Reading, truth: Scene) -> Verdict:
    """Compare a reading with the scene that its caption describes.

    Objects are matched so that most colours agree, then most shapes; an object that was not found
    has neither colour nor shape right, nor has any where one or two were asked for and more are
    there. The relation is right only if exactly two objects were read and the match is the only
    best one, so that which is which is known; a row or column of different objects only if they
    stand in the order asked for. Positions and sizes are free.
    """
    if truth.sign is not None:
        return _judge_sign(reading, truth, truth.sign)
    few = len(truth.objects) <= 2
    objects = () if few and len(reading.objects) > 2 else reading.objects
    match, unique = _match(objects, truth)
    pairs = list(zip(match, truth.objects, strict=True))
    colour = tuple(read is not None and read.colour == asked.colour for read, asked in pairs)
    shape = tuple(read is not None and read.shape == asked.shape for read, asked in pairs)
    relation = None
    if truth.relation is not None:
        stated = reading.relation
        if stated is not None and match[0] is reading.objects[1]:
            stated = _REVERSED[stated]
        relation = unique and stated == truth.relation
    background = reading.background == truth.background
    count = len(reading.objects) == len(truth.objects)
    layout = _judge_layout(reading, truth)
    whole = reading.clear and count and relation is not False and layout is not False
    all_right = whole and background and all(colour) and all(shape)
    return Verdict(
        background, relation, colour, shape, all_right, count=None if few else count, layout=layout
    )


def _judge_layout(reading: Reading, truth: Scene) -> bool | None:
    if truth.layout is None or truth.layout == "group":
        return None
    if reading.layout != truth.layout or len(reading.objects) != len(truth.objects):
        return False
    shown = [(item.colour, item.shape) for item in reading.objects]
    asked = [item.combination for item in truth.objects]
    # Wrong colours and shapes count by themselves; the order is wrong where the objects are there.
    return shown == asked or sorted(map(str, shown)) != sorted(map(str, asked))


def _judge_sign(reading: Reading, truth: Scene, asked: Sign) -> Verdict:
    """The colour is that of whatever is there, where no lettering is."""
    sign = reading.sign
    found = {sign.colour} if sign is not None else {item.colour for item in reading.objects}
    letters = right_letters(asked.word, sign.letters if sign is not None else "")
    word = sign is not None and sign.letters == asked.word
    background, colour = reading.background == truth.background, found == {asked.colour}
    all_right = reading.clear and background and colour and word
    return Verdict(background, None, (colour,), (), all_right, word=word, letters=letters)


def _match(
    objects: tuple[ReadObject, ...], truth: Scene
) -> tuple[tuple[ReadObject | None, ...], bool]:
    """For each object asked for the one read in its place; whether no other match is as good."""

    def agreement(match: tuple[ReadObject | None, ...]) -> tuple[int, int]:
        pairs = [(r, a) for r, a in zip(match, truth.objects, strict=True) if r is not None]
        return sum(r.colour == a.colour for r, a in pairs), sum(
            r.shape == a.shape for r, a in pairs
        )

    asked = len(truth.objects)
    padded = (*objects, *(None,) * (asked - len(objects)))
    matches = sorted(permutations(padded, asked), key=agreement)
    unique = len(matches) == 1 or agreement(matches[-1]) > agreement(matches[-2])
    return matches[-1], unique


GROUPS = ("background", "relation", "colour", "shape", "single_all", "pair_all")
"""The groups of scenes of one object and of two."""

CROWD_GROUPS = ("count", "layout", *(f"{word}_all" for word in COUNTS.values()))
SIGN_GROUPS = ("word", "letters", "sign_all")
MORE_GROUPS = (*CROWD_GROUPS, *SIGN_GROUPS)
"""The groups of crowds and signs."""


def score(
    verdicts: Sequence[Verdict], unseen: Sequence[bool]
) -> dict[str, dict[str, float | int | None]]:
    """Fractions that are right, for captions whose combinations training has seen and for others.

    unseen: one flag a verdict. Groups: `background` over captions; `relation` over captions of two
    objects; `colour` and `shape` over the objects asked for (and the colour over signs);
    `single_all`, `pair_all`, `three_all` to `six_all`, `sign_all`: all right, over captions of so
    many objects, of signs; `count` and `layout` over captions of three and more objects, the layout
    where it is named; `word` over signs, `letters` over the letters asked for. Those of MORE_GROUPS
    are there only where something was asked for. Each is {"seen", "unseen", "count",
    "count_seen", "count_unseen"}: two fractions, None where there is nothing to count, and the
    number of captions (of objects, letters) behind both together and behind each.
    """
    if len(verdicts) != len(unseen):
        raise ValueError(f"unseen: got {len(unseen)} flags, expected {len(verdicts)}")
    found: dict[str, list[tuple[bool, bool]]] = {name: [] for name in (*GROUPS, *MORE_GROUPS)}
    for verdict, flag in zip(verdicts, unseen, strict=True):
        for name, right in _answers(verdict):
            found[name].append((bool(flag), right))
    return {name: _shares(answers) for name, answers in found.items() if answers or name in GROUPS}


def _answers(verdict: Verdict) -> Iterable[tuple[str, bool]]:
    yield "background", verdict.background
    for name in ("relation", "count", "layout", "word"):
        right = getattr(verdict, name)
        if right is not None:
            yield name, right
    for name in ("colour", "shape", "letters"):
        yield from ((name, right) for right in getattr(verdict, name))
    yield f"{_kind(verdict)}_all", verdict.all_right


def _kind(verdict: Verdict) -> str:
    """What was asked for: a sign, a number of objects."""
    if verdict.word is not None:
        return "sign"
    if verdict.count is not None:
        return COUNTS[len(verdict.colour)]
    return "single" if verdict.relation is None else "pair"


def _shares(answers: Sequence[tuple[bool, bool]]) -> dict[str, float | int | None]:
    seen = [right for flag, right in answers if not flag]
    unseen = [right for flag, right in answers if flag]
    return {
        "seen": _fraction(seen),
        "unseen": _fraction(unseen),
        "count": len(answers),
        "count_seen": len(seen),
        "count_unseen": len(unseen),
    }


def _fraction(answers: Sequence[bool]) -> float | None:
    return sum(answers) / len(answers) if answers else None
