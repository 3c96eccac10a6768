"""The verifier on crowds and signs: right on true pictures, never on spoiled ones."""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks.crowd_pictures import FINE, SPOILED_CROWD, SPOILED_SIGN
from benchmarks.verifier import share_right
from data_pipeline.scenes import render, scene
from data_pipeline.schema.scenes import WORDS, Kind, Scene, SceneObject, Sign
from trainer.evaluation.scenes import Reading, Verdict, judge, read_scene, score
from trainer.evaluation.scenes.signs import ALPHABET, right_letters

SEED = 20_261_129


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def crowd(*looks: tuple[str, str], layout: str = "row") -> Scene:
    """A row or column, or up to four in the corners."""
    corners = ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))
    made = []
    for place, (colour, shape) in enumerate(looks):
        along = 0.5 + 0.28 * (place - (len(looks) - 1) / 2)
        x, y = {"row": (along, 0.5), "column": (0.5, along)}.get(layout, corners[place])
        made.append(SceneObject(colour, shape, "medium", x, y, 0.1))
    return Scene("white", tuple(made), layout=layout)


def sign(word: str, colour: str = "red", ground: str = "white", height: float = 0.18) -> Scene:
    return Scene(ground, (), sign=Sign(word, colour, 0.5, 0.5, height))


def verdict(shown: Scene, asked: Scene) -> Verdict:
    return judge(read_scene(render(shown, 256)), asked)


@pytest.mark.parametrize("kind", ["crowd", "sign"])
@pytest.mark.parametrize("name", FINE)
def test_true_pictures_are_right(name: str, kind: Kind) -> None:
    right, _ = share_right(FINE[name], 36, SEED, (kind,))
    assert right == 1 if name == "256" else right >= 0.97


@pytest.mark.parametrize("name", SPOILED_CROWD)
def test_spoiled_crowds_are_never_right(name: str) -> None:
    assert share_right(SPOILED_CROWD[name], 24, SEED, ("crowd",))[0] == 0


@pytest.mark.parametrize("name", SPOILED_SIGN)
def test_spoiled_signs_are_never_right(name: str) -> None:
    assert share_right(SPOILED_SIGN[name], 24, SEED, ("sign",))[0] == 0


@pytest.mark.parametrize("word", ["".join(ALPHABET[i : i + 4]) for i in range(0, 24, 4)] + ["xyz"])
def test_letters_of_no_word_are_read_too(word: str) -> None:
    read = read_scene(render(sign(word, height=0.16), 256)).sign
    assert read is not None
    assert (read.letters, read.colour) == (word, "red")
    assert read.nearest in WORDS


def test_the_nearest_word_is_told_beside_the_letters() -> None:
    asked = sign("cat")
    assert verdict(asked, asked) == Verdict(
        True, None, (True,), (), True, word=True, letters=(True, True, True)
    )
    read = read_scene(render(sign("cnt"), 256))
    assert read.sign is not None
    assert (read.sign.letters, read.sign.nearest, read.clear) == ("cnt", "cat", True)
    found = judge(read, asked)
    assert (found.word, found.letters, found.all_right) == (False, (True, False, True), False)
    longer = read_scene(render(sign("catfog", height=0.12), 256))
    assert longer.sign is not None
    assert longer.sign.nearest in WORDS


def test_wrong_colour_and_background_leave_the_word_right() -> None:
    found = verdict(sign("dog", "green", "sand"), sign("dog", "red", "white"))
    assert (found.background, found.colour, found.word, found.all_right) == (
        False,
        (False,),
        True,
        False,
    )


def test_objects_are_no_word_and_a_word_is_no_objects() -> None:
    row = crowd(*[("red", "circle")] * 3)
    found = verdict(row, sign("cat"))
    assert (found.colour, found.word, found.letters) == ((True,), False, (False,) * 3)
    found = verdict(sign("cat"), row)
    assert (found.count, found.colour, found.all_right) == (False, (False,) * 3, False)
    nothing = judge(Reading(None, (), None, False, "noise"), sign("cat"))
    assert nothing == Verdict(False, None, (False,), (), False, word=False, letters=(False,) * 3)


