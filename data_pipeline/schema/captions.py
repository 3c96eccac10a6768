"""What the synthetic scenes are called: every phrasing of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from data_pipeline.schema.scenes import COUNTS, Kind, Scene, SceneObject

PHRASINGS: dict[Kind, tuple[str, ...]] = {
    "single": (
        "{a_first} on a {background} background",
        "{first} on {background}",
        "a photo of {a_first}, {background} background",
        "a picture of {a_first} on {background}",
        "one {first} on a plain {background} background",
        "a {background} background with {a_first}",
    ),
    "pair": (
        "{a_first} {relation} {a_second} on a {background} background",
        "{first} {relation} {second} on {background}",
        "photo of {a_first} {relation} {a_second}, {background} background",
        "{a_first} {relation} {a_second}, {background} background",
        "on {background}, {a_first} is {relation} {a_second}",
    ),
    "crowd": (
        "{all} on a {background} background",
        "{all} on {background}",
        "a photo of {all}, {background} background",
        "a picture of {all} on {background}",
        "a {background} background with {all}",
    ),
    "sign": (
        'the word "{word}" in {colour} on a {background} background',
        "a {background} sign that says {word} in {colour}",
        "{word} written in {colour} on {background}",
        "{colour} letters that spell {word} on a {background} background",
        'a picture of the word "{word}" in {colour}, {background} background',
    ),
}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
# After a crowd: of equals, and of objects whose order counts. A group goes without saying.
COUNTED_LAYOUTS: dict[str, str] = {"row": " in a row", "column": " in a column", "group": ""}
LISTED_LAYOUTS: dict[str, str] = {
    "row": " in a row from left to right",
    "column": " in a column from top to bottom",
    "group": "",
}


def phrase(scene: Scene, phrasing: str, relation_phrase: str = "", size_named: bool = False) -> str:
    """One caption of a scene: a template of its kind's and one of RELATION_PHRASES filled in."""
    return phrasing.format(
        background=scene.background,
        relation=relation_phrase,
        **_words(scene, size_named),
    )


def relation_phrases(scene: Scene) -> tuple[str, ...]:
    """The ways to say a pair's relation; of another scene the empty one."""
    return ("",) if scene.relation is None else RELATION_PHRASES[scene.relation]


def all_captions(scene: Scene) -> tuple[str, ...]:
    """Every caption that a scene can have, each once, in a fixed order."""
    ways = product(PHRASINGS[scene.kind], relation_phrases(scene), (False, True))
    return tuple(dict.fromkeys(phrase(scene, *way) for way in ways))


def _words(scene: Scene, size_named: bool) -> dict[str, str]:
    """What the templates of the scene's kind have places for, but background and relation."""
    if scene.sign is not None:
        return {"word": scene.sign.word, "colour": scene.sign.colour}
    if scene.layout is not None:
        return {"all": _crowd(scene, scene.layout)}
    nouns = [_noun(item, size_named) for item in scene.objects]
    names = ("first", "second")[: len(nouns)]
    return dict(_named(names, nouns))


def _named(names: tuple[str, ...], nouns: list[str]) -> Iterator[tuple[str, str]]:
    for name, noun in zip(names, nouns, strict=True):
        yield name, noun
        yield f"a_{name}", _with_article(noun)


def _crowd(scene: Scene, layout: str) -> str:
    """`three red crosses in a row`, or `a red cross, a blue square and a pink circle`."""
    nouns = [_noun(item, size_named=False) for item in scene.objects]
    if scene.counted:
        plural = nouns[0] + ("es" if nouns[0].endswith("s") else "s")
        return f"{COUNTS[len(nouns)]} {plural}{COUNTED_LAYOUTS[layout]}"
    *others, last = map(_with_article, nouns)
    return f"{', '.join(others)} and {last}{LISTED_LAYOUTS[layout]}"


def _noun(item: SceneObject, size_named: bool) -> str:
    words = [item.colour, item.shape]
    if size_named and item.size != "medium":  # the usual size goes without saying
        words.insert(0, item.size)
    return " ".join(words)


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
