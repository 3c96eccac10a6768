"""Crowds and signs: captions that say what is drawn, splits that hold, pictures that fit."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline.scenes import render, scene, write_scenes
from data_pipeline.scenes.draw import MARGIN, SPLITS, Split
from data_pipeline.schema import lettering
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.captions import all_captions
from data_pipeline.schema.scenes import KINDS, USUAL_KINDS, Kind, Scene, is_held_out, is_unseen

NEW: tuple[Kind, ...] = ("crowd", "sign")
seeds, indices = st.integers(0, 2**40), st.integers(0, 10**9)
splits, kinds = st.sampled_from(SPLITS), st.sampled_from(NEW)


def test_scenes_stay_what_they_are() -> None:
    """Captions, truths and pixels at two sizes, on every machine."""
    total = hashlib.sha256()
    for index in range(24):
        drawn, caption = scene(7, index, SPLITS[index % 3], NEW)
        total.update(json.dumps([caption, drawn.to_json()]).encode())
        total.update(render(drawn, 256).tobytes() + render(drawn, 64).tobytes())
    assert total.hexdigest()[:32] == "9d486ede445bf94f7d63a936df13f2c0"


def test_the_usual_kinds_are_what_is_drawn_when_nothing_is_said() -> None:
    for index in range(50):
        usual = scene(3, index, "train")
        assert (
            usual == scene(3, index, "train", USUAL_KINDS) == scene(3, index, "train", KINDS[1::-1])
        )
        assert usual[0].kind in USUAL_KINDS


def test_every_kind_is_equally_frequent() -> None:
    drawn = [scene(3, index, "train", KINDS)[0].kind for index in range(800)]
    assert all(150 < drawn.count(kind) < 250 for kind in KINDS)


@given(seeds, indices, splits, kinds)
@settings(max_examples=200)
def test_splits_keep_their_promise(seed: int, index: int, split: Split, kind: Kind) -> None:
    drawn, caption = scene(seed, index, split, (kind,))
    assert (drawn, caption) == scene(seed, index, split, (kind,))
    assert drawn.kind == kind
    assert is_unseen(drawn) == (split == "unseen")
    if split != "unseen":
        assert is_held_out(caption) == (split == "heldout")
    assert Scene.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


@given(seeds, indices, splits, kinds)
@settings(max_examples=150)
def test_every_caption_is_read_back_as_its_scene(
    seed: int, index: int, split: Split, kind: Kind
) -> None:
    drawn, caption = scene(seed, index, split, (kind,))
    assert caption in all_captions(drawn)
    for text in all_captions(drawn):
        assert understood(text) == asked(drawn)
        assert text == text.lower()
        assert len(text.replace(",", " ,").split()) <= 30  # of CLIP's 32 tokens, two are taken


Understood = tuple[str, str | None, list[tuple[str, str]], str | None]


def asked(drawn: Scene) -> Understood:
    """Background, word, looks (of a sign its colour), layout where captions name it."""
    if drawn.sign is not None:
        return drawn.background, drawn.sign.word, [(drawn.sign.colour, "")], None
    looks = [item.combination for item in drawn.objects]
    return drawn.background, None, looks, None if drawn.layout == "group" else drawn.layout


def understood(text: str) -> Understood:
    """A caption read back word by word, knowing the vocabulary and none of the phrasings."""
    words = text.replace(",", "").replace('"', "").split()
    (ground,) = (word for word in words if word in vocabulary.BACKGROUNDS)
    colours = [word for word in words if word in vocabulary.COLOURS]
    written = [word for word in words if word in vocabulary.WORDS]
    if written:
        (word,), (colour,) = written, colours
        return ground, word, [(colour, "")], None
    plural = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
    shapes = [plural.get(w, w) for w in words if w in plural or w in vocabulary.SHAPES]
    number = [n for n, name in vocabulary.COUNTS.items() if name in words]
    looks = list(zip(colours, shapes, strict=True)) * (number[0] if number else 1)
    layout = [name for name in vocabulary.LAYOUTS if name in words]
    assert bool(number) == any(word in plural for word in words)
    return ground, None, looks, (*layout, None)[0]


@given(seeds, indices, splits)
@example(30080, 211810, "unseen")  # a cross above a triangle
@settings(max_examples=150)
def test_crowds_lie_inside_apart_and_as_laid_out(seed: int, index: int, split: Split) -> None:
    drawn, _ = scene(seed, index, split, ("crowd",))
    assert len(drawn.objects) in vocabulary.COUNTS
    assert drawn.counted or len({o.combination for o in drawn.objects}) == len(drawn.objects)
    boxes = []
    for item in drawn.objects:
        left, right, up, down = (r * item.radius for r in vocabulary.shape_extent(item.shape))
        boxes.append((item.x - left, item.y - up, item.x + right, item.y + down))
        assert min(boxes[-1][:2]) >= MARGIN - 1e-3
        assert max(boxes[-1][2:]) <= 1 - MARGIN + 1e-3
    for one, other in ((a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
        gap = [max(one[i], other[i]) - min(one[i + 2], other[i + 2]) for i in (0, 1)]
        assert max(gap) >= 0.04
    places = [(item.x, item.y) for item in drawn.objects]
    spans = [max(axis) - min(axis) for axis in zip(*places, strict=True)]
    if drawn.layout == "group":
        assert max(spans) < 2 * min(spans)
    else:
        along = 0 if drawn.layout == "row" else 1
        assert spans[along] > 10 * spans[1 - along]
        assert places == sorted(places, key=lambda place: place[along])


@given(seeds, indices, splits)
@settings(max_examples=100)
def test_words_lie_inside(seed: int, index: int, split: Split) -> None:
    drawn, _ = scene(seed, index, split, ("sign",))
    assert drawn.sign is not None
    written = (render(drawn, 128) != vocabulary.BACKGROUNDS[drawn.background]).any(2)
    for axis in (0, 1):
        where = np.flatnonzero(written.any(axis))
        assert where[0] >= MARGIN * 128 - 1
        assert where[-1] <= (1 - MARGIN) * 128
    assert drawn.sign.height >= 0.115


def test_every_word_and_count_is_drawn_and_none_that_is_kept_out() -> None:
    drawn = [scene(3, index, "train", NEW)[0] for index in range(2500)]
    words = {s.sign.word for s in drawn if s.sign is not None}
    assert words == set(vocabulary.WORDS) - vocabulary.UNSEEN_WORDS
    crowds = [s for s in drawn if s.sign is None]
    assert {len(s.objects) for s in crowds} == set(vocabulary.COUNTS)
    assert {s.layout for s in crowds} == set(vocabulary.LAYOUTS)
    counted = {(len(s.objects), s.objects[0].colour) for s in crowds if s.counted}
    everything = {(n, colour) for n in vocabulary.COUNTS for colour in vocabulary.COLOURS}
    assert counted == everything - vocabulary.UNSEEN_COUNTS


def test_unseen_words_have_seen_letters_and_no_word_means_something_else() -> None:
    seen = set(vocabulary.WORDS) - vocabulary.UNSEEN_WORDS
    assert set(vocabulary.UNSEEN_WORDS) < set(vocabulary.WORDS)
    assert set("".join(seen)) == set(lettering.LETTERS)
    others = {*vocabulary.COLOURS, *vocabulary.BACKGROUNDS, *vocabulary.SHAPES, *vocabulary.SIZES}
    assert not others & set(vocabulary.WORDS)
    assert len(set(vocabulary.WORDS)) == len(vocabulary.WORDS)


@pytest.mark.parametrize("side", [128, 64])
def test_small_letters_are_the_average_of_large_ones(side: int) -> None:
    worst = 0.0
    for index in range(12):
        drawn, _ = scene(11, index, "train", ("sign",))
        large = cv2.resize(render(drawn, 1024), (side, side), interpolation=cv2.INTER_AREA)
        worst = max(worst, float(np.abs(render(drawn, side).astype(int) - large).max()))
    assert worst <= 24


@pytest.mark.parametrize("letter", lettering.LETTERS)
def test_the_extent_belongs_to_the_letter(letter: str) -> None:
    at = np.arange(-200, 201, dtype=np.float32)
    cover = lettering.letter_coverage(letter, at, at, 100)
    rows, columns = (np.flatnonzero(cover.max(axis) > 0.5) - 200 for axis in (1, 0))
    found = np.array([columns[0], columns[-1], rows[0], rows[-1]]) / 100
    assert found == pytest.approx(lettering.letter_extent(letter), abs=0.02)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("crowd", {"layout": None}),
        ("crowd", {"layout": "heap"}),
        ("sign", {"sign": None}),
        ("sign", {"sign": {"word": "cat"}}),
        ("sign", {"sign": {"word": "dragon", "colour": "red", "x": 0.5, "y": 0.5, "height": 0.2}}),
    ],
)
def test_truth_outside_the_vocabulary_is_refused(kind: Kind, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="scene"):
        Scene.from_json(scene(0, 0, "train", (kind,))[0].to_json() | change)


def test_the_corpus_says_which_kinds_it_holds(tmp_path: Path) -> None:
    write_scenes(tmp_path / "usual", 3, 0, "folder", "train", size=16, kinds=("pair", "single"))
    assert "kinds" not in json.loads((tmp_path / "usual" / "scenes.json").read_text())
    write_scenes(tmp_path / "more", 6, 0, "folder", "train", size=16, kinds=("sign", "crowd"))
    assert json.loads((tmp_path / "more" / "scenes.json").read_text())["kinds"] == ["crowd", "sign"]
    truths = [json.loads(p.read_text()) for p in sorted((tmp_path / "more").glob("00000/*.json"))]
    assert [Scene.from_json(t["scene"]).kind for t in truths] == [
        scene(0, index, "train", NEW)[0].kind for index in range(6)
    ]
    with pytest.raises(UserError, match=r"settings \(.*kinds.*\)"):
        write_scenes(tmp_path / "more", 6, 0, "folder", "train", size=16)


@pytest.mark.parametrize("wrong", [(), ("single", "triple")])
def test_kinds_that_are_none_are_refused(wrong: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kinds: got .*, expected some of single, pair"):
        write_scenes(tmp_path / "out", 3, 0, "folder", "train", kinds=wrong)
