"""The verifier: right on true pictures, never fooled by spoiled ones, and its counts add up."""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks.scene_pictures import SPOILED, TRUE
from benchmarks.verifier import share_right
from data_pipeline.scenes import render, scene
from data_pipeline.schema.scenes import SHAPES, Scene, SceneObject
from trainer.evaluation.scenes import GROUPS, Reading, Verdict, judge, read_scene, score

SEED = 20_261_120


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def seen(*objects: tuple[str, str], relation: str | None = None, ground: str = "white") -> Scene:
    """A scene with the objects in a row, 0.13 of the side apart from the middle."""
    places = (0.5,) if len(objects) == 1 else (0.27, 0.73)
    size = ("medium", 0.23) if len(objects) == 1 else ("medium", 0.16)
    if relation in ("right of", "below"):
        places = places[::-1]
    made = []
    for (colour, shape), place in zip(objects, places, strict=True):
        x, y = (place, 0.5) if relation in ("left of", "right of", None) else (0.5, place)
        made.append(SceneObject(colour, shape, size[0], x, y, size[1]))
    return Scene(ground, tuple(made), relation)


def verdict(shown: Scene, asked: Scene) -> Verdict:
    return judge(read_scene(render(shown, 256)), asked)


@pytest.mark.parametrize("name", ["256 after JPEG", "64 after JPEG"])
def test_true_renders_are_right(name: str) -> None:
    right, _ = share_right(TRUE[name], 2100, SEED)
    assert right >= 0.999


@pytest.mark.parametrize("name", [name for name in TRUE if "JPEG" not in name])
def test_soft_and_noisy_renders_are_right(name: str) -> None:
    right, _ = share_right(TRUE[name], 400, SEED)
    assert right >= 0.97


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_pictures_are_never_right(name: str) -> None:
    right, _ = share_right(SPOILED[name], 300, SEED)
    assert right == 0


@pytest.mark.parametrize("size", [16, 37, 64, 200, 256, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_position_and_size_are_read(size: int, shape: str) -> None:
    asked = Scene("grey", (SceneObject("red", shape, "medium", 0.42, 0.55, 0.23),))
    read = read_scene(render(asked, size))
    (item,) = read.objects
    assert (read.background, item.colour, item.shape, read.clear) == ("grey", "red", shape, True)
    assert (item.x, item.y, item.radius) == pytest.approx((0.42, 0.55, 0.23), abs=0.012)


def test_reading_is_deterministic_and_leaves_the_picture_alone() -> None:
    image = render(scene(SEED, 1, "train")[0], 256)
    before = image.copy()
    assert read_scene(image) == read_scene(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 32, 3), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image: got"):
        read_scene(image)


@pytest.mark.parametrize("name", ["noise, uniform, 256", "blank", "clouds", "half erased, 256"])
def test_unclear_pictures_say_why(name: str) -> None:
    for index in range(30):
        truth, _ = scene(SEED, index, "train")
        image = SPOILED[name](truth, np.random.default_rng(index))
        assert image is not None
        reading = read_scene(image)
        assert (reading.clear, reading.why != "") == (False, True)


RED, BLUE = ("red", "circle"), ("blue", "square")


def test_all_right() -> None:
    asked = seen(RED, BLUE, relation="left of")
    assert verdict(asked, asked) == Verdict(True, True, (True, True), (True, True), True)
    single = seen(RED)
    assert verdict(single, single) == Verdict(True, None, (True,), (True,), True)


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
@pytest.mark.parametrize("asked", ["left of", "right of", "above", "below"])
def test_relation_is_the_asked_one(relation: str, asked: str) -> None:
    shown = seen(RED, BLUE, relation=relation)
    found = verdict(shown, replace(shown, relation=asked))
    assert found.relation == found.all_right == (relation == asked)
    assert found.colour == found.shape == (True, True)


def test_exchanged_colours_are_a_wrong_relation_or_wrong_colours() -> None:
    asked = seen(RED, BLUE, relation="left of")
    shown = seen(("blue", "circle"), ("red", "square"), relation="left of")
    # matched by colour: both colours are there, on the wrong sides and with the wrong shapes
    assert verdict(shown, asked) == Verdict(True, False, (True, True), (False, False), False)


def test_objects_that_cannot_be_told_apart_have_no_relation() -> None:
    asked = seen(RED, BLUE, relation="left of")
    shown = seen(("green", "cross"), ("green", "cross"), relation="left of")
    assert verdict(shown, asked) == Verdict(True, False, (False, False), (False, False), False)


def test_relation_is_known_from_one_of_two_objects() -> None:
    asked = seen(RED, BLUE, relation="above")
    shown = seen(RED, ("green", "cross"), relation="above")
    assert verdict(shown, asked) == Verdict(True, True, (True, False), (True, False), False)


def test_missing_object_counts_for_the_other_alone() -> None:
    asked = seen(RED, BLUE, relation="left of")
    found = verdict(replace(asked, objects=asked.objects[1:], relation=None), asked)
    assert found == Verdict(True, False, (False, True), (False, True), False)


def test_object_too_many_is_not_all_right() -> None:
    asked = seen(BLUE)
    found = verdict(seen(RED, BLUE, relation="left of"), asked)
    assert found == Verdict(True, None, (True,), (True,), False)


def test_wrong_background_leaves_the_rest_right() -> None:
    asked = seen(RED, ground="white")
    found = verdict(replace(asked, background="sand"), asked)
    assert found == Verdict(False, None, (True,), (True,), False)


def test_nothing_read_is_nothing_right() -> None:
    asked = seen(RED, BLUE, relation="left of")
    found = judge(Reading(None, (), None, False, "noise"), asked)
    assert found == Verdict(False, False, (False, False), (False, False), False)


def test_score_counts_captions_and_objects() -> None:
    single = Verdict(True, None, (True,), (False,), False)
    pair = Verdict(True, True, (True, False), (True, True), False)
    perfect = Verdict(False, True, (True, True), (True, True), True)
    scores = score([single, pair, perfect, single], [False, False, False, True])
    assert tuple(scores) == GROUPS
    assert scores == {
        "background": counted(2 / 3, 1.0, 3, 1),
        "relation": counted(1.0, None, 2, 0),
        "colour": counted(4 / 5, 1.0, 5, 1),
        "shape": counted(4 / 5, 0.0, 5, 1),
        "single_all": counted(0.0, 0.0, 1, 1),
        "pair_all": counted(0.5, None, 2, 0),
    }


def counted(
    seen: float | None, unseen: float | None, count_seen: int, count_unseen: int
) -> dict[str, float | int | None]:
    """One group's scores."""
    counts = {"count_seen": count_seen, "count_unseen": count_unseen}
    return {"seen": seen, "unseen": unseen, "count": sum(counts.values()), **counts}


def test_score_of_nothing_and_of_unequal_lists() -> None:
    assert score([], []) == dict.fromkeys(GROUPS, counted(None, None, 0, 0))
    with pytest.raises(ValueError, match="unseen: got 1 flags"):
        score([], [True])