@pytest.mark.parametrize(
    ("asked", "read", "right"),
    [
        *(("cat", "cat", "111"), ("cat", "at", "011"), ("cat", "caat", "111"), ("cat", "", "000")),
        *(("egg", "eg", "101"), ("cat", "?at", "011"), ("box", "owl", "010")),
        *(("moon", "mon", "1101"), ("egg", "ge", "100")),
    ],
)
def test_letters_count_in_their_order(asked: str, read: str, right: str) -> None:
    found = right_letters(asked, read)
    assert sum(found) == right.count("1")
    assert [c for c, one in zip(asked, found, strict=True) if one] == [
        c for c, one in zip(asked, right, strict=True) if one == "1"
    ]


THREE = (("red", "circle"), ("blue", "square"), ("green", "triangle"))


def test_layout_and_order() -> None:
    asked = crowd(*THREE)
    right = Verdict(True, None, (True,) * 3, (True,) * 3, True, count=True, layout=True)
    assert verdict(asked, asked) == right
    turned = replace(right, all_right=False, layout=False)
    assert verdict(crowd(*THREE[::-1]), asked) == turned
    assert verdict(crowd(*THREE, layout="column"), asked) == turned
    free = replace(asked, layout="group")  # a caption that leaves it open
    assert verdict(asked, free) == replace(right, layout=None)
    assert verdict(crowd(*THREE, layout="group"), free) == replace(right, layout=None)


def test_a_wrong_count_leaves_the_objects_that_are_there_right() -> None:
    asked = crowd(*THREE)
    found = verdict(crowd(*THREE, ("pink", "cross")), asked)
    assert found == Verdict(True, None, (True,) * 3, (True,) * 3, False, count=False, layout=False)
    found = verdict(crowd(THREE[0], ("yellow", "square"), THREE[2]), asked)
    assert (found.count, found.layout) == (True, True)
    assert (found.colour, found.shape) == ((True, False, True), (True, True, True))


def test_three_objects_where_two_were_asked_for_count_for_none() -> None:
    pair = Scene("white", crowd(*THREE).objects[:2], relation="left of")
    assert verdict(crowd(*THREE), pair) == Verdict(True, False, (False,) * 2, (False,) * 2, False)


def test_groups_are_there_only_where_something_was_asked_for() -> None:
    drawn = [scene(SEED, index, "heldout", ("crowd", "sign"))[0] for index in range(16)]
    scores = score([verdict(s, s) for s in drawn], [False] * 8 + [True] * 8)
    signs = [s.sign.word for s in drawn if s.sign is not None]
    crowds = [len(s.objects) for s in drawn if s.sign is None]
    assert {name: value["count"] for name, value in scores.items() if value["count"]} == {
        "background": 16,
        "colour": sum(crowds) + len(signs),
        "shape": sum(crowds),
        "count": len(crowds),
        "layout": sum(s.layout in ("row", "column") for s in drawn),
        **{f"{n}_all": crowds.count(k) for k, n in zip((3, 4, 5, 6), NUMBERS, strict=True)},
        "word": len(signs),
        "letters": sum(map(len, signs)),
        "sign_all": len(signs),
    }
    assert scores["background"]["count_seen"] == scores["background"]["count_unseen"] == 8
    shares = {value[part] for value in scores.values() for part in ("seen", "unseen")}
    assert shares <= {1.0, None}


NUMBERS = ("three", "four", "five", "six")


def test_a_picture_without_letters_is_no_sign() -> None:
    random = np.random.default_rng(0)
    assert read_scene(random.integers(0, 256, (128, 128, 3), dtype=np.uint8)).sign is None
    for index in range(20):
        assert read_scene(render(scene(SEED, index, "train", ("crowd",))[0], 256)).sign is None
